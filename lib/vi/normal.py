"""A normal sample with unknown mean and precision: mean-field inference with every number exact.

    x_i ~ N(mu, 1/lambda) independently, i = 1..n,   prior p(mu, lambda) = lambda^(a0 - 1)

with a0 = 1 (``"flat"``) or a0 = 0 (``"reference"``). The data enter through n, their mean xbar and
their variance s2 = 1/n sum_i (x_i - xbar)^2 alone. Writing a = n/2 + a0, and S for E_q of
sum_i (x_i - mu)^2:

    q(mu)     = N(xbar, 1/(n E lambda))
    q(lambda) = Gamma(a, S/2),   S = n s2 + n Var_q(mu) = n s2 + 1/E lambda

The fixed point is E lambda = (a - 1/2) / (n s2 / 2), which is the exact posterior mean. The priors
are improper; the evidence is the integral of likelihood times lambda^(a0-1), with no other
constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import StudentT

from lib.checks import number, reject, whole
from lib.vi.ascent import Ascent, coordinate_ascent
from lib.vi.factors import LOG_2PI, STIRLING, GammaFactor, NormalFactor
from lib.vi.statistics import SufficientStatistics

PRIORS = {"flat": 1.0, "reference": 0.0}  # name -> a0


@dataclass(frozen=True)
class NormalState:
    """The mean-field posterior q(mu) q(lambda)."""

    mu: NormalFactor
    lam: GammaFactor


def normal_updates(
    statistics: SufficientStatistics, prior: str = "flat"
) -> dict[str, Callable[[NormalState], NormalState]]:
    """The two optimal factors, as updates for `coordinate_ascent`."""
    n, s2, a = statistics.n, statistics.s2, statistics.n / 2 + _shape(prior)

    def mu(state: NormalState) -> NormalState:
        return replace(state, mu=NormalFactor(statistics.mean, 1 / (n * state.lam.mean)))

    def lam(state: NormalState) -> NormalState:
        squares = n * (s2 + (state.mu.mean - statistics.mean) ** 2 + state.mu.variance)
        return replace(state, lam=GammaFactor(torch.full_like(s2, a), squares / 2))

    return {"mu": mu, "lambda": lam}


def normal_elbo(
    state: NormalState, statistics: SufficientStatistics, prior: str = "flat"
) -> Float[Tensor, ""]:
    """E_q[log p(x | mu, lambda) + (a0 - 1) log lambda] + H(q), all constants included, in nats."""
    n, s2, lam, mu = statistics.n, statistics.s2, state.lam, state.mu
    squares = n * (s2 + (mu.mean - statistics.mean) ** 2 + mu.variance)  # E sum_i (x_i - mu)^2
    log_likelihood = 0.5 * (n * (lam.mean_log - LOG_2PI) - lam.mean * squares)
    log_prior = (_shape(prior) - 1) * lam.mean_log
    return log_likelihood + log_prior + mu.entropy() + lam.entropy()


def fit_normal(
    x: Tensor | SufficientStatistics,
    *,
    prior: str = "flat",
    start: float = 1.0,
    tol: float = 1e-12,
    max_sweeps: int = 1000,
    record: Callable[[int, str, NormalState, float], object] | None = None,
) -> Ascent[NormalState]:
    """Mean-field posterior of mean and precision by coordinate ascent.

    Args:
        x: the data, shape ``(n,)``, or their sufficient statistics.
        prior: ``"flat"``, p = 1, or ``"reference"``, p = 1/lambda.
        start: E lambda at the start.
        tol: stop when a sweep changes E lambda, and the bound, relatively by less.
        max_sweeps: upper bound on the number of sweeps.
        record: see `coordinate_ascent`; the factors are called ``"mu"`` and ``"lambda"``.

    Returns:
        The factors in float64 on the device of the data, with their bound in nats.

    Raises:
        ValueError: what `SufficientStatistics.of` rejects, an unknown prior, or a `start` that is
            not positive.
    """
    statistics = x if isinstance(x, SufficientStatistics) else SufficientStatistics.of(x)
    n, s2 = statistics.n, statistics.s2
    a = torch.full_like(s2, n / 2 + _shape(prior))
    mean = torch.full_like(s2, number("start", start))
    state = NormalState(NormalFactor(statistics.mean, 1 / (n * mean)), GammaFactor(a, a / mean))
    return coordinate_ascent(
        state,
        normal_updates(statistics, prior),
        lambda state: normal_elbo(state, statistics, prior),
        tol=tol,
        max_sweeps=max_sweeps,
        record=record,
        change=lambda before, after: abs(after.lam.mean / before.lam.mean - 1),
        scale=n * (1 + abs(float(s2.log())) + math.log(n)),  # n log s2 and ln Gamma(n/2)
    )


@dataclass(frozen=True)
class ExactNormal:
    """The exact posterior: what mean-field inference approximates.

        lambda ~ Gamma(n/2 + a0 - 1/2, n s2 / 2),   mu | lambda ~ N(xbar, 1/(n lambda))

    so that mu ~ xbar + sqrt(s2 / k) t_k with k = n + 2 a0 - 1 degrees of freedom.

    Args:
        statistics: of the data.
        prior: ``"flat"`` or ``"reference"``.

    Raises:
        ValueError: an unknown prior.
    """

    statistics: SufficientStatistics
    prior: str = "flat"

    def __post_init__(self) -> None:
        _shape(self.prior)

    @property
    def lam(self) -> GammaFactor:
        """The marginal law of the precision."""
        n, s2 = self.statistics.n, self.statistics.s2
        return GammaFactor(torch.full_like(s2, n / 2 + _shape(self.prior) - 0.5), n * s2 / 2)

    @property
    def mu(self) -> StudentT:
        """The marginal law of the mean; its variance is infinite for k = 2, undefined for k = 1."""
        k = 2 * self.lam.shape
        return StudentT(k, self.statistics.mean, (self.statistics.s2 / k).sqrt())

    def log_prob(self, mu: Tensor, lam: Tensor) -> Tensor:
        """log p(mu, lambda | x), normalised, in nats; arguments broadcast, `lam` is positive."""
        squares = self.statistics.n * lam * (mu - self.statistics.mean) ** 2
        log_conditional = 0.5 * (math.log(self.statistics.n) + lam.log() - LOG_2PI - squares)
        return log_conditional + self.lam.log_prob(lam)

    def log_evidence(self) -> Float[Tensor, ""]:
        """log of the integral of p(x | mu, lambda) lambda^(a0-1), in nats."""
        n, a, b = self.statistics.n, self.lam.shape, self.lam.rate
        return 0.5 * ((1 - n) * LOG_2PI - math.log(n)) + torch.lgamma(a) - a * b.log()

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """`n` independent draws of (mu, lambda), each of shape ``(n,)``."""
        lam = self.lam.sample((whole("n", n),), generator)
        mu = NormalFactor(self.statistics.mean.expand(n), 1 / (self.statistics.n * lam))
        return mu.sample((), generator), lam


def kl_gap(n: int, d: int = 1, *, prior_shape: float = 1.0) -> float:
    """KL(q || p) at the fixed point: what factorising costs, in nats. It depends on no data.

    With a = n/2 + a0, the shape of q(lambda), and p = a - d/2, that of the exact posterior,

        KL = -d/2 + d/2 log p + a log(a/p) + ln Gamma(p) - ln Gamma(a)
           = 1/2 log(a/p) + J(p) - J(a),    J(z) = ln Gamma(z) - (z - 1/2) log z + z - 1/2 log 2 pi

    where Binet's J falls to zero like 1/(12 z). The second form adds positive terms only, so it
    keeps all its digits for any n, where the first one cancels; KL is close to d/(2n).

    Args:
        n: number of observations.
        d: number of coefficients: 1 for a mean, the columns of X for a regression with a flat
            prior.
        prior_shape: a0 of the prior lambda^(a0-1): 1 is flat, 0 the reference prior.

    Raises:
        ValueError: a posterior that is improper, n + 2 a0 <= d.
    """
    a, p = _shapes(n, d, prior_shape)
    return 0.5 * math.log1p(d / 2 / p) + (_binet(p) - _binet(a))


def contraction(n: int, d: int = 1, *, prior_shape: float = 1.0) -> float:
    """Factor by which a sweep shrinks the error of 1/E lambda: d/(n + 2 a0), exactly.

    The sweep is the linear map 1/E lambda <- (RSS + d/E lambda) / (n + 2 a0). Arguments and errors
    are those of `kl_gap`.
    """
    a, _ = _shapes(n, d, prior_shape)
    return d / 2 / a


def _shapes(n: int, d: int, prior_shape: float) -> tuple[float, float]:
    n, d = whole("n", n), whole("d", d)
    a = n / 2 + number("prior_shape", prior_shape, zero=True)
    if a <= d / 2:
        reject("n", f"more than d - 2 prior_shape = {d - 2 * prior_shape:g} observations", n)
    return a, a - d / 2


def _binet(z: float) -> float:
    """J(z) = J(z+1) + (z + 1/2) log(1 + 1/z) - 1 up to z = 10, then Stirling's series."""
    low = 0.0
    while z < 10:
        low, z = low + (z + 0.5) * math.log1p(1 / z) - 1, z + 1
    total = 0.0
    for c in STIRLING:
        total = total / z**2 + c
    return low + total / z


def _shape(prior: str) -> float:
    if not isinstance(prior, str) or prior not in PRIORS:
        reject("prior", " or ".join(map(repr, PRIORS)), repr(prior))
    return PRIORS[prior]
