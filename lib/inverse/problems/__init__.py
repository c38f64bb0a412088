"""Inverse problems whose posteriors are known exactly, so that a learned one can be judged.

`PROBLEMS` holds them by name.
"""

from types import MappingProxyType

from lib.inverse.problems.ballistics import Ballistics
from lib.inverse.problems.base import InverseProblem
from lib.inverse.problems.digits import DigitImages
from lib.inverse.problems.kinematics import Kinematics
from lib.inverse.problems.linear import GaussianLinear
from lib.inverse.problems.mixtures import EightModes, GaussianMixture
from lib.inverse.problems.moons import TwoMoons
from lib.inverse.problems.slcp import SLCP

ALL = (
    *(EightModes, Kinematics, Ballistics, TwoMoons),
    *(GaussianLinear, GaussianMixture, SLCP, DigitImages),
)
PROBLEMS = MappingProxyType({problem.name: problem for problem in ALL})

__all__ = [
    "PROBLEMS",
    "SLCP",
    "Ballistics",
    "DigitImages",
    "EightModes",
    "GaussianLinear",
    "GaussianMixture",
    "InverseProblem",
    "Kinematics",
    "TwoMoons",
]
