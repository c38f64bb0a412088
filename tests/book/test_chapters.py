"""Habits of a chapter: plain Markdown that reads the same on Colab, short cells, one seed."""

import ast
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from lib.book import notebooks, repository

ROOT = Path(__file__).resolve().parents[2]
NAMES = notebooks.chapters(ROOT)
ROLE = re.compile(r"\{[\w:.-]+\}`")


@pytest.fixture(scope="module", params=NAMES)
def chapter(request):
    """Each chapter as a notebook."""
    return notebooks.read(ROOT / "nbs" / f"{request.param}.md")


def cells(notebook, kind):
    """Sources of the cells of one kind."""
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def test_prose_shows_no_directive_role_or_broken_link_on_colab(chapter):
    for source in cells(chapter, "markdown"):
        assert not ROLE.search(source), source
        assert ":::" not in source, source
        for token in MarkdownIt().parse(source):
            assert token.type != "fence" or not token.info.startswith("{"), source
            for child in token.children or []:
                if child.type == "image":
                    pytest.fail(f"a picture by path is missing on Colab: {source}")
                if child.type == "link_open" and not child.attrs["href"].startswith("http"):
                    assert re.fullmatch(r"#[\w-]+|[\w-]+\.md", child.attrs["href"]), source


def test_first_code_cell_installs_the_package_only_where_it_is_missing(chapter):
    first = next(cell for cell in chapter.cells if cell.cell_type == "code")
    assert "remove-cell" in first.metadata.tags
    assert 'find_spec("lib") is None' in first.source
    assert f"git+{repository.address(ROOT)}" in first.source
    for name in ("torch", "numpy", "--upgrade", "-U"):  # Colab keeps its own
        assert name not in first.source


def shown(cell):
    """Whether a reader of the book sees the code of a cell without unfolding it."""
    folded = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
    return cell.cell_type == "code" and not folded & set(cell.metadata.get("tags", []))


def test_cells_are_short(chapter):
    assert max(len(source.splitlines()) for source in cells(chapter, "code")) <= 30
    lengths = sorted(len(cell.source.splitlines()) for cell in chapter.cells if shown(cell))
    assert lengths[-1] <= 25
    assert lengths[len(lengths) // 2] <= 13


def test_folded_cells_say_on_colab_what_they_hold(chapter):
    """Colab knows nothing of the book's tags; it folds a form, and shows its title."""
    for cell in chapter.cells:
        if {"hide-input", "hide-cell"} & set(cell.metadata.get("tags", [])):
            assert cell.metadata.cellView == "form"
            assert cell.source.startswith("# @title ")


def test_size_of_the_page(chapter):
    prose = "\n".join(cells(chapter, "markdown"))
    words = len(re.sub(r"\$\$.*?\$\$", "", prose, flags=re.S).split())
    assert 1500 <= words <= 4000
    assert 25 <= len(cells(chapter, "markdown")) + sum(map(shown, chapter.cells)) <= 60


def test_anatomy(chapter):
    text = "\n".join(cells(chapter, "markdown"))
    code = "\n".join(cells(chapter, "code"))
    for part in ("**You will be able to.**", "**Before you start.**", "**It breaks.**"):
        assert part in text
    for section in ("## Summary", "## Exercises", "## What the sources left open"):
        assert section in text
    assert 3 <= text.count("### Exercise") <= 5
    assert code.count("start(seed=") == 1
    assert "claims_table()" in code
    assert "provenance()" in code


def test_solutions_are_hidden_in_the_book_and_folded_on_colab(chapter):
    solutions = [c for c in chapter.cells if c.source.startswith("# @title Solution")]
    assert len(solutions) >= 3
    for cell in solutions:
        assert cell.metadata.cellView == "form"
        assert "hide-cell" in cell.metadata.tags


def test_nothing_is_drawn_without_words(chapter):
    """Figures go through `figure` or `slides`, which insist on alternative text and caption."""
    code = "\n".join(cells(chapter, "code"))
    assert "plt.show" not in code
    drawn = len(re.findall(r"plt\.(subplots|figure)\(", code))
    called = sum(
        isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("figure", "slides")
        for node in ast.walk(ast.parse(code))
    )
    assert called >= drawn >= 1


def test_code_is_the_tested_code(chapter):
    """A page may define small functions for itself; classes belong to lib."""
    for source in cells(chapter, "code"):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef), source
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 15, source
