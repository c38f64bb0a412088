"""A mixture of Gaussians against scikit-learn, exact evidences, and the symmetries of the model."""

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import BayesianGaussianMixture

from lib.vi import mixture
from lib.vi.ascent import BoundDecreased
from lib.vi.factors import NormalWishartFactor
from lib.vi.mixture import _seeded, best_components, fit_mixture

one_hot = torch.nn.functional.one_hot


def clusters(D=2, dtype=torch.float64):
    """Three overlapping clusters, 90 points."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, D, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(0.5, 1.5, D).double() + x.roll(1, 1) * 0.3
    return (x + 2.5 * (torch.arange(90) % 3 - 1)[:, None] * torch.eye(D).double()[0]).to(dtype)


def responsibilities(n, K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, K, generator=generator, dtype=torch.float64).softmax(1)


def multigamma(D, a):
    gammas = sum(math.lgamma(a - i / 2) for i in range(D))
    return D * (D - 1) / 4 * math.log(math.pi) + gammas


def normal_wishart_evidence(x, m0, beta0, nu0, V0):
    """log p(x) of one Gaussian (Murphy 2007, equation 266), from textbook N, mean and scatter."""
    n, D = x.shape
    if n == 0:
        return 0.0
    mean = x.mean(0)
    away, shift = x - mean, mean - m0
    V = V0 + away.T @ away + beta0 * n / (beta0 + n) * torch.outer(shift, shift)
    return (
        -n * D / 2 * math.log(math.pi)
        + multigamma(D, (nu0 + n) / 2)
        - multigamma(D, nu0 / 2)
        + nu0 / 2 * float(torch.logdet(V0))
        - (nu0 + n) / 2 * float(torch.logdet(V))
        + D / 2 * math.log(beta0 / (beta0 + n))
    )


@pytest.mark.parametrize(("K", "seed"), [(2, 0), (3, 1), (5, 2)])
def test_fixed_point_and_path_are_those_of_scikit_learn(K, seed):
    x = clusters()
    labels = KMeans(K, n_init=1, random_state=np.random.RandomState(seed)).fit(x.numpy()).labels_
    bounds = []
    ascent = fit_mixture(
        x,
        K,
        start=one_hot(torch.as_tensor(labels).long(), K).double(),
        tol=1e-11,
        max_sweeps=5000,
        record=lambda _, factor, __, bound: bounds.append(bound) if factor == "components" else 0,
    )
    peer = BayesianGaussianMixture(
        n_components=K,
        reg_covar=0,
        tol=0,
        max_iter=ascent.sweeps,
        weight_concentration_prior_type="dirichlet_distribution",
        random_state=np.random.RandomState(seed),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tol = 0 never converges
        peer.fit(x.numpy())
    assert ascent.reason == "converged"
    for name in ("weights", "means", "covariances"):
        wanted = torch.as_tensor(getattr(peer, name + "_"))
        torch.testing.assert_close(getattr(ascent.state, name), wanted, rtol=0, atol=1e-8)
    # scikit-learn leaves out the constants, and evaluates its bound after both updates.
    assert np.ptp(np.array(bounds[: len(peer.lower_bounds_)]) - peer.lower_bounds_) < 1e-8


def test_mixture_is_the_density_at_the_reported_parameters():
    x = clusters()
    state = fit_mixture(x, 3, start=responsibilities(90, 3)).state
    parts = zip(state.weights, state.means, state.covariances, strict=True)
    normal = torch.distributions.MultivariateNormal
    wanted = sum(w * normal(m, c).log_prob(x).exp() for w, m, c in parts)
    torch.testing.assert_close(state.mixture().log_prob(x), wanted.log())


@pytest.mark.parametrize("D", [1, 2, 3])
def test_one_component_has_the_exact_evidence(D):
    x = clusters(D)
    m0, V0 = torch.full((D,), 0.3).double(), torch.eye(D).double() + 0.2
    ascent = fit_mixture(
        x,
        1,
        start=torch.ones(90, 1),
        mean_prior=m0,
        mean_precision=0.4,
        dof=D + 0.5,
        covariance_prior=V0,
    )
    exact = normal_wishart_evidence(x, m0, 0.4, D + 0.5, V0)
    assert ascent.bound == pytest.approx(exact, rel=1e-12)


def test_bound_is_below_the_evidence_that_sums_over_all_labels():
    x, K, alpha0, V0 = clusters()[:7], 2, 0.8, torch.eye(2).double()
    m0 = torch.zeros(2).double()
    terms = []
    for labels in itertools.product(range(K), repeat=len(x)):
        labels = torch.tensor(labels)
        counts = torch.bincount(labels, minlength=K)
        prior = math.lgamma(K * alpha0) - math.lgamma(K * alpha0 + len(x))
        prior += sum(math.lgamma(alpha0 + int(c)) - math.lgamma(alpha0) for c in counts)
        parts = (normal_wishart_evidence(x[labels == k], m0, 0.5, 3.0, V0) for k in range(K))
        terms.append(prior + sum(parts))
    evidence = float(torch.logsumexp(torch.tensor(terms, dtype=torch.float64), 0))
    given = {"mean_prior": m0, "mean_precision": 0.5, "dof": 3.0, "covariance_prior": V0}
    best = max(
        fit_mixture(x, K, start=responsibilities(7, K, s), concentration=alpha0, **given).bound
        for s in range(5)
    )
    assert evidence - 5 < best < evidence


@pytest.mark.parametrize("D", [1, 2])
def test_divergence_of_normal_wisharts_is_the_expected_log_ratio(D):
    """Monte Carlo, with the densities of torch."""
    law = lambda m, beta, nu, V: NormalWishartFactor(  # noqa: E731
        torch.full((1, D), m).double(),
        torch.tensor([beta]).double(),
        torch.tensor([nu]).double(),
        torch.linalg.cholesky(V * (torch.eye(D) + 0.2).double())[None],
    )
    q, p = law(0.5, 2.0, 9.0, 3.0), law(0.1, 0.7, 7.0, 2.0)
    wishart = lambda f: torch.distributions.Wishart(  # noqa: E731
        f.dof[0], precision_matrix=f.root[0] @ f.root[0].T
    )
    normal = lambda f, precision: torch.distributions.MultivariateNormal(  # noqa: E731
        f.mean[0], precision_matrix=f.precision[0] * precision
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly singular draws
        torch.manual_seed(0)
        precision = wishart(q).sample((20_000,))
        mu = normal(q, precision).sample()
    log = lambda f: wishart(f).log_prob(precision) + normal(f, precision).log_prob(mu)  # noqa: E731
    ratio = log(q) - log(p)
    off = float(q.kl(p)[0] - ratio.mean())
    assert abs(off) < 4.5 * float(ratio.std()) / math.sqrt(20_000)
    assert float(q.kl(q)[0]) == pytest.approx(0, abs=1e-13)


def test_labels_can_be_permuted():
    x, r, order = clusters(), responsibilities(90, 3), torch.tensor([2, 0, 1])
    plain, other = fit_mixture(x, 3, start=r), fit_mixture(x, 3, start=r[:, order])
    assert other.bound == pytest.approx(plain.bound, rel=1e-12)
    torch.testing.assert_close(other.state.weights, plain.state.weights[order])
    torch.testing.assert_close(other.state.means, plain.state.means[order])
    torch.testing.assert_close(other.state.covariances, plain.state.covariances[order])


def test_units_shift_the_bound_by_the_log_determinant():
    x, r = clusters(), responsibilities(90, 3)
    A, shift = torch.tensor([[2.0, 1.0], [-0.5, 3.0]]).double(), torch.tensor([7.0, -40.0])
    plain, other = fit_mixture(x, 3, start=r), fit_mixture(x @ A.T + shift, 3, start=r)
    torch.testing.assert_close(other.state.responsibilities, plain.state.responsibilities)
    wanted = plain.bound - 90 * float(torch.logdet(A))
    assert other.bound == pytest.approx(wanted, rel=1e-11)
    torch.testing.assert_close(other.state.means, plain.state.means @ A.T + shift)


@pytest.mark.parametrize(
    ("dtype", "near", "shift", "given"),
    [
        (torch.float64, 1.0, 0.0, {"concentration": 1e4}),
        (torch.float64, 1e-4, 0.0, {}),
        (torch.float64, 1.0, 1e8, {}),
        (torch.float32, 1.0, 1e6, {}),
    ],
)
def test_terms_that_cancel_are_no_falling_bound(dtype, near, shift, given):
    x = clusters()
    x[:, 1] = x[:, 0] + near * x[:, 1]
    for seed in range(4):
        start = torch.Generator().manual_seed(seed)
        ascent = fit_mixture((x + shift).to(dtype), 3, start=start, **given)
        assert math.isfinite(ascent.bound)


def test_an_offset_moves_the_means_and_nothing_else():
    """2^26 + 1/64 is a float64, so that the shifted data are exact; the record shifts, too."""
    x, seen = (clusters() * 64).round() / 64, []
    fits = [
        fit_mixture(
            x + shift,
            3,
            start=torch.Generator().manual_seed(1),
            mean_prior=torch.full((2,), 0.5 + shift, dtype=torch.float64),
            record=lambda sweep, factor, state, bound: seen.append(state),
        )
        for shift in (0, 2**26)
    ]
    assert torch.equal(seen[-1].means, fits[1].state.means)
    for name in ("responsibilities", "weights", "covariances"):
        found, wanted = (getattr(fit.state, name) for fit in fits)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fits[1].state.means - 2**26, fits[0].state.means, atol=1e-6, rtol=0)


def test_seeds_of_data_with_an_offset_are_those_of_centred_data():
    x = (clusters() * 64).round() / 64
    r = [
        _seeded(x + s, 3, torch.eye(2).double(), torch.Generator().manual_seed(0))
        for s in (0, 2**40)
    ]
    assert torch.equal(*r)


def test_a_wrong_formula_is_still_found(monkeypatch):
    calls = itertools.count()

    def wrong(*args):
        q = best_components(*args)
        return replace(q, precision=q.precision / (10 if next(calls) > 5 else 1))

    monkeypatch.setattr(mixture, "best_components", wrong)
    with pytest.raises(BoundDecreased, match="'components'"):
        fit_mixture(clusters(), 3, start=responsibilities(90, 3))


def test_equal_responsibilities_are_a_saddle():
    x = clusters()
    saddle = fit_mixture(x, 3, start=torch.full((90, 3), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(
        saddle.state.responsibilities,
        torch.full((90, 3), 1 / 3, dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )
    nudged = fit_mixture(x, 3, start=(1e-3 * torch.log(responsibilities(90, 3))).softmax(1))
    assert nudged.bound > saddle.bound + 1


def test_a_component_without_data_is_its_prior():
    x = clusters()
    r = torch.nn.functional.pad(responsibilities(90, 2), (0, 1))
    prior = NormalWishartFactor(
        torch.tensor([[0.2, 0.3]]).double(),
        torch.tensor([0.5]).double(),
        torch.tensor([3.0]).double(),
        torch.linalg.cholesky(torch.tensor([[[2.0, 0.3], [0.3, 1.0]]]).double()),
    )
    empty = best_components(r, x, prior)
    for name in vars(prior):
        torch.testing.assert_close(getattr(empty, name)[2:], getattr(prior, name))
    assert float(empty.kl(prior)[2]) == pytest.approx(0, abs=1e-13)
    far = torch.cat([x, x + 1e3])
    ascent = fit_mixture(far, 6, start=one_hot((far[:, 0] > 500).long(), 6).double())
    for value in (ascent.state.weights, ascent.state.means, ascent.state.covariances):
        assert bool(torch.isfinite(value).all())


def test_seeds_follow_the_generator_and_the_fit_follows_the_data(dtype, device):
    x = clusters(dtype=dtype).to(device)
    state, before = torch.random.get_rng_state(), x.clone()
    fits = [fit_mixture(x, 3, start=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(fits[0].state.responsibilities, fits[1].state.responsibilities)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, before)
    assert fits[0].state.means.dtype == dtype
    assert fits[0].state.means.device == x.device
    ones = fits[0].state.responsibilities.sum(1)
    torch.testing.assert_close(ones, torch.ones_like(ones))


def test_more_seeds_than_different_points():
    x = torch.tensor([[0.0], [1.0], [0.0], [1.0]]).double()
    assert math.isfinite(fit_mixture(x, 3, start=torch.Generator().manual_seed(0)).bound)


X = clusters()
R = responsibilities(90, 2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("x", {"x": X[:, 0]}),
        ("x", {"x": X[:1]}),
        ("x", {"x": X * math.nan}),
        ("x", {"x": X.half()}),
        ("x", {"x": torch.ones(90, 2)}),
        ("x", {"x": X[:, [0, 0]]}),
        ("x", {"x": torch.stack([X[:, 0], torch.ones(90).double()], 1)}),
        ("components", {"components": 0}),
        ("start", {"start": R[:5]}),
        ("start", {"start": 2 * R}),
        ("start", {"start": torch.tensor([[2.0, -1.0]]).expand(90, 2)}),
        ("concentration", {"concentration": 0.0}),
        ("mean_precision", {"mean_precision": -1.0}),
        ("mean_prior", {"mean_prior": torch.zeros(3)}),
        ("dof", {"dof": 1.0}),
        ("covariance_prior", {"covariance_prior": torch.eye(3)}),
        ("covariance_prior", {"covariance_prior": -torch.eye(2)}),
        ("covariance_prior", {"covariance_prior": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}),
    ],
)
def test_bad_arguments_are_named(name, arguments, unchecked):
    with pytest.raises(ValueError, match=rf"^{name}.*: expected"):
        fit_mixture(**{"x": X, "components": 2, "start": R, **arguments})
