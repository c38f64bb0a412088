"""The factors of a mean-field posterior: laws with their moments, entropies, and seeded samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Gamma, Normal

from lib.checks import floating, reject
from lib.checks import positive as check_positive

LOG_2PI = math.log(2 * math.pi)
# B_2k / (2k (2k-1)) for k = 8..1: J(z) sums them over z^(2k-1) (Abramowitz and Stegun 6.1.40).
STIRLING = (-3617 / 122400, 1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12)


@dataclass(frozen=True)
class NormalFactor:
    """q(mu) = N(mean, variance), one for each entry.

    Args:
        mean: shape ``(*batch)``.
        variance: shape ``(*batch)``.

    Raises:
        ValueError: not finite, a variance that is not positive, or shapes that differ.
    """

    mean: Float[Tensor, "*batch"]
    variance: Float[Tensor, "*batch"]

    def __post_init__(self) -> None:
        _tensors(self, positive=("variance",))
        _same_shape("variance", self.variance, self.mean)

    @property
    def distribution(self) -> Normal:
        """The same law as a `torch.distributions.Normal`."""
        return Normal(self.mean, self.variance.sqrt())

    def entropy(self) -> Float[Tensor, "*batch"]:
        """H(q) = 1/2 log(2 pi e v), in nats."""
        return 0.5 * (math.log(2 * math.pi) + 1 + self.variance.log())

    def log_prob(self, mu: Tensor) -> Tensor:
        """log q(mu), in nats; `mu` broadcasts with the factor."""
        return self.distribution.log_prob(mu)

    def sample(
        self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Independent draws, shape ``(*sample_shape, *batch)``."""
        noise = standard_normal(sample_shape + self.mean.shape, self.mean, generator)
        return self.mean + self.variance.sqrt() * noise


@dataclass(frozen=True)
class GammaFactor:
    """q(lambda) = Gamma(shape a, rate b) with density proportional to lambda^(a-1) e^(-b lambda).

    Args:
        shape: a, shape ``(*batch)``.
        rate: b, shape ``(*batch)``.

    Raises:
        ValueError: parameters that are not positive and finite, or shapes that differ.
    """

    shape: Float[Tensor, "*batch"]
    rate: Float[Tensor, "*batch"]

    def __post_init__(self) -> None:
        _tensors(self, positive=("shape", "rate"))
        _same_shape("rate", self.rate, self.shape)

    @property
    def distribution(self) -> Gamma:
        """The same law as a `torch.distributions.Gamma`."""
        return Gamma(self.shape, self.rate)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """E[lambda] = a / b."""
        return self.shape / self.rate

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Var[lambda] = a / b^2."""
        return self.shape / self.rate**2

    @property
    def mean_log(self) -> Float[Tensor, "*batch"]:
        """E[log lambda] = psi(a) - log b."""
        return torch.digamma(self.shape) - self.rate.log()

    def entropy(self) -> Float[Tensor, "*batch"]:
        """H(q) = a - log b + ln Gamma(a) + (1 - a) psi(a), in nats.

        Its terms cancel for large a. There, with Binet's J (see `lib.vi.normal.kl_gap`),

            H(q) = 1/2 log(2 pi e a) - log b + J(a) - 1/(2a) + (1 - a) J'(a)
        """
        large = self.shape > 10
        a = self.shape.clamp(max=10)
        low = a + torch.lgamma(a) + (1 - a) * torch.digamma(a)
        a = self.shape.clamp(min=10)
        J, slope = torch.zeros_like(a), torch.zeros_like(a)
        for k, c in zip(range(len(STIRLING), 0, -1), STIRLING, strict=True):
            J, slope = J / a**2 + c, slope / a**2 - (2 * k - 1) * c
        high = 0.5 * (LOG_2PI + 1 + a.log()) + J / a - 0.5 / a + (1 - a) * slope / a**2
        return torch.where(large, high, low) - self.rate.log()

    def log_prob(self, lam: Tensor) -> Tensor:
        """log q(lambda), in nats; `lam` is positive and broadcasts with the factor."""
        return self.distribution.log_prob(lam)

    def sample(
        self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Independent draws, shape ``(*sample_shape, *batch)``."""
        shape = self.shape.expand(sample_shape + self.shape.shape)
        on = shape.device if generator is None else generator.device
        # torch.distributions takes no generator; this is the function that its Gamma calls.
        return torch._standard_gamma(shape.to(on), generator).to(shape.device) / self.rate


