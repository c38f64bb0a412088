"""Targets on the plane: several modes, thin curves, holes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lib.checks import floating, number, positive, reject, whole
from lib.data.targets.base import (
    LOG_2PI,
    Target,
    choose,
    integral,
    log_normal,
    normal,
    uniform,
)


class TwoMoons(Target):
    """Two interlocking half circles: in polar coordinates around a centre each, half and half,

        p(r, theta) = N(r; R, sigma^2) / Phi(R / sigma) * sigmoid(s sin theta) / pi ,   r > 0

    for the upper moon, -theta for the lower one, and 1/r for the plane. The angle needs no other
    normaliser, as sigmoid(t) + sigmoid(-t) = 1 on opposite angles; for the same reason a uniform
    angle, turned by pi with probability sigmoid(-s sin theta), is an exact sample. The centres are
    at -(R/2, R/4) and (R/2, R/4): all of it lies in about [-2, 2] x [-1, 1].

    H by quadrature in r and theta around one centre (Gauss-Legendre, trapezoidal), as the moons
    overlap at their tips: to 1e-10 for sigma >= R/100 and sharpness <= 100. The pole 1/r at a
    centre, cut at r = 1e-15, counts for nothing while sigma is at most R/6.

    Args:
        radius: R, positive.
        sigma: standard deviation of the radius, positive, at most R/6.
        sharpness: s, how abruptly a moon ends, positive.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: an argument out of range.
    """

    name = "two_moons"

    def __init__(
        self,
        radius: float = 4 / 3,
        sigma: float = 0.1,
        sharpness: float = 10.0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(2, dtype, device)
        self.radius, self.sigma = number("radius", radius), number("sigma", sigma)
        self.sharpness = number("sharpness", sharpness)
        if self.sigma > self.radius / 6:
            reject("sigma", f"at most a sixth of the radius, {self.radius / 6:g}", self.sigma)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        u = uniform(generator, 4, n)
        side = (u[0] - 0.5).sign()  # 1 for the upper moon, whose centre is on the left
        r = _radius_quantile(u[1], self.radius, self.sigma)
        angle = 2 * math.pi * u[2]
        keep = u[3] < torch.sigmoid(self.sharpness * angle.sin())
        r = torch.where(keep, r, -r)  # turned by pi
        upper = torch.stack([r * angle.cos(), r * angle.sin()], -1) - self._centre(u)
        return side[:, None] * upper  # the lower moon is the upper one turned by pi

    def _log_prob(self, x: Tensor) -> Tensor:
        centre = self._centre(x)
        return torch.logaddexp(self._moon(x + centre), self._moon(centre - x)) - math.log(2)

    def _moon(self, x: Tensor) -> Tensor:
        """Log density of the upper moon around zero."""
        r = _norm(x)
        angle = logsigmoid(self.sharpness * x[..., 1] / r) - math.log(math.pi)
        return _log_radius(r, self.radius, self.sigma) + angle - r.log()

    def _centre(self, like: Tensor) -> Tensor:
        return like.new_tensor([self.radius / 2, self.radius / 4])

    def _entropy(self) -> float:
        angle = torch.linspace(-math.pi, math.pi, 4097, dtype=torch.float64)[:-1, None, None]
        turn = torch.stack([angle.cos(), angle.sin()], -1)

        def over_angles(r: Tensor) -> Tensor:
            """-p(r) E[log p(x) | r]; by symmetry the upper moon stands for both."""
            weight = torch.sigmoid(self.sharpness * angle.sin()) * (2 / len(angle))
            log_p = self._log_prob(r[..., None] * turn - self._centre(r))
            return -_log_radius(r, self.radius, self.sigma).exp() * (weight * log_p).sum(0)

        panels = pairwise(_radial_edges([self.radius], self.sigma))  # one at a time: memory
        return sum(integral(over_angles, panel, points=12) for panel in panels)


class Rings(Target):
    """Circles around zero, K of them, equally likely, with blurred radii and a uniform angle:

        p(x) = 1/K sum_k N(r; R_k, sigma^2) / Phi(R_k / sigma) / (2 pi r) ,   r > 0 .

    H = E[log 2 pi r - log p(r)] by Gauss-Legendre quadrature in r, to 1e-10. The pole 1/r at zero
    is cut at r = 1e-15.

    Args:
        radii: R_k, positive.
        sigma: standard deviation of the radius, positive.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: an argument that is not positive.
    """

    name = "rings"

    def __init__(
        self,
        radii: Sequence[float] = (1.0, 2.0, 3.0),
        sigma: float = 0.12,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(2, dtype, device)
        self.radii = positive("radii", floating("radii", radii, ndim=1)).to("cpu", torch.float64)
        self.sigma = number("sigma", sigma)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        ring, u = choose(generator, torch.ones_like(self.radii), n), uniform(generator, 2, n)
        r, angle = _radius_quantile(u[0], self.radii.to(u)[ring], self.sigma), 2 * math.pi * u[1]
        return torch.stack([r * angle.cos(), r * angle.sin()], -1)

    def _log_prob(self, x: Tensor) -> Tensor:
        r = _norm(x)
        return self._log_radial(r) - r.log() - LOG_2PI

    def _log_radial(self, r: Tensor) -> Tensor:
        each = _log_radius(r[..., None], self.radii.to(r), self.sigma)
        return each.logsumexp(-1) - math.log(len(self.radii))

    def _entropy(self) -> float:
        def density(r: Tensor) -> Tensor:
            log_p = self._log_radial(r)
            return -log_p.exp() * (log_p - r.log() - LOG_2PI)

        return integral(density, _radial_edges(self.radii.tolist(), self.sigma))


class Spirals(Target):
    """Two arms: a straight bar of two Gaussians, each point turned by an angle in proportion to r.

    With (u, v) = x turned by -twist r,

        p(x) = (N(u; m, s^2) + N(u; -m, s^2)) / 2 * N(v; 0, w^2) .

    The twist leaves r alone and adds to the angle, so it preserves area: density and entropy are
    those of the bar. Seen in x, an arm gets thinner outwards. H = H(u) + 1/2 log 2 pi e w^2, the
    first by Gauss-Legendre quadrature to 1e-10.

    Args:
        mean: m, distance of the middle of an arm from zero along the bar, not negative.
        length: s, standard deviation along an arm, positive.
        width: w, standard deviation across the bar, positive.
        twist: radians for each unit of r.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: an argument out of range.
    """

    name = "spirals"

    def __init__(
        self,
        mean: float = 2.0,
        length: float = 0.8,
        width: float = 0.3,
        twist: float = 2.0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(2, dtype, device)
        self.mean, self.length = number("mean", mean, zero=True), number("length", length)
        self.width, self.twist = number("width", width), float(floating("twist", twist, ndim=0))

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        arm = (uniform(generator, n) - 0.5).sign()
        z = normal(generator, n, 2)
        return self._turn(
            torch.stack([arm * self.mean + self.length * z[:, 0], self.width * z[:, 1]], -1), 1
        )

    def _log_prob(self, x: Tensor) -> Tensor:
        u, v = self._turn(x, -1).unbind(-1)
        return self._log_bar(u) + log_normal(v, 0.0, self.width)

    def _turn(self, x: Tensor, sign: int) -> Tensor:
        angle = sign * self.twist * _norm(x)
        c, s = angle.cos(), angle.sin()
        return torch.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], -1)

    def _log_bar(self, u: Tensor) -> Tensor:
        left, right = (log_normal(u, m, self.length) for m in (-self.mean, self.mean))
        return torch.logaddexp(left, right) - math.log(2)

    def _entropy(self) -> float:
        edges = _normal_edges([-self.mean, self.mean], self.length)
        bar = integral(lambda u: -self._log_bar(u).exp() * self._log_bar(u), edges)
        return bar + 0.5 * (1 + LOG_2PI) + math.log(self.width)


class GaussianGrid(Target):
    """Equal Gaussians on a square grid: p(x) = g(x_1) g(x_2), g(t) = 1/n sum_k N(t; c_k, sigma^2).

    The n centres on each axis are c_k = spacing (k - (n - 1) / 2). H = 2 H(g), by Gauss-Legendre
    quadrature to 1e-10.

    Args:
        side: n, Gaussians along each side, at least 1.
        spacing: distance of neighbours, positive.
        sigma: standard deviation of each, positive.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: an argument out of range.
    """

    name = "gaussian_grid"

    def __init__(
        self,
        side: int = 5,
        spacing: float = 1.5,
        sigma: float = 0.2,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(2, dtype, device)
        self.side, self.spacing = whole("side", side), number("spacing", spacing)
        self.sigma = number("sigma", sigma)

    def _centres(self, like: Tensor) -> Tensor:
        k = torch.arange(self.side, dtype=like.dtype, device=like.device)
        return self.spacing * (k - (self.side - 1) / 2)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        cell = (self.side * uniform(generator, n, 2)).long()
        z = normal(generator, n, 2)
        return self._centres(z)[cell] + self.sigma * z

    def _log_side(self, t: Tensor) -> Tensor:
        each = log_normal(t[..., None], self._centres(t), self.sigma)
        return each.logsumexp(-1) - math.log(self.side)

    def _log_prob(self, x: Tensor) -> Tensor:
        return self._log_side(x).sum(-1)

    def _entropy(self) -> float:
        edges = _normal_edges(self._centres(torch.zeros(1)).tolist(), self.sigma)
        return 2 * integral(lambda t: -self._log_side(t).exp() * self._log_side(t), edges)


def _norm(x: Tensor) -> Tensor:
    """Distance from zero, at least 1e-15, so that its gradient exists at zero: it is zero."""
    return x.square().sum(-1).clamp(min=1e-30).sqrt()


def _log_radius(r: Tensor, mean: Tensor | float, sd: float) -> Tensor:
    """Log density of a normal law truncated to r > 0."""
    inside = torch.special.log_ndtr(torch.as_tensor(mean / sd, dtype=r.dtype, device=r.device))
    return log_normal(r, mean, sd) - inside


def _radius_quantile(u: Tensor, mean: Tensor | float, sd: float) -> Tensor:
    """The r below which a normal law truncated to r > 0 has the probability u."""
    cut = torch.special.ndtr(torch.as_tensor(-mean / sd, dtype=u.dtype, device=u.device))
    return (mean + sd * torch.special.ndtri(cut + (1 - cut) * u)).clamp(min=0)


def _normal_edges(means: Sequence[float], sd: float) -> list[float]:
    """Panels one standard deviation wide around each mean; beyond ten the mass is 1e-23."""
    return [mean + sd * k for mean in means for k in range(-10, 11)]


def _radial_edges(means: Sequence[float], sd: float) -> list[float]:
    """The same for r > 0; where zero counts, panels shrink towards it: log r has a pole there."""
    edges = _normal_edges(means, sd)
    near = [0.0, *(sd * 2.0**-k for k in range(50))] if min(edges) < 0 else []
    return sorted({*near, *(r for r in edges if r > 0)})
