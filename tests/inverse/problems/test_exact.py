"""Posteriors and evidence against brute force, and against formulas written another way."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from lib.inverse.problems import (
    SLCP,
    Ballistics,
    DigitImages,
    EightModes,
    GaussianLinear,
    GaussianMixture,
    Kinematics,
    TwoMoons,
)
from tests.inverse.problems.catalogue import DOUBLE, SPREAD, double, each, seeded, worst_score

POINTS = [(1.5, 0.0), (1.7, 0.1), (1.0, 1.2), (0.0, 1.5), (1.9, 0.3), (-0.5, 0.5)]
# With a square that holds the posterior, and the side of the grid.
PLANE = [
    (EightModes, {"labels": "some"}, [1.0, *[0.0] * 7], (-4, 4), 400),
    (TwoMoons, {}, [-0.3, 0.2], (-1, 1), 3000),
    (TwoMoons, {}, [0.27, 0.05], (-0.6, 0.6), 2000),
    (TwoMoons, {}, [-0.95, 0.1], (-1, 1), 3000),
    (GaussianMixture, {}, [9.8, -4.0], (-10, 10), 2000),
]


@each(PLANE)
def test_density_in_the_plane_integrates_to_one_and_is_that_of_the_draws(case):
    cls, options, y, (low, high), side = case
    problem, y, blocks = cls(**options, dtype=DOUBLE), double(*y), 20
    step = (high - low) / side
    t = low + step * (torch.arange(side, dtype=DOUBLE) + 0.5)
    grid = torch.stack(torch.meshgrid(t, t, indexing="ij"), -1)
    mass = problem.log_posterior(grid, y).exp() * step**2
    assert float(mass.sum()) == pytest.approx(1, abs=2e-3)
    n, size = 20_000, side // blocks
    mass = mass.view(blocks, size, blocks, size).sum((1, 3)).flatten()
    cell = ((problem.sample_posterior(y, n, seeded()) - low) / (high - low) * blocks).long()
    counts = torch.bincount(cell[:, 0] * blocks + cell[:, 1], minlength=blocks**2)
    expected = n * mass / mass.sum()
    much = expected > 20
    chi = float(((counts - expected).square() / expected)[much].sum())
    degrees = int(much.sum())
    assert abs(chi - degrees) < 5 * math.sqrt(2 * degrees)
    assert int(counts[expected < 1e-9].sum()) == 0


@pytest.mark.parametrize("y", POINTS)
def test_arm_reaches_the_point(y):
    problem, y = Kinematics(dtype=DOUBLE), double(*y)
    x = problem.sample_posterior(y, 20_000, seeded())
    assert float((problem.simulate(x) - y).abs().max()) < 1e-13
    assert len(x.unique(dim=0)) == 20_000
    torch.testing.assert_close(problem.joints(x)[:, -1], y.expand(20_000, 2))
    steps = problem.joints(x).diff(dim=1).norm(dim=-1)
    torch.testing.assert_close(steps, double(0.5, 0.5, 1.0).expand(20_000, 3))


@pytest.mark.parametrize("y", POINTS[:5])
def test_arm_against_a_thin_shell(y):
    """Prior draws of the angles with y_1 within 0.01, x_1 from y_2 and weighted with its prior."""
    problem, half, m = Kinematics(dtype=DOUBLE), 0.01, 1_500_000
    x = problem.sample_prior(m, seeded(7))
    x[:, 0] = 0
    made = problem.simulate(x)
    x[:, 0] = y[1] - made[:, 1]
    hit = (made[:, 0] - y[0]).abs() < half
    weight = hit * (-(x[:, 0] / 0.25).square() / 2).exp() / (0.25 * math.sqrt(2 * math.pi))
    evidence = float(weight.mean()) / (2 * half)
    stderr = float(weight.std()) / math.sqrt(m) / (2 * half)
    measured = problem.log_evidence(double(*y))
    assert abs(math.exp(measured.value) - evidence) < 4.5 * math.hypot(
        stderr, evidence * measured.stderr
    )
    draws = problem.sample_posterior(double(*y), 20_000, seeded())
    assert worst_score(draws, x, weight) < 5


def test_arm_is_straight_at_the_end_of_its_reach():
    x = Kinematics(dtype=DOUBLE).sample_posterior(double(2 - 1e-9, 0.1), 1000, seeded())
    assert float(x[:, 1:].abs().max()) < 1e-3
    assert float((x[:, 0] - 0.1).abs().max()) < 1e-3


@pytest.mark.parametrize("speed", ["normal", "poisson"])
@pytest.mark.parametrize("y", [3.0, 9.0])
def test_throws_against_weighted_prior_draws(speed, y):
    problem, m = Ballistics(speed, dtype=DOUBLE), 300_000
    x = problem.sample_prior(m, seeded(7))
    x[:, 0] = 0
    x[:, 0] = y - problem.simulate(x)[:, 0]
    weight = (-2 * x[:, 0].square()).exp() / (0.5 * math.sqrt(2 * math.pi))
    measured = problem.log_evidence(double(y))
    stderr = float(weight.std() / weight.mean()) / math.sqrt(m)
    gap = measured.value - math.log(float(weight.mean()))
    assert abs(gap) < 4 * math.hypot(stderr, measured.stderr)
    draws = problem.sample_posterior(double(y), 20_000, seeded())
    assert float((problem.simulate(draws) - y).abs().max()) < 1e-12
    assert worst_score(draws, x, weight) < 5
    assert bool(problem.log_prior(draws).isfinite().all())
    if speed == "poisson":
        assert torch.equal(draws[:, 3], draws[:, 3].round())


def test_the_ground_stops_the_ball():
    """Height zero at the impact, after the peak; dy/dx is that of finite differences."""
    problem = Ballistics(dtype=DOUBLE)
    x = problem.sample_prior(1000, seeded())
    y = problem.simulate(x)
    times = torch.linspace(0, 6, 3001, dtype=DOUBLE)
    path = problem.trajectory(x, times)
    torch.testing.assert_close(path[:, 0], x[:, :2])
    last = (path[:, 1:, 1] > 0).sum(1)  # up and down once: all since the start are above
    before, after = (path[torch.arange(1000), last + k, 0] for k in (0, 1))
    assert bool(((y[:, 0] >= before) & (y[:, 0] <= after)).all())
    x = x[:20].requires_grad_()
    torch.autograd.gradcheck(problem.simulate, x, atol=1e-5)


def test_the_height_has_an_atom():
    """P(h < 0) = Phi(-3) = 0.00135, in the prior and in its log probability."""
    problem, n = Ballistics(dtype=DOUBLE), 400_000
    x = problem.sample_prior(n, seeded())
    on_the_ground = x[:, 1] == 0
    p = 0.0013498980316301
    assert abs(float(on_the_ground.double().mean()) - p) < 4 * math.sqrt(p / n)
    x = double(0.0, 0.0, 0.5, 15.0)
    lifted = double(0.0, 1.5, 0.5, 15.0)
    gap = problem.log_prior(x) - problem.log_prior(lifted)
    assert float(gap) == pytest.approx(math.log(p) + math.log(0.5 * math.sqrt(2 * math.pi)))
    impossible = double(0.0, -0.1, 0.5, 15.0), double(0.0, 1.0, 0.5, -1.0), double(0, 1, 1.5, 15)
    assert problem.log_prior(torch.stack(impossible)).tolist() == [-math.inf] * 3
    integer = Ballistics("poisson", dtype=DOUBLE)
    assert float(integer.log_prior(double(0, 1, 0.5, 14.5))) == -math.inf
    assert float(integer.log_prior(double(0, 1, 0.5, 14.0))) > -10


def test_moons_evidence_against_a_count():
    problem, n, half = TwoMoons(dtype=DOUBLE), 1_000_000, 0.04
    _, y = problem.sample(n, seeded())
    for point in [(-0.3, 0.2), (0.27, 0.05), (-0.6, 0.4), (0.0, -0.9)]:
        centre = double(*point)
        corners = half * double(-1.0, 0.0, 1.0)
        near = torch.cartesian_prod(corners, corners) + centre
        simpson = torch.outer(double(1, 4, 1), double(1, 4, 1)).flatten() / 36
        log_p, stderr = problem._log_evidence(near)
        assert not bool(stderr.any())
        p = float((log_p.exp() * simpson).sum()) * (2 * half) ** 2
        hits = float(((y - centre).abs() < half).all(1).double().mean())
        assert abs(hits - p) < 4.5 * math.sqrt(p / n) + 0.02 * p  # Simpson's rule across a fold


def test_moons_evidence_integrates_to_one_and_is_converged(monkeypatch):
    from lib.inverse.problems import moons

    problem, step = TwoMoons(dtype=DOUBLE), 0.04
    t = torch.arange(-2.0, 2.0, step, dtype=DOUBLE)
    y = torch.cartesian_prod(t, t)
    log_p, _ = problem._log_evidence(y)
    assert float(log_p.exp().sum()) * step**2 == pytest.approx(1, abs=2e-3)
    nodes = moons._nodes(4096)
    monkeypatch.setattr(moons, "_nodes", lambda: nodes)
    some = y[log_p > -3][::40]
    torch.testing.assert_close(
        problem._log_evidence(some)[0], log_p[log_p > -3][::40], atol=1e-5, rtol=0
    )


def test_moons_two_mistakes_are_wrong_by_this_much():
    """Without 1 / (pi r), the density of y integrates to pi / 10, and depends on r."""
    problem, x, step = TwoMoons(dtype=DOUBLE), double(0.3, -0.2), 0.001
    t = torch.arange(-0.5, 0.5, step, dtype=DOUBLE)
    y = torch.cartesian_prod(t, t)
    for log_p, total in (
        (problem.log_likelihood(y, x), 1.0),
        (problem.log_likelihood_without_jacobian(y, x), math.pi / 10),
    ):
        assert float(log_p.exp().sum()) * step**2 == pytest.approx(total, abs=2e-3)
    fold = double(-0.1, -0.5) / math.sqrt(2) + double(0.25, 0.0)
    ends = torch.stack([fold + double(0.08, 0.0), fold + double(0.12, 0.0)])
    gap = problem.log_likelihood(ends, x) - problem.log_likelihood_without_jacobian(ends, x)
    assert float((gap[0] - gap[1]).exp()) == pytest.approx(1.5)  # r = 0.12 against 0.08
    # For y_1 = 0.34 and r = 0.1, q_1 < 0 where cos a < 0.9. Then x makes y only from another p,
    # with r^2 = 0.0424 - 0.036 cos a: more than five standard deviations out for cos a < 0.553.
    y, n = double(0.34, 0.0), 20_000
    far = float(problem.log_likelihood_without_jacobian(double(0.4, 0.0), 0 * x))  # r = 0.15
    for draw, expected, within in (
        (problem.sample_posterior, 0.0, 1e-4),
        (problem.sample_posterior_without_check, math.acos(0.553) / (math.pi / 2), 0.02),
    ):
        impossible = problem.log_likelihood_without_jacobian(y, draw(y, n, seeded())) < far
        share = float(impossible.double().mean())
        assert share == pytest.approx(1 - expected if expected else 0, abs=within)
    _, made = problem.sample(100_000, seeded())
    assert float((made[:, 0] > 0.25).double().mean()) == pytest.approx(0.088, abs=0.004)


def test_linear_posterior_is_the_formula():
    """x | y ~ N(y / 2, I / 20), y ~ N(0, I / 5)."""
    problem, eye = GaussianLinear(dtype=DOUBLE), torch.eye(10, dtype=DOUBLE)
    x, y = problem.sample(100_000, seeded())
    assert float((y - x).var()) == pytest.approx(0.1, rel=0.01)  # the variance, not the sd
    exact = MultivariateNormal(y[0] / 2, eye / 20)
    torch.testing.assert_close(problem.log_posterior(x[:9], y[0]), exact.log_prob(x[:9]))
    draws = problem.sample_posterior(y[0], 50_000, seeded(1))
    assert float((draws.mean(0) - y[0] / 2).abs().max()) < 5 * math.sqrt(0.05 / 50_000)
    assert float((draws.T.cov() - eye / 20).abs().max()) < 0.05 * 5 * math.sqrt(2 / 50_000)
    evidence = MultivariateNormal(0 * y[0], eye / 5).log_prob(y[0])
    assert problem.log_evidence(y[0]).value == pytest.approx(float(evidence))


def test_linear_box_against_plain_rejection():
    problem, y = GaussianLinear("uniform", dtype=DOUBLE), double(*[0.9, -0.8] * 5)
    x = y + math.sqrt(0.1) * torch.randn(400_000, 10, generator=seeded(), dtype=DOUBLE)
    inside = (x.abs() <= 1).all(1)
    draws = problem.sample_posterior(y, 20_000, seeded(1))
    assert worst_score(draws, x, inside.double()) < 5
    p = float(inside.double().mean())
    gap = problem.log_evidence(y).value - math.log(p / 2**10)
    assert abs(gap) < 4 * math.sqrt((1 - p) / p / 400_000)


@pytest.mark.parametrize("labels", ["all", "some", "none"])
def test_modes_that_share_a_label(labels):
    problem, n = EightModes(labels, dtype=DOUBLE), 40_000
    x, y = problem.sample(n, seeded())
    made = problem.simulate(x, seeded(1))
    assert bool((made.sum(1) == 1).all())
    for found in (y, made):
        share = found.mean(0)
        counts = torch.bincount(problem.label_of_mode, minlength=8) / 8
        assert float((share - counts).abs().max()) < 4 * math.sqrt(0.25 / n)
    for label in problem.label_of_mode.unique():
        code = torch.eye(8, dtype=DOUBLE)[label]
        centres = problem.centres[problem.label_of_mode == label]
        each_one = [MultivariateNormal(c, 0.04 * torch.eye(2, dtype=DOUBLE)) for c in centres]
        exact = torch.stack([law.log_prob(x[:50]) for law in each_one]).logsumexp(0)
        found = problem.log_posterior(x[:50], code)
        torch.testing.assert_close(found, exact - math.log(len(centres)))
        assert problem.log_evidence(code).value == pytest.approx(math.log(len(centres) / 8))
        draws = problem.sample_posterior(code, n, seeded())
        gap = torch.cdist(draws, centres)
        nearest = torch.bincount(gap.argmin(1), minlength=len(centres)) / n
        assert float((nearest - 1 / len(centres)).abs().max()) < 4 * math.sqrt(0.25 / n)
        assert float(gap.amin(1).square().mean()) == pytest.approx(0.08, rel=0.02)


def test_mixture_draws_a_component_for_each_observation():
    """Within one batch, half of the distances are of the wide component: not all or none."""
    problem = GaussianMixture(dtype=DOUBLE)
    x = torch.zeros(20_000, 2, dtype=DOUBLE)
    far = (problem.simulate(x, seeded()).norm(dim=1) > 0.5).double().mean()
    expected = math.exp(-(0.5**2) / 2) / 2  # the narrow one is never that far
    assert float(far) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 20_000))


def test_slcp_likelihood_is_that_of_four_gaussian_draws():
    problem = SLCP(dtype=DOUBLE)
    x, y = problem.sample(50, seeded())
    s1, s2, rho = x[:, 2].square(), x[:, 3].square(), x[:, 4].tanh()
    entries = torch.stack([s1**2, rho * s1 * s2, rho * s1 * s2, s2**2], 1).view(50, 2, 2)
    law = MultivariateNormal(x[:, None, :2], (entries + 1e-6 * torch.eye(2))[:, None])
    torch.testing.assert_close(problem.log_likelihood(y, x), law.log_prob(y.view(50, 4, 2)).sum(1))
    many = problem.simulate(x[:1].expand(100_000, 5), seeded(1)).view(-1, 2)
    found, exact = many.T.cov(), entries[0] + 1e-6 * torch.eye(2)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02 * float(exact.max()))


def test_slcp_against_weighted_prior_draws():
    """An observation that is spread widely leaves enough weight for two million prior draws."""
    problem, y, m = SLCP(dtype=DOUBLE), double(*SPREAD), 2_000_000
    x = problem.sample_prior(m, seeded(7))
    weight = problem.log_likelihood(y, x).exp()
    assert float(weight.sum().square() / weight.square().sum()) > 5000
    measured = problem.log_evidence(y)
    stderr = float(weight.std() / weight.mean()) / math.sqrt(m)
    gap = measured.value - math.log(float(weight.mean()))
    assert abs(gap) < 4 * math.hypot(stderr, measured.stderr)
    assert worst_score(problem.sample_posterior(y, 20_000, seeded()), x, weight) < 5


@pytest.mark.parametrize("small", [2.0, 0.5, 0.1])
def test_slcp_has_four_equal_modes(small):
    problem, n = SLCP(dtype=DOUBLE), 20_000
    truth = double(0.7, -1.5, small, -small, 0.5)
    y = problem.simulate(truth, seeded(3))
    x = problem.sample_posterior(y, n, seeded())
    corner = 2 * (x[:, 2] > 0).long() + (x[:, 3] > 0).long()
    share = torch.bincount(corner, minlength=4) / n
    assert float((share - 0.25).abs().max()) < 4 * math.sqrt(0.25 * 0.75 / n)
    assert len(x.unique(dim=0)) == n


@pytest.mark.parametrize("small", [0.8, 0.3, 0.1])
def test_slcp_density_is_normalised(small):
    """E[h(x) / p(x | y)] = 1 over posterior draws, for any density h on the support.

    Here h is a Gaussian in (m_1, m_2, log|x_3|, log|x_4|, x_5), narrower than the posterior.
    """
    problem, n = SLCP(dtype=DOUBLE), 20_000
    y = problem.simulate(double(0.7, -1.5, small, -small, 0.5), seeded(3))
    x = problem.sample_posterior(y, n, seeded())
    log_size = x[:, 2:4].abs().log()
    t = torch.cat([x[:, :2], log_size, x[:, 4:]], 1)
    narrow = MultivariateNormal(t.median(0).values, t.T.cov() / 6)
    log_h = narrow.log_prob(t) - log_size.sum(1) - math.log(4)  # four signs
    ratio = (log_h - problem.log_posterior(x, y)).exp()
    stderr = float(ratio.std()) / math.sqrt(n)
    assert stderr < 0.1
    assert float(ratio.mean()) == pytest.approx(1, abs=4 * stderr)


def test_digits_posterior_is_the_mixture():
    """Against Kalman's form of the gain, and PyTorch's Gaussians."""
    problem = DigitImages(dtype=DOUBLE)
    A, eye = problem.operator, torch.eye(64, dtype=DOUBLE)
    assert A.shape == (40, 64)
    x, y = problem.sample(5, seeded())
    assert bool((A[:, ~problem.hidden.flatten()].sum(1) <= 1 + 1e-12).all())
    inner = A.sum(1).view(8, 5)[1:7, 1:]
    torch.testing.assert_close(inner, torch.ones_like(inner))  # the blur keeps the light
    covariance = 0.0025 * A @ A.T + 0.01 * torch.eye(40, dtype=DOUBLE)
    gain = 0.0025 * A.T @ torch.linalg.inv(covariance)  # Kalman's form, not that of the code
    left = 0.0025 * (eye - gain @ A)
    log_w = MultivariateNormal(problem.images @ A.T, covariance).log_prob(y[0])
    evidence = float(log_w.logsumexp(0)) - math.log(len(log_w))
    assert problem.log_evidence(y[0]).value == pytest.approx(evidence)
    centres = problem.images + (y[0] - problem.images @ A.T) @ gain.T
    each_one = MultivariateNormal(centres, (left + left.T) / 2).log_prob(x[0])
    exact = (each_one + log_w.log_softmax(0)).logsumexp(0)
    torch.testing.assert_close(problem.log_posterior(x[0], y[0]), exact)
    mean, sd = problem.posterior_moments(y[0])
    share = log_w.softmax(0)
    torch.testing.assert_close(mean, share @ centres)
    square = share @ centres.square() + left.diagonal()
    torch.testing.assert_close(sd, (square - mean.square()).sqrt())


def test_digits_moments_against_draws_and_weights():
    problem = DigitImages(sd=0.2, noise=0.5, dtype=DOUBLE)
    _, y = problem.sample(1, seeded(2))
    mean, sd = problem.posterior_moments(y[0])
    n = 40_000
    draws = problem.sample_posterior(y[0], n, seeded())
    assert float(((draws.mean(0) - mean) / sd).abs().max()) < 5 / math.sqrt(n)
    torch.testing.assert_close(draws.std(0), sd, rtol=0.03, atol=0)
    x = problem.sample_prior(n, seeded(1))
    weight = problem.log_likelihood(y[0], x).softmax(0)
    spread = (weight.square() @ (x - mean).square()).sqrt()
    assert float(1 / weight.square().sum()) > 100
    assert float(((weight @ x - mean) / spread).abs().max()) < 5


def test_digits_hidden_pixels_come_from_the_prior():
    """Nothing but one pixel visible: far from it, the posterior keeps the spread of the prior."""
    hidden = torch.ones(8, 8, dtype=torch.bool)
    hidden[0, 0] = False
    problem = DigitImages(hidden, dtype=DOUBLE)
    assert problem.observed == 1
    _, sd = problem.posterior_moments(double(0.0))
    prior = (problem.images.var(0, correction=0) + 0.05**2).sqrt()
    torch.testing.assert_close(sd[32:], prior[32:], rtol=0.05, atol=0)
