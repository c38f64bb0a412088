"""Rejection sampling, with a proposal that learns where the mass is.

Both samplers accept a proposal with the probability ratio / bound. The largest ratio is not known,
so it is the largest one seen: when a proposal exceeds it, the bound rises and what was accepted
before is thinned to the new one (Caffo, Booth and Davis 2002). Draws are independent and exact,
but for ratios above all those that were ever seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.checks import reject
from lib.inverse.problems.base import uniform, unreachable

Proposals = tuple[Tensor, Tensor]  # points (m, D), and a log weight for each, (m,)
BATCH = 2**17  # proposals at a time: more would not fit the caches
MISSES = 2**20  # proposals without a hit after which an observation counts as out of reach
LIMIT = 2**26  # proposals that a call may cost: a minute or so


def rejection(
    propose: Callable[[int], Proposals],
    n: int,
    y: Tensor,
    generator: torch.Generator | None,
    bound: float,
) -> Tensor:
    """The first `n` accepted of independent proposals.

    Args:
        propose: gives m points with log ratios of target to proposal, -inf for no hit.
        n: how many.
        y: the observation, for the error.
        generator: source of randomness.
        bound: largest log ratio as far as it is known.

    Raises:
        ValueError: no hit among 2^20 proposals, or so few that `n` draws would cost over 2^26.
    """
    points, keys, total = None, None, 0
    while points is None or len(points) < n:
        found = 0 if points is None else len(points)
        rate = (found + 1) / (total + 2)
        m = min(BATCH, math.ceil(1.1 * (n - found) / rate) + 64)
        x, log_ratio = propose(m)
        # Accepted while log(ratio / u) > log bound: one number that can be tested again.
        key = log_ratio - uniform(generator, m).log()
        if points is not None:
            x, key = torch.cat([points, x]), torch.cat([keys, key])
        total, bound = total + m, max(bound, float(log_ratio.max()))
        keep = key > bound
        points, keys = x[keep], key[keep]
        _check_budget(y, n, len(points), total)
    return points[:n]


class CubeSampler:
    """Draws from a density on the unit cube that is known up to its normaliser.

    The proposal is a histogram: constant on each cell of a grid, as high as the largest weight
    seen in the cell or beside it, and mixed with a tenth of the uniform law, so that nothing is
    missed. Looking beside a cell covers those of which the pilot has found only a corner. The
    pilot visits each cell equally often, then draws from what it has learned.

    Args:
        propose: turns u of shape ``(m, k)`` into points ``(m, D)`` and log weights ``(m,)``: the
            target density of u, up to a factor; minus infinity where there is none.
        cells: how many cells on each of the k axes; one for an axis that does not matter much.
        y: the observation, for the errors.
        generator: source of randomness.
        choices: this many of the axes, the first ones, stand for choices (which root, which
            sign), where a cell has no neighbours.

    Raises:
        ValueError: none of 2^20 pilot proposals has a positive weight.

    Source: Caffo, Booth and Davis (2002), Empirical supremum rejection sampling.
    """

    pilot = 2**16
    rounds = 3
    floor = 0.1  # share of the uniform law

    def __init__(
        self,
        propose: Callable[[Tensor], Proposals],
        cells: Sequence[int],
        y: Tensor,
        generator: torch.Generator | None = None,
        choices: int = 0,
    ) -> None:
        self._propose, self._y, self._generator = propose, y, generator
        self._cells, self._choices = tuple(cells), choices
        self._count = math.prod(cells)
        each = torch.arange(self._count, device=y.device)
        peak = torch.full((self._count,), -math.inf, dtype=torch.float64, device=y.device)
        cell = each.repeat(math.ceil(self.pilot / self._count))
        rounds = total = 0
        while rounds < self.rounds:
            _, log_weight = propose(self._place(cell))
            peak = peak.scatter_reduce(0, cell, log_weight, "amax")
            total += len(cell)
            if bool(peak.isneginf().all()):
                _check_budget(y, 1, 0, total)
                continue
            rounds += 1
            self._learn(peak)
            cell = self._pick(self.pilot)

    def sample(self, n: int) -> Tensor:
        """Independent draws, ``(n, D)``.

        Raises:
            ValueError: more draws than 2^26 proposals can give.
        """
        return rejection(self._ratios, n, self._y, self._generator, self._bound)

    def log_mean(self, m: int = 2**17) -> tuple[float, float]:
        """The log of the mean weight over the cube from `m` proposals, and its standard error."""
        _, log_ratio = self._ratios(m)
        top = log_ratio.max()
        ratio = (log_ratio - top).exp()
        mean = float(ratio.mean())
        return float(top) + math.log(mean), float(ratio.std()) / math.sqrt(m) / mean

    def _learn(self, peak: Tensor) -> None:
        """Set the histogram, and the largest ratio of weight to proposal so far."""
        height = (peak - peak.max()).exp().view(self._cells)
        for axis in range(self._choices, len(self._cells)):
            before, size = height, height.shape[axis]
            height = before.clone()
            for there, here in ((0, 1), (1, 0)):
                beside = before.narrow(axis, there, size - 1)
                part = height.narrow(axis, here, size - 1)
                torch.maximum(part, beside, out=part)
        share = height.flatten() / height.sum()
        share = (1 - self.floor) * share + self.floor / self._count
        self._cumulative = share.cumsum(0)
        self._log_density = (share * self._count).log()
        self._bound = float((peak - self._log_density).max())

    def _pick(self, m: int) -> Tensor:
        """Cells drawn from the histogram."""
        u = uniform(self._generator, m) * self._cumulative[-1]
        return torch.searchsorted(self._cumulative, u).clamp(max=self._count - 1)

    def _place(self, cell: Tensor) -> Tensor:
        """A uniform point in each cell."""
        index = torch.stack(torch.unravel_index(cell, self._cells), 1)
        size = torch.tensor(self._cells, device=cell.device)
        return (index + uniform(self._generator, *index.shape)) / size

    def _ratios(self, m: int) -> Proposals:
        cell = self._pick(m)
        x, log_weight = self._propose(self._place(cell))
        return x, log_weight - self._log_density[cell]


def _check_budget(y: Tensor, n: int, found: int, total: int) -> None:
    if total < MISSES or found >= n:
        return
    if not found:
        unreachable(y, f"none of {total:,} proposals reaches it")
    if n * total > LIMIT * found:
        affordable = max(1, LIMIT * found // total)
        kept = f"{found} of {total:,} proposals are accepted"
        reject("n", f"at most {affordable:,} for so rare a y ({kept})", n)
