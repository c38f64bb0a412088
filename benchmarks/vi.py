"""Coordinate ascent on a million numbers: seconds, sweeps, memory.

    OMP_NUM_THREADS=1 python benchmarks/vi.py > benchmarks/results/vi.md

The data are read once; the ascent works on three numbers, whatever n is. Its memory does not grow
with the number of sweeps either, shown on a Gaussian with correlation 0.9999, where sweeps gain so
little that all 10,000 of them are made. `tracemalloc` sees Python's allocations, which is where a
history would be kept; PyTorch's own are tensors of one element here.
"""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable

import torch

from lib.book.page import device_name
from lib.vi import (
    Ascent,
    ExactNormal,
    SufficientStatistics,
    coordinate_ascent,
    fit_normal,
    kl_gap,
)

SIZES = (10**2, 10**4, 10**6, 10**7)
RHO = 0.9999


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """The fastest of several runs."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def slow(max_sweeps: int) -> Ascent[tuple[float, float]]:
    """Mean-field means (x, y) of a correlated Gaussian: a sweep multiplies y by RHO^2."""

    def bound(q: tuple[float, float]) -> float:
        return -(q[0] ** 2 + q[1] ** 2 - 2 * RHO * q[0] * q[1]) / (2 * (1 - RHO**2))

    updates = {"x": lambda q: (RHO * q[1], q[1]), "y": lambda q: (q[0], RHO * q[0])}
    return coordinate_ascent((0.0, 1e3), updates, bound, tol=0.0, max_sweeps=max_sweeps)


def peak(max_sweeps: int) -> tuple[int, float]:
    """Sweeps that were made, and the peak of Python's memory on the way in KiB."""
    slow(2)  # what is allocated once
    tracemalloc.start()
    ascent = slow(max_sweeps)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return ascent.sweeps, most / 1024


def main() -> None:
    print(f"{device_name()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    print("| n | dtype | one pass (ms) | ascent (ms) | sweeps | log evidence - bound - KL(n) |")
    print("|--:|:--|--:|--:|--:|--:|")
    for n in SIZES:
        for dtype in (torch.float32, torch.float64):
            generator = torch.Generator().manual_seed(0)
            x = 3 + 2 * torch.randn(n, generator=generator, dtype=dtype)
            statistics = SufficientStatistics.of(x)
            ascent = fit_normal(statistics)
            reading = 1e3 * seconds(lambda x=x: SufficientStatistics.of(x))
            ascending = 1e3 * seconds(lambda s=statistics: fit_normal(s))
            left = float(ExactNormal(statistics).log_evidence()) - ascent.bound - kl_gap(n)
            name = str(dtype).removeprefix("torch.")
            row = f"| {n:,} | {name} | {reading:.2f} | {ascending:.2f} | {ascent.sweeps} |"
            print(f"{row} {left:.1e} |")
    print("\n| max_sweeps | sweeps made | peak Python memory (KiB) |\n|--:|--:|--:|")
    for most in (10, 100, 10_000):
        made, memory = peak(most)
        print(f"| {most:,} | {made:,} | {memory:.1f} |")


if __name__ == "__main__":
    main()
