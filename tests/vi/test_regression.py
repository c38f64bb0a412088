"""Linear regression against exact arithmetic, closed forms and brute-force quadrature."""

import itertools
import math
from dataclasses import replace

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from lib.vi import regression
from lib.vi.ascent import BoundDecreased
from lib.vi.factors import GammaFactor, GaussianFactor
from lib.vi.normal import ExactNormal, contraction, fit_normal, kl_gap
from lib.vi.regression import (
    FLAT,
    RegressionPrior,
    RegressionState,
    best_beta,
    exact_log_evidence,
    expected_squares,
    fit_regression,
    regression_elbo,
)
from lib.vi.statistics import RegressionStatistics, SufficientStatistics


def data(n, d, generator, noise=1.0, dtype=torch.float64):
    X = torch.randn(n, d, generator=generator, dtype=dtype)
    beta = torch.randn(d, generator=generator, dtype=dtype)
    return X, X @ beta + noise * torch.randn(n, generator=generator, dtype=dtype)


# Statistics


@pytest.mark.parametrize(("n", "d"), [(10, 3), (30, 5)])
def test_residuals_keep_their_digits_under_a_signal_a_million_times_the_noise(n, d, generator):
    X, y = data(n, d, generator, noise=1e-6)
    found = RegressionStatistics.of(X, y)
    with mpmath.workdps(50):
        A, b = mpmath.matrix(X.tolist()), mpmath.matrix(y.tolist())
        rest = b - A * mpmath.lu_solve(A.T * A, A.T * b)
        wanted = float((rest.T * rest)[0])
    assert float(found.rss) == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize("n", [3, 5, 40])
def test_statistics_give_the_squares_of_any_coefficients(n, generator, dtype, device):
    X, y = (t.to(device) for t in data(n, 5, generator, dtype=dtype))
    s = RegressionStatistics.of(X, y)
    assert s.rank == min(n, 5)
    assert s.R.device == X.device
    for _ in range(3):
        beta = torch.randn(5, generator=generator, dtype=torch.float64).to(device)
        wanted = (y.double() - X.double() @ beta).square().sum()
        torch.testing.assert_close(s.rss + (s.z - s.R @ beta).square().sum(), wanted)


def test_rank_does_not_depend_on_units(generator):
    X, y = data(20, 3, generator)
    units = torch.tensor([1e-12, 1.0, 1e12], dtype=torch.float64)
    assert RegressionStatistics.of(X * units, y).rank == 3
    assert RegressionStatistics.of(torch.cat([X, X[:, :1] - 2 * X[:, 1:2]], 1), y).rank == 3


@pytest.mark.parametrize(
    ("name", "X", "y"),
    [
        ("X", torch.ones(3), torch.ones(3)),
        ("X", torch.ones(1, 1), torch.ones(1)),
        ("X", torch.ones(0, 1), torch.ones(0)),
        ("X", torch.full((3, 1), math.nan), torch.ones(3)),
        ("y", torch.ones(3, 1), torch.ones(2)),
        ("y", torch.ones(3, 1), torch.ones(3, 1)),
        ("y", torch.ones(3, 1), torch.tensor([1.0, math.inf, 0.0])),
        ("y", torch.ones(3, 1), torch.zeros(3)),
    ],
)
def test_bad_data_are_named(name, X, y, unchecked):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        RegressionStatistics.of(X, y)


