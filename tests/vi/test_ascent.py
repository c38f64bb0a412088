"""The loop on a model whose every sweep is known: two variables with correlation rho."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.vi.ascent import BoundDecreased, BoundNotFinite, coordinate_ascent


@dataclass(frozen=True)
class Means:
    """q(x) q(y) = N(x, 1 - rho^2) N(y, 1 - rho^2); the optimal variances never change."""

    x: float
    y: float


def gaussian(rho, dtype=torch.float64):
    """Updates and bound: -KL = 1/2 log(1 - rho^2) - (x^2 + y^2 - 2 rho x y) / (2 (1 - rho^2))."""

    def bound(q):
        quadratic = (q.x**2 + q.y**2 - 2 * rho * q.x * q.y) / (1 - rho**2)
        return torch.tensor(0.5 * math.log1p(-(rho**2)) - 0.5 * quadratic, dtype=dtype)

    return {"x": lambda q: replace(q, x=rho * q.y), "y": lambda q: replace(q, y=rho * q.x)}, bound


@given(rho=st.floats(-0.9, 0.9), x=st.floats(-10, 10), y=st.floats(-10, 10))
def test_reaches_the_mean_field_optimum_at_the_known_rate(rho, x, y):
    updates, bound = gaussian(rho)
    seen = []
    record = lambda sweep, factor, q, value: seen.append((sweep, factor, q, value))  # noqa: E731
    ascent = coordinate_ascent(Means(x, y), updates, bound, record=record, tol=0.0)
    assert ascent.reason == "converged"
    assert ascent.bound == pytest.approx(0.5 * math.log1p(-(rho**2)), abs=1e-11)
    for sweep, factor, q, _ in seen:
        if factor == "y":  # a sweep multiplies y by rho^2
            assert q.y == pytest.approx(y * rho ** (2 * sweep), abs=1e-13)
    assert all(b[3] >= a[3] - 1e-11 for a, b in pairwise(seen))


def test_record_sees_the_start_and_then_every_update():
    updates, bound = gaussian(0.5)
    seen = []
    ascent = coordinate_ascent(
        Means(1.0, 1.0), updates, bound, max_sweeps=2, record=lambda *row: seen.append(row)
    )
    assert [row[:2] for row in seen] == [(0, "start"), (1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert (ascent.state, ascent.bound) == seen[-1][2:]
    assert ascent.gain == seen[4][3] - seen[2][3]
    assert (ascent.sweeps, ascent.reason) == (2, "max_sweeps")


def test_change_asks_for_factors_that_the_bound_alone_does_not_fix():
    updates, bound = gaussian(0.9)
    distance = lambda a, b: abs(a.y - b.y)  # noqa: E731
    loose = coordinate_ascent(Means(1.0, 1.0), updates, bound, tol=1e-12)
    tight = coordinate_ascent(Means(1.0, 1.0), updates, bound, tol=1e-12, change=distance)
    assert abs(loose.state.y) > 1e-8
    assert abs(tight.state.y) < 1e-11


def test_a_tolerance_of_zero_stops_at_the_resolution_of_the_dtype(dtype):
    updates, bound = gaussian(0.9, dtype)
    ascent = coordinate_ascent(Means(1.0, 1.0), updates, bound, tol=0.0, change=lambda a, b: 0.0)
    assert ascent.reason == "converged"
    assert abs(ascent.gain) <= 64 * torch.finfo(dtype).eps * max(1, abs(ascent.bound))


def test_a_wrong_update_is_named():
    updates, bound = gaussian(0.5)
    updates["y"] = lambda q: replace(q, y=1.01 * q.y + 0.1)
    with pytest.raises(BoundDecreased, match=r"'y' in sweep \d+ lowered the bound from .* to"):
        coordinate_ascent(Means(1.0, 0.5), updates, bound)


def test_a_decrease_within_rounding_is_none(dtype):
    eps = torch.finfo(dtype).eps
    ascend = lambda drop, **more: coordinate_ascent(  # noqa: E731
        0.0,
        {"only": lambda q: q + 1},
        lambda q: torch.tensor(1 - q * drop * eps, dtype=dtype),
        max_sweeps=1,
        **more,
    )
    assert ascend(32).sweeps == 1
    with pytest.raises(BoundDecreased):
        ascend(128)
    assert ascend(128, scale=1e3).sweeps == 1  # terms a thousand times the bound
    assert ascend(128, scale=lambda q: 1e3 if q > 0 else 1.0).sweeps == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bound_that_is_not_finite_is_named(bad):
    with pytest.raises(BoundNotFinite, match="at the start"):
        coordinate_ascent(0, {"only": lambda q: q + 1}, lambda q: bad)
    with pytest.raises(BoundNotFinite, match="'only' in sweep 3"):
        coordinate_ascent(0, {"only": lambda q: q + 1}, lambda q: float(q) if q < 3 else bad)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tol", {"tol": -1.0}),
        ("tol", {"tol": math.nan}),
        ("scale", {"scale": 0.0}),
        ("max_sweeps", {"max_sweeps": 0}),
        ("updates", {"updates": {}}),
        ("scale", {"scale": lambda q: math.nan}),
        ("bound", {"bound": lambda q: None}),
        ("bound", {"bound": lambda q: "high"}),
        ("bound", {"bound": lambda q: torch.zeros(2)}),
        ("bound", {"bound": lambda q: torch.tensor(1)}),
    ],
)
def test_bad_arguments_are_named(name, arguments, unchecked):
    given = {"updates": {"only": lambda q: q}, "bound": lambda q: 0.0, **arguments}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        coordinate_ascent(0.0, **given)


def test_states_are_released():
    """Memory does not grow with the sweeps: at most a sweep's states are alive at any time."""
    alive, most = set(), 0

    class State:
        def __init__(self, value):
            self.value = value
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    def update(state):
        nonlocal most
        new = State(state.value + 1.0)
        most = max(most, len(alive))
        return new

    ascent = coordinate_ascent(State(0.0), {"only": update}, lambda s: s.value, max_sweeps=500)
    assert ascent.sweeps == 500
    assert most <= 4
