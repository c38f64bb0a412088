"""Two half circles with Gaussian noise: the moons of scikit-learn, with their density."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.special import roots_legendre
from torch import Tensor

from lib.checks import number, reject, whole
from lib.data.targets.base import LOG_2PI, Target, normal, uniform

CENTRE, SCALE = (0.5, 0.25), (1.6, 0.85)  # of `scaled=True`
NODES = 256
RESOLVED = 5.12  # number of nodes times noise from which the quadrature is accurate
BLOCK = 2**17  # entries of points times nodes that are held at once


class Moons(Target):
    """Two interlocking arcs, half and half, with Gaussian noise: the law of `make_moons`.

        x = (cos a, sin a) or (1 - cos a, 1/2 - sin a), plus N(0, noise^2 I), a uniform on [0, pi].

    The second arc is the first one turned by pi around (1/2, 1/4). The density is a mixture of
    Gaussians at the Gauss-Legendre nodes of the angle, see `mixture`. H by the trapezoidal rule
    on a grid of noise/3, to 1e-10: the integrand is smooth, and vanishes at the border.

    Args:
        noise: standard deviation around the arcs, at least 0.02, and before the scaling.
        scaled: apply x -> (x - (1/2, 1/4)) / (1.6, 0.85), which puts nearly all into [-1, 1]^2.
            The noise then differs from axis to axis.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: noise out of range.

    Source: Pedregosa et al., Scikit-learn (2011), `sklearn.datasets.make_moons`.
    """

    name = "moons"

    def __init__(
        self,
        noise: float = 0.05,
        scaled: bool = False,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(2, dtype, device)
        self.noise, self.scaled = number("noise", noise), bool(scaled)
        if self.noise < RESOLVED / NODES:
            reject("noise", f"at least {RESOLVED / NODES:g}, as the nodes resolve", self.noise)
        self._weights, self._means = _nodes(NODES)

    def mixture(
        self, nodes: int = NODES
    ) -> tuple[Float[Tensor, "components"], Float[Tensor, "components 2"], Float[Tensor, "2 2"]]:
        """The law as a mixture of Gaussians, exact but for the quadrature over the angle.

        With the default, log p is right to 2e-8 within seven standard deviations of the arcs at
        noise 0.02, and to 1e-10 from noise 0.025. Far outside, where the nearest node counts alone,
        it is right to 1e-5 of its value.

        Args:
            nodes: of the Gauss-Legendre rule on each arc, at least 5.12 / noise.

        Returns:
            Weights ``(2 nodes,)``, means ``(2 nodes, 2)`` and the one covariance ``(2, 2)``, in
            float64 on the CPU.

        Raises:
            ValueError: too few nodes.
        """
        nodes = whole("nodes", nodes, low=math.ceil(RESOLVED / self.noise))
        weights, means = _nodes(nodes)
        centre, scale = self._frame(means)
        return weights, (means - centre) / scale, (self.noise / scale).square().diag()

    def stratified(
        self, n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n features"]:
        """A sample that is spread evenly: each point follows the law, and together they vary less.

        Half of the points are on each arc, and of its n/2 strata of equal width each holds one
        angle. Noise is independent, the order is random.

        Args:
            n: how many, even.
            generator: source of randomness, as in `sample`.

        Raises:
            ValueError: `n` odd or below two, or a `generator` that is none.
        """
        n = whole("n", n, low=2)
        if n % 2:
            reject("n", "an even number", n)
        if generator is not None and not isinstance(generator, torch.Generator):
            reject("generator", "a torch.Generator or None", type(generator).__name__)
        u = uniform(generator, 2, n // 2)
        strata = torch.arange(n // 2, dtype=u.dtype, device=u.device)
        upper, lower = math.pi * (strata + u) / (n // 2)
        order = torch.randperm(n, generator=generator, device=u.device)
        x = self._blur(torch.cat([_arc(upper), _turned(_arc(lower))])[order], generator)
        return x.to(self.dtype).to(self.device)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        u = uniform(generator, 2, n)
        x = _arc(math.pi * u[1])
        return self._blur(torch.where(u[0, :, None] < 0.5, x, _turned(x)), generator)

    def _blur(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        centre, scale = self._frame(x)
        return (x + self.noise * normal(generator, *x.shape) - centre) / scale

    def _frame(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and scale of the coordinates."""
        centre, scale = (CENTRE, SCALE) if self.scaled else ((0.0, 0.0), (1.0, 1.0))
        return like.new_tensor(centre), like.new_tensor(scale)

    def _log_prob(self, x: Tensor) -> Tensor:
        centre, scale = self._frame(x)
        points = (scale * x + centre).reshape(-1, 2)
        parts = points.split(max(1, BLOCK // len(self._weights)))
        log_p = torch.cat([self._log_mixture(part) for part in parts]).reshape(x.shape[:-1])
        return log_p + scale.log().sum()

    def _log_mixture(self, x: Tensor) -> Tensor:
        """log p before the scaling, by |x - m|^2 = |x|^2 - 2 x m + |m|^2: one matrix product."""
        variance = self.noise**2
        means, weights = self._means.to(x), self._weights.to(x)
        own = weights.log() - means.square().sum(1) / (2 * variance)
        each = torch.addmm(own, x, means.mT / variance)
        outer = x.square().sum(1) / (2 * variance)
        return each.logsumexp(1) - outer - LOG_2PI - math.log(variance)

    def _entropy(self) -> float:
        step, margin = self.noise / 3, 8 * self.noise
        sides = [
            torch.arange(low - margin, high + margin + step, step, dtype=torch.float64)
            for low, high in ((-1.0, 2.0), (-0.5, 1.0))
        ]
        parts = torch.cartesian_prod(*sides).split(BLOCK // len(self._weights))
        log_p = torch.cat([self._log_mixture(part) for part in parts])
        h = -float((log_p.exp() * log_p).sum()) * step**2
        return h - (math.log(math.prod(SCALE)) if self.scaled else 0.0)


def _nodes(nodes: int) -> tuple[Tensor, Tensor]:
    """Weights ``(2 nodes,)`` that add up to one, and points ``(2 nodes, 2)`` of both arcs."""
    t, weight = map(torch.from_numpy, roots_legendre(nodes))
    arc = _arc(math.pi * (1 + t) / 2)
    return (weight / 4).repeat(2), torch.cat([arc, _turned(arc)])


def _arc(angle: Tensor) -> Tensor:
    """Points of the upper arc."""
    return torch.stack([angle.cos(), angle.sin()], -1)


def _turned(x: Tensor) -> Tensor:
    """The law turned by pi around its centre, which swaps the arcs."""
    return 2 * x.new_tensor(CENTRE) - x
