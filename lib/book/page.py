"""What a page calls while it runs: numbers that are asserted, figures that can be read aloud.

Everything works in Jupyter, on Colab and in a plain Python process; the book adds anchors and
captions when it renders the very same outputs.
"""

from __future__ import annotations

import ast
import datetime
import importlib.metadata
import inspect
import json
import math
import platform
import re
import subprocess
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from lib.book.display import show
from lib.checks import reject

Size = TypeVar("Size")
DISTRIBUTION = "seeing-through-models"
ROOT = Path(__file__).resolve().parents[2]


class ClaimFailed(AssertionError):
    """A number that the page states lies outside the interval that it gives."""


@dataclass(frozen=True)
class Claim:
    """A measured number and the interval that it has to lie in.

    Attributes:
        name: what is measured, in words; its slug is the anchor that prose links to.
        value: the number.
        low: smallest value that holds, or None.
        high: largest value that holds, or None.
        because: where the interval comes from: a closed form, an exact baseline, a seed spread.
        floor: what a perfect result would measure, or None.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    because: str
    floor: float | None = None

    @property
    def holds(self) -> bool:
        """True when the value is a finite number inside the interval."""
        return (
            math.isfinite(self.value)
            and (self.low is None or self.value >= self.low)
            and (self.high is None or self.value <= self.high)
        )

    @property
    def asked(self) -> str:
        """The interval in words."""
        if self.low is None:
            return f"at most {self.high:.4g}"
        if self.high is None:
            return f"at least {self.low:.4g}"
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        if half < 1e-3 * abs(middle):
            digits = min(17, max(5, 2 - math.floor(math.log10((half or 1e-16) / abs(middle)))))
            return f"{middle:.{digits}g} ± {half:.2g}"
        return f"{self.low:.4g} to {self.high:.4g}"

    @property
    def measured(self) -> str:
        """The value in as many digits as a reader can use."""
        return f"{self.value:.1e}" if 0 < abs(self.value) < 1e-4 else f"{self.value:.4g}"

    def __str__(self) -> str:
        mark = "✓" if self.holds else "✗"
        return f"{mark} {self.name}: {self.measured} (asked: {self.asked}; {self.because})"


@dataclass
class _Run:
    """The state of the page that is running: its seed, its clock, its claims."""

    seed: int | None
    started: float
    claims: dict[str, Claim]


_run = _Run(seed=None, started=time.monotonic(), claims={})


def start(seed: int) -> torch.Generator:
    """Begin a page: apply the figure style, seed every source of randomness, start the clock.

    Args:
        seed: the one seed of the page.

    Returns:
        A CPU generator with that seed, to be passed on as ``generator=``.
    """
    import matplotlib.pyplot as plt

    global _run
    plt.style.use(Path(__file__).with_name("book.mplstyle"))
    _run = _Run(seed=seed, started=time.monotonic(), claims={})
    return torch.manual_seed(seed)


def device() -> torch.device:
    """The accelerator of this machine if it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def scale(cpu: Size, gpu: Size) -> Size:
    """The size that suits this machine: ``cpu`` without an accelerator, ``gpu`` with one."""
    return cpu if device().type == "cpu" else gpu


def claim(
    name: str,
    value: Any,
    low: Any = None,
    high: Any = None,
    because: str = "",
) -> None:
    """State a number: assert its interval, print one line, keep it for prose and table.

    Prose refers to it as a link whose text is the number, ``[0.0448](#kl-gap)``; the book fills
    in the value of this run and fails when the printed one contradicts the interval.

    Args:
        name: what is measured; its slug is the anchor.
        value: a number, a tensor of one element, or a `lib.metrics.Measured`.
        low: smallest value that holds, a number or a tensor of one element.
        high: largest value that holds, likewise.
        because: the reason of the interval.

    Raises:
        ClaimFailed: the value is NaN or outside the interval (after the line is shown).
        ValueError: no interval, an empty one, no reason, or a value that is not one number.
    """
    measured = hasattr(value, "stderr")  # a lib.metrics.Measured, which knows its floor
    floor, raw = (value.floor, value.value) if measured else (None, value)
    number = _number("value", raw)
    low = None if low is None else _number("low", low)
    high = None if high is None else _number("high", high)
    if low is None and high is None:
        reject("low, high", "at least one of them", "neither")
    if any(end is not None and math.isnan(end) for end in (low, high)):
        reject("low, high", "numbers", f"{low}, {high}")
    if low is not None and high is not None and not low <= high:
        reject("low, high", "low <= high", f"{low}, {high}")
    for argument, text in (("name", name), ("because", because)):
        if not isinstance(text, str) or not text.strip():
            reject(argument, "words", repr(text))
    made = Claim(name, number, low, high, because, None if floor is None else float(floor))
    _run.claims[name] = made
    show({"text/plain": str(made)}, {"claim": asdict(made)} if made.holds else {})
    if not made.holds:
        raise ClaimFailed(str(made))


