"""Two moons: a crescent that a fold turns into two."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.data.targets.base import log_normal, normal
from lib.inverse.problems.base import BoxPrior, standard_error_zero, uniform
from lib.inverse.problems.sampler import rejection

SHIFT, RADIUS, SD = 0.25, 0.1, 0.01  # of the crescent
ROOT2 = math.sqrt(2)
REACH = -math.log(math.pi)  # density of the angle


class TwoMoons(BoxPrior):
    """x ~ U[-1, 1]^2, and a point p on a thin crescent, shifted by a folded x.

        y = p + (-|x_1 + x_2|, x_2 - x_1) / sqrt 2 ,   p = (r cos a + 1/4, r sin a) ,
        a ~ U(-pi/2, pi/2) ,   r ~ N(1/10, 1/100^2) .

    The fold hides the sign of x_1 + x_2, so the posterior is two crescents.

    **Exact.** For a given p, the fold is q_1 = p_1 - y_1 = |x_1 + x_2| / sqrt 2, which cannot be
    negative, and q_2 = y_2 - p_2 = (x_2 - x_1) / sqrt 2, so x = (+-q_1 - q_2, +-q_1 + q_2) /
    sqrt 2, each sign half of the time, kept inside of the box: |q_1| + |q_2| <= sqrt 2. In polar
    coordinates around (1/4, 0),

        p(y | x) = 1[p_1 > 1/4] N(r; 1/10, 1/100^2) / (pi r) ,   p(y) = P(x exists) / 2 .

    For each angle a, the r for which x exists are an interval: the evidence is one integral over a,
    by the Gauss-Legendre rule, to 1e-7. A negative r, of probability 1e-23, is left out.

    Two mistakes are easy, and both are in use: see `log_likelihood_without_jacobian` and
    `sample_posterior_without_check`.

    Args:
        dtype: of the samples.
        device: of the samples.

    Source: Greenberg, Nonnenmacher and Macke (2019), appendix A.5.2; Lueckmann et al. (2021), T.8.
    """

    name = "two_moons"

    def __init__(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(2, 2, 1.0, dtype, device)

    def log_likelihood_without_jacobian(
        self, y: Float[Tensor, "*label 2"], x: Float[Tensor, "*batch 2"]
    ) -> Float[Tensor, "..."]:
        """The mistake to write log N(r; 1/10, 1/100^2) for log p(y | x), without the 1 / (pi r).

        It is no density of y: it integrates to pi / 10, and is wrong by a fifth at two standard
        deviations of r. Arguments and errors as in `log_likelihood`.
        """
        wide_y, wide_x = self._pair(y, x)
        r, on_it = _polar(wide_y - _fold(wide_x))
        return torch.where(on_it, log_normal(r, RADIUS, SD), -math.inf).to(x)

    def sample_posterior_without_check(
        self, y: Float[Tensor, "2"], n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n 2"]:
        """The mistake to take any sign of q_1: wrong draws for y_1 > 1/4, one observation of 11.

        There |x_1 + x_2| would have to be negative; such an x makes y from another p, which may be
        far off the crescent. Arguments and errors as in `sample_posterior`.
        """
        return self._out(self._unfold(self._observation(y), n, generator, check=False))

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return _fold(x) + _crescent(math.prod(x.shape[:-1]), generator).to(x).view(x.shape)

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        return self._unfold(y, n, generator, check=True)

    def _unfold(self, y: Tensor, n: int, generator: torch.Generator | None, check: bool) -> Tensor:
        def propose(m: int) -> tuple[Tensor, Tensor]:
            p = _crescent(m, generator)
            q1, q2 = p[:, 0] - y[0].to(p), y[1].to(p) - p[:, 1]
            inside = q1.abs() + q2.abs() <= ROOT2
            keep = inside & (q1 >= 0) if check else inside
            side = torch.where(uniform(generator, m) < 0.5, -q1, q1)
            x = torch.stack([side - q2, side + q2], 1) / ROOT2
            return x, torch.where(keep, 0.0, -math.inf).to(x)

        return rejection(propose, n, y, generator, bound=0.0)

    def _log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        r, on_it = _polar(y - _fold(x))
        return torch.where(on_it, log_normal(r, RADIUS, SD) + REACH - r.log(), -math.inf)

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        angle, weight = _nodes()
        angle, weight = angle.to(y), weight.to(y)
        pieces = [
            (_log_mass(rows[:, None], angle).exp() * weight).sum(-1) for rows in y.split(1024)
        ]
        return standard_error_zero((torch.cat(pieces) / 2).log())


def _fold(x: Tensor) -> Tensor:
    total, difference = x[..., 0] + x[..., 1], x[..., 1] - x[..., 0]
    return torch.stack([-total.abs(), difference], -1) / ROOT2


def _crescent(m: int, generator: torch.Generator | None) -> Tensor:
    """Points p, ``(m, 2)``."""
    angle = math.pi * (uniform(generator, m) - 0.5)
    r = RADIUS + SD * normal(generator, m)
    return torch.stack([r * angle.cos() + SHIFT, r * angle.sin()], 1)


def _polar(p: Tensor) -> tuple[Tensor, Tensor]:
    """The radius of p, and whether p is on the side of the crescent."""
    across = p[..., 0] - SHIFT
    r = torch.hypot(across, p[..., 1]).clamp(min=1e-30)  # log r has a gradient at zero
    return r, across > 0


def _nodes(panels: int = 256, points: int = 8) -> tuple[Tensor, Tensor]:
    """Angles in (-pi/2, pi/2) and their weights, which add up to one."""
    node, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(points))
    start = torch.arange(panels, dtype=torch.float64)[:, None]
    angle = math.pi * ((start + (1 + node) / 2) / panels - 0.5)
    return angle.flatten(), (weight / 2 / panels).repeat(panels)


def _log_mass(y: Tensor, angle: Tensor) -> Tensor:
    """log P(x exists | angle) for observations ``(m, 1, 2)`` and k angles, ``(m, k)``.

    q_1 >= 0 and q_1 +- q_2 <= sqrt 2 are three linear inequalities in r.
    """
    c, s = angle.cos(), angle.sin()
    offset = SHIFT - y[..., 0]
    low = (-offset / c).clamp(min=0)
    high = torch.full_like(low, math.inf)
    for slope, room in ((c - s, -y[..., 1]), (c + s, y[..., 1])):
        end = (ROOT2 - offset + room) / slope  # never an exact diagonal: no node is there
        end = end.expand_as(low)
        high = torch.where(slope > 0, torch.minimum(high, end), high)
        low = torch.where(slope < 0, torch.maximum(low, end), low)
    # From the side on which both numbers are small.
    a, b = (low - RADIUS) / SD, (high - RADIUS) / SD
    a, b = torch.where(a > 0, -b, a), torch.where(a > 0, -a, b)
    return (torch.special.ndtr(b) - torch.special.ndtr(a)).clamp(min=0).log()
