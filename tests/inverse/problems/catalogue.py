"""Problems that the tests run through, with their options and an observation that each can make."""

import pytest
import torch

from lib.inverse.problems import (
    SLCP,
    Ballistics,
    DigitImages,
    EightModes,
    GaussianLinear,
    GaussianMixture,
    Kinematics,
    TwoMoons,
)

DOUBLE = torch.float64
ONE_HOT = [1.0, *[0.0] * 7]
TEN = [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.2, 0.0, 1.2, -1.1]
SPREAD = [4.0, -3.0, -2.0, 5.0, -1.5, -6.0, 3.0, 1.0]
CASES = [
    (EightModes, {}, ONE_HOT),
    (EightModes, {"labels": "some"}, ONE_HOT),
    (EightModes, {"labels": "none"}, ONE_HOT),
    (Kinematics, {}, [1.7, 0.1]),
    (Ballistics, {}, [5.0]),
    (Ballistics, {"speed": "poisson"}, [5.0]),
    (TwoMoons, {}, [-0.3, 0.2]),
    (GaussianLinear, {}, TEN),
    (GaussianLinear, {"prior": "uniform"}, TEN),
    (GaussianMixture, {}, [9.8, -4.0]),
    (SLCP, {}, SPREAD),
    (DigitImages, {}, [0.3] * 40),
    (DigitImages, {"sd": 0.2, "noise": 0.3}, [0.3] * 40),
]
DENSE = [case for case in CASES if case[0].has_density]
QUICK = [case for case in DENSE if case[0] is not SLCP]  # microseconds for an observation
BOXED = [case for case in DENSE if case[0](**case[1]).low is not None]


def each(cases):
    names = [f"{case[0].__name__}{list(case[1].values()) or ''}" for case in cases]
    return pytest.mark.parametrize("case", cases, ids=names)


def build(case, dtype=DOUBLE):
    """The problem and its observation."""
    return case[0](**case[1], dtype=dtype), torch.tensor(case[2], dtype=dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=DOUBLE)


def worst_score(x, reference, weight):
    """Largest |z| over the means, squares and products of coordinates: draws against weights.

    Args: independent draws (n, D), a weighted reference (m, D), its weights (m,).
    """

    def features(points):
        pairs = points[:, :, None] * points[:, None, :]
        return torch.cat([points, pairs.flatten(1)], 1)

    share = weight / weight.sum()
    keep = share > 0
    share, reference = share[keep], features(reference[keep])
    x = features(x)
    mean = share @ reference
    variance = share.square() @ (reference - mean).square() + x.var(0) / len(x)
    return float(((x.mean(0) - mean) / variance.sqrt()).abs().max())
