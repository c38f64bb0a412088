"""Timing in turns, and markdown tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median

import torch
from torch import nn

from lib.book.page import device_name

# On a busy machine the CPU's own seconds are the fair ones; of several threads it would add them.
clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
PEERS = ("zuko", "normflows", "nflows", "FrEIA", "pyro-ppl")
Call = Callable[[], object]


def machine() -> str:
    """What ran: the line on top."""
    peers = ", ".join(f"{name} {version(name)}" for name in PEERS)
    timed = "seconds of the CPU" if clock is time.process_time else "wall seconds"
    threads = torch.get_num_threads()
    return f"{device_name()}, {threads} thread(s), {timed}, torch {torch.__version__}; {peers}"


def in_turns(
    calls: dict[str, Call], repeats: int = 9, block: float = 0.1
) -> dict[str, list[float]]:
    """Milliseconds per call: blocks of about `block` seconds, one of each call, `repeats` times."""
    counts = {}
    for name, call in calls.items():
        call(), call()
        start = clock()
        call()
        counts[name] = max(1, round(block / (clock() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            for _ in range(counts[name]):
                call()
            times[name].append(1e3 * (clock() - start) / counts[name])
    return times


def compare(
    columns: dict[str, dict[str, Call]], sizes: dict[str, str], peers: Sequence[str], **options
) -> dict[str, dict[str, float]]:
    """Print one row for each name and one column for each kind of call; the medians come back.

    A cell is: median (fastest - slowest block) in ms, times the fastest peer. A name that is
    missing in a column gets a dash.
    """
    times = {column: in_turns(calls, **options) for column, calls in columns.items()}
    medians = {c: {name: median(t) for name, t in rows.items()} for c, rows in times.items()}
    head("", "parameters", *(f"{column} (ms)" for column in columns))
    for name, size in sizes.items():
        cells = []
        for column, rows in times.items():
            if name not in rows:
                cells.append("-")
                continue
            fastest = min(medians[column][peer] for peer in peers if peer in rows)
            t, mid = rows[name], medians[column][name]
            cells.append(f"{mid:.2f} ({min(t):.2f} - {max(t):.2f}), x {mid / fastest:.2f}")
        row(name, size, *cells)
    return medians


def head(*names: str) -> None:
    """The first two lines of a table; all but the first column are flush right."""
    row(*names)
    print("|:--" + "|--:" * (len(names) - 1) + "|")


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def size(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def verdict(what: str, value: float, limit: float, digits: int = 2) -> None:
    """A target: a number, its upper limit, and whether it was met."""
    met = "met" if value <= limit else "NOT met"
    print(f"- {what}: {value:.{digits}f}, target at most {limit:g}: {met}", flush=True)
