"""The moons of scikit-learn: their law, their entropy, the mixture, stratified samples."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons

from lib.data.targets import Moons
from lib.metrics import mmd
from tests.data.catalogue import DOUBLE, seeded

SCALE = torch.tensor([1.6, 0.85], dtype=DOUBLE)
CENTRE = torch.tensor([0.5, 0.25], dtype=DOUBLE)
every_scale = pytest.mark.parametrize("scaled", [False, True])


def log_mixture(x, weights, means, covariance):
    """The density of the components by PyTorch's own Gaussian."""
    normal = torch.distributions.MultivariateNormal(means, covariance)
    return (weights.log() + normal.log_prob(x[:, None])).logsumexp(1)


def moments(noise):
    """Mean and covariance: E cos a = 0, E sin a = 2/pi, E cos^2 a = E sin^2 a = 1/2."""
    across, along = 0.5 + 0.25, 0.5 - 1 / math.pi + 1 / 16
    shared = 0.5 * (0 - 1 / 2) * (2 / math.pi - 0.25)  # half of E (x - 1/2)(y - 1/4), upper arc
    covariance = torch.tensor([[across, 2 * shared], [2 * shared, along]], dtype=DOUBLE)
    return CENTRE, covariance + noise**2 * torch.eye(2, dtype=DOUBLE)


@pytest.mark.parametrize("draw", [Moons.sample, Moons.stratified])
def test_moments_are_those_of_the_law(draw):
    """Of samples, and of the mixture exactly."""
    target = Moons(0.2, dtype=DOUBLE)
    mean, covariance = moments(0.2)
    x = draw(target, 100_000, seeded())
    torch.testing.assert_close(x.mean(0), mean, atol=0.015, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=0.015, rtol=0)
    weights, means, within = target.mixture()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(weights @ means, mean)
    centred = means - mean
    torch.testing.assert_close(centred.T @ (weights[:, None] * centred) + within, covariance)


@pytest.mark.parametrize("draw", [Moons.sample, Moons.stratified])
def test_samples_are_those_of_scikit_learn(draw):
    """A few of many points: evenly spread angles, as theirs are, would not be independent draws."""
    x = draw(Moons(0.05, dtype=DOUBLE), 100_000, seeded(1))[:3000]
    theirs, wider = (
        torch.from_numpy(make_moons(100_000, noise=noise, random_state=0)[0][:3000])
        for noise in (0.05, 0.1)
    )
    found, other = mmd(x, theirs), mmd(x, wider)
    assert abs(found.value) < 3 * found.stderr
    assert other.value > 3 * other.stderr  # the statistic would have seen another noise


@every_scale
@pytest.mark.parametrize(
    ("noise", "error"), [(0.02, 2e-8), (0.025, 1e-10), (0.05, 1e-10), (0.5, 1e-10)]
)
def test_the_mixture_has_converged(noise, error, scaled):
    """At samples, and up to seven standard deviations away from the arc and from its ends."""
    target = Moons(noise, scaled, dtype=DOUBLE)
    u = torch.rand(3, 1000, generator=seeded(), dtype=DOUBLE)
    angle = math.pi * u[0]
    off = 7 * noise * (2 * u[1] - 1)
    around = torch.stack([angle.cos(), angle.sin()], 1) * (1 + off)[:, None]
    turn = 2 * math.pi * u[2]
    ends = torch.stack([1 + 7 * noise * turn.cos(), 7 * noise * turn.sin()], 1)
    if scaled:
        around, ends = ((x - CENTRE) / SCALE for x in (around, ends))
    x = torch.cat([target.sample(1000, seeded(1)), around, ends])
    torch.testing.assert_close(
        target.log_prob(x), log_mixture(x, *target.mixture(1024)), atol=error, rtol=0
    )
    weights, means, covariance = target.mixture(300)
    assert (weights.shape, means.shape, covariance.shape) == ((600,), (600, 2), (2, 2))


def test_far_away_the_nearest_point_of_the_arcs_counts():
    """To the left of (-1, 0) by r, log p = -r^2 / 2 noise^2 up to logarithms."""
    noise = 0.02
    x = torch.tensor([[-1.0 - 1e4, 0.0]], dtype=DOUBLE)
    assert float(Moons(noise).log_prob(x)) == pytest.approx(-(1e8) / (2 * noise**2), rel=1e-5)


def test_points_in_blocks_are_points_at_once(monkeypatch):
    target = Moons(dtype=DOUBLE)
    x = target.sample(60, seeded()).view(3, 20, 2)
    whole = target.log_prob(x)
    monkeypatch.setattr("lib.data.targets.arcs.BLOCK", 3000)
    torch.testing.assert_close(target.log_prob(x), whole)


