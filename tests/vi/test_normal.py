"""Mean and precision of a normal sample: the ascent against closed forms, quadrature and mpmath."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import kl_divergence

from lib.vi.factors import GammaFactor, GaussianFactor, NormalFactor, NormalWishartFactor
from lib.vi.normal import (
    PRIORS,
    ExactNormal,
    contraction,
    fit_normal,
    kl_gap,
    normal_elbo,
)
from lib.vi.statistics import CHUNK, SufficientStatistics

priors = pytest.mark.parametrize("prior", PRIORS)


def statistics_of(n, mean=0.3, s2=1.7):
    return SufficientStatistics(n, *torch.tensor([mean, s2], dtype=torch.float64))


def sample(n, generator, dtype=torch.float64):
    return 3 + 2 * torch.randn(n, generator=generator, dtype=dtype)


# Sufficient statistics


def test_statistics_are_those_of_numpy_over_many_chunks(generator, dtype, device):
    x = sample(2 * CHUNK + 7, generator, dtype).to(device)
    found, wanted = SufficientStatistics.of(x), x.cpu().double().numpy()
    assert found.n == len(x)
    assert found.mean.dtype == found.s2.dtype == torch.float64
    assert found.mean.device == x.device
    torch.testing.assert_close(float(found.mean), wanted.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(float(found.s2), wanted.var(), rtol=1e-13, atol=0)


def test_statistics_do_not_cancel():
    """An offset of 1e9 leaves the variance of 0, 1, ..., k-1 at (k^2 - 1)/12."""
    x = torch.arange(1001, dtype=torch.float64) + 1e9
    assert float(SufficientStatistics.of(x).s2) == pytest.approx((1001**2 - 1) / 12, rel=1e-14)


def test_statistics_leave_the_data_alone(generator):
    x = sample(10, generator)
    before = x.clone()
    SufficientStatistics.of(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "x",
    [[], [1.0], [2.0, 2.0, 2.0], [0.1] * 7, [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]], 1.0],
)
def test_bad_data_are_named(x, unchecked):
    with pytest.raises(ValueError, match=r"^x: expected"):
        fit_normal(torch.tensor(x))


def test_data_that_square_out_of_range_are_named():
    for size in (1e200, 1e-200):
        with pytest.raises(ValueError, match=r"^x: expected"):
            SufficientStatistics.of(size * torch.tensor([1.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize(("name", "n", "mean", "s2"), [("n", 1, 0, 1), ("s2", 5, 0, 0)])
def test_bad_statistics_are_named(name, n, mean, s2):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        statistics_of(n, mean, s2)


def test_statistics_can_be_python_numbers(unchecked):
    plain, tensors = SufficientStatistics(10, 0.0, 1.0), statistics_of(10, 0.0, 1.0)
    assert plain == tensors
    assert fit_normal(plain).bound == fit_normal(tensors).bound


# The ascent


@priors
@pytest.mark.parametrize("n", [2, 3, 10, 1000, 10**6])
def test_fixed_point_and_bound(n, prior):
    data, a0 = statistics_of(n), PRIORS[prior]
    ascent, exact, k = fit_normal(data, prior=prior), ExactNormal(data, prior), n + 2 * a0 - 1
    mean, s2 = ascent.state.lam.mean, data.s2
    close = {"rtol": 1e-11, "atol": 0}
    assert ascent.reason == "converged"
    torch.testing.assert_close(mean, k / (n * s2), **close)
    torch.testing.assert_close(mean, exact.lam.mean, **close)
    torch.testing.assert_close(ascent.state.mu.variance, s2 / k, **close)
    assert torch.equal(ascent.state.mu.mean, data.mean)
    ratio = ascent.state.lam.variance / exact.lam.variance
    torch.testing.assert_close(float(ratio), k / (k + 1), **close)
    if k > 2:
        ratio = ascent.state.mu.variance / exact.mu.variance
        torch.testing.assert_close(float(ratio), (k - 2) / k, **close)
    gap = float(exact.log_evidence()) - ascent.bound
    evidence = abs(float(exact.log_evidence()))
    assert abs(gap - kl_gap(n, prior_shape=a0)) <= 1e-10 * evidence


@given(
    n=st.integers(2, 10**6),
    mean=st.floats(-1e6, 1e6),
    s2=st.floats(1e-12, 1e12),
    start=st.floats(1e-12, 1e12),
    prior=st.sampled_from(sorted(PRIORS)),
)
@settings(deadline=None)
def test_every_start_and_scale_ends_at_the_same_gap(n, mean, s2, start, prior):
    data, a0 = statistics_of(n, mean, s2), PRIORS[prior]
    ascent = fit_normal(data, start=start, prior=prior)
    evidence = float(ExactNormal(data, prior).log_evidence())
    gap = kl_gap(n, prior_shape=a0)
    terms = n * (1 + math.log(n) + abs(math.log(s2)))
    assert ascent.bound + gap == pytest.approx(evidence, abs=1e-13 * terms + 1e-11)
    assert float(ascent.state.lam.mean) == pytest.approx((n + 2 * a0 - 1) / (n * s2), rel=1e-10)


@priors
@pytest.mark.parametrize("n", [2, 5, 40])
def test_a_sweep_contracts_the_error_by_the_known_factor(n, prior):
    data, u = statistics_of(n), []
    keep = lambda sweep, factor, state, bound: u.append(1 / state.lam.mean)  # noqa: E731
    fit_normal(data, prior=prior, start=1e-3, record=keep)
    fixed = 1 / ExactNormal(data, prior).lam.mean
    u = torch.stack(u[::2])  # start, and after each update of lambda
    rate = contraction(n, prior_shape=PRIORS[prior])
    assert rate == 1 / (n + 2 * PRIORS[prior])
    torch.testing.assert_close(u[1:4] - fixed, rate * (u[:3] - fixed), rtol=1e-8, atol=1e-12)


def test_float32_data_give_the_fit_of_the_same_numbers_in_float64(generator, device):
    x = sample(1000, generator, torch.float32).to(device)
    single, double = fit_normal(x), fit_normal(x.double())
    assert single == double or single.bound == double.bound
    assert single.state.lam.mean.device == x.device


@priors
@pytest.mark.parametrize("n", [2, 4, 9])
def test_the_bound_is_the_integral_that_defines_it(n, prior):
    """E_q[log p(x, mu, lambda) - log q] by quadrature over data, not sufficient statistics."""
    generator = torch.Generator().manual_seed(n)
    x = sample(n, generator)
    state = fit_normal(x, prior=prior, max_sweeps=1, start=0.7).state  # not at the fixed point
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    mu = state.mu.mean.item() + state.mu.variance.sqrt().item() * nodes
    weights = weights / weights.sum()
    log_q = stats.norm(state.mu.mean.item(), state.mu.variance.sqrt().item()).logpdf(mu)
    gamma = stats.gamma(state.lam.shape.item(), scale=1 / state.lam.rate.item())

    def inner(t):
        lam = math.exp(t)
        log_p = stats.norm(mu, lam**-0.5).logpdf(x.numpy()[:, None]).sum(0)
        log_p = log_p + (PRIORS[prior] - 1) * t
        value = weights @ (log_p - log_q) - gamma.logpdf(lam)
        return value * gamma.pdf(lam) * lam

    bound, _ = integrate.quad(inner, -25, 6, epsabs=1e-12, epsrel=1e-12, limit=500)
    data = SufficientStatistics.of(x)
    assert float(normal_elbo(state, data, prior)) == pytest.approx(bound, abs=1e-8)


@pytest.mark.parametrize("start", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_start_is_named(start):
    with pytest.raises(ValueError, match=r"^start: expected"):
        fit_normal(statistics_of(5), start=start)


@pytest.mark.parametrize("prior", [None, ["flat"], 1])
def test_a_prior_of_another_type_is_named(prior, unchecked):
    with pytest.raises(ValueError, match=r"^prior: expected"):
        fit_normal(statistics_of(5), prior=prior)


def test_an_unknown_prior_is_named():
    with pytest.raises(ValueError, match=r"^prior: expected"):
        fit_normal(statistics_of(5), prior="jeffreys")
    with pytest.raises(ValueError, match=r"^prior: expected"):
        ExactNormal(statistics_of(5), "jeffreys")


# The exact posterior


@priors
@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_posterior_is_likelihood_times_prior_over_evidence(n, prior, generator):
    x = sample(n, generator)
    exact = ExactNormal(SufficientStatistics.of(x), prior)
    mu = torch.linspace(-5, 9, 7, dtype=torch.float64)[:, None]
    lam = torch.tensor([1e-3, 0.2, 1.0, 30.0], dtype=torch.float64)
    likelihood = torch.distributions.Normal(mu[..., None], lam[:, None] ** -0.5).log_prob(x).sum(-1)
    joint = likelihood + (PRIORS[prior] - 1) * lam.log()
    wanted = joint - exact.log_evidence()
    torch.testing.assert_close(exact.log_prob(mu, lam), wanted, rtol=1e-11, atol=1e-11)


@priors
@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_posterior_is_normalised_and_mu_is_a_student_t(n, prior):
    """The trapezoidal rule over log lambda: for each mu, and for the marginal of lambda."""
    exact = ExactNormal(statistics_of(n), prior)
    t = torch.arange(-60, 12, 0.05, dtype=torch.float64)
    mu = torch.tensor([-30.0, -2.0, 0.3, 0.5, 4.0], dtype=torch.float64)
    marginal = torch.logsumexp(exact.log_prob(mu[:, None], t.exp()) + t, 1) + math.log(0.05)
    torch.testing.assert_close(marginal, exact.mu.log_prob(mu), rtol=1e-10, atol=1e-10)
    total = torch.logsumexp(exact.lam.log_prob(t.exp()) + t, 0) + math.log(0.05)
    assert float(total) == pytest.approx(0, abs=1e-10)


def test_classical_t_interval_under_the_reference_prior(generator):
    x = sample(12, generator)
    mu = ExactNormal(SufficientStatistics.of(x), "reference").mu
    classical = stats.t(11, x.mean().item(), x.std().item() / math.sqrt(12))
    at = torch.linspace(0, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(mu.log_prob(at), torch.tensor(classical.logpdf(at.numpy())))


def test_samples_have_the_marginals_and_respect_the_generator(device):
    exact = ExactNormal(SufficientStatistics(9, *torch.tensor([0.3, 1.7]).double().to(device)))
    draw = lambda: exact.sample(20_000, torch.Generator().manual_seed(1))  # noqa: E731
    state = torch.random.get_rng_state()
    (mu, lam), again = draw(), draw()
    assert torch.equal(mu, again[0])
    assert torch.equal(lam, again[1])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert mu.device.type == device.type
    t = (mu.cpu() - 0.3) / exact.mu.scale.cpu()
    assert stats.kstest(t.numpy(), stats.t(10).cdf).pvalue > 1e-3
    gamma = stats.gamma(float(exact.lam.shape), scale=1 / float(exact.lam.rate))
    assert stats.kstest(lam.cpu().numpy(), gamma.cdf).pvalue > 1e-3
    # Given lambda, mu is normal: the standardised values are independent of lambda.
    z = (mu - 0.3) * (9 * lam).sqrt()
    assert stats.kstest(z.cpu().numpy(), stats.norm.cdf).pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack([z.abs(), lam]))[0, 1])) < 4 / math.sqrt(20_000)


# The gap


def exact_gap(n, d=1, a0=1.0):
    """The first form of `kl_gap`, in 50 digits."""
    with mpmath.workdps(50):
        d, a = mpmath.mpf(d), mpmath.mpf(n) / 2 + mpmath.mpf(a0)
        p = a - d / 2
        gammas = mpmath.loggamma(p) - mpmath.loggamma(a)
        return float(-d / 2 + d / 2 * mpmath.log(p) + a * mpmath.log(a / p) + gammas)


@given(n=st.integers(1, 10**9), d=st.integers(1, 60), a0=st.sampled_from([0.0, 0.3, 1.0, 7.0]))
@settings(deadline=None)
def test_gap_keeps_its_digits_for_every_n(n, d, a0):
    if n + 2 * a0 <= d:
        with pytest.raises(ValueError, match=r"^n: expected"):
            kl_gap(n, d, prior_shape=a0)
    else:
        assert kl_gap(n, d, prior_shape=a0) == pytest.approx(exact_gap(n, d, a0), rel=1e-13)
        assert 0 < contraction(n, d, prior_shape=a0) < 1


@pytest.mark.parametrize("d", [1, 5])
def test_gap_is_d_over_2n_for_many_data(d):
    assert 2e9 * kl_gap(10**9, d) == pytest.approx(d, rel=1e-8)


@priors
@pytest.mark.parametrize("n", [2, 5, 30])
def test_gap_is_the_divergence_that_it_claims(n, prior):
    """KL(q || p) = KL(q(lambda) || p(lambda)) + E_q KL(q(mu) || p(mu | lambda)).

    The last term is 1/2 (E lambda / c - 1 + log c - E log lambda) with c = E lambda.
    """
    data = statistics_of(n)
    state, exact = fit_normal(data, prior=prior).state, ExactNormal(data, prior)
    marginal = kl_divergence(state.lam.distribution, exact.lam.distribution)
    conditional = 0.5 * (state.lam.mean.log() - state.lam.mean_log)
    gap = kl_gap(n, prior_shape=PRIORS[prior])
    assert float(marginal + conditional) == pytest.approx(gap, rel=1e-10)


@pytest.mark.parametrize("arguments", [(0,), (5, 0), (2.5,)])
def test_bad_gap_arguments_are_named(arguments, unchecked):
    with pytest.raises(ValueError, match=r"^[nd]: expected"):
        kl_gap(*arguments)
    with pytest.raises(ValueError, match=r"^prior_shape: expected"):
        kl_gap(5, prior_shape=-1.0)


# The factors


def test_factors_are_the_laws_of_torch(dtype, device, generator):
    a, b = torch.tensor([[0.3, 2.0, 50.0], [4.0, 1.0, 0.1]], dtype=dtype, device=device)
    for factor in (GammaFactor(a, b), NormalFactor(a, b)):
        law = factor.distribution
        torch.testing.assert_close(factor.entropy(), law.entropy(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(factor.mean, law.mean)
        torch.testing.assert_close(factor.variance, law.variance)
        draw = factor.sample((40_000,), generator)
        assert draw.dtype == dtype
        assert draw.device.type == device.type
        off = (draw.mean(0) - law.mean) / (law.variance / 40_000).sqrt()
        assert float(off.abs().max()) < 4.5
        torch.testing.assert_close(factor.log_prob(draw[:5]), law.log_prob(draw[:5]))


def test_gaussian_factor_is_the_law_of_torch(dtype, device, generator):
    root = torch.tensor([[2.0, 0, 0], [0.5, 1, 0], [-1, 0.3, 0.7]], dtype=dtype, device=device)
    factor = GaussianFactor(root[2], root)
    law = torch.distributions.MultivariateNormal(root[2], precision_matrix=root @ root.T)
    torch.testing.assert_close(factor.covariance, law.covariance_matrix)
    torch.testing.assert_close(factor.entropy(), law.entropy())
    draw = factor.sample((20_000, 2), generator)
    assert draw.shape == (20_000, 2, 3)
    torch.testing.assert_close(
        factor.log_prob(draw[:9]), law.log_prob(draw[:9]), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        draw.reshape(-1, 3).T.cov(), law.covariance_matrix, rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("shape", [0.7, 9.999, 10.001, 1e3, 1e6, 1e12])
def test_entropy_of_gamma_keeps_its_digits(shape, dtype):
    a = torch.tensor(shape, dtype=dtype, requires_grad=True)
    found = GammaFactor(a, a.detach()).entropy()
    slope = torch.autograd.grad(found, a)[0]
    with mpmath.workdps(50):
        m = mpmath.mpf(a.item())
        first = 1 + (1 - m) * mpmath.psi(1, m)
        wanted = m - mpmath.log(m) + mpmath.loggamma(m) + (1 - m) * mpmath.digamma(m)
    eps = torch.finfo(dtype).eps
    terms = 30 if shape < 11 else 1 + abs(math.log(shape))
    assert found.item() == pytest.approx(float(wanted), abs=8 * eps * max(terms, abs(wanted)))
    assert slope.item() == pytest.approx(float(first), rel=1e-5 if eps > 1e-10 else 1e-8)


def test_factors_take_python_numbers_and_arrays(unchecked):
    assert float(NormalFactor(0.0, 1.0).entropy()) == pytest.approx(stats.norm().entropy())
    assert float(GammaFactor(2, 3).mean) == pytest.approx(2 / 3)
    factor = GaussianFactor([0.0, 1.0], np.eye(2))
    torch.testing.assert_close(factor.covariance, torch.eye(2).double())
    for bad in (None, "one"):
        with pytest.raises(ValueError, match=r"^mean: expected"):
            NormalFactor(bad, 1.0)


def test_a_root_that_is_not_triangular_is_named():
    with pytest.raises(ValueError, match=r"^precision_cholesky: expected a lower triangular"):
        GaussianFactor(torch.ones(2), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("mean", torch.zeros(2)),
        ("precision", -torch.ones(1)),
        ("precision", torch.ones(2)),
        ("dof", torch.ones(1)),
        ("dof", torch.tensor([math.nan])),
        ("root", -torch.eye(2)[None]),
        ("root", torch.ones(1, 2, 2)),
        ("root", torch.eye(2)),
    ],
)
def test_bad_normal_wishart_factors_are_named(name, bad, unchecked):
    good = {"mean": torch.zeros(1, 2), "precision": torch.ones(1), "dof": torch.ones(1) + 1}
    good["root"] = torch.eye(2)[None]
    NormalWishartFactor(**good)
    with pytest.raises(ValueError, match=f"^{name}.*: expected"):
        NormalWishartFactor(**{**good, name: bad})


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_bad_factors_are_named(bad, unchecked):
    one, bad = torch.ones(()), torch.tensor(bad)
    for name, make in {
        "variance": lambda: NormalFactor(one, bad),
        "shape": lambda: GammaFactor(bad, one),
        "rate": lambda: GammaFactor(one, bad),
        "precision_cholesky": lambda: GaussianFactor(torch.ones(1), bad.reshape(1, 1)),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}.*: expected"):
            make()
    with pytest.raises(ValueError, match=r"^variance: expected shape"):
        NormalFactor(one, torch.ones(2))
    with pytest.raises(ValueError, match=r"^precision_cholesky: expected shape"):
        GaussianFactor(torch.ones(2), torch.eye(3))
