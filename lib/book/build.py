"""From the chapters to ``_build/html``: run what needs it, hand the outputs to Sphinx, render."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

from lib.book import notebooks


def build(root: Path) -> int:
    """Run the chapters that need it, seed the cache with their outputs, render the book.

    Returns:
        0 when every chapter passed and Sphinx had nothing to warn of, else 1.
    """
    begun = time.monotonic()
    names = notebooks.chapters(root)
    todo = notebooks.stale(root, names)
    print(f"{len(names)} chapters: {len(names) - len(todo)} up to date, ", end="", flush=True)
    if not todo:
        print("0 to run", flush=True)
    elif not all(run.passed for run in notebooks.execute(root, todo)):
        print("a chapter failed; the book is not rendered", flush=True)
        return 1
    seed_cache(root, names)
    print("rendering the book", flush=True)
    status = render(root)
    done = "built _build/html/index.html" if status == 0 else "FAILED"
    print(f"{done} after {time.monotonic() - begun:.0f} s", flush=True)
    return status


def seed_cache(root: Path, names: list[str]) -> None:
    """Fill jupyter-cache, from nothing, with the outputs of the kept runs.

    The entry is the notebook that Sphinx reads from the .md, with the outputs of the run laid
    in; jupyter-cache matches on code, code metadata and kernel, so Sphinx finds each of them.
    """
    folder = root / "_build" / ".jupyter_cache"
    shutil.rmtree(folder, ignore_errors=True)
    cache = get_cache(str(folder))
    for name in names:
        page = notebooks.read(root / "nbs" / f"{name}.md")
        executed = nbformat.read(root / "_build" / "executed" / f"{name}.ipynb", as_version=4)
        outputs = [cell for cell in executed.cells if cell.cell_type == "code"]
        for cell, ran in zip(
            (cell for cell in page.cells if cell.cell_type == "code"), outputs, strict=True
        ):
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
        run = notebooks.last_run(root, name)
        cache.cache_notebook_bundle(
            CacheBundleIn(
                page, str(root / "nbs" / f"{name}.md"), data={"execution_seconds": run.seconds}
            ),
            check_validity=False,
            overwrite=True,
        )


def forget_stale_pages(root: Path) -> None:
    """Render from nothing when more than chapters changed: Sphinx tracks neither code nor moves."""
    digest = hashlib.sha256()
    paths = [path for name in ("lib", "book") for path in (root / name).rglob("*.*")]
    for path in [*sorted(paths), root / "_config.yml", root / "_toc.yml"]:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    stamp = root / "_build" / "rendered-from"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        for folder in (".doctrees", "html", "jupyter_execute"):
            shutil.rmtree(root / "_build" / folder, ignore_errors=True)
    stamp.write_text(digest.hexdigest())


def render(root: Path) -> int:
    """Call Jupyter Book: every warning is an error, every broken reference a warning."""
    forget_stale_pages(root)
    command = ["build", ".", "--path-output", ".", "-W", "-n", "--keep-going"]
    result = subprocess.run(
        [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", *command],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (root / "_build" / "render.log").write_text(result.stdout)
    if result.returncode == 0 and not (root / "_build" / "html" / "index.html").exists():
        print("Jupyter Book ended without an error and without a book", flush=True)
        return 1
    if result.returncode:
        lines = result.stdout.splitlines()
        told = [line for line in lines if "WARNING" in line or "ERROR" in line]
        print("\n".join(told or lines[-40:]), flush=True)
        print("the whole log: _build/render.log", flush=True)
    return int(result.returncode != 0)
