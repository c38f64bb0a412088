"""Targets of any length: curved, of varying scale, of exponentially many modes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lib.checks import floating, number, reject, whole
from lib.data.targets.base import (
    LOG_2PI,
    Target,
    accepted,
    integral,
    log_normal,
    normal,
    uniform,
)


class Banana(Target):
    """A bent Gaussian: x_1 = sigma z_1, x_2 = w z_2 + c (x_1^2 - sigma^2), x_i = w z_i for i > 2.

    The map from z has a constant Jacobian, so H is that of the Gaussian with the same scales:
    H = D/2 log 2 pi e + log sigma + (D - 1) log w.

    Args:
        features: D, at least 2.
        sigma: standard deviation of x_1, positive.
        width: w, standard deviation of the others around the curve, positive.
        curvature: c; 0 for a Gaussian.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: an argument out of range.

    Source: Haario, Saksman and Tamminen (1999), section 5.
    """

    name = "banana"

    def __init__(
        self,
        features: int = 2,
        sigma: float = 1.5,
        width: float = 0.5,
        curvature: float = 0.4,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(whole("features", features, low=2), dtype, device)
        self.sigma, self.width = number("sigma", sigma), number("width", width)
        self.curvature = float(floating("curvature", curvature, ndim=0))

    def _bend(self, first: Tensor) -> Tensor:
        return self.curvature * (first.square() - self.sigma**2)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = normal(generator, n, self.features)
        first, rest = self.sigma * z[:, :1], self.width * z[:, 1:]
        return torch.cat([first, rest[:, :1] + self._bend(first), rest[:, 1:]], -1)

    def _log_prob(self, x: Tensor) -> Tensor:
        first, second = x[..., :1], x[..., 1:2]
        rest = torch.cat([second - self._bend(first), x[..., 2:]], -1)
        straight = log_normal(first, 0.0, self.sigma).sum(-1)
        return straight + log_normal(rest, 0.0, self.width).sum(-1)

    def _entropy(self) -> float:
        scales = math.log(self.sigma) + (self.features - 1) * math.log(self.width)
        return 0.5 * self.features * (1 + LOG_2PI) + scales


class Funnel(Target):
    """Neal's funnel: v ~ N(0, s^2), x_i ~ N(0, e^v) for i = 1, ..., D - 1; a point is (v, x).

    E v = 0, so the scales of x cancel: H = D/2 log 2 pi e + log s.

    Args:
        features: D, at least 2.
        scale: s, positive.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: an argument out of range.

    Source: Neal, Slice sampling (2003), section 8.
    """

    name = "funnel"

    def __init__(
        self,
        features: int = 10,
        scale: float = 3.0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(whole("features", features, low=2), dtype, device)
        self.scale = number("scale", scale)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = normal(generator, n, self.features)
        v = self.scale * z[:, :1]
        return torch.cat([v, (v / 2).exp() * z[:, 1:]], -1)

    def _log_prob(self, x: Tensor) -> Tensor:
        v, rest = x[..., :1], x[..., 1:]
        # Below v = -400 the scale stays at e^-200: its inverse, squared, must not overflow.
        z = rest * (-v / 2).clamp(max=200).exp()
        log_scale = 0.5 * rest.shape[-1] * v[..., 0]
        top = log_normal(v[..., 0], 0.0, self.scale)
        return top + log_normal(z, 0.0, 1.0).sum(-1) - log_scale

    def _entropy(self) -> float:
        return 0.5 * self.features * (1 + LOG_2PI) + math.log(self.scale)


class ManyWell(Target):
    """D/2 independent pairs of a double well and a Gaussian, with 2^(D/2) modes:

        log p(x) = sum over pairs of (-x_1^4 + 6 x_1^2 + x_1 / 2 - x_2^2 / 2) - log Z .

    So ``log_prob(x) + log_z`` is minus the energy. `log_z` and H come from Gauss-Legendre
    quadrature over x_1, to 1e-10; log Z = 164.69568 for D = 32. Samples of x_1 by rejection: with
    m = sqrt 3,

        exp(-(x^2 - 3)^2) <= exp(-3 (x - m)^2) + exp(-3 (x + m)^2) ,

    as (x^2 - 3)^2 = (|x| - m)^2 (|x| + m)^2 >= 3 (|x| - m)^2; about half are kept.

    Args:
        features: D, even; odd entries (counted from one) are the wells.
        dtype: of the samples.
        device: of the samples.

    Attributes:
        log_z: log of the integral of exp(-energy), in nats.

    Raises:
        ValueError: a length that is not even.

    Source: Midgley et al., Flow annealed importance sampling bootstrap (2023), appendix.
    """

    name = "many_well"

    def __init__(
        self,
        features: int = 32,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(whole("features", features, low=2), dtype, device)
        if features % 2:
            reject("features", "an even number", features)
        self._log_z_well = math.log(integral(lambda x: self._well(x).exp(), WELL_EDGES))

    @property
    def log_z(self) -> float:
        return self.features / 2 * (self._log_z_well + 0.5 * LOG_2PI)

    @staticmethod
    def _well(x: Tensor) -> Tensor:
        """Minus the energy of the first of a pair."""
        return 9 - (x.square() - 3).square() + x / 2

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        pairs = self.features // 2
        m, total = math.sqrt(3), n * pairs

        def propose() -> tuple[Tensor, Tensor]:
            side, accept = uniform(generator, 2, total)
            well = torch.where(side < 1 / (1 + math.exp(-m)), m, -m)  # exp(x / 2) favours the right
            x = well + 1 / 12 + normal(generator, total) / math.sqrt(6)
            bound = torch.logaddexp(-3 * (x - m).square(), -3 * (x + m).square())
            return x, accept.log() <= -(x.square() - 3).square() - bound

        wells = accepted(propose, total).view(n, pairs)
        return torch.stack([wells, normal(generator, n, pairs).to(wells)], -1).flatten(1)

    def _log_prob(self, x: Tensor) -> Tensor:
        first, second = x[..., ::2], x[..., 1::2]
        return (self._well(first) - second.square() / 2).sum(-1) - self.log_z

    def _entropy(self) -> float:
        def minus_p_log_p(x: Tensor) -> Tensor:
            log_p = self._well(x) - self._log_z_well
            return -log_p.exp() * log_p

        well = integral(minus_p_log_p, WELL_EDGES)
        return self.features / 2 * (well + 0.5 * (1 + LOG_2PI))


WELL_EDGES = [k / 4 for k in range(-20, 21)]  # at 5 a well has the density exp(-490)
