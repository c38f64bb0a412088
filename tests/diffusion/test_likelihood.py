"""Likelihoods: by the equation exactly, by the bound from below."""

import math

import pytest
import torch

from lib.diffusion import MixtureDenoiser, NetworkDenoiser, NoiseMLP, elbo, probability_flow
from lib.diffusion.likelihood import Velocity
from lib.diffusion.samplers import levels
from lib.diffusion.schedules import cosine, edm, polynomial, sigmoid, straight

WIDE = edm(20, 1e-3, 100.0)
VARIANCE = torch.tensor([0.5, 0.05], dtype=torch.float64)


def gaussian(schedule=WIDE):
    mean = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    return MixtureDenoiser(torch.ones(1), mean, torch.diag(VARIANCE), schedule)


def mixture(schedule=WIDE):
    means = torch.tensor([[0.5, -0.3], [-0.6, 0.4]], dtype=torch.float64)
    covs = torch.stack([torch.diag(VARIANCE), 0.1 * torch.eye(2, dtype=torch.float64)])
    return MixtureDenoiser(torch.ones(2), means, covs, schedule)


@pytest.mark.parametrize("law", [gaussian, mixture])
def test_equation_gives_the_density(law, generator):
    denoiser = law()
    x = denoiser.sample(50, generator)
    found = probability_flow(denoiser, 100).log_prob(x)
    # At sigma = 100 the mean is still off by 0.003: what is left of the data.
    torch.testing.assert_close(found, denoiser.log_prob(x, 0.0), rtol=0, atol=0.02)


def test_density_of_a_mixture_integrates_to_one():
    side = torch.linspace(-3.2, 3.2, 61, dtype=torch.float64)
    flow = probability_flow(mixture(), 60)
    mass = flow.log_prob(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-3)


def test_equation_is_a_bijection(generator):
    f = probability_flow(mixture(), 100).bijection
    x = mixture().sample(20, generator)
    z, log_det = f(x)
    back, minus = f.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_det, -minus, rtol=0, atol=1e-3)


def test_signs_estimate_the_trace(generator):
    x = mixture().sample(400, generator)
    exact = probability_flow(mixture(), 20).log_prob(x)
    estimate = probability_flow(mixture(), 20, trace="hutchinson", probes=8).log_prob(x)
    assert float((estimate - exact).abs().max()) > 0
    assert abs(float((estimate - exact).mean())) < 0.05


def test_velocity_is_what_moves_the_forward_process(generator):
    """E[eps cos - x_0 sin | y]: a regression on draws finds nothing better."""
    denoiser, angle = mixture(), torch.tensor(0.7, dtype=torch.float64)
    x = denoiser.sample(100_000, generator)
    eps = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    y = angle.cos() * x + angle.sin() * eps
    rest = eps * angle.cos() - x * angle.sin() - Velocity(denoiser)(y, angle)
    for feature in (torch.ones_like(y), y, y.square(), y.flip(1).sin()):
        assert abs(float((rest * feature).mean())) < 0.02


def test_gap_of_the_bound_is_the_mismatch_where_all_steps_are_exact(generator):
    """For one Gaussian the full kernels are exact: what is left is KL(q(x_T) || N(0, I))."""
    schedule = edm(10, 0.02, 1.5)
    denoiser = gaussian(schedule)
    x = denoiser.sample(200_000, generator)
    for steps in (1, 5):
        bound = elbo(denoiser, x, steps, generator=generator)
        gap = (bound.total + denoiser.log_prob(x, 0.0)).mean()
        mismatch = denoiser.mismatch(200_000, generator)
        assert float(gap) == pytest.approx(mismatch.value, abs=0.02)
        assert bound.steps.shape == (steps - 1, len(x))
    a2, s2 = float(schedule.alpha_bar(1.0)), 1 - float(schedule.alpha_bar(1.0))
    closed = a2 * x.square().sum(1) / 2 + s2 - 1 - math.log(s2)
    torch.testing.assert_close(bound.prior, closed)