def claims_table() -> None:
    """Show the claims of the page so far: what was asked, measured, the floor if any, and why."""
    made = list(_run.claims.values())
    floors = any(c.floor is not None for c in made)  # the column stands where it says something
    head = ["claim", "asked", "measured", *["floor"] * floors, "because"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for c in made:
        floor = "" if c.floor is None else f"{c.floor:.4g}"
        cells = (c.name, c.asked, c.measured, *[floor] * floors, c.because)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    show({"text/markdown": "\n".join(rows), "text/plain": "\n".join(rows)}, {"claims": True})


def show_source(item: Callable[..., Any] | type, *, test: str, doc: bool = False) -> None:
    """Show the source of something in `lib`, with links to it and to the test that covers it.

    Args:
        item: a function, method or class of `lib`.
        test: its test, as ``tests/FILE.py::NAME``.
        doc: show the docstring too.

    Raises:
        ValueError: the item has no source, or (in a checkout) the test does not exist.
    """
    item = inspect.unwrap(item)
    try:
        lines, first = inspect.getsourcelines(item)
        path = Path(inspect.getsourcefile(item) or "").resolve().relative_to(ROOT)
    except (TypeError, OSError, ValueError):
        reject("item", "a function, method or class of lib", repr(item))
    source = textwrap.dedent("".join(lines))
    if not doc:
        source = _without_docstrings(source)
    test_line = _line_of_test(test)
    blob = f"{repository()}/blob/main"
    show(
        {
            "text/markdown": f"```python\n{source.rstrip()}\n```\n"
            f"[`{path.as_posix()}`, line {first}]({blob}/{path.as_posix()}#L{first}) · "
            f"tested by [`{test}`]({blob}/{test.split('::')[0]}{test_line})",
            "text/plain": source,
        },
        {"source": True},
    )


def provenance() -> None:
    """Close a page: show commit, versions, device, threads, seed and seconds of this very run."""
    packages = ("torch", "numpy", "scikit-learn", "pyro-ppl", "matplotlib")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    facts = {
        "Commit": _commit(),
        "Run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Versions": f"Python {platform.python_version()}, {versions}",
        "Device": f"{device_name()}, {torch.get_num_threads()} CPU thread"
        + "s" * (torch.get_num_threads() != 1),
        "Seed": str(_run.seed),
        "Seconds": f"{time.monotonic() - _run.started:.0f}",
        "Claims": f"{len(_run.claims)}, all held",
    }
    text = " · ".join(f"{key}: {value}" for key, value in facts.items())
    show({"text/markdown": f"*{text}*", "text/plain": text}, {"provenance": True})


def repository() -> str:
    """Address of the project's repository, as the installed metadata gives it."""
    for entry in importlib.metadata.metadata(DISTRIBUTION).get_all("Project-URL", []):
        label, _, url = entry.partition(", ")
        if label == "Repository":
            return url
    return ""


def _number(argument: str, value: Any) -> float:
    """One number, NaN and infinity included, as a float."""
    if torch.is_tensor(value) and value.numel() != 1:
        reject(argument, "one number", f"shape {tuple(value.shape)}")
    try:
        return float(value.detach() if torch.is_tensor(value) else value)
    except (TypeError, ValueError):
        reject(argument, "one number", type(value).__name__)


def _without_docstrings(source: str) -> str:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            doc = node.body[0]
            for number in range(doc.lineno - 1, doc.end_lineno):
                lines[number] = None
    kept = [line for line in lines if line is not None]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept))


def _line_of_test(test: str) -> str:
    file, _, name = str(test).partition("::")
    path = ROOT / file
    if not (ROOT / "tests").is_dir():  # installed as a package: nothing to compare with
        return ""
    if not path.is_file() or path.suffix != ".py":
        reject("test", "a file of the test suite", repr(test))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name.split("::")[-1]:
            return f"#L{node.lineno}"
    reject("test", f"a test in {file}", repr(test))


def _commit() -> str:
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
        return head + (" with changes" if state.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        origin = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        vcs = json.loads(origin or "{}").get("vcs_info", {})
        return vcs.get("commit_id", "unknown")[:7]


def device_name() -> str:
    """Name of the accelerator, or else of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    match = re.search(r"model name\s*:\s*(.+)", info)
    return match[1].strip() if match else platform.processor() or platform.machine()
