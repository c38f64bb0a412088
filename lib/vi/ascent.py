"""Coordinate ascent: improve one factor at a time, and check that the bound never falls.

For q = q_1 q_2 ..., the factor that maximises the bound when the others stay fixed is

    log q_j*(z_j) = E_{q_i, i != j}[log p(x, z)] + const          (Bishop 2006, equation 10.9)

so the bound can only rise. A bound that falls is a wrong formula; the loop says in which factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lib.checks import number, reject, whole

State = TypeVar("State")

# A sum of terms of size M carries a rounding error of a few M eps; 64 leaves room for the special
# functions and for sums over data, and is still eight digits below a wrong formula's effect.
ROUNDING = 64


class BoundDecreased(ArithmeticError):
    """An update lowered the bound by more than rounding: it is not the factor's optimum.

    Attributes:
        factor: the name of the factor that was updated.
        fall: by how much the bound fell, in nats.
    """

    def __init__(self, message: str, factor: str, fall: float) -> None:
        super().__init__(message)
        self.factor, self.fall = factor, fall


class BoundNotFinite(ArithmeticError):
    """The bound is NaN or infinite, at the start or after an update."""


@dataclass(frozen=True)
class Ascent(Generic[State]):
    """Where a coordinate ascent ended.

    Attributes:
        state: the factors after the last update.
        bound: the evidence lower bound of `state`, in nats.
        sweeps: how often each factor was updated.
        reason: ``"converged"`` or ``"max_sweeps"``.
        gain: what the last sweep added to the bound, in nats.
    """

    state: State
    bound: float
    sweeps: int
    reason: str
    gain: float


def coordinate_ascent(
    state: State,
    updates: Mapping[str, Callable[[State], State]],
    bound: Callable[[State], Tensor | float],
    *,
    tol: float = 1e-10,
    max_sweeps: int = 1000,
    record: Callable[[int, str, State, float], object] | None = None,
    change: Callable[[State, State], Tensor | float] | None = None,
    scale: float | Callable[[State], float] = 1.0,
) -> Ascent[State]:
    """Update the factors in turn until a sweep gains no more.

    A sweep is the last one when gain < tol max(1, |bound|). The bound is flat at its maximum:
    factors that are off by e cost e^2, so a bound alone, known to 16 digits, fixes the factors to
    8. Where that is not enough, `change` measures how far a sweep moved the factors, and must be
    below `tol` as well. A `tol` below what the dtype resolves counts as that resolution, so the
    loop still stops. No history is kept: the memory does not depend on the number of sweeps. Use
    `record` for a history.

    Args:
        state: the factors at the start; never modified.
        updates: for each factor's name, a function that returns a new state in which this factor is
            optimal given the others. They are called in the order of the mapping.
        bound: the evidence lower bound of a state with *all* its terms, a scalar in nats. Its dtype
            decides what counts as rounding.
        tol: relative gain (and change) of a sweep below which to stop.
        max_sweeps: upper bound on the number of sweeps.
        record: called as ``record(sweep, factor, state, bound)``: once with sweep 0 and factor
            ``"start"``, then after each update, sweeps counting from 1.
        change: ``change(before, after)``, the relative size of a sweep's step; see above.
        scale: size in nats of the largest terms that `bound` adds up, or a function that gives it
            for a state. Where they cancel to a small bound, their rounding error is what a decrease
            has to exceed.

    Returns:
        The state that was reached, with its bound and the reason for stopping.

    Raises:
        ValueError: no updates; a negative or non-finite `tol`; `max_sweeps` below 1; `scale` that
            is not positive; or a `bound` that returns no scalar.
        BoundDecreased: an update lowered the bound by more than 64 eps max(scale, |bound|), where
            eps is the resolution of the bound's dtype.
        BoundNotFinite: the bound became NaN or infinite.
    """
    tol, size = number("tol", tol, zero=True), 0.0 if callable(scale) else number("scale", scale)
    max_sweeps = whole("max_sweeps", max_sweeps)
    if not isinstance(updates, Mapping) or not updates:
        reject("updates", "at least one named update", repr(updates))
    old, eps = _evaluate(bound, state, "start", 0)
    now = number("scale", scale(state)) if callable(scale) else 0.0
    if record is not None:
        record(0, "start", state, old)
    sweep, gain, reason = 0, math.inf, "max_sweeps"
    while sweep < max_sweeps and reason == "max_sweeps":
        sweep, before, first = sweep + 1, state, old
        for factor, update in updates.items():
            state = update(state)
            new, eps = _evaluate(bound, state, factor, sweep)
            if callable(scale):
                last, now = now, number("scale", scale(state))
                size = max(last, now)
            rounding = ROUNDING * eps * max(size, abs(old), abs(new))
            if new < old - rounding:
                raise BoundDecreased(
                    f"the update of {factor!r} in sweep {sweep} lowered the bound from {old!r} to "
                    f"{new!r} nats, by {old - new:.3g}; rounding explains {rounding:.3g}",
                    factor,
                    old - new,
                )
            old = new
            if record is not None:
                record(sweep, factor, state, new)
        gain = old - first
        still = gain < max(tol * max(1.0, abs(old)), ROUNDING * eps * max(size, abs(old)))
        if still and change is not None:
            still = float(change(before, state)) < max(tol, 16 * ROUNDING * eps)
        if still:
            reason = "converged"
    return Ascent(state, old, sweep, reason, gain)


def _evaluate(
    bound: Callable[[State], Tensor | float], state: State, factor: str, sweep: int
) -> tuple[float, float]:
    """The bound as a float, and the resolution (eps) of the dtype that it was computed in."""
    value = bound(state)
    eps = torch.finfo(torch.float64).eps
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            reject("bound", "a real scalar", f"{value.dtype} of shape {tuple(value.shape)}")
        eps, value = torch.finfo(value.dtype).eps, value.detach()
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        reject("bound", "a function that returns a real scalar", repr(value))
    if not math.isfinite(found):
        when = "at the start" if sweep == 0 else f"after the update of {factor!r} in sweep {sweep}"
        raise BoundNotFinite(f"the bound is {found} {when}")
    return found, eps