@pytest.mark.parametrize("apart", [1e-5, 1e-9, 1e-13, 3e-15])
def test_nearly_equal_columns_leave_the_squares_of_any_coefficients(apart, generator):
    X, y = data(20, 3, generator)
    twin = X[:, :1] + apart * torch.randn(20, 1, generator=generator, dtype=torch.float64)
    X = torch.cat([X, twin], 1)
    s = RegressionStatistics.of(X, y)
    beta = torch.randn(4, generator=generator, dtype=torch.float64)
    found = s.rss + (s.z - s.R @ beta).square().sum()
    torch.testing.assert_close(found, (y - X @ beta).square().sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_data_that_square_out_of_range_are_named(size, generator):
    X, y = data(20, 3, generator)
    with pytest.raises(ValueError, match=r"^X: expected"):
        RegressionStatistics.of(X * size, y)
    with pytest.raises(ValueError, match=r"^y: expected"):
        RegressionStatistics.of(X, y * size)


# Rounding is not a wrong formula


HARD = {
    "strong prior": (5, 2, 1.0, 0.0, RegressionPrior(1.0, 1e4, 1e4)),
    "little noise": (20, 3, 1e-10, 0.0, FLAT),
    "little noise, ridge": (20, 3, 1e-10, 0.0, RegressionPrior(1.0)),
    "offset": (20, 3, 1.0, 1e10, FLAT),
}


@pytest.mark.parametrize("case", HARD)
def test_terms_that_cancel_are_no_falling_bound(case):
    n, d, noise, offset, prior = HARD[case]
    for seed in range(10):
        X, y = data(n, d, torch.Generator().manual_seed(seed), noise)
        X = torch.cat([X, torch.ones(n, 1).double()], 1) if offset else X
        ascent = fit_regression(RegressionStatistics.of(X, y + offset), prior)
        assert ascent.reason == "converged"


@pytest.mark.parametrize("case", HARD)
def test_a_wrong_formula_is_still_found(case, generator, monkeypatch):
    n, d, noise, _, prior = HARD[case]
    calls = itertools.count()

    def wrong(*args):
        q = best_beta(*args)
        return replace(q, precision_cholesky=q.precision_cholesky * (1.01 if next(calls) else 1))

    monkeypatch.setattr(regression, "best_beta", wrong)
    fixed = RegressionStatistics.of(*data(n, d, generator, noise))
    start = (n / 2 + prior.shape) / (prior.rate + float(fixed.rss) / 2)
    with pytest.raises(BoundDecreased):
        fit_regression(fixed, prior, start=start)


# The flat prior, where everything is known


@pytest.mark.parametrize(("a0", "b0"), [(1.0, 0.0), (0.0, 0.0), (2.5, 0.7)])
@pytest.mark.parametrize(("n", "d"), [(7, 5), (30, 1), (100, 20)])
def test_fixed_point_and_bound_are_the_closed_forms(n, d, a0, b0, generator):
    X, y = data(n, d, generator)
    s, prior = RegressionStatistics.of(X, y), RegressionPrior(0.0, a0, b0)
    seen = []
    ascent = fit_regression(s, prior, record=lambda *row: seen.append(row))
    q, close = ascent.state, {"rtol": 1e-11, "atol": 0}
    fixed = (n / 2 + a0 - d / 2) / (b0 + s.rss / 2)
    torch.testing.assert_close(q.lam.mean, fixed, **close)
    torch.testing.assert_close(q.beta.mean, torch.linalg.lstsq(X, y[:, None]).solution[:, 0])
    torch.testing.assert_close(q.beta.covariance, torch.linalg.inv(fixed * X.T @ X))
    evidence = float(exact_log_evidence(s, prior))
    assert ascent.bound + kl_gap(n, d, prior_shape=a0) == pytest.approx(evidence, rel=1e-11)
    u = [1 / float(row[2].lam.mean) - 1 / float(fixed) for row in seen[:5:2]]
    assert u[2] / u[1] == pytest.approx(contraction(n, d, prior_shape=a0), rel=1e-6)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(8, 60),
    d=st.integers(1, 7),
    scale=st.floats(1e-6, 1e6),
    start=st.floats(1e-8, 1e8),
)
def test_every_start_and_scale_has_the_same_gap(seed, n, d, scale, start):
    X, y = data(n, d, torch.Generator().manual_seed(seed))
    s = RegressionStatistics.of(X, scale * y)
    gap = float(exact_log_evidence(s)) - fit_regression(s, start=start).bound
    assert gap == pytest.approx(kl_gap(n, d), abs=1e-10)


