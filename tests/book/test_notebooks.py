"""The pairs stay in step, and a run is kept exactly as long as nothing that it rests on changed."""

import shutil
from pathlib import Path

import nbformat
import pytest

from lib.book import notebooks

NAMES = sorted(p.stem for p in (Path(__file__).resolve().parents[2] / "nbs").glob("*.md"))
CHAPTER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---

# Title

```{code-cell} ipython3
:tags: [hide-cell]

import lib.shared
```

```{code-cell} ipython3
x = 1
```

```{code-cell} ipython3
x = 1
```
"""


@pytest.fixture
def tree(tmp_path):
    """A checkout with one chapter that uses one module, which uses another."""
    for path, text in {
        "constraints.txt": "torch==1\n",
        "lib/__init__.py": "",
        "lib/shared.py": "def f():\n    from .deep import value\n",
        "lib/deep.py": "value = 1\n",
        "lib/other.py": "",
        "nbs/page.md": CHAPTER,
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".md", ".py", ".ipynb"])
def test_pair_is_in_step_whatever_the_clock_says(root, name, suffix):
    """Each of the three files gives back the other two, to the letter."""
    for path, text in notebooks.derived((root / "nbs" / name).with_suffix(suffix)).items():
        assert path.read_text() == text, f"{path.name} differs: run `make sync`"


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_has_no_outputs_and_asks_for_a_gpu(root, name):
    notebook = nbformat.read(root / "nbs" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.accelerator == "GPU"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_cell_ids_are_stable_unique_and_follow_the_content(tree):
    path = tree / "nbs" / "page.md"
    first = [cell["id"] for cell in notebooks.read(path).cells]
    assert first == [cell["id"] for cell in notebooks.read(path).cells]
    assert len(set(first)) == len(first)
    path.write_text(path.read_text().replace("# Title", "# Another title"))
    second = [cell["id"] for cell in notebooks.read(path).cells]
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True, True, True]


def test_sync_writes_what_differs_and_nothing_else(tree):
    assert {p.suffix for p in notebooks.sync(tree)} >= {".py", ".ipynb"}
    assert notebooks.sync(tree) == []
    script = tree / "nbs" / "page.py"
    script.write_text(script.read_text().replace("x = 1", "x = 2"))
    notebooks.sync(tree, "py")
    assert "x = 2" in (tree / "nbs" / "page.md").read_text()


def test_imports_are_followed_through_functions_and_relative_names(tree):
    found = {p.name for p in notebooks.affecting(tree, "import lib.shared")}
    assert found == {"__init__.py", "shared.py", "deep.py"}
    assert notebooks.affecting(tree, "import os") == set()
    named = notebooks.affecting(tree, "from lib import other\n%matplotlib inline")
    assert {p.name for p in named} == {"__init__.py", "other.py"}


def change(tree, path, old, new):
    """Replace text in a file of the tree."""
    file = tree / path
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("path", "old", "new", "changes"),
    [
        ("nbs/page.md", "x = 1", "x = 2", True),
        ("nbs/page.md", "[hide-cell]", "[hide-input]", True),
        ("nbs/page.md", "# Title", "# Other words", False),
        ("lib/deep.py", "1", "2", True),
        ("lib/__init__.py", "", "y = 1", True),
        ("lib/other.py", "", "y = 1", False),
        ("constraints.txt", "torch==1", "torch==2", True),
    ],
)
def test_key_changes_with_all_that_can_change_the_outputs(tree, path, old, new, changes):
    before = notebooks.key(tree, "page")
    change(tree, path, old, new)
    assert (notebooks.key(tree, "page") != before) == changes


@pytest.fixture(scope="module")
def executed(tmp_path_factory, root):
    """A good and a failing chapter, run."""
    tree = tmp_path_factory.mktemp("executed")
    (tree / "nbs").mkdir()
    shutil.copy(root / "constraints.txt", tree)
    where = "import os\nassert set(os.listdir('.')) == {'good.ipynb', 'log'}, os.listdir('.')\n"
    (tree / "nbs" / "good.md").write_text(CHAPTER.replace("import lib.shared", where))
    bad = CHAPTER.replace(
        "x = 1\n```\n\n", "def broken():\n    return 1 / 0\n\nbroken()\n```\n\n", 1
    )
    (tree / "nbs" / "bad.md").write_text(bad.replace("import lib.shared", "import time"))
    return tree, {run.name: run for run in notebooks.execute(tree, ["bad", "good"])}


def test_a_chapter_runs_in_an_empty_folder_outside_the_checkout(executed):
    _, runs = executed
    assert runs["good"].passed, runs["good"].log
    assert 0 < runs["good"].seconds < runs["good"].one_core_seconds + 20
    assert runs["good"].one_core_seconds > 0.1


def test_a_failing_chapter_says_where_and_why(executed):
    _, runs = executed
    assert not runs["bad"].passed
    for words in ("ZeroDivisionError: division by zero", "return 1 / 0", "broken()"):
        assert words in runs["bad"].log


def test_a_failed_run_is_never_taken_for_a_good_one(executed):
    tree, _ = executed
    assert notebooks.stale(tree, ["bad", "good"]) == ["bad"]
    change(tree, "nbs/good.md", "x = 1", "x = 3")
    assert notebooks.stale(tree, ["bad", "good"]) == ["bad", "good"]
