"""The notebooks of the book: kept in step as pairs, and executed exactly once with nbmake.

``nbs/NAME.md`` is what one edits; ``NAME.py`` and ``NAME.ipynb`` are derived from it. A run is
kept in ``_build/executed`` under a key of everything that can change its outputs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import jupytext
import nbformat
from jupytext.config import load_jupytext_config
from nbformat import NotebookNode

CELL_SECONDS = 600  # nbmake stops a cell that runs longer


# ------------------------------------------------------------------------------- pairs


def chapters(root: Path) -> list[str]:
    """Names of the chapters: every ``nbs/NAME.md``, sorted."""
    return sorted(path.stem for path in (root / "nbs").glob("*.md"))


def read(path: Path) -> NotebookNode:
    """Read a chapter in any of its three formats, without outputs, with cell ids from content."""
    notebook = jupytext.read(path, config=load_jupytext_config(str(path)))
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata.pop("jupytext", None)  # says which of the three it was read from
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\0{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def derived(path: Path) -> dict[Path, str]:
    """The texts of a chapter's three files, all made from the one at ``path``."""
    notebook = read(path)
    config = load_jupytext_config(str(path))
    texts = {
        path.with_suffix(suffix): jupytext.writes(notebook, fmt=fmt, config=config)
        for suffix, fmt in ((".md", "md:myst"), (".py", "py:percent"))
    }
    texts[path.with_suffix(".ipynb")] = nbformat.writes(read(path)) + "\n"
    return texts


def sync(root: Path, source: str = "md") -> list[Path]:
    """Write each chapter's pair from its ``source`` (md, py or ipynb); the files that changed."""
    changed = []
    for path in sorted((root / "nbs").glob(f"*.{source}")):
        for target, text in derived(path).items():
            if not target.exists() or target.read_text() != text:
                target.write_text(text)
                changed.append(target)
    return changed


# --------------------------------------------------------------------------- invalidation


def imported(source: str, package: str = "") -> Iterator[str]:
    """Dotted names that a Python text may import, relative ones resolved against ``package``."""
    source = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)  # IPython lines
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents * bool(node.level), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def affecting(root: Path, source: str) -> set[Path]:
    """Files of ``lib`` that can change what ``source`` computes: its imports, transitively."""
    found: set[Path] = set()
    waiting = list(imported(source))
    while waiting:
        parts = waiting.pop().split(".")
        if parts[0] != "lib":
            continue
        for end in range(1, len(parts) + 1):
            folder = root.joinpath(*parts[:end])
            for path in (folder / "__init__.py", folder.with_suffix(".py")):
                if path.is_file() and path not in found:
                    found.add(path)
                    package = ".".join(path.relative_to(root).parts[:-1])
                    waiting += imported(path.read_text(), package)
                    data = (p for p in path.parent.iterdir() if p.suffix in {".mplstyle", ".json"})
                    found.update(data)
    return found


def key(root: Path, name: str) -> str:
    """Digest of all that can change the outputs of a chapter: its code, `lib`, the lock, Python.

    Prose is left out: a change of wording renders the page again without running it.
    """
    code = [c for c in read(root / "nbs" / f"{name}.md").cells if c.cell_type == "code"]
    source = "\n".join(cell.source for cell in code)
    digest = hashlib.sha256(f"{platform.python_version()}\0".encode())
    digest.update(json.dumps([[c.source, c.metadata] for c in code], sort_keys=True).encode())
    for path in [root / "constraints.txt", *sorted(affecting(root, source))]:
        digest.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------ execution


@dataclass(frozen=True)
class Run:
    """One execution of a chapter.

    Attributes:
        name: the chapter.
        key: digest of what it ran from.
        passed: nbmake's verdict.
        seconds: sum over the cells, from nbmake's timing.
        one_core_seconds: processor time of the whole run, with the start of the kernel.
        threads: torch threads that it was given.
        cpu: processor.
        log: what pytest printed.
    """

    name: str
    key: str
    passed: bool
    seconds: float
    one_core_seconds: float
    threads: int
    cpu: str
    log: str


