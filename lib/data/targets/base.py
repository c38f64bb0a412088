"""What every target offers: exact samples, a normalised log density, its entropy.

With all three, the divergence of a model q is known without a bias and without a reference model:

    KL(p || q) = -H(p) - E_p[log q(x)] >= 0 .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from lib.bijections.base import check_event
from lib.checks import reject, whole
from lib.metrics import Measured

LOG_2PI = math.log(2 * math.pi)
FAR = 1e60  # Beyond it, a point counts as infinitely far away: its fourth power still fits float64.
CHUNK = 2**16  # Points that `kl` hands to a model at once.


class Target:
    """A probability law whose density, samples and entropy are all known.

    A subclass writes `_sample`, `_log_prob` and `_entropy`. They work in float64, whatever the
    dtype of the samples: the reference should not be what rounds.

    Args:
        features: length of one data point.
        dtype: of the samples.
        device: of the samples.

    Attributes:
        name: key in tables.
        features: length of one data point.
        support: smallest box around the points of positive density.

    Raises:
        ValueError: a `dtype` that is not floating-point.
    """

    name: str
    support: constraints.Constraint = constraints.real_vector
    inner: float = 0.0  # a number that keeps a point inside of the support, if all entries are it

    def __init__(self, features: int, dtype: torch.dtype, device: torch.device | str) -> None:
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            reject("dtype", "a floating-point dtype", dtype)
        self.features, self.dtype, self.device = features, dtype, torch.device(device)
        self._cached_entropy: float | None = None

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n features"]:
        """Independent draws, exact but for rounding.

        Args:
            n: how many.
            generator: source of randomness; None takes PyTorch's global one of the CPU. Numbers
                are drawn on its device, then moved: a seed gives the same points on each machine.

        Returns:
            Points of shape ``(n, features)``, in the target's dtype and on its device.

        Raises:
            ValueError: `n` below one, or a `generator` that is none.
        """
        n = whole("n", n)
        if generator is not None and not isinstance(generator, torch.Generator):
            reject("generator", "a torch.Generator or None", type(generator).__name__)
        return self._sample(n, generator).to(self.dtype).to(self.device)

    def log_prob(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """Normalised log density in nats, minus infinity with zero gradient off the support.

        It is also minus infinity where its value does not fit the dtype of `x`.

        Args:
            x: points of any floating-point dtype, shape ``(*batch, features)``.

        Returns:
            log p(x), of shape ``(*batch)`` and the dtype of `x`, accurate to that dtype.

        Raises:
            ValueError: another shape, integers, or NaN (which compiled code does not look for).
        """
        wide = self._wide(x)
        inside = self.support.check(x).to(wide.device) & (wide.abs() < FAR).all(-1)
        log_p = self._log_prob(torch.where(inside[..., None], wide, self.inner))
        keep = inside & (log_p >= torch.finfo(x.dtype).min)
        return torch.where(keep, log_p, -math.inf).to(x)

    def entropy(self) -> float:
        """H = -E log p(x) in nats: a closed form, or quadrature as the class says; kept."""
        if self._cached_entropy is None:
            self._cached_entropy = float(self._entropy())
        return self._cached_entropy

    def kl(
        self,
        log_q: Callable[[Tensor], Tensor],
        n: int = 100_000,
        generator: torch.Generator | None = None,
    ) -> Measured:
        """KL(target || q) = E[log p(x) - log q(x)] by Monte Carlo, in nats.

        The mean of -H(p) - log q(x) has the same expectation, but log p(x) as control variate takes
        most of the variance away: for q = p all of it. Infinite where q misses a sample.

        Args:
            log_q: log density of the model, from ``(m, features)`` to ``(m,)``; called without
                gradients, at most 65,536 points at a time.
            n: number of samples, at least 2.
            generator: source of randomness, as in `sample`.

        Returns:
            The divergence, its standard error, and its floor 0.

        Raises:
            ValueError: fewer than two samples; values of `log_q` of another shape, NaN, or plus
                infinity.

        Source: Kullback and Leibler (1951), equation 2.4.
        """
        n = whole("n", n, low=2)
        with torch.no_grad():
            chunks = self.sample(n, generator).split(CHUNK)
            ratio = torch.cat([self._log_ratio(x, log_q(x)) for x in chunks])
        mean = float(ratio.mean())
        if math.isinf(mean):
            return Measured(mean)
        return Measured(mean, stderr=float(ratio.std()) / math.sqrt(n))

    def _log_ratio(self, x: Tensor, log_q: Tensor) -> Tensor:
        """log p - log q in float64, or a ``ValueError``."""
        if not isinstance(log_q, Tensor) or log_q.shape != x.shape[:1]:
            got = tuple(log_q.shape) if isinstance(log_q, Tensor) else type(log_q).__name__
            reject("log_q", f"values of shape {tuple(x.shape[:1])}", got)
        if bool((log_q.isnan() | (log_q == math.inf)).any()):
            reject("log_q", "numbers or minus infinity", "NaN or plus infinity")
        double = {"device": "cpu", "dtype": torch.float64}
        return self.log_prob(x).to(**double) - log_q.to(**double)

    def _wide(self, x: Tensor) -> Tensor:
        """Checked points in float64, on the CPU where the device has none."""
        check_event("x", x, (self.features,))
        if not torch.compiler.is_compiling() and bool(x.isnan().any()):
            reject("x", "numbers", f"NaN at {int(x.isnan().any(-1).sum())} points")
        return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _entropy(self) -> float:
        raise NotImplementedError


def uniform(generator: torch.Generator | None, *shape: int) -> Tensor:
    """Draws from the open interval (0, 1) in float64."""
    device = "cpu" if generator is None else generator.device
    u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    return u.clamp(min=2.0**-54)  # zero comes once in 2^53 draws


def normal(generator: torch.Generator | None, *shape: int) -> Tensor:
    """Standard normal draws in float64."""
    device = "cpu" if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float64)


def choose(generator: torch.Generator | None, weights: Tensor, n: int) -> Tensor:
    """Draws of an index with probabilities proportional to `weights`, ``(n,)``."""
    weights = weights.to("cpu" if generator is None else generator.device)
    return torch.multinomial(weights, n, replacement=True, generator=generator)


def accepted(propose: Callable[[], tuple[Tensor, Tensor]], n: int) -> Tensor:
    """The first `n` accepted of independent proposals, which come as points and verdicts."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        x, keep = propose()
        kept.append(x[keep])
    return torch.cat(kept)[:n]


def log_normal(x: Tensor, mean: Tensor | float, sd: float) -> Tensor:
    """log N(x; mean, sd^2), entry by entry."""
    return -0.5 * ((x - mean) / sd).square() - math.log(sd) - 0.5 * LOG_2PI


def integral(f: Callable[[Tensor], Tensor], edges: Iterable[float], points: int = 24) -> float:
    """The integral of `f` over consecutive panels, by the Gauss-Legendre rule on each.

    Args:
        f: takes float64 of shape ``(panels, points)``, and gives the same shape.
        edges: ends of the panels, in any order.
        points: nodes on each panel; exact for polynomials of degree 2 points - 1.
    """
    ends = torch.tensor(sorted(set(edges)), dtype=torch.float64)
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(points))
    half = ends.diff()[:, None] / 2
    return float((f(ends[:-1, None] + half * (1 + nodes)) * half * weights).sum())
