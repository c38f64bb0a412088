import math

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import integrate, stats

from lib.vi.targets import (
    REFERENCE,
    SCHOOLS,
    correlated_normal,
    eight_schools,
    eight_schools_exact,
    funnel,
    normal_normal,
    two_modes,
)


def log_joint(example, **values):
    trace = poutine.trace(poutine.condition(example.model, data=values)).get_trace()
    return float(trace.log_prob_sum())


@pytest.mark.parametrize(("scale", "centre"), [(1.0, 8.0), (1e-3, 0.0), (1.0, 1e3)])
def test_normal_normal_matches_quadrature(scale, centre, generator):
    x = centre + scale * torch.randn(5, generator=generator, dtype=torch.float64)
    example = normal_normal(x, centre - 2 * scale, 3 * scale, scale)
    grid = centre + scale * torch.linspace(-6, 6, 4001, dtype=torch.float64)
    log_p = np.array([log_joint(example, mu=mu) for mu in grid])
    weight = np.exp(log_p - example.log_evidence)
    step = float(grid[1] - grid[0])
    assert weight.sum() * step == pytest.approx(1, rel=1e-9)
    offset = grid.numpy() - centre
    mean = (weight * offset).sum() * step
    sd = math.sqrt((weight * (offset - mean) ** 2).sum() * step)
    assert float(example.mean["mu"]) - centre == pytest.approx(mean, abs=1e-9 * sd)
    assert float(example.sd["mu"]) == pytest.approx(sd, rel=1e-9)


def test_normal_normal_follows_dtype_and_device(dtype, device):
    example = normal_normal(torch.ones(3, dtype=dtype, device=device), 0.0, 1.0, 1.0)
    mu = poutine.trace(example.model).get_trace().nodes["mu"]["value"]
    assert (mu.dtype, mu.device.type) == (dtype, device.type)
    assert example.mean["mu"].dtype == dtype


@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.5])
def test_correlated_normal_has_its_covariance(rho):
    example = correlated_normal(torch.tensor(rho, dtype=torch.float64))
    law = poutine.trace(example.model).get_trace().nodes["z"]["fn"]
    exact = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    torch.testing.assert_close(law.covariance_matrix, exact)


def test_funnel_marginals(generator):
    """E x^2 = E e^v = e^{9/2}; both forms have the same joint density up to the Jacobian."""
    e_v, _ = integrate.quad(lambda v: math.exp(v) * stats.norm.pdf(v, 0, 3), -40, 60)
    assert float(funnel(2).sd["x"][0]) ** 2 == pytest.approx(e_v, rel=1e-5)
    v, z = torch.tensor(1.2), torch.randn(4, generator=generator)
    centred = log_joint(funnel(4, centred=True), v=v, x=(v / 2).exp() * z)
    free = log_joint(funnel(4, centred=False), v=v, z=z)
    assert centred + 4 * float(v) / 2 == pytest.approx(free, rel=1e-5)


def test_two_modes_moments_match_quadrature():
    example = two_modes(4.0, 0.7, 0.3)
    density = lambda z: math.exp(log_joint(example, z=torch.tensor(z)))  # noqa: E731
    total, mean, square = (
        integrate.quad(lambda z, n=n: z**n * density(z), -9, 9, epsabs=1e-5)[0] for n in range(3)
    )
    assert total == pytest.approx(1, rel=1e-4)
    assert float(example.mean["z"]) == pytest.approx(mean, abs=1e-4)
    assert float(example.sd["z"]) == pytest.approx(math.sqrt(square - mean**2), rel=1e-4)


def test_eight_schools_quadrature_has_converged():
    coarse, fine = eight_schools_exact(401), eight_schools_exact(8001)
    for moments in ("mean", "sd"):
        for name, value in getattr(fine, moments).items():
            assert getattr(coarse, moments)[name] == pytest.approx(value, abs=1e-10)
    assert coarse.log_evidence == pytest.approx(fine.log_evidence, abs=1e-10)


def test_eight_schools_evidence_by_another_route():
    """Integrate mu on a grid, too, instead of analytically."""
    y, sigma = np.array(SCHOOLS)
    mu, t = np.linspace(-40, 50, 901)[:, None], np.linspace(-15, 15, 901)
    tau, log_p = np.exp(t), 0.0
    for effect, error in zip(y, sigma, strict=True):
        log_p = log_p + stats.norm.logpdf(effect, mu, np.sqrt(error**2 + tau**2))
    log_p = log_p + stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5) + t
    evidence = np.log(np.exp(log_p).sum() * 0.1 * (t[1] - t[0]))
    assert eight_schools_exact().log_evidence == pytest.approx(evidence, abs=1e-6)


def test_eight_schools_agree_with_posteriordb():
    exact = eight_schools_exact()
    for name, (mean, sd) in REFERENCE.items():
        if name.startswith("theta"):
            i = int(name[5:]) - 1
            here = exact.mean["theta"][i], exact.sd["theta"][i]
        else:
            here = exact.mean[name], exact.sd[name]
        assert abs(here[0] - mean) < 4 * sd / math.sqrt(10_000), name
        # The error of a standard deviation is sd sqrt((kurtosis - 1)/4n); the tails are heavy.
        assert abs(here[1] - sd) < 4 * sd * math.sqrt((12 - 1) / 4 / 10_000), name


def test_both_eight_schools_have_one_joint_density():
    mu, tau = torch.tensor(3.0), torch.tensor(2.0)
    xi = torch.linspace(-1, 1, 8)
    centred = log_joint(eight_schools(True), mu=mu, tau=tau, theta=mu + tau * xi)
    free = log_joint(eight_schools(False), mu=mu, tau=tau, xi=xi)
    assert centred + 8 * math.log(2.0) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_normal(torch.zeros(2, 2), 0.0, 1.0, 1.0), "^x: expected 1 dimension"),
        (lambda: normal_normal(torch.tensor([math.nan]), 0.0, 1.0, 1.0), "^x: expected finite"),
        (lambda: normal_normal(torch.zeros(2), 0.0, 0.0, 1.0), "^prior_sd: expected positive"),
        (lambda: normal_normal(torch.zeros(2), 0.0, 1.0, -1.0), "^noise_sd: expected positive"),
        (lambda: normal_normal(torch.zeros(2), 0.0, 1e200, 1.0), "^prior_sd: exp"),
        (lambda: normal_normal(torch.zeros(2), 1e60, 1.0, 1.0), "^exact mean of mu: expected fin"),
        (lambda: normal_normal(torch.zeros(2), 1e200, 1.0, 1.0), "^exact .*: expected finite"),
        (lambda: correlated_normal(None), "^correlation: expected"),
        (lambda: correlated_normal(1.0), "^correlation: expected a number between"),
        (lambda: funnel(0), "^dim: expected an integer"),
        (lambda: two_modes(weight=1.0), "^weight: expected"),
        (lambda: two_modes(sd=0.0), "^sd: expected positive"),
        (lambda: two_modes(1e60), "^separation: expected"),
        (lambda: two_modes(sd=1e60), "^sd: expected"),
        (lambda: eight_schools_exact(100), "^points: expected"),
    ],
)
def test_bad_arguments(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