def test_a_column_of_ones_is_the_normal_sample(generator):
    y = 5 + torch.randn(12, generator=generator, dtype=torch.float64)
    s, sample = RegressionStatistics.of(torch.ones(12, 1).double(), y), SufficientStatistics.of(y)
    regression, normal = fit_regression(s), fit_normal(sample)
    assert regression.bound == pytest.approx(normal.bound, rel=1e-13)
    torch.testing.assert_close(regression.state.lam.mean, normal.state.lam.mean)
    torch.testing.assert_close(regression.state.beta.mean[0], normal.state.mu.mean)
    torch.testing.assert_close(regression.state.beta.covariance[0, 0], normal.state.mu.variance)
    torch.testing.assert_close(exact_log_evidence(s), ExactNormal(sample).log_evidence())


def test_float32_data_give_the_fit_of_the_same_numbers_in_float64(generator):
    X, y = data(20, 3, generator, dtype=torch.float32)
    fits = [fit_regression(RegressionStatistics.of(*pair)) for pair in ((X, y), (X.double(), y))]
    assert fits[0].bound == fits[1].bound
    assert fits[0].state.beta.mean.dtype == torch.float64


# Proper priors


@pytest.mark.parametrize("lam", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("n", [3, 20])
def test_beta_solves_the_ridge_equations(n, lam, generator):
    X, y = data(n, 5, generator)
    q = best_beta(RegressionStatistics.of(X, y), torch.tensor(lam).double(), RegressionPrior(0.3))
    precision = lam * X.T @ X + 0.3 * torch.eye(5).double()
    L = q.precision_cholesky
    torch.testing.assert_close(L @ L.T, precision)
    torch.testing.assert_close(precision @ q.mean, lam * X.T @ y)


@pytest.mark.parametrize(
    ("n", "d", "prior"),
    [
        (6, 2, RegressionPrior(0.3, 1.0, 0.0)),
        (4, 3, RegressionPrior(0.3, 0.0, 0.0)),
        (6, 2, RegressionPrior(2.0, 0.8, 1.3)),
        (3, 5, RegressionPrior(2.0, 0.8, 1.3)),
    ],
)
def test_evidence_is_the_integral_of_the_marginal_likelihood(n, d, prior, generator):
    X, y = data(n, d, generator)
    gram = X @ X.T / prior.precision
    b0, a0 = prior.rate, prior.shape
    constant = a0 * math.log(b0) - math.lgamma(a0) if b0 > 0 else 0.0

    def integrand(t):
        lam = math.exp(t)
        normal = stats.multivariate_normal(cov=(gram + torch.eye(n).double() / lam).numpy())
        return math.exp(normal.logpdf(y.numpy()) + constant + a0 * t - b0 * lam)

    wanted, _ = integrate.quad(integrand, -30, 12, epsabs=0, epsrel=1e-11, limit=500, points=[0])
    s = RegressionStatistics.of(X, y)
    assert float(exact_log_evidence(s, prior)) == pytest.approx(math.log(wanted), abs=1e-9)


def test_evidence_of_a_wide_prior_tends_to_the_flat_one(generator):
    s = RegressionStatistics.of(*data(15, 3, generator))
    flat, P0 = exact_log_evidence(s), 1e-12
    wide = exact_log_evidence(s, RegressionPrior(P0)) - 1.5 * math.log(P0 / (2 * math.pi))
    torch.testing.assert_close(wide, flat, rtol=1e-10, atol=0)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 30),
    d=st.integers(1, 8),
    precision=st.floats(1e-6, 1e6),
    rate=st.floats(1e-3, 1e3),
)
def test_bound_is_below_the_evidence(seed, n, d, precision, rate):
    s = RegressionStatistics.of(*data(n, d, torch.Generator().manual_seed(seed)))
    prior = RegressionPrior(precision, 1.0, rate)
    ascent = fit_regression(s, prior)
    assert ascent.reason == "converged"
    assert ascent.bound <= float(exact_log_evidence(s, prior)) + 1e-9


