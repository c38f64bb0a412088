"""Mass, entropy and samples of the targets, against quadrature and closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lib.data.targets import (
    Banana,
    Beta,
    Checkerboard,
    CopulaBeta,
    Funnel,
    GaussianGrid,
    ManyWell,
    PiecewiseUniform,
    Rings,
    Spirals,
    TwoMoons,
    VonMises,
)
from lib.data.targets.base import integral
from tests.data.catalogue import (
    ALL,
    DOUBLE,
    LINE,
    PLANE,
    build,
    each,
    ends,
    seeded,
)


def midpoints(low, high, n):
    """The centres of n x n equal cells, ``(n, n, 2)``, and the area of one."""
    side = low + (high - low) * (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    return torch.stack(torch.meshgrid(side, side, indexing="ij"), -1), ((high - low) / n) ** 2


def line_mass(target, low, high):
    """P(low < X < high) for a target on the line; x = sin^2 t takes the poles of Beta away."""
    if isinstance(target, Beta):
        low, high = (math.asin(math.sqrt(end)) for end in (low, high))

        def f(t):
            return target.log_prob((t.sin() ** 2)[..., None]).exp() * (2 * t.sin() * t.cos())
    else:

        def f(x):
            return target.log_prob(x[..., None]).exp()

    breaks = getattr(target, "edges", torch.linspace(low, high, 9)).tolist()
    return integral(f, [low, high, *(b for b in breaks if low < b < high)])


@each(LINE)
def test_mass_is_one_on_the_line(case):
    target = build(case)
    assert line_mass(target, *ends(target)) == pytest.approx(1, abs=1e-9)


@each(PLANE)
def test_mass_is_one_on_the_plane(case):
    x, area = midpoints(*case[2], 800)
    # Smooth densities that vanish at the box: the rule converges faster than any power.
    mass = float(build(case).log_prob(x).exp().sum()) * area
    assert mass == pytest.approx(1, abs=1e-5 if case[0] is CopulaBeta else 1e-7)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_mass_is_one_for_the_funnel(scale):
    target = Funnel(2, scale, dtype=DOUBLE)

    def inner(v):
        x = torch.linspace(-12, 12, 241, dtype=DOUBLE) * math.exp(v / 2)
        point = torch.stack([torch.full_like(x, v), x], -1)
        return float(target.log_prob(point).exp().sum() * (x[1] - x[0]))

    assert integrate.quad(inner, -9 * scale, 9 * scale)[0] == pytest.approx(1, abs=1e-7)


@each(ALL)
def test_entropy_is_minus_the_mean_log_density(case):
    target = build(case)
    log_p = target.log_prob(target.sample(200_000, seeded()))
    stderr = float(log_p.std()) / math.sqrt(len(log_p))
    assert abs(float(log_p.mean()) + target.entropy()) < 4 * stderr + 1e-12
    assert stderr < 0.04


@each(PLANE)
def test_entropy_agrees_with_the_midpoint_rule(case):
    target = build(case)
    x, area = midpoints(*case[2], 800)
    log_p = target.log_prob(x)
    h = -float(torch.special.xlogy(log_p.exp(), log_p.exp()).sum()) * area
    tolerance = 1e-4 if case[0] is CopulaBeta else 1e-6  # the density has a kink at its box
    assert target.entropy() == pytest.approx(h, abs=tolerance)


@pytest.mark.parametrize(
    ("target", "entropy"),
    [
        (Checkerboard(), math.log(32)),
        (Funnel(), 15.28800),
        (Beta(0.5, 0.5), math.log(math.pi / 4)),
        (Beta(2, 5), -0.48453),
        (Beta(1, 1), 0.0),
        (CopulaBeta(), -1.47989),
        (VonMises(), 0.80876),
        (VonMises(1e-6), math.log(2 * math.pi)),
        (VonMises(1e14), 0.5 * math.log(2 * math.pi * math.e / 1e14)),
        (VonMises(1e8), 0.5 * math.log(2 * math.pi * math.e / 1e8)),  # a Gaussian of variance 1e-8
        (Banana(3, 2.0, 0.5, 1.0), 1.5 * math.log(2 * math.pi * math.e) + math.log(2 * 0.25)),
        (GaussianGrid(3, 50.0, 1.0), math.log(9 * 2 * math.pi * math.e)),  # modes far apart
        (Spirals(mean=0.0, length=2.0, width=0.5), math.log(2 * math.pi * math.e)),
        (PiecewiseUniform((0.0, 1.0, 3.0), (0.5, 0.5)), math.log(2) + 0.5 * math.log(2)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_entropy_has_its_known_value(target, entropy):
    assert target.entropy() == pytest.approx(entropy, abs=5e-6)


def test_entropy_of_thin_rings_is_that_of_gaussians_along_circles():
    """Rings far apart: H = log K + mean log 2 pi R + 1/2 log 2 pi e sigma^2 + O(sigma^2 / R^2)."""
    radii, sigma = (1.0, 2.0, 3.0), 1e-4
    along = np.mean(np.log(2 * np.pi * np.array(radii)))
    exact = math.log(3) + along + 0.5 * math.log(2 * math.pi * math.e * sigma**2)
    assert Rings(radii, sigma).entropy() == pytest.approx(exact, abs=1e-7)


def test_entropy_of_a_blurred_ring():
    """Truncation and the pole 1/r both count here."""
    target = Rings((0.1, 2.0), 1.0)

    def density(r):
        p = np.mean([stats.truncnorm.pdf(r, -m, np.inf, loc=m) for m in (0.1, 2.0)])
        return -p * math.log(p / (2 * math.pi * r))

    exact = integrate.quad(density, 0, 12, epsabs=1e-11, limit=200)[0]
    assert target.entropy() == pytest.approx(exact, abs=1e-8)


def test_entropy_is_kept():
    target = TwoMoons()
    first = target.entropy()
    target._entropy = None  # would fail if called
    assert target.entropy() == first


def test_log_z_of_the_many_well():
    """Against an independent rule; the wells are independent, so log Z is linear in the length."""
    well = integrate.quad(lambda x: math.exp(-(x**4) + 6 * x**2 + x / 2), -6, 6, epsabs=1e-9)[0]
    assert ManyWell(2).log_z == pytest.approx(math.log(well * math.sqrt(2 * math.pi)), abs=1e-10)
    assert ManyWell().log_z == pytest.approx(164.69568, abs=5e-6)
    x = torch.tensor([[1.5, -0.5, -1.0, 2.0]], dtype=DOUBLE)
    energy = sum(a**4 - 6 * a**2 - a / 2 + b**2 / 2 for a, b in [(1.5, -0.5), (-1.0, 2.0)])
    assert float(ManyWell(4).log_prob(x) + ManyWell(4).log_z) == pytest.approx(-energy, abs=1e-10)


def chi_squared(observed, expected):
    """p-value of counts; what has few counts, and what lies outside, makes one cell."""
    n, rare = observed.sum(), expected < 10
    rest = n - expected[~rare].sum()
    square = ((observed - expected)[~rare] ** 2 / expected[~rare]).sum()
    square += (observed[rare].sum() - rest) ** 2 / max(rest, 1)
    return stats.chi2.sf(square, (~rare).sum())


@each(LINE)
def test_samples_follow_the_density_on_the_line(case):
    target, n = build(case), 50_000
    x = target.sample(n, seeded(1))[:, 0].numpy()
    bins = np.linspace(*ends(target), 41)
    expected = np.array([n * line_mass(target, a, b) for a, b in pairwise(bins)])
    observed = np.histogram(x, bins)[0]
    assert observed.sum() == n
    assert chi_squared(observed, expected) > 1e-3


@each(PLANE)
def test_samples_follow_the_density_on_the_plane(case):
    target, n, cells, fine = build(case), 50_000, 40, 40
    low, high = case[2]
    x = target.sample(n, seeded(1)).numpy()
    bins = np.linspace(low, high, cells + 1)
    observed = np.histogram2d(*x.T, (bins, bins))[0]
    points, area = midpoints(low, high, cells * fine)
    mass = target.log_prob(points).exp().view(cells, fine, cells, fine).sum((1, 3)) * area
    outside = np.array([n - observed.sum()])
    counts = np.append(observed.ravel(), outside)
    assert chi_squared(counts, np.append(n * mass.numpy().ravel(), 0.0)) > 1e-3


def test_samples_of_the_funnel_are_gaussian_once_scaled():
    x = Funnel(4, 2.0, dtype=DOUBLE).sample(20_000, seeded(1))
    z = torch.cat([x[:, :1] / 2, x[:, 1:] * (-x[:, :1] / 2).exp()], -1)
    for column in z.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    assert float((z.T.corrcoef() - torch.eye(4)).abs().max()) < 0.03


def test_wells_follow_their_density():
    """Many of them: a bound of the rejection that is slightly off would show."""
    x = ManyWell(32, dtype=DOUBLE).sample(12_500, seeded(1))[:, ::2].flatten().numpy()
    grid = np.linspace(-5, 5, 20_001)
    cdf = integrate.cumulative_trapezoid(np.exp(-((grid**2 - 3) ** 2) + grid / 2), grid, initial=0)
    assert stats.kstest(x, lambda t: np.interp(t, grid, cdf / cdf[-1])).pvalue > 1e-3


@pytest.mark.parametrize(("a", "b"), [(2, 5), (7, 3)])
def test_the_copula_has_beta_marginals_and_its_rank_correlation(a, b):
    x = CopulaBeta(0.8, a, b, dtype=DOUBLE).sample(50_000, seeded(2)).numpy()
    for column in x.T:
        assert stats.kstest(column, stats.beta(a, b).cdf).pvalue > 1e-3
    spearman = 6 / math.pi * math.asin(0.4)  # of a Gaussian copula with correlation 0.8
    assert stats.spearmanr(*x.T).statistic == pytest.approx(spearman, abs=0.01)


@pytest.mark.parametrize("kappa", [1e-310, 1e-9, 1e9, 1e100])
def test_angles_of_extreme_concentration_are_uniform_or_gaussian(kappa):
    x = VonMises(kappa, dtype=DOUBLE).sample(20_000, seeded())[:, 0].numpy()
    law = stats.uniform(-math.pi, 2 * math.pi) if kappa < 1 else stats.norm(0, kappa**-0.5)
    assert stats.kstest(x, law.cdf).pvalue > 1e-3


def test_copula_without_correlation_is_a_product():
    x = torch.rand(50, 2, generator=seeded(), dtype=DOUBLE)
    beta = Beta(3, 2)
    product = beta.log_prob(x[:, :1]) + beta.log_prob(x[:, 1:])
    torch.testing.assert_close(CopulaBeta(0.0, 3, 2).log_prob(x), product)


def test_copula_in_the_corners():
    """Against SciPy's quantiles, where F or 1 - F is as small as 1e-100."""
    t = torch.tensor([1e-50, 1e-12, 1e-3, 0.3, 0.9, 1 - 1e-9, 1 - 1e-15], dtype=DOUBLE)
    x = torch.cartesian_prod(t, t)
    z = np.where(
        x < 0.5, stats.norm.ppf(stats.beta.cdf(x, 2, 5)), stats.norm.isf(stats.beta.sf(x, 2, 5))
    )
    rest, (z1, z2) = 1 - 0.8**2, z.T
    log_c = -0.5 * math.log(rest) - (0.64 * (z1**2 + z2**2) - 1.6 * z1 * z2) / (2 * rest)
    exact = log_c + stats.beta.logpdf(x, 2, 5).sum(-1)
    torch.testing.assert_close(
        CopulaBeta().log_prob(x), torch.from_numpy(exact), rtol=1e-9, atol=1e-9
    )


def test_cdf_of_the_histogram():
    target = PiecewiseUniform()
    x = torch.tensor([-9.0, 1.0, 1.2, 1.4, 1.9, 2.2, 2.5, 9.0], dtype=DOUBLE)[:, None]
    exact = torch.tensor([0, 0, 0.2, 0.4, 0.5, 0.85, 1, 1], dtype=DOUBLE)
    torch.testing.assert_close(target.cdf(x), exact)
    sample = PiecewiseUniform(dtype=DOUBLE).sample(20_000, seeded())
    assert stats.kstest(target.cdf(sample).numpy(), "uniform").pvalue > 1e-3


def test_two_moons_are_one_moon_and_its_reflection():
    x = TwoMoons(dtype=DOUBLE).sample(100, seeded())
    torch.testing.assert_close(TwoMoons().log_prob(x), TwoMoons().log_prob(-x))


def test_twist_preserves_the_density_of_the_bar():
    target, bar = Spirals(), Spirals(twist=0.0)
    x = bar.sample(100, seeded()).double()
    angle = target.twist * x.norm(dim=-1)
    c, s = angle.cos(), angle.sin()
    turned = torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], -1)
    torch.testing.assert_close(target.log_prob(turned), bar.log_prob(x))