def test_bound_tightens_with_steps_and_with_the_covariance(generator):
    denoiser = mixture(edm(10, 0.02, 20.0))
    x = denoiser.sample(20_000, generator)
    log_p = denoiser.log_prob(x, 0.0)
    gap = {
        (steps, variance): float(
            (elbo(denoiser, x, steps, variance=variance, generator=generator).total + log_p).mean()
        )
        for steps, variance in ((3, "full"), (30, "full"), (3, "learned"), (3, "large"))
    }
    assert -0.03 < gap[30, "full"] < gap[3, "full"] < gap[3, "learned"] < gap[3, "large"]


def test_bad_input_is_refused(unchecked):
    with pytest.raises(ValueError, match="variance"):
        elbo(gaussian(), torch.zeros(3, 2), 4, variance="small")
    with pytest.raises(ValueError, match="steps"):
        probability_flow(gaussian(), 0)
    with pytest.raises(ValueError, match="steps"):
        elbo(gaussian(cosine(10)), torch.zeros(3, 2), 0)


def test_equation_agrees_with_the_flow_of_a_gaussian_point_by_point():
    """Each axis keeps its quantile: z = (x - m) / sd at t = 1, in closed form."""
    denoiser = gaussian()
    x = denoiser.sample(20, torch.Generator().manual_seed(0))
    grid = denoiser.schedule.grid(101)
    (_, late), (_, early) = levels(denoiser.schedule, grid[[0, -2]])
    sd = [(level.a**2 * VARIANCE + level.s**2).sqrt() for level in (early, late)]
    z, log_det = probability_flow(denoiser, 100).bijection(x)
    m = denoiser.means[0]
    exact = late.a * m + sd[1] / sd[0] * (x - early.a * m)
    torch.testing.assert_close(z, exact, rtol=0, atol=1e-3)
    det = (sd[1] / sd[0]).log().sum().expand(20)
    torch.testing.assert_close(log_det, det, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["exploding", "flow"])
def test_kind_of_the_schedule_changes_no_likelihood(kind, generator):
    """All is said in variance-preserving form: neither the density nor the bound sees the kind."""
    one, two = mixture(), mixture(WIDE.as_kind(kind))
    x = one.sample(10, generator)
    for law in (lambda d: probability_flow(d, 20).log_prob(x), lambda d: bound(d, x)):
        torch.testing.assert_close(law(one), law(two))


def bound(denoiser, x, **options):
    source = torch.Generator().manual_seed(1)
    return elbo(denoiser, x, 5, generator=source, **options).total


def test_label_is_a_class_of_the_density_and_of_the_bound(generator):
    m = torch.tensor([[0.5, -0.3], [-0.6, 0.4]], dtype=torch.float64)
    both = MixtureDenoiser(torch.ones(2), m, torch.diag(VARIANCE), WIDE, torch.tensor([0, 1]))
    alone = MixtureDenoiser(torch.ones(1), m[1:], torch.diag(VARIANCE), WIDE)
    x = alone.sample(10, generator)
    found = probability_flow(both, 20, label=1).log_prob(x)
    torch.testing.assert_close(found, probability_flow(alone, 20).log_prob(x))
    label = torch.ones(10, dtype=torch.long)
    torch.testing.assert_close(bound(both, x, label=label), bound(alone, x))


def test_one_step_bound_has_a_closed_form(generator):
    """T = 1: the prior's divergence, and x_0 drawn from p(x_0 | x_1), a Gaussian for a Gaussian."""
    denoiser = gaussian(edm(10, 0.02, 1.5))
    x = denoiser.sample(10, generator)
    found = elbo(denoiser, x, 1, generator=torch.Generator().manual_seed(3))
    y, _ = denoiser.schedule.noise(x, 1.0, torch.Generator().manual_seed(3))
    mean, cov = denoiser(y, 1.0)
    law = torch.distributions.MultivariateNormal(mean, cov)
    torch.testing.assert_close(found.reconstruction, -law.log_prob(x))
    assert found.steps.shape == (0, 10)