def test_bound_meets_the_evidence_for_many_data(generator):
    s = RegressionStatistics.of(*data(20_000, 2, generator))
    prior = RegressionPrior(1.0, 2.0, 1.0)
    gap = float(exact_log_evidence(s, prior)) - fit_regression(s, prior).bound
    assert gap == pytest.approx(kl_gap(20_000, 2), rel=1e-3)


def test_bound_is_the_expectation_that_defines_it(generator):
    """Monte Carlo over a state that is no fixed point, with every constant of the model."""
    X, y = data(6, 2, generator)
    prior = RegressionPrior(0.5, 2.0, 1.5)
    s = RegressionStatistics.of(X, y)
    L = torch.tensor([[2.0, 0.0], [0.7, 1.5]], dtype=torch.float64)
    shape, rate = torch.tensor([6.0, 4.0], dtype=torch.float64)
    q = RegressionState(GaussianFactor(L[1], L), GammaFactor(shape, rate))
    beta, lam = q.beta.sample((200_000,), generator), q.lam.sample((200_000,), generator)
    normal = torch.distributions.Normal
    terms = (
        normal(beta @ X.T, lam[:, None] ** -0.5).log_prob(y).sum(1)
        + normal(0.0, 0.5**-0.5).log_prob(beta).sum(1)
        + torch.distributions.Gamma(2.0, 1.5).log_prob(lam)
        - q.beta.log_prob(beta)
        - q.lam.log_prob(lam)
    )
    off = float(regression_elbo(q, s, prior) - terms.mean())
    assert abs(off) < 4.5 * float(terms.std()) / math.sqrt(200_000)
    squares = (y - beta @ X.T).square().sum(1)
    off = float(expected_squares(q.beta, s) - squares.mean())
    assert abs(off) < 4.5 * float(squares.std()) / math.sqrt(200_000)


def test_a_design_without_full_rank_wants_a_proper_prior(generator):
    X, y = data(12, 2, generator)
    s = RegressionStatistics.of(torch.cat([X, X[:, :1]], 1), y)  # the first column twice
    for use in (fit_regression, exact_log_evidence):
        with pytest.raises(ValueError, match=r"^X: expected rank 3"):
            use(s)
    beta = fit_regression(s, RegressionPrior(0.1)).state.beta
    torch.testing.assert_close(beta.mean[0], beta.mean[2])


def test_improper_posteriors_are_named(generator):
    X, y = data(8, 3, generator)
    with pytest.raises(ValueError, match=r"^y: expected responses that X does not fit"):
        fit_regression(RegressionStatistics.of(X, X.sum(1)))
    with pytest.raises(ValueError, match=r"^X: expected rank 8"):
        fit_regression(RegressionStatistics.of(X.T, y[:3]))
    with pytest.raises(ValueError, match=r"^X: expected more than"):
        fit_regression(RegressionStatistics.of(X[:3], y[:3]), RegressionPrior(0.0, 0.0, 1.0))


@pytest.mark.parametrize("name", ["precision", "shape", "rate"])
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "one"])
def test_bad_priors_are_named(name, bad, unchecked):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        RegressionPrior(**{name: bad})


def test_a_bad_start_is_named(generator):
    with pytest.raises(ValueError, match=r"^start: expected"):
        fit_regression(RegressionStatistics.of(*data(8, 2, generator)), start=-1.0)


def test_prediction_is_the_law_of_the_regression_function(generator, unchecked):
    s = RegressionStatistics.of(*data(12, 3, generator))
    q = fit_regression(s).state
    X = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    mean, variance = q.predict(X)
    torch.testing.assert_close(mean, X @ q.beta.mean)
    torch.testing.assert_close(variance, (X @ q.beta.covariance @ X.T).diagonal())
    for bad in (X[0], X[:, :2], X * math.nan):
        with pytest.raises(ValueError, match=r"^X: expected"):
            q.predict(bad)
