"""Figures that can be read aloud, and figures behind a slider."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from lib.book.display import show
from lib.checks import reject


def figure(fig: Any, *, alt: str, caption: str) -> None:
    """Show a matplotlib figure once, with its alternative text and caption, and close it.

    Args:
        fig: the figure.
        alt: what a reader who cannot see it needs to know; a full sentence.
        caption: what to look at; Markdown with ``$`` maths.

    Raises:
        ValueError: alternative text or caption is missing, or says nothing.
    """
    _check_words(alt, caption)
    _show_image(_drawn(fig, bbox_inches="tight", pad_inches=0.05), alt, caption, {})


def slides(
    figs: Sequence[Any], labels: Sequence[str], *, alt: str, caption: str, columns: int = 4
) -> None:
    """Show figures of one size as one: a sheet of all of them, and in the book a slider.

    The book moves the sheet behind a window, by a slider that the keyboard operates; without
    scripts, in Jupyter and on Colab the sheet stands as it is.

    Args:
        figs: matplotlib figures.
        labels: what to call each, shown and read aloud, for example "t = 0.3".
        alt: of the whole sheet, as in `figure`.
        caption: as in `figure`.
        columns: figures in one row of the sheet.

    Raises:
        ValueError: as in `figure`; fewer than two figures, figures of different sizes, another
            number of labels.
    """
    from PIL import Image

    _check_words(alt, caption)
    images = [_drawn(fig) for fig in figs]
    sizes = {image.size for image in images}
    if len(images) < 2 or len(sizes) > 1:
        reject("figs", "two figures or more, of one size", sorted(sizes))
    if len(labels) != len(images) or not all(labels):
        reject("labels", f"{len(images)} of them", list(labels))
    (width, height), rows = sizes.pop(), -(-len(images) // columns)
    sheet = Image.new("RGB", (width * columns, height * rows), "white")
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * width, k // columns * height))
    _show_image(sheet, alt, caption, {"slides": {"labels": list(labels), "columns": columns}})


def _check_words(alt: Any, caption: Any) -> None:
    if (
        not isinstance(alt, str)
        or len(alt.split()) < 6
        or re.match(r"(?i)(a |an |the )?(figure|plot|image)\b", alt)
    ):
        reject("alt", "a sentence saying what the figure shows", repr(alt))
    if not isinstance(caption, str) or len(caption.split()) < 4:
        reject("caption", "a sentence saying what to look at", repr(caption))


def _drawn(fig: Any, **options: Any) -> Any:
    """The pixels of a figure, which is closed."""
    import matplotlib.pyplot as plt
    from PIL import Image

    if not hasattr(fig, "savefig"):
        reject("fig", "a matplotlib figure", type(fig).__name__)
    raw = io.BytesIO()
    fig.savefig(raw, format="png", dpi=200, **options)
    plt.close(fig)
    return Image.open(raw).convert("RGB")


def _show_image(image: Any, alt: str, caption: str, more: dict[str, Any]) -> None:
    from PIL import Image

    small = io.BytesIO()  # 256 colours: a quarter of the bytes, no visible difference
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        small, format="png", optimize=True
    )
    width = image.width // 2  # two pixels for each CSS pixel: sharp on dense screens
    facts = {"alt": alt, "caption": caption, "width": width, **more}
    show(
        {"image/png": small.getvalue(), "text/plain": alt},
        {"image/png": {"width": width}, "figure": facts},
    )
    show({"text/markdown": f"*{caption}*", "text/plain": caption}, {"caption": True})
