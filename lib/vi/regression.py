"""Bayesian linear regression with unknown noise precision, by mean-field coordinate ascent.

    y ~ N(X beta, I/lambda),   beta ~ N(0, I/P0), flat for P0 = 0,   lambda ~ Gamma(a0, b0)

With a = n/2 + a0 the optimal factors are

    q(beta)   = N(m, Lambda^-1),   Lambda = E lambda X^T X + P0 I,   Lambda m = E lambda X^T y
    q(lambda) = Gamma(a, b),       b = b0 + 1/2 E_q ||y - X beta||^2

For P0 = 0 the posterior is known exactly: lambda ~ Gamma(a - d/2, b0 + RSS/2), whose mean is the
fixed point of the ascent, and KL(q || p) is `kl_gap(n, d, prior_shape=a0)`. A column of ones gives
the normal sample of `lib.vi.normal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lib.checks import floating, number, reject
from lib.vi.ascent import Ascent, coordinate_ascent
from lib.vi.factors import GammaFactor, GaussianFactor
from lib.vi.statistics import EPS, RegressionStatistics

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class RegressionPrior:
    """p(beta) = N(0, I/precision), or 1 where it is zero; p(lambda) = Gamma(shape, rate).

    The default is flat in everything. With `shape` or `rate` zero the prior of lambda is improper:
    lambda^(shape-1) e^(-rate lambda) with no other constant, and the evidence is relative to that.

    Raises:
        ValueError: a parameter that is not one finite non-negative number.
    """

    precision: float = 0.0
    shape: float = 1.0
    rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("precision", "shape", "rate"):
            object.__setattr__(self, name, number(name, getattr(self, name), zero=True))

    def log_constant(self, d: int) -> float:
        """log of the constants of p(beta) p(lambda), in nats."""
        P0, a0, b0 = self.precision, self.shape, self.rate
        log_beta = d / 2 * (math.log(P0) - LOG_2PI) if P0 > 0 else 0.0
        return log_beta + (a0 * math.log(b0) - math.lgamma(a0) if a0 > 0 < b0 else 0.0)


FLAT = RegressionPrior()


@dataclass(frozen=True)
class RegressionState:
    """The mean-field posterior q(beta) q(lambda)."""

    beta: GaussianFactor
    lam: GammaFactor

    def predict(self, X: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Posterior mean and variance of the regression function x^T beta at each row of X.

        The variance is that of the function; a new response adds the noise, 1/lambda.

        Raises:
            ValueError: X that is not a finite matrix with d columns.
        """
        X = floating("X", X, ndim=2).to(self.beta.mean)
        if X.shape[1] != len(self.beta.mean):
            reject("X", f"{len(self.beta.mean)} columns", f"shape {tuple(X.shape)}")
        return X @ self.beta.mean, self.beta.whiten(X).square().sum(1)


def expected_squares(q: GaussianFactor, statistics: RegressionStatistics) -> Float[Tensor, ""]:
    """E_q ||y - X beta||^2 = rss + ||z - R m||^2 + tr(R^T R Lambda^-1)."""
    R, z, rss = statistics.R, statistics.z, statistics.rss
    return rss + (z - R @ q.mean).square().sum() + q.whiten(R).square().sum()


def best_beta(
    statistics: RegressionStatistics, lam: Tensor, prior: RegressionPrior = FLAT
) -> GaussianFactor:
    """q(beta) for E lambda = `lam`: the least squares problem lam ||z - R beta||^2 + P0 ||beta||^2.

    The triangle T of its QR decomposition is the Cholesky factor: T^T T = lam R^T R + P0 I.
    """
    R, z, eye = statistics.R, statistics.z, torch.eye(statistics.d).to(statistics.R)
    rows = torch.cat([lam.sqrt() * R, math.sqrt(prior.precision) * eye])
    Q, T = torch.linalg.qr(rows)
    target = Q.T @ torch.cat([lam.sqrt() * z, torch.zeros_like(eye[0])])
    mean = torch.linalg.solve_triangular(T, target[:, None], upper=True)[:, 0]
    return GaussianFactor(mean, T.T * T.diagonal().sign())  # QR leaves the signs of T's rows open


def regression_elbo(
    state: RegressionState, statistics: RegressionStatistics, prior: RegressionPrior = FLAT
) -> Float[Tensor, ""]:
    """E_q[log p(y | beta, lambda) + log p(beta) + log p(lambda)] + H(q), all constants, in nats."""
    n, d, q, lam = statistics.n, statistics.d, state.beta, state.lam
    squares = expected_squares(q, statistics)
    log_likelihood = 0.5 * (n * (lam.mean_log - LOG_2PI) - lam.mean * squares)
    length = (q.mean @ q.mean + q.whiten(torch.eye(d).to(q.mean)).square().sum()) / 2
    log_prior = (prior.shape - 1) * lam.mean_log - prior.rate * lam.mean - prior.precision * length
    return log_likelihood + log_prior + prior.log_constant(d) + q.entropy() + lam.entropy()