def last_run(root: Path, name: str) -> Run | None:
    """The kept run of a chapter, whatever it ran from."""
    path = root / "_build" / "executed" / f"{name}.json"
    try:
        return Run(**json.loads(path.read_text()))
    except (FileNotFoundError, TypeError, ValueError):  # none, or of another version of this file
        return None


def stale(root: Path, names: Iterable[str]) -> list[str]:
    """The chapters whose last good run does not fit what is in the tree now."""
    out = []
    for name in names:
        run = last_run(root, name)
        kept = (root / "_build" / "executed" / f"{name}.ipynb").exists()
        if run is None or not kept or not run.passed or run.key != key(root, name):
            out.append(name)
    return out


def execute(root: Path, names: list[str], workers: int | None = None) -> list[Run]:
    """Run chapters with nbmake, several at a time, torch threads shared out; say what happens.

    Args:
        root: the checkout.
        names: chapters to run, each exactly once.
        workers: how many at a time; by default one for each core.

    Returns:
        One `Run` each; its notebook and log lie in ``_build/executed``.
    """
    from lib.book.page import device_name

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = max(1, min(workers or cores, len(names)))
    threads = max(1, cores // workers)
    lock, cpu = threading.Lock(), device_name()
    print(f"{len(names)} to run, {workers} at a time, {threads} threads each", flush=True)

    def one(name: str) -> Run:
        begun = time.monotonic()
        with lock:
            print(f"  {datetime.now():%H:%M:%S}  {name}: running", flush=True)
        run = _execute(root, name, threads, cpu)
        with lock:
            verdict = "passed" if run.passed else "FAILED"
            took = f"{run.seconds:.1f} s in its cells, {time.monotonic() - begun:.1f} s in all"
            print(f"  {datetime.now():%H:%M:%S}  {name}: {verdict}, {took}", flush=True)
            if not run.passed:
                print(run.log, flush=True)
        return run

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, names))


def _execute(root: Path, name: str, threads: int, cpu: str) -> Run:
    made_from = key(root, name)
    store = root / "_build" / "executed"
    store.mkdir(parents=True, exist_ok=True)
    count = str(threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve each other on a busy machine
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not the user's
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTEST_ADDOPTS": "",
    }
    flags = ["--nbmake", "--overwrite", f"--nbmake-timeout={CELL_SECONDS}"]
    with tempfile.TemporaryDirectory() as folder:  # an empty folder outside the checkout
        copy = Path(folder) / f"{name}.ipynb"
        nbformat.write(read(root / "nbs" / f"{name}.md"), copy)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *flags,
            str(copy),
        ]
        log = Path(folder) / "log"
        with (
            log.open("w") as out,
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            _, status, usage = os.wait4(process.pid, 0)  # with the time of pytest and its kernel
            process.returncode = os.waitstatus_to_exitcode(status)
        printed = log.read_text()
        executed = nbformat.read(copy, as_version=4)
    run = Run(
        name=name,
        key=made_from,
        passed=process.returncode == 0,
        seconds=cell_seconds(executed),
        one_core_seconds=usage.ru_utime + usage.ru_stime,
        threads=threads,
        cpu=cpu,
        log=re.sub(r"\x1b\[[0-9;]*m", "", printed),  # a log is read in many places
    )
    # A failed run is kept too, for reading; `stale` never takes it for a good one.
    nbformat.write(executed, store / f"{name}.ipynb")
    (store / f"{name}.json").write_text(json.dumps(asdict(run), indent=1) + "\n")
    return run


def cell_seconds(notebook: NotebookNode) -> float:
    """Seconds spent in the cells of an executed notebook, from the timing that nbmake records."""
    total = 0.0
    for cell in notebook.cells:
        stamps = cell.metadata.get("execution", {})
        ends = [stamps.get("iopub.execute_input"), stamps.get("shell.execute_reply")]
        if all(ends):
            begin, end = (datetime.fromisoformat(stamp.replace("Z", "+00:00")) for stamp in ends)
            total += (end - begin).total_seconds()
    return total