@pytest.mark.parametrize("variance", ["full", "learned", "large"])
def test_terms_of_the_bound_are_divergences_of_the_reverse_steps(variance, generator):
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) by `torch.distributions`, at the same draw of x_t."""
    denoiser = mixture(edm(10, 0.05, 3.0))
    x = denoiser.sample(6, generator)
    source = torch.Generator().manual_seed(3)
    found = elbo(denoiser, x, 2, variance=variance, generator=source)
    y, _ = denoiser.schedule.noise(x, 1.0, torch.Generator().manual_seed(3))
    (a, s), (a_s, s_s) = (denoiser.schedule.alpha_sigma(t) for t in (1.0, 0.5))
    # Bayes' rule for x_s given x_0 and x_t, whose ratio to x_s is a / a_s
    keep = a / a_s
    noise = s**2 - keep**2 * s_s**2
    small = 1 / (1 / s_s**2 + keep**2 / noise)
    unit = torch.eye(2, dtype=torch.float64)
    centre = small * (a_s * x / s_s**2 + keep * y / noise)
    q = torch.distributions.MultivariateNormal(centre, small * unit)
    mean, cov = denoiser(y, 1.0)
    assert float(cov[:, 0, 1].abs().min()) > 1e-3
    cov = {
        "full": cov,
        "learned": torch.diag_embed(cov.diagonal(dim1=1, dim2=2)),
        "large": s**2 * unit.expand_as(cov),
    }[variance]
    k = small * a_s / s_s**2
    centre = k * mean + small * keep * y / noise
    p = torch.distributions.MultivariateNormal(centre, small * unit + k**2 * cov)
    divergence = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(found.steps[0], divergence)


@pytest.mark.parametrize("variance", ["full", "learned", "large"])
def test_bound_is_no_better_than_the_entropy_on_average(variance, generator):
    """For a network that knows nothing, too."""
    torch.manual_seed(0)
    schedule = edm(10, 0.02, 5.0)
    net = NetworkDenoiser(NoiseMLP(2), schedule, (2,), spread=NoiseMLP(2, 3))
    x = mixture().sample(5000, generator)
    entropy = -mixture().log_prob(x, 0.0).mean()
    assert elbo(net, x.float(), variance=variance, generator=generator).total.mean() > entropy
    found = elbo(mixture(schedule), x, variance=variance, generator=generator)
    assert found.total.mean() > entropy - 0.05
    parts = found.prior + found.steps.sum(0) + found.reconstruction
    torch.testing.assert_close(found.total, parts)


def test_equation_starts_from_any_schedule():
    """Also where alpha(1) = 0, and where the last angles are pi / 2 to the last digit."""
    x = torch.zeros(3, 2, dtype=torch.float64)
    for schedule in (sigmoid(10), straight(10), polynomial(1000)):
        found = probability_flow(gaussian(schedule), 40).log_prob(x)
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d, x: probability_flow(3), "denoiser: expected a Denoiser, got int"),
        (lambda d, x: probability_flow(d, 2.5), "steps: expected"),
        (lambda d, x: probability_flow(d, 5, solver="rk5"), "solver: expected"),
        (lambda d, x: probability_flow(d, 5, trace="all"), "trace: expected"),
        (lambda d, x: probability_flow(d, 5, label=0), "label: expected None"),
        (lambda d, x: probability_flow(d, 5).log_prob(torch.zeros(3, 3)), "x: expected"),
        (lambda d, x: elbo(3, x), "denoiser: expected a Denoiser, got int"),
        (lambda d, x: elbo(d, x.long()), "x: expected a tensor of floating"),
        (lambda d, x: elbo(d, torch.zeros(3, 3)), "x: expected shape"),
        (lambda d, x: elbo(d, x * math.nan), "x: expected finite"),
        (lambda d, x: elbo(d, x[:0]), "x: expected at least one"),
        (lambda d, x: elbo(d, x, label=torch.zeros(3).long()), "label: expected None"),
        (
            lambda d, x: elbo(NetworkDenoiser(NoiseMLP(2), cosine(5), (2,)), x),
            "variance: expected 'large'",
        ),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call(gaussian(), torch.zeros(3, 2))
