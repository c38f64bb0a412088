"""Invertible maps with both directions and both log-determinants."""

from lib.bijections.autoregressive import MADE, Autoregressive
from lib.bijections.base import Bijection, Compose, Inverse
from lib.bijections.coupling import Coupling
from lib.bijections.elementwise import (
    Affine,
    Logit,
    NormalCDF,
    Sigmoid,
    Softplus,
    SoftUniform,
    Tanh,
)
from lib.bijections.image import (
    ConvNet,
    Dequantise,
    LogitMargin,
    OnHalf,
    Squeeze,
    bits_per_dim,
)
from lib.bijections.linear import ActNorm, LULinear, Orthogonal, Permutation
from lib.bijections.ode import ODE
from lib.bijections.planar import Planar
from lib.bijections.radial import Radial
from lib.bijections.scalar import Elementwise, ScalarMap, ScaleShift, Shift
from lib.bijections.spline import RationalQuadratic
from lib.bijections.support import Ball, HalfLine, Interval, Segments, Simplex
from lib.bijections.sylvester import Sylvester

__all__ = [
    "MADE",
    "ODE",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Ball",
    "Bijection",
    "Compose",
    "ConvNet",
    "Coupling",
    "Dequantise",
    "Elementwise",
    "HalfLine",
    "Interval",
    "Inverse",
    "LULinear",
    "Logit",
    "LogitMargin",
    "NormalCDF",
    "OnHalf",
    "Orthogonal",
    "Permutation",
    "Planar",
    "Radial",
    "RationalQuadratic",
    "ScalarMap",
    "ScaleShift",
    "Segments",
    "Shift",
    "Sigmoid",
    "Simplex",
    "SoftUniform",
    "Softplus",
    "Squeeze",
    "Sylvester",
    "Tanh",
    "bits_per_dim",
]
