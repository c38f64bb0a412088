"""The planar flow, invertible in both directions, and the scalar equation behind its inverse."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from lib.bijections.base import Bijection
from lib.checks import whole

SOFTPLUS_ONE = math.log(math.expm1(1.0))  # softplus of this is 1
LAMBERT = (13, 11, 9, 7, 5, 3)  # t - tanh t to 1e-16 for |t| <= 1/2
HALLEY_STEPS = 3  # cubic convergence from the starting point below; tested


def solve_tanh(kappa: Float[Tensor, "..."], c: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The root t of a scalar equation that is increasing in t:

        t + kappa tanh t = c,   kappa > -1 .

    Three Halley steps from an upper bound of abs(t) find the root, without gradient. One Newton
    step at the root adds the exact gradient, dt = (dc - tanh t dkappa) / (1 + kappa sech^2 t).

    Args:
        kappa: at least -1 + eps; any shape that broadcasts with that of `c`.
        c: any number.

    Returns:
        The root for numbers within a few eps of kappa and c. Relative to t that is 1e-15 in float64
        and 4e-7 in float32 for kappa <= 0; for large kappa an ulp of c moves t by more.

    Source: the equation follows from Rezende and Mohamed (2015), equation 10.
    """
    kappa, c = torch.broadcast_tensors(kappa, c)
    with torch.no_grad():
        t = _upper_bound(kappa, c.abs())
        for _ in range(HALLEY_STEPS):
            tanh, sech2 = t.tanh(), _sech2(t)
            slope = tanh.square() + (1 + kappa) * sech2
            step = _residual(t, kappa, c.abs()) / slope
            t = t - step / (1 + step * kappa * tanh * sech2 / slope)
        t = t.copysign(c)
        slope = t.tanh().square() + (1 + kappa) * _sech2(t)
    return t - _residual(t, kappa, c) / slope


def log_slope(t: Float[Tensor, "..."], slope: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log(1 + kappa sech^2 t) from the slope 1 + kappa at 0, as log(tanh^2 t + slope sech^2 t).

    Both terms are positive, so that nothing cancels when kappa comes close to -1.
    """
    return (t.tanh().square() + slope * _sech2(t)).log()


def constrain(
    w: Float[Tensor, "... n"], u: Float[Tensor, "... n"]
) -> tuple[Float[Tensor, "... n"], Float[Tensor, "..."]]:
    """Move u along w so that 1 + w.u > 0, which makes x + u tanh(w.x + b) invertible:

        u_hat = u + (m(w.u) - w.u) w / |w|^2,   m(a) = softplus(a + log(e - 1)) - 1 .

    The paper has m(a) = softplus(a) - 1. With the shift, m(0) = 0: u = 0 remains 0, and u_hat
    remains bounded as w vanishes, where without it u_hat grows like 1 / |w|.

    Returns:
        u_hat, and the slope 1 + w.u_hat, which is at least the eps of the dtype.

    Source: Rezende and Mohamed (2015), appendix A.1.
    """
    eps = torch.finfo(w.dtype).eps
    dot = (w * u).sum(-1)
    slope = softplus(dot + SOFTPLUS_ONE) + eps
    along = ((slope - 1) - dot) / w.square().sum(-1).clamp(min=eps**2)
    return u + along[..., None] * w, slope


class Planar(Bijection):
    """The map that moves points along one direction, as a ridge function of another:

        z = x + u_hat tanh(w.x + b),   log |det| = log(1 + w.u_hat sech^2(w.x + b)) .

    The identity at initialisation (u = 0). The inverse solves one scalar equation for w.x + b, see
    `solve_tanh`; u_hat is u with w.u_hat > -1, see `constrain`.

    Args:
        features: length of x.
        context_features: length of the context. A linear map of it is added to (w, u, b).

    Raises:
        ValueError: sizes that are not whole numbers.

    Source: Rezende and Mohamed (2015), equation 10.
    """

    def __init__(self, features: int, *, context_features: int = 0) -> None:
        super().__init__()
        self.event_shape = (whole("features", features),)
        self.context_features = whole("context_features", context_features, low=0)
        self.w = nn.Parameter(torch.randn(features) / math.sqrt(features))
        self.u = nn.Parameter(torch.zeros(features))
        self.b = nn.Parameter(torch.zeros(()))
        if context_features:
            self.conditioner = nn.Linear(context_features, 2 * features + 1, bias=False)
            nn.init.zeros_(self.conditioner.weight)

    def _parameters_at(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w, u_hat, b and the slope 1 + w.u_hat."""
        w, u, b = self.w, self.u, self.b
        if context is not None:
            n = len(w)
            dw, du, db = self.conditioner(context).split([n, n, 1], -1)
            w, u, b = w + dw, u + du, b + db[..., 0]
        u_hat, slope = constrain(w, u)
        return w, u_hat, b, slope

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        w, u_hat, b, slope = self._parameters_at(context)
        t = (x * w).sum(-1) + b
        return x + u_hat * t.tanh()[..., None], log_slope(t, slope)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        w, u_hat, b, slope = self._parameters_at(context)
        t = solve_tanh(slope - 1, (z * w).sum(-1) + b)
        return z - u_hat * t.tanh()[..., None], -log_slope(t, slope)


def _upper_bound(kappa: Tensor, c: Tensor) -> Tensor:
    """An upper bound of the root for c >= 0, within 60 % of it wherever the map is curved.

    For kappa < 0: tanh t <= t, tanh t <= 1, and t <= v + (3 v)^(1/3) for t - tanh t = v.
    For kappa > 0: tanh t <= c / kappa, and tanh t >= 1 - 2 exp(-2 t) with log(1 + y) <= y.
    """
    ratio = c / kappa.abs().clamp(min=torch.finfo(c.dtype).tiny)
    cubic = ratio + (3 * ratio) ** (1 / 3)
    falling = torch.minimum(torch.minimum(c / (1 + kappa), c - kappa), cubic)
    positive = kappa.clamp(min=torch.finfo(c.dtype).tiny)
    flat = torch.logaddexp(2 * (c - positive), torch.log(4 * positive)) / 2
    steep = torch.atanh(ratio.clamp(max=1))
    rising = torch.minimum(torch.minimum(flat, steep), c)
    return torch.where(kappa < 0, falling, rising)


def _residual(t: Tensor, kappa: Tensor, c: Tensor) -> Tensor:
    """t + kappa tanh t - c; for small t as (1 + kappa) t - kappa (t - tanh t) - c.

    With kappa close to -1 the first form cancels: t is 1e-3 where t - tanh t is 3e-10.
    """
    near = t.clamp(-0.5, 0.5)
    square, tail = near.square(), torch.zeros_like(t)
    for n in LAMBERT:  # tanh t = t / (1 + t^2 / (3 + t^2 / (5 + ...))) = t / (1 + tail)
        tail = square / (n + tail)
    small = (1 + kappa) * near - kappa * (near * tail / (1 + tail))
    return torch.where(t.abs() < 0.5, small, t + kappa * t.tanh()) - c


def _sech2(t: Tensor) -> Tensor:
    """1 - tanh^2 t with all its digits; beyond 40 the cosh would overflow, and 1e-34 is as good."""
    return t.clamp(-40, 40).cosh().reciprocal().square()