def fit_regression(
    statistics: RegressionStatistics,
    prior: RegressionPrior = FLAT,
    *,
    start: float = 1.0,
    tol: float = 1e-12,
    max_sweeps: int = 1000,
    record: Callable[[int, str, RegressionState, float], object] | None = None,
) -> Ascent[RegressionState]:
    """Mean-field posterior of the coefficients and the noise precision by coordinate ascent.

    Args:
        statistics: ``RegressionStatistics.of(X, y)``.
        prior: of coefficients and noise precision.
        start: E lambda at the start.
        tol: stop when a sweep changes E lambda, and the bound, relatively by less.
        max_sweeps: upper bound on the number of sweeps.
        record: see `coordinate_ascent`; the factors are called ``"beta"`` and ``"lambda"``.

    Returns:
        The factors in float64 on the device of the data, with their bound in nats.

    Raises:
        ValueError: a `start` that is not positive, or an improper posterior: with a flat prior a
            rank-deficient X or n + 2 a0 <= d, with b0 = 0 data that X fits exactly.
    """
    _check_proper(statistics, prior)
    n, rss = statistics.n, statistics.rss
    a = torch.full_like(rss, n / 2 + prior.shape)
    mean = torch.full_like(rss, number("start", start))

    def beta(state: RegressionState) -> RegressionState:
        return replace(state, beta=best_beta(statistics, state.lam.mean, prior))

    def lam(state: RegressionState) -> RegressionState:
        b = prior.rate + 0.5 * expected_squares(state.beta, statistics)
        return replace(state, lam=GammaFactor(a, b))

    return coordinate_ascent(
        RegressionState(best_beta(statistics, mean, prior), GammaFactor(a, a / mean)),
        {"beta": beta, "lambda": lam},
        lambda state: regression_elbo(state, statistics, prior),
        tol=tol,
        max_sweeps=max_sweeps,
        record=record,
        change=lambda before, after: abs(after.lam.mean / before.lam.mean - 1),
        scale=lambda state: _size(state, statistics, prior),
    )


def exact_log_evidence(
    statistics: RegressionStatistics, prior: RegressionPrior = FLAT
) -> Float[Tensor, ""]:
    """log p(y) = log of the integral over beta and lambda, in nats.

    Closed form for P0 = 0. Otherwise beta integrates analytically and log lambda numerically: the
    trapezoidal rule on an analytic integrand that vanishes at both ends converges geometrically
    (Trefethen and Weideman 2014, theorem 5.1); with the step h = 1/2 (a + 1)^(-1/2), half the
    standard deviation that the integrand has at least, rounding is all that is left.

    Raises:
        ValueError: an improper posterior; see `fit_regression`.
    """
    _check_proper(statistics, prior)
    n, d, P0 = statistics.n, statistics.d, prior.precision
    a, b = n / 2 + prior.shape, prior.rate + statistics.rss / 2
    constant = prior.log_constant(d) - n / 2 * LOG_2PI + d / 2 * LOG_2PI
    if P0 == 0:
        log_det = 2 * statistics.R.diagonal().abs().log().sum()
        p = torch.full_like(b, a - d / 2)
        return constant - log_det / 2 + torch.lgamma(p) - p * b.log()
    # In the coordinates of R = U diag(s) V^T the integral over beta factorises.
    U, s, _ = torch.linalg.svd(statistics.R, full_matrices=False)
    w2, s2 = (U.T @ statistics.z).square(), s.square()
    # With t = log lambda, f(t) has its modes below log(a/b0'), b0' = b, and falls on the right as
    # a t - b e^t does; on the left of `low` its slope is at least a/2. Both ends are below e^-80.
    most = float(b + w2.sum() / 2)
    low = math.log(min(a / (4 * most), a * P0 / (2 * d * float(s2.max()) + 1e-300))) - 160 / a
    high = math.log(a / float(b)) + math.log(1 + 80 / a) + 3
    h = 0.5 / math.sqrt(a + 1)
    t = torch.arange(low, high, h, dtype=b.dtype, device=b.device)
    lam = t.exp()[:, None]
    log_det = torch.log(lam * s2 + P0).sum(1) + (d - len(s2)) * math.log(P0)
    squares = b * lam[:, 0] + 0.5 * (lam * P0 * w2 / (lam * s2 + P0)).sum(1)
    return constant + math.log(h) + torch.logsumexp(a * t - 0.5 * log_det - squares, 0)


def _size(
    state: RegressionState, statistics: RegressionStatistics, prior: RegressionPrior
) -> float:
    """Size of the terms of the bound and, divided by eps, of the digits that they have lost."""
    (P0, a0, b0), q, lam = vars(prior).values(), state.beta, state.lam
    R, z, n, d = statistics.R, statistics.z, statistics.n, statistics.d
    logs = 1 + abs(float(lam.rate.log())) + float(lam.shape.log().abs())
    terms = (n + d + 2 * a0) * logs + b0 * float(lam.mean) + abs(prior.log_constant(d))
    terms += d * abs(math.log(P0)) if P0 > 0 else 0.0
    terms += a0 * abs(math.log(a0 * b0)) if a0 > 0 < b0 else 0.0
    terms += P0 * float(q.mean @ q.mean)
    # z - R m, known to eps (|z| + |R| |m|), is squared and multiplied by E lambda.
    added = float(torch.linalg.vector_norm(z.abs() + R.abs() @ q.mean.abs()))
    left = float(torch.linalg.vector_norm(z - R @ q.mean))
    terms += float(lam.mean) * added * (2 * left + EPS * added)
    # The QR decomposition knows each row of L to eps times its length: so log|Lambda|.
    L = q.precision_cholesky
    return terms + float((torch.linalg.vector_norm(L, dim=1) / L.diagonal()).sum())


def _check_proper(statistics: RegressionStatistics, prior: RegressionPrior) -> None:
    n, d = statistics.n, statistics.d
    if prior.precision == 0 and statistics.rank < d:
        reject("X", f"rank {d}, as the prior of beta is flat", f"rank {statistics.rank}")
    if prior.precision == 0 and n + 2 * prior.shape <= d:
        reject("X", f"more than d - 2 a0 = {d - 2 * prior.shape:g} rows", n)
    if prior.rate == 0 and float(statistics.rss) == 0:
        reject("y", "responses that X does not fit exactly, as b0 is zero", "residuals of zero")
