"""Targets that the tests run through, with their options."""

import pytest
import torch

from lib.data.targets import (
    Banana,
    Beta,
    Checkerboard,
    CopulaBeta,
    Funnel,
    GaussianGrid,
    ManyWell,
    Moons,
    PiecewiseUniform,
    Rings,
    Spirals,
    TwoMoons,
    VonMises,
)

DOUBLE = torch.float64
LINE = [
    (PiecewiseUniform, {}),
    (PiecewiseUniform, {"edges": (-3.0, 0.0, 0.1), "weights": (1.0, 5.0)}),
    (Beta, {}),
    (Beta, {"a": 0.5, "b": 0.5}),
    (Beta, {"a": 1.0, "b": 3.0}),
    (VonMises, {}),
    (VonMises, {"kappa": 0.01}),
    (VonMises, {"kappa": 300.0}),
]
# With a square box (low, high) that holds all but 1e-9 of the mass.
PLANE = [
    (TwoMoons, {}, (-3, 3)),
    (TwoMoons, {"radius": 1.0, "sigma": 0.15, "sharpness": 2.0}, (-3, 3)),
    (Moons, {}, (-1.5, 2.5)),
    (Moons, {"noise": 0.1, "scaled": True}, (-1.7, 1.7)),
    (Rings, {}, (-5, 5)),
    (Spirals, {}, (-8, 8)),
    (Spirals, {"mean": 0.0, "length": 1.0, "width": 0.5, "twist": -1.0}, (-8, 8)),
    (GaussianGrid, {}, (-5, 5)),
    (GaussianGrid, {"side": 2, "spacing": 1.0, "sigma": 0.5}, (-5, 5)),
    (Banana, {}, (-9, 31)),
    (ManyWell, {"features": 2}, (-7, 7)),
    (Checkerboard, {}, (-4, 4)),
    (CopulaBeta, {}, (0, 1)),
    (CopulaBeta, {"rho": -0.6, "a": 3, "b": 2}, (0, 1)),
]
VECTOR = [
    (Banana, {"features": 5}),
    (Funnel, {}),
    (Funnel, {"features": 2, "scale": 0.5}),
    (ManyWell, {}),
]
ALL = [*LINE, *((cls, options) for cls, options, _ in PLANE), *VECTOR]
UNBOUNDED = [TwoMoons, Moons, Rings, Spirals, GaussianGrid, Banana, Funnel, ManyWell]
COMPACT = [PiecewiseUniform, Beta, VonMises, CopulaBeta, Checkerboard]


def each(cases):
    names = [f"{case[0].__name__}{list(case[1].values()) or ''}" for case in cases]
    return pytest.mark.parametrize("case", cases, ids=names)


def build(case, dtype=DOUBLE):
    return case[0](**case[1], dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ends(target):
    base = target.support.base_constraint
    return float(base.lower_bound), float(base.upper_bound)
