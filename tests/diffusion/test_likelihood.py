"""Likelihoods: by the equation exactly, by the bound from below."""

import math

import pytest
import torch

from lib.diffusion import MixtureDenoiser, elbo, probability_flow
from lib.diffusion.likelihood import Velocity
from lib.diffusion.schedules import cosine, edm

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
