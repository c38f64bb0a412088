"""Targets on an interval, a square or a circle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor
from torch.distributions import constraints

from lib.checks import floating, number, positive, reject, whole
from lib.data.targets.base import LOG_2PI, Target, accepted, choose, normal, uniform

UNIT = constraints.independent(constraints.unit_interval, 1)


class PiecewiseUniform(Target):
    """A histogram: p(x) = w_k / (e_{k+1} - e_k) for e_k <= x <= e_{k+1}, ends included.

    H = -sum_k w_k log(w_k / (e_{k+1} - e_k)), a closed form.

    Args:
        edges: e_0 < ... < e_K.
        weights: probabilities of the K pieces, up to a common factor.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: edges that do not increase, weights that are not positive or not one for each
            piece.
    """

    name = "piecewise_uniform"

    def __init__(
        self,
        edges: Sequence[float] = (1.0, 1.4, 1.9, 2.2, 2.5),
        weights: Sequence[float] = (0.40, 0.10, 0.35, 0.15),
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(1, dtype, device)
        self.edges = floating("edges", edges, ndim=1).to("cpu", torch.float64)
        self.weights = positive("weights", weights).to("cpu", torch.float64)
        if not bool((self.edges.diff() > 0).all()):
            reject("edges", "increasing numbers", self.edges.tolist())
        if self.weights.shape != (len(self.edges) - 1,):
            reject("weights", f"{len(self.edges) - 1} numbers", tuple(self.weights.shape))
        self.weights = self.weights / self.weights.sum()
        low, high = float(self.edges[0]), float(self.edges[-1])
        self.support = constraints.independent(constraints.interval(low, high), 1)
        self.inner = low

    def cdf(self, x: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
        """P(X <= x), from ``(*batch, 1)`` to ``(*batch)``."""
        wide = self._wide(x)
        covered = (wide - self.edges[:-1].to(wide)) / self.edges.diff().to(wide)
        return (covered.clamp(0, 1) * self.weights.to(wide)).sum(-1).to(x)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        piece, u = choose(generator, self.weights, n), uniform(generator, n)
        x = self.edges.to(u)[piece] + self.edges.diff().to(u)[piece] * u
        return x.clamp(max=self.edges[-1].to(u))[:, None]

    def _log_prob(self, x: Tensor) -> Tensor:
        height = (self.weights / self.edges.diff()).log().to(x)
        piece = torch.bucketize(x.detach()[..., 0], self.edges[1:-1].to(x), right=True)
        return height[piece] + 0 * x[..., 0]  # the gradient exists: it is zero

    def _entropy(self) -> float:
        return -float((self.weights * (self.weights / self.edges.diff()).log()).sum())


class Checkerboard(Target):
    """Uniform on the eight dark cells of a 4 x 4 board on [-4, 4]^2: p(x) = 1/32 or 0.

    A cell has its edges, so a sample that is rounded onto one keeps its density. `support` is the
    whole board; log p is minus infinity on the light cells. H = log 32.

    Args:
        dtype: of the samples.
        device: of the samples.
    """

    name = "checkerboard"
    support = constraints.independent(constraints.interval(-4.0, 4.0), 1)

    def __init__(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(2, dtype, device)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        cell = (8 * uniform(generator, n)).long()
        column, half = cell // 2, cell % 2
        corner = torch.stack([column, 2 * half + column % 2], -1)
        return 2 * (corner + uniform(generator, n, 2)) - 4

    def _log_prob(self, x: Tensor) -> Tensor:
        here = x.detach() / 2  # cells of side one, counted from -2 to 1
        below, above = here.floor().clamp(max=1), (here.ceil() - 1).clamp(min=-2)
        on_line = (below != above).any(-1)  # then one of the two cells that meet is dark
        dark = (below.sum(-1) % 2 == 0) | on_line
        return torch.where(dark, 0 * x[..., 0] - math.log(32), -math.inf)

    def _entropy(self) -> float:
        return math.log(32)


class Beta(Target):
    """The Beta law on [0, 1]: p(x) = x^(a-1) (1-x)^(b-1) / B(a, b).

    At the ends log p is its limit: minus infinity, a number, or plus infinity where a or b is below
    one. H = log B(a, b) - (a-1) psi(a) - (b-1) psi(b) + (a+b-2) psi(a+b). Samples stay off the
    ends.

    Args:
        a: exponent at 0, positive.
        b: exponent at 1, positive.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: an exponent that is not positive.
    """

    name = "beta"
    support = UNIT
    inner = 0.5

    def __init__(
        self,
        a: float = 2.0,
        b: float = 5.0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(1, dtype, device)
        self.a, self.b = number("a", a), number("b", b)
        self._log_norm = float(special.betaln(self.a, self.b))

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n features"]:
        return _off_the_ends(super().sample(n, generator))

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return _beta_quantile(self.a, self.b, uniform(generator, n, 1))

    def _log_prob(self, x: Tensor) -> Tensor:
        return _log_beta(x[..., 0], self.a, self.b) - self._log_norm

    def _entropy(self) -> float:
        return _beta_entropy(self.a, self.b)


class CopulaBeta(Target):
    """Two Beta laws on [0, 1]^2, correlated by a Gaussian copula.

    With z_i = Phi^-1(F(x_i)), where F and f are distribution function and density of Beta(a, b),

        log p(x) = log f(x_1) + log f(x_2)
                   - 1/2 log(1 - rho^2)
                   - (rho^2 (z_1^2 + z_2^2) - 2 rho z_1 z_2) / (2 (1 - rho^2)) .

    H = 2 H(Beta(a, b)) + 1/2 log(1 - rho^2). For integers F is a sum of positive terms. Exponents
    of two or more make the density vanish on the whole boundary, where log p is minus infinity.

    Args:
        rho: correlation of z_1 and z_2, between -1 and 1.
        a: exponent at 0, an integer of at least 2.
        b: exponent at 1, an integer of at least 2.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: a correlation or an exponent out of range.

    Source: Nelsen, An Introduction to Copulas (2006), equation 2.3.6.
    """

    name = "copula_beta"
    support = UNIT
    inner = 0.5

    def __init__(
        self,
        rho: float = 0.8,
        a: int = 2,
        b: int = 5,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(2, dtype, device)
        self.rho = float(floating("rho", rho, ndim=0))
        if not abs(self.rho) < 1:
            reject("rho", "a number between -1 and 1", self.rho)
        self.a, self.b = whole("a", a, low=2), whole("b", b, low=2)
        self._log_norm = float(special.betaln(self.a, self.b))

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n features"]:
        return _off_the_ends(super().sample(n, generator))

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = normal(generator, n, 2)
        second = self.rho * z[:, 0] + math.sqrt(1 - self.rho**2) * z[:, 1]
        u = torch.special.ndtr(torch.stack([z[:, 0], second], -1))
        return _beta_quantile(self.a, self.b, u)

    def _log_prob(self, x: Tensor) -> Tensor:
        z, rest = self._score(x), 1 - self.rho**2
        square = self.rho**2 * z.square().sum(-1) - 2 * self.rho * z.prod(-1)
        log_f = (_log_beta(x, self.a, self.b) - self._log_norm).sum(-1)
        return log_f - 0.5 * math.log(rest) - square / (2 * rest)

    def _score(self, x: Tensor) -> Tensor:
        """z = Phi^-1(F(x)), from the smaller of F and 1 - F, so that no tail is rounded away.

        F(x) = P(at least a heads in a + b - 1 tosses of a coin with probability x).
        """
        tosses = self.a + self.b - 1
        heads = [math.comb(tosses, j) * x**j * (1 - x) ** (tosses - j) for j in range(tosses + 1)]
        below, above = sum(heads[self.a :]), sum(heads[: self.a])
        left = below < above
        tail = torch.where(left, below, above).clamp(min=1e-300)  # 37 standard deviations
        z = torch.special.ndtri(tail)
        return torch.where(left, z, -z)

    def _entropy(self) -> float:
        return 2 * _beta_entropy(self.a, self.b) + 0.5 * math.log(1 - self.rho**2)


class VonMises(Target):
    """The von Mises law of an angle in [-pi, pi): p(x) = exp(kappa cos x) / (2 pi I_0(kappa)).

    H = log(2 pi I_0(kappa)) - kappa I_1(kappa) / I_0(kappa).

    Args:
        kappa: concentration around 0, positive.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: a concentration that is not positive.

    Source: Best and Fisher (1979), section 2, for the samples.
    """

    name = "von_mises"
    support = constraints.independent(constraints.half_open_interval(-math.pi, math.pi), 1)

    def __init__(
        self,
        kappa: float = 4.0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(1, dtype, device)
        self.kappa = number("kappa", kappa)
        # I_0(kappa) = exp(kappa) i0e(kappa): nothing here overflows.
        self._log_i0e = math.log(special.i0e(self.kappa))

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n features"]:
        x = super().sample(n, generator)
        return torch.where(x < math.pi, x, -math.pi)  # rounding may reach pi, which is -pi

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        # The proposal is a wrapped Cauchy law: mean resultant rho, 1 - rho without cancellation.
        h = math.hypot(1, 2 * self.kappa)
        scale = 1 + h + math.sqrt(2 * (1 + h))
        rho = 2 * self.kappa / scale
        rest = (1 + math.sqrt(2 * (1 + h)) + 1 / (h + 2 * self.kappa)) / scale

        def propose() -> tuple[Tensor, Tensor]:
            """p over its bound is c exp(1 - c), where c = kappa ((1 + rho^2) / 2 rho - cos x)."""
            u, accept = uniform(generator, 2, n)
            x = 2 * torch.atan(rest / (1 + rho) * torch.tan(math.pi * (u - 0.5)))
            c = scale * rest**2 / 4 + 2 * self.kappa * torch.sin(x / 2).square()
            return x, accept.log() <= c.log() + 1 - c

        return accepted(propose, n)[:, None]

    def _log_prob(self, x: Tensor) -> Tensor:
        drop = 2 * self.kappa * torch.sin(x[..., 0] / 2).square()  # kappa (1 - cos x)
        return -drop - self._log_i0e - LOG_2PI

    def _entropy(self) -> float:
        if self.kappa > 1e4:  # the difference below would cancel; the next term is below 1e-12
            spread = 0.5 + 1 / (8 * self.kappa) + 1 / (8 * self.kappa**2)
        else:
            spread = self.kappa * (1 - special.i1e(self.kappa) / special.i0e(self.kappa))
        return LOG_2PI + self._log_i0e + spread


def _log_beta(x: Tensor, a: float, b: float) -> Tensor:
    """log x^(a-1) (1-x)^(b-1) for each number in [0, 1]."""
    return _log_power(x, a - 1) + _log_power(1 - x, b - 1)


def _log_power(x: Tensor, exponent: float) -> Tensor:
    """``exponent * log(x)`` for x >= 0, at zero its limit, with zero gradient there."""
    if exponent == 0:
        return 0 * x
    finite = exponent * x.clamp(min=torch.finfo(x.dtype).tiny).log()
    return torch.where(x > 0, finite, -math.copysign(math.inf, exponent))


def _beta_quantile(a: float, b: float, u: Tensor) -> Tensor:
    """The x with F(x) = u, by SciPy on the CPU."""
    return torch.from_numpy(special.betaincinv(a, b, u.cpu().numpy())).to(u)


def _beta_entropy(a: float, b: float) -> float:
    psi = special.psi
    terms = (a - 1) * psi(a) + (b - 1) * psi(b) - (a + b - 2) * psi(a + b)
    return float(special.betaln(a, b) - terms)


def _off_the_ends(x: Tensor) -> Tensor:
    """Samples that rounding took to 0 or 1, where the density may be infinite, brought back."""
    kind = torch.finfo(x.dtype)
    return x.clamp(kind.tiny, 1 - kind.eps / 2)
