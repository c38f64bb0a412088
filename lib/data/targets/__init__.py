"""Normalised targets with exact samples and known entropy, so that KL(target || model) is exact.

`TARGETS` holds those of the plane, by name, for a scoreboard of models.
"""

from types import MappingProxyType

from lib.data.targets.arcs import Moons
from lib.data.targets.base import Target
from lib.data.targets.compact import Beta, Checkerboard, CopulaBeta, PiecewiseUniform, VonMises
from lib.data.targets.plane import GaussianGrid, Rings, Spirals, TwoMoons
from lib.data.targets.vector import Banana, Funnel, ManyWell

PLANE = (TwoMoons, Rings, Spirals, GaussianGrid, Banana, Checkerboard, CopulaBeta)
TARGETS = MappingProxyType({target.name: target for target in PLANE})

__all__ = [
    "TARGETS",
    "Banana",
    "Beta",
    "Checkerboard",
    "CopulaBeta",
    "Funnel",
    "GaussianGrid",
    "ManyWell",
    "Moons",
    "PiecewiseUniform",
    "Rings",
    "Spirals",
    "Target",
    "TwoMoons",
    "VonMises",
]
