"""The samplers that the problems share, on laws that are known."""

import math

import pytest
import torch
from scipy import stats

from lib.inverse.problems import truncated
from lib.inverse.problems.base import uniform
from lib.inverse.problems.sampler import CubeSampler, rejection
from tests.inverse.problems.catalogue import double, seeded

Y = double(0.0)


def uniform_test(u):
    return stats.kstest(u.numpy(), "uniform").pvalue


def test_rejection_with_a_bound_that_has_to_rise():
    """Density 2 t on (0, 1), from uniform proposals, and no bound at first: t^2 is uniform."""
    g = seeded()

    def propose(m):
        t = uniform(g, m)
        return t[:, None], (2 * t).log()

    t = rejection(propose, 20_000, Y, g, bound=-math.inf)[:, 0]
    assert uniform_test(t.square()) > 1e-3
    # A bound that is too low would have cut the density at half of its peak.
    assert uniform_test(rejection(propose, 20_000, Y, g, bound=0.0)[:, 0].square()) > 1e-3


def test_rejection_gives_up():
    def hopeless(m):
        return torch.zeros(m, 1).double(), torch.full((m,), -math.inf).double()

    with pytest.raises(ValueError, match=r"^y: expected.*none of \d,\d+,\d+ proposals reaches it"):
        rejection(hopeless, 1, Y, seeded(), bound=0.0)
    g = seeded()

    def rare(m):
        u = uniform(g, m)
        return u[:, None], torch.where(u < 1e-5, 0.0, -math.inf).double()

    with pytest.raises(ValueError, match=r"^n: expected at most [\d,]+ for so rare a y \(\d+ of "):
        rejection(rare, 10_000, Y, g, bound=0.0)
    assert bool((rejection(rare, 20, Y, g, bound=0.0) < 1e-5).all())


def wedge(u):
    """u_1 on the triangle u_1 + u_2 < 1 if the first choice falls, nothing otherwise."""
    inside = (u[:, 0] < 0.5) & (u[:, 1] + u[:, 2] < 1)
    return u[:, 1:], torch.where(inside, u[:, 1].log(), -math.inf)


def test_a_cut_density_on_the_cube():
    """Mass 1/2 * 1/6; the marginals are Beta(2, 2) and Beta(1, 3)."""
    sampler = CubeSampler(wedge, (2, 32, 32), Y, seeded(), choices=1)
    x = sampler.sample(50_000)
    assert x.shape == (50_000, 2)
    assert len(x.unique(dim=0)) == 50_000
    for value, law in zip(x.unbind(1), (stats.beta(2, 2), stats.beta(1, 3)), strict=True):
        assert stats.kstest(value.numpy(), law.cdf).pvalue > 1e-3
    log_mass, stderr = sampler.log_mean()
    assert abs(log_mass - math.log(1 / 12)) < 4 * stderr
    assert stderr < 0.002


def test_a_small_peak_is_found_and_kept():
    """A Gaussian bump of sd 0.003 on a flat floor that holds a hundredth of the mass."""
    sd = 0.003
    bump = 99 * 1.0

    def propose(u):
        square = ((u - 0.3) / sd).square().sum(1)
        return u, (1 + bump * (-square / 2).exp() / (2 * math.pi * sd**2)).log()

    sampler = CubeSampler(propose, (64, 64), Y, seeded())
    x = sampler.sample(50_000)
    far = float((((x - 0.3).abs() > 6 * sd).any(1)).double().mean())
    expected = 0.01 * (1 - (12 * sd) ** 2)
    assert abs(far - expected) < 4 * math.sqrt(expected / 50_000)
    log_mass, stderr = sampler.log_mean()
    assert abs(log_mass - math.log(100)) < 4 * stderr


def test_truncated_normal_law_far_out():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for low, high in [(-1.0, 2.0), (-8.0, 8.0), (5.0, 6.0), (40.0, 41.0), (-200.0, -100.0)]:
        low, high = double(low)[0], double(high)[0]
        z = truncated.quantile(u, low, high)
        assert bool((z.diff() > 0).all())
        assert bool(((z > low) & (z < high)).all())
        share = truncated.log_mass(low.expand_as(z), z) - truncated.log_mass(low, high)
        torch.testing.assert_close(share.exp(), u, rtol=1e-9, atol=1e-10)
        mirrored = -truncated.quantile(1 - u, -high, -low)
        torch.testing.assert_close(mirrored, z, rtol=1e-9, atol=1e-9)
    # Mill's ratio: P(Z > t) = phi(t) / t * (1 - 1 / t^2 + 3 / t^4 - ...)
    t = 100.0
    mill = -(t**2) / 2 - math.log(t * math.sqrt(2 * math.pi)) + math.log1p(-(t**-2) + 3 * t**-4)
    assert float(truncated.log_mass(*double(t, 2 * t))) == pytest.approx(mill, rel=1e-12)