@dataclass(frozen=True)
class GaussianFactor:
    """q(beta) = N(m, Lambda^-1) over d coefficients, with Lambda = L L^T.

    Args:
        mean: m, shape ``(d,)``.
        precision_cholesky: L, lower triangular with positive diagonal, shape ``(d, d)``.

    Raises:
        ValueError: not finite, shapes that do not fit, or a diagonal that is not positive.
    """

    mean: Float[Tensor, " d"]
    precision_cholesky: Float[Tensor, "d d"]

    def __post_init__(self) -> None:
        _tensors(self, mean=1)
        d = len(self.mean)
        _triangle("precision_cholesky", self.precision_cholesky, (d, d))

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Lambda^-1."""
        return torch.cholesky_inverse(self.precision_cholesky)

    def whiten(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows A L^-T: their squared norms are the variances of A beta."""
        return torch.linalg.solve_triangular(self.precision_cholesky, rows.T, upper=False).T

    def entropy(self) -> Float[Tensor, ""]:
        """H(q) = d/2 log(2 pi e) - 1/2 log|Lambda|, in nats."""
        log_det = 2 * self.precision_cholesky.diagonal().log().sum()
        return 0.5 * (len(self.mean) * (math.log(2 * math.pi) + 1) - log_det)

    def log_prob(self, beta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """log q(beta), in nats."""
        z = (beta - self.mean) @ self.precision_cholesky  # z z^T = (beta - m)^T Lambda (beta - m)
        log_det = self.precision_cholesky.diagonal().log().sum()
        return log_det - 0.5 * (len(self.mean) * math.log(2 * math.pi) + (z * z).sum(-1))

    def sample(
        self, sample_shape: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Independent draws, shape ``(*sample_shape, d)``: m + L^-T noise."""
        noise = standard_normal((*sample_shape, len(self.mean)), self.mean, generator)
        flat = noise.reshape(-1, len(self.mean)).T
        draw = torch.linalg.solve_triangular(self.precision_cholesky.T, flat, upper=True).T
        return self.mean + draw.reshape(noise.shape)


@dataclass(frozen=True)
class NormalWishartFactor:
    """K laws q(mu_k, Lambda_k) = N(mu_k; m_k, (beta_k Lambda_k)^-1) Wishart(Lambda_k; W_k, nu_k).

    Attributes:
        mean: m, shape ``(K, D)``.
        precision: beta, shape ``(K,)``.
        dof: nu, more than D - 1, shape ``(K,)``.
        root: lower Cholesky factor C of W^-1 = C C^T, shape ``(K, D, D)``.

    Raises:
        ValueError: not finite, out of range, or shapes that do not fit.
    """

    mean: Float[Tensor, "K D"]
    precision: Float[Tensor, " K"]
    dof: Float[Tensor, " K"]
    root: Float[Tensor, "K D D"]

    def __post_init__(self) -> None:
        _tensors(self, positive=("precision",), mean=2)
        K, D = self.mean.shape
        for name in ("precision", "dof"):
            _same_shape(name, getattr(self, name), self.mean[:, 0])
        if (low := float(self.dof.detach().min())) <= D - 1:
            reject("dof", f"more than D - 1 = {D - 1}", low)
        _triangle("root", self.root, (K, D, D))

    def log_det_scale(self) -> Float[Tensor, " K"]:
        """log|W|."""
        return -2 * self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _halves(self) -> Float[Tensor, "K D"]:
        """(nu + 1 - i)/2 for i = 1..D."""
        return (self.dof[:, None] - torch.arange(self.mean.shape[1]).to(self.dof)) / 2

    def mean_log_det(self) -> Float[Tensor, " K"]:
        """E log|Lambda| = sum_i psi((nu + 1 - i)/2) + D log 2 + log|W|   (equation 10.65)."""
        D = self.mean.shape[1]
        return torch.digamma(self._halves()).sum(-1) + D * math.log(2) + self.log_det_scale()

    def mahalanobis(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
        """E (x - mu)^T Lambda (x - mu) = D/beta + nu (x - m)^T W (x - m)   (equation 10.64)."""
        away = (x - self.mean[:, None]).mT  # (K, D, n)
        z = torch.linalg.solve_triangular(self.root, away, upper=False)
        return x.shape[1] / self.precision + self.dof * z.square().sum(1).T

    def log_b(self) -> Float[Tensor, " K"]:
        """log B(W, nu), the logarithm of the Wishart's normaliser   (equation B.79)."""
        D = self.mean.shape[1]
        gammas = D * (D - 1) / 4 * math.log(math.pi) + torch.lgamma(self._halves()).sum(-1)
        return -self.dof / 2 * (self.log_det_scale() + D * math.log(2)) - gammas

    def kl(self, prior: NormalWishartFactor) -> Float[Tensor, " K"]:
        """KL(q || prior) of each component, in nats; `prior` holds one component (K = 1)."""
        D = self.mean.shape[1]
        ratio, nu = prior.precision / self.precision, self.dof
        away = (self.mean - prior.mean)[:, :, None]
        z = torch.linalg.solve_triangular(self.root, away, upper=False)
        spread = nu * z.square().sum((1, 2))  # E (m - m0)^T Lambda (m - m0)
        normal = 0.5 * (D * (ratio - 1 - ratio.log()) + prior.precision * spread)
        inner = prior.root.expand_as(self.root)
        trace = torch.linalg.solve_triangular(self.root, inner, upper=False).square().sum((1, 2))
        wishart = self.log_b() - prior.log_b() + nu / 2 * (trace - D)
        return normal + wishart + (nu - prior.dof) / 2 * self.mean_log_det()


def standard_normal(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """N(0, 1) draws on the device and in the dtype of `like`, wherever the generator lives."""
    on = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=on).to(like.device)


def _tensors(factor: object, *, positive: tuple[str, ...] = (), **ndim: int) -> None:
    """Make the parameters of a factor finite tensors, those named `positive` positive."""
    for name, value in vars(factor).items():
        tensor = floating(name, value, ndim.get(name))
        if name in positive:
            check_positive(name, tensor.detach())
        object.__setattr__(factor, name, tensor)


def _triangle(argument: str, root: Tensor, shape: tuple[int, ...]) -> None:
    if root.shape != shape:
        reject(argument, f"shape {shape}", f"shape {tuple(root.shape)}")
    check_positive(f"{argument} (diagonal)", root.detach().diagonal(dim1=-2, dim2=-1))
    if bool(root.detach().triu(1).any()):
        reject(argument, "a lower triangular matrix", "numbers above the diagonal")


def _same_shape(argument: str, got: Tensor, want: Tensor) -> None:
    if got.shape != want.shape:
        reject(argument, f"shape {tuple(want.shape)}", f"shape {tuple(got.shape)}")