@pytest.mark.parametrize(
    ("noise", "entropy"), [(0.02, -0.643805822), (0.05, 0.289233738), (0.1, 1.007584835)]
)
def test_entropy_has_its_value(noise, entropy):
    """Found with twice the nodes and a grid of noise/5, 10 noise beyond the arcs."""
    assert Moons(noise).entropy() == pytest.approx(entropy, abs=2e-9)
    scaled = entropy - math.log(1.6 * 0.85)
    assert Moons(noise, scaled=True).entropy() == pytest.approx(scaled, abs=2e-9)


def test_entropy_of_much_noise_is_that_of_a_gaussian():
    """H = 1/2 log det 2 pi e C up to terms in the cumulants, which vanish as 1 / noise^6."""
    _, covariance = moments(20.0)
    gaussian = 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance))
    assert Moons(20.0).entropy() == pytest.approx(gaussian, abs=1e-8)


def test_scaling_changes_variables():
    plain, scaled = Moons(dtype=DOUBLE), Moons(scaled=True, dtype=DOUBLE)
    for draw in ("sample", "stratified"):
        x, y = (getattr(target, draw)(1000, seeded()) for target in (plain, scaled))
        torch.testing.assert_close(y, (x - CENTRE) / SCALE)
        change = scaled.log_prob(y) - plain.log_prob(x)
        torch.testing.assert_close(change, torch.full_like(change, math.log(1.6 * 0.85)))
    inside = (scaled.sample(100_000, seeded()).abs() <= 1).all(1).double().mean()
    assert float(inside) > 0.99
    covariance = scaled.mixture()[2]
    torch.testing.assert_close(covariance, (0.05 / SCALE).square().diag())


def test_the_law_is_symmetric_around_its_centre():
    x = Moons(dtype=DOUBLE).sample(100, seeded())
    torch.testing.assert_close(Moons().log_prob(x), Moons().log_prob(2 * CENTRE - x))


@every_scale
def test_each_stratum_holds_one_angle(scaled):
    target, half = Moons(scaled=scaled, dtype=DOUBLE), 500
    target.noise = 1e-12  # leaves the angles to be read off
    x = target.stratified(2 * half, seeded())
    x = SCALE * x + CENTRE if scaled else x
    upper = (x.norm(dim=1) - 1).abs() < 1e-9
    assert int(upper.sum()) == half
    for arc in (x[upper], 2 * CENTRE - x[~upper]):
        assert float((arc.norm(dim=1) - 1).abs().max()) < 1e-9
        angle = torch.atan2(arc[:, 1], arc[:, 0]).numpy()
        strata = np.floor(angle / math.pi * half).astype(int)
        assert sorted(strata) == list(range(half))
        assert list(strata) != sorted(strata)  # shuffled
    assert 0.4 < float(upper[:half].double().mean()) < 0.6


def test_stratified_samples_have_less_variance():
    """Of the mean of a smooth function of the angle: there are no strata left but the noise."""
    target = Moons(0.02, dtype=DOUBLE)
    spread = {}
    for draw in ("sample", "stratified"):
        means = [getattr(target, draw)(200, seeded(seed)).mean(0) for seed in range(50)]
        spread[draw] = torch.stack(means).std(0)
    assert bool((10 * spread["stratified"] < spread["sample"]).all())
    noise = torch.full((2,), 0.02 / math.sqrt(200), dtype=DOUBLE)
    torch.testing.assert_close(spread["stratified"], noise, rtol=0.4, atol=0)


def test_stratified_samples_follow_their_seed(dtype, device):
    target = Moons(dtype=dtype, device=device)
    before = torch.get_rng_state()
    first, second = target.stratified(50, seeded(3)), target.stratified(50, seeded(3))
    assert torch.equal(first, second)
    assert not torch.equal(first, target.stratified(50, seeded(4)))
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.shape, first.dtype, first.device.type) == ((50, 2), dtype, device.type)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Moons(0.0), "noise: expected one positive number"),
        (lambda: Moons(0.019), "noise: expected at least 0.02"),
        (lambda: Moons(math.nan), "noise: expected one positive number"),
        (lambda: Moons(dtype=torch.int64), "dtype: expected a floating-point dtype"),
        (lambda: Moons().mixture(102), "nodes: expected an integer of at least 103, got 102"),
        (lambda: Moons().stratified(7), "n: expected an even number, got 7"),
        (lambda: Moons().stratified(0), "n: expected an integer of at least 2, got 0"),
        (lambda: Moons().stratified(4, 3), "generator: expected a torch.Generator or None"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=f"^{words}"):
        call()
