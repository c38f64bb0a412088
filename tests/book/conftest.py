"""A small book to build and break, and the built one to look at."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRONT = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---

# {title}

{prose}

```{{code-cell}} ipython3
{code}
```
"""


@pytest.fixture(scope="session")
def root():
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def html():
    """The built book."""
    folder = ROOT / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail("there is no built book: run `make book`")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A book of two tiny chapters on a tiny `lib`, with the real configuration."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("_config.yml", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n  - file: nbs/one\n  - file: nbs/two\n"
    )
    for name in ("assets", "templates"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name)
    shutil.copy(ROOT / "book" / "references.bib", folder / "book" / "references.bib")
    (folder / "book" / "index.md").write_text("# Small\n\n:::{whole-book} claims\n:::\n")
    for path, text in {
        "lib/__init__.py": "",
        "lib/shared.py": "from lib.deep import value\n",
        "lib/deep.py": "value = 1\n",
        "lib/alone.py": "",
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    (folder / "nbs").mkdir()
    claim = 'from lib.book import claim\nclaim("half", {}, low=0, high=1, because="it is")'
    _write(folder, "one", "One half is [0.9](#half).", claim.format("1 / 2"))
    _write(folder, "two", "Nothing.", "import importlib\nx = 0\nassert x == 0")
    return folder


@pytest.fixture(scope="session")
def write():
    """Write a chapter of the small book: ``write(folder, name, prose, code)``."""
    return _write


def _write(folder, name, prose, code):
    """Write a chapter of the small book."""
    text = FRONT.format(title=name.title(), prose=prose, code=code)
    (folder / "nbs" / f"{name}.md").write_text(text)
