"""The built book in a browser: no request leaves it, nothing overflows, everybody can read it."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.built
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = {"desktop": 1280, "phone": 390}
ROOT = Path(__file__).resolve().parents[2]
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")


@pytest.fixture(scope="module")
def site(html):
    """The built book behind a local web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(html))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that looks up nothing by itself."""
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with playwright.sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()


def names():
    """Pages that a reader sees, as paths below the book."""
    chapters = [f"nbs/{p.stem}.html" for p in sorted((ROOT / "nbs").glob("*.md"))]
    return [f"book/{p.stem}.html" for p in sorted((ROOT / "book").glob("*.md"))] + chapters


def open_page(browser, address, width=1280, scheme="light"):
    """Open an address; the page and the addresses that it asked for."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", lambda r: r.status < 400 or problems.append(f"{r.status} {r.url}"))
    page.goto(address, wait_until="networkidle")
    return page, asked, problems


@pytest.mark.parametrize("name", names())
def test_page_asks_nobody_else_and_has_no_script_error(browser, site, name):
    page, asked, problems = open_page(browser, f"{site}/{name}")
    assert asked
    assert [url for url in asked if not url.startswith((site, "data:", "blob:"))] == []
    assert problems == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", names())
def test_page_has_no_accessibility_violation(browser, site, name, scheme):
    page, _, _ = open_page(browser, f"{site}/{name}", scheme=scheme)
    page.wait_for_function(f"document.documentElement.dataset.theme == '{scheme}'")
    found = axe.Axe().run(page).response["violations"]
    told = [(v["id"], v["impact"], [n["target"] for n in v["nodes"]][:3]) for v in found]
    assert told == []
    page.context.close()


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", names())
def test_page_never_scrolls_sideways(browser, site, name, width):
    page, _, _ = open_page(browser, f"{site}/{name}", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_first_page_leads_into_the_book(browser, site):
    page, _, problems = open_page(browser, f"{site}/index.html")
    assert page.url.endswith("/book/index.html")
    assert page.locator("article h1").count() == 1
    assert problems == []
    page.context.close()


def test_slider_is_moved_by_the_keyboard_and_shows_another_picture(browser, site):
    page, _, problems = open_page(browser, f"{site}/nbs/diffusion.html")
    figure = page.locator("figure.slides").first
    slider, name = figure.locator("input[type=range]"), figure.locator("output")
    window, sheet = figure.locator(".slides-window"), figure.locator("img")
    assert len(sheet.get_attribute("alt").split()) >= 6
    slider.focus()
    before, first = name.text_content(), window.screenshot()
    page.keyboard.press("End")
    assert name.text_content() != before
    assert slider.get_attribute("aria-valuetext") == name.text_content()
    assert window.screenshot() != first
    box, whole = window.bounding_box(), sheet.bounding_box()
    assert whole["width"] > 1.9 * box["width"]  # one column of two behind the window
    assert problems == []
    page.context.close()


def test_formulas_are_drawn_and_search_finds_a_chapter(browser, site):
    page, _, _ = open_page(browser, f"{site}/nbs/variational-inference.html")
    assert page.locator("mjx-container").count() > 20
    assert page.locator("mjx-merror").count() == 0
    page.goto(f"{site}/search.html?q=coordinate+ascent", wait_until="networkidle")
    page.wait_for_selector("#search-results li a")
    hits = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
    assert any("variational-inference" in hit for hit in hits)
    page.context.close()


def test_number_in_the_prose_jumps_to_its_claim(browser, site):
    page, _, _ = open_page(browser, f"{site}/nbs/variational-inference.html")
    link = page.locator("a.measured").first
    target = link.get_attribute("href")
    link.click()
    assert page.locator(target).get_attribute("class").find("claim") >= 0
    page.context.close()
