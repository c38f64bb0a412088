// A sheet of pictures becomes one picture with a slider: the sheet moves behind a window.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("figure.slides").forEach((figure) => {
    const image = figure.querySelector("img");
    const { labels, columns } = JSON.parse(figure.querySelector("script").textContent);
    const rows = Math.ceil(labels.length / columns);
    const view = document.createElement("div");
    view.className = "slides-window";
    const shape = () => {
      view.style.aspectRatio = `${image.naturalWidth / columns} / ${image.naturalHeight / rows}`;
    };
    image.complete ? shape() : image.addEventListener("load", shape);
    (image.closest("a") ?? image).replaceWith(view);
    view.append(image);
    image.removeAttribute("loading");
    image.style.cssText = `width: ${columns * 100}%; height: ${rows * 100}%`;
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: labels.length - 1, value: 0 });
    slider.setAttribute("aria-label", "Picture shown");
    const name = document.createElement("output");
    const show = () => {
      const k = Number(slider.value);
      image.style.left = `${-(k % columns) * 100}%`;
      image.style.top = `${-Math.floor(k / columns) * 100}%`;
      name.textContent = labels[k];
      slider.setAttribute("aria-valuetext", labels[k]);
    };
    slider.addEventListener("input", show);
    const bar = document.createElement("div");
    bar.className = "slides-bar";
    bar.append(slider, name);
    view.after(bar);
    show();
  });
});
