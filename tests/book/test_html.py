"""The built book, read as text: verdicts, seconds, words for pictures, links with an end."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

from lib.book import notebooks, repository
from lib.book.outputs import anchor
from lib.book.sphinx import unit_of_last_digit

pytestmark = pytest.mark.built
ROOT = Path(__file__).resolve().parents[2]
NAMES = notebooks.chapters(ROOT)
BUDGET = 150  # seconds on one core
PICTURES = 300_000  # bytes of pictures on one page


@pytest.fixture(scope="module")
def pages(html):
    """Every page of the book, parsed."""
    paths = [p for p in html.rglob("*.html") if "_static" not in p.parts]
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in paths}


@pytest.mark.parametrize("name", NAMES)
def test_chapter_passed_nbmake_on_what_is_in_the_tree(name):
    run = notebooks.last_run(ROOT, name)
    assert run.passed, run.log
    assert notebooks.stale(ROOT, [name]) == []
    assert "1 passed" in run.log


@pytest.mark.parametrize("name", NAMES)
def test_chapter_keeps_its_budget_on_one_core(name):
    run = notebooks.last_run(ROOT, name)
    assert 0 < run.one_core_seconds <= BUDGET


@pytest.mark.parametrize("name", NAMES)
def test_page_shows_the_outputs_of_that_very_run(name, html):
    executed = nbformat.read(ROOT / "_build" / "executed" / f"{name}.ipynb", as_version=4)
    page = (html / "nbs" / f"{name}.html").read_text()
    text = BeautifulSoup(page, "html.parser").get_text()
    outputs = [o for c in executed.cells if c.cell_type == "code" for o in c.outputs]
    claims = [o for o in outputs if "claim" in o.get("metadata", {})]
    assert len(claims) >= 10
    for output in claims:
        assert output.data["text/plain"] in text
    seconds = notebooks.cell_seconds(executed)
    assert f"ran in {seconds:.0f} s" in text
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_in_the_source_are_those_of_the_run(name):
    """The book prints what was measured; who reads the raw notebook should see nearly the same."""
    text = (ROOT / "nbs" / f"{name}.md").read_text()
    executed = nbformat.read(ROOT / "_build" / "executed" / f"{name}.ipynb", as_version=4)
    outputs = [o for c in executed.cells if c.cell_type == "code" for o in c.outputs]
    made = [o.metadata["claim"] for o in outputs if "claim" in o.get("metadata", {})]
    measured = {anchor(claim["name"]): claim["value"] for claim in made}
    found = 0
    for written, target in re.findall(r"\[(-?[\d.]+(?:e-?\d+)?)\]\(#([\w-]+)\)", text):
        off = abs(float(written) - measured[target])
        assert off <= 2 * unit_of_last_digit(written) + 0.1 * abs(measured[target]), target
        found += 1
    assert found >= 3


def test_every_picture_has_words_and_is_light(pages):
    count = 0
    for path, page in pages.items():
        weight = 0
        for image in page.select("article img"):
            alt = image.get("alt", "")
            assert len(alt.split()) >= 6, f"{path.name}: {image}"
            assert "_images" not in alt
            weight += (path.parent / image["src"]).resolve().stat().st_size
            count += 1
        assert weight <= PICTURES, f"{path.name}: {weight} bytes of pictures"
    assert count >= 4


def test_chapter_opens_on_colab_as_a_notebook(pages, html):
    for name in NAMES:
        page = pages[html / "nbs" / f"{name}.html"]
        path = repository.address(ROOT).removeprefix("https://github.com/")
        wanted = f"https://colab.research.google.com/github/{path}/blob/main/nbs/{name}.ipynb"
        links = [a.get("href") for a in page.select("a")]
        assert links.count(wanted) >= 2, "button of the theme, link below the title"
        assert (ROOT / "nbs" / f"{name}.ipynb").exists()
        assert f"{repository.address(ROOT)}/edit/main/nbs/{name}.md" in links


def test_internal_links_lead_somewhere(pages):
    ids = {path: {tag["id"] for tag in page.select("[id]")} for path, page in pages.items()}
    for path, page in pages.items():
        for link in page.select("a[href]"):
            parts = urlsplit(link["href"])
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link['href']}"
            if parts.fragment and target.suffix == ".html" and parts.fragment != "top":
                assert unquote(parts.fragment) in ids[target], f"{path.name}: {link['href']}"


def test_nothing_is_loaded_from_elsewhere(html, pages):
    for path, page in pages.items():
        for tag in page.select("script[src], link[rel=stylesheet], img[src], iframe[src]"):
            address = tag.get("src") or tag.get("href")
            assert not urlsplit(address).netloc, f"{path.name}: {address}"
        inline = " ".join(tag.get_text() for tag in page.select("script"))
        assert "unpkg" not in inline
        assert "cdn" not in inline.lower()


def test_mathjax_is_loaded_only_where_there_are_formulas(pages):
    for path, page in pages.items():
        loads = any("mathjax" in (tag.get("src") or "") for tag in page.select("script"))
        assert loads == bool(page.select(".math")), path.name


def test_search_field_stands_once(pages):
    for path, page in pages.items():
        fields = ".bd-sidebar-primary .search-button-field, .bd-header .search-button-field"
        shown = page.select(fields)
        if page.select(".bd-sidebar-primary"):
            assert len(shown) == 1, path.name


def test_no_markup_is_left_over(pages):
    for path, page in pages.items():
        article = page.select_one("article")
        for code in article.select("pre, code") if article else []:
            code.decompose()
        text = article.get_text() if article else ""
        assert not re.search(r"\{[\w:-]+\}`|:::|\$\$|^\|.*\|$", text, re.M), path.name


def test_api_reference_shows_shapes_and_is_linked_from_the_chapters(pages, html):
    api = pages[html / "book" / "api.html"]
    assert api.select_one("#lib\\.vi\\.ascent\\.coordinate_ascent")
    text = api.get_text()
    assert "Float" in text or "Tensor" in text
    for name in NAMES:
        links = [a["href"] for a in pages[html / "nbs" / f"{name}.html"].select("article a[href]")]
        assert any("api.html#lib." in link for link in links)


def test_every_chapter_has_its_references(pages, html):
    for name in NAMES:
        page = pages[html / "nbs" / f"{name}.html"]
        assert len(page.select("#references ul.references > li")) >= 3
