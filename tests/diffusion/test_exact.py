"""The exact denoiser against integration, automatic derivatives and its own limits."""

import math

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from lib.data.targets import Moons
from lib.diffusion import MixtureDenoiser
from lib.diffusion.schedules import cosine, edm

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[0.5, -0.3], [-0.6, 0.4]], dtype=torch.float64)
COVS = torch.tensor([[[0.2, 0.1], [0.1, 0.1]], [[0.05, -0.02], [-0.02, 0.3]]], dtype=torch.float64)
SCHEDULE = cosine(10)


def mixture(schedule=SCHEDULE, covs=COVS, labels=None):
    return MixtureDenoiser(WEIGHTS, MEANS, covs, schedule, labels)


def lattice(half, n):
    side = torch.linspace(-half, half, n, dtype=torch.float64)
    return torch.cartesian_prod(side, side), float(side[1] - side[0]) ** 2


def test_moments_are_those_of_bayes_rule():
    """By the sum over a fine grid of x_0, prior times likelihood."""
    denoiser, t = mixture(), 0.4
    alpha, sigma = map(float, SCHEDULE.alpha_sigma(t))
    x = torch.tensor([[0.2, 0.1], [-1.0, 0.8]], dtype=torch.float64)
    points, _ = lattice(3.5, 401)
    log_w = denoiser.log_prob(points, 0.0) - (
        (x[:, None] - alpha * points).square().sum(-1) / (2 * sigma**2)
    )
    w = log_w.softmax(-1)
    mean = w @ points
    off = points - mean[:, None]
    cov = torch.einsum("nk,nki,nkj->nij", w, off, off)
    found = denoiser(x, t)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.cov, cov, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_first_and_second_derivative_of_the_density(t):
    """Tweedie's formula, and its second order: Cov = (s / a)^2 (I + s^2 Hessian of log q)."""
    denoiser = mixture()
    a, s = SCHEDULE.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    x = torch.tensor([0.3, -0.5], dtype=torch.float64)

    def log_q(x):
        return denoiser.log_prob(x[None], t)[0]

    torch.testing.assert_close(denoiser.score(x[None], t)[0], jacobian(log_q, x))
    cov = (s / a) ** 2 * (torch.eye(2) + s**2 * hessian(log_q, x))
    torch.testing.assert_close(denoiser(x[None], t).cov[0], cov)


@pytest.mark.parametrize("kind", ["preserving", "exploding", "flow"])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_density_integrates_to_one_at_every_time(t, kind):
    denoiser = mixture(edm(10, 0.05, 3.0).as_kind(kind))
    points, area = lattice(22.0 if kind == "exploding" else 7.0, 401)
    assert float(denoiser.log_prob(points, t).exp().sum() * area) == pytest.approx(1, abs=1e-4)


def test_one_covariance_for_all_is_the_same_one_for_each():
    x = torch.tensor([[0.2, 0.1], [-1.0, 0.8]], dtype=torch.float64)
    one, many = mixture(covs=COVS[0]), mixture(covs=COVS[:1].expand(2, 2, 2))
    for a, b in zip(one(x, 0.3), many(x, 0.3), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(one.log_prob(x, 0.3), many.log_prob(x, 0.3))


def test_rows_may_have_their_own_times(generator):
    denoiser, x = mixture(), torch.randn(5, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, 0.2, 0.4, 0.7, 1.0], dtype=torch.float64)
    both = denoiser(x, t)
    for k in range(5):
        alone = denoiser(x[k : k + 1], float(t[k]))
        torch.testing.assert_close(both.mean[k], alone.mean[0])
        torch.testing.assert_close(both.cov[k], alone.cov[0])
        torch.testing.assert_close(
            denoiser.log_prob(x, t)[k], denoiser.log_prob(x[k : k + 1], float(t[k]))[0]
        )
    torch.testing.assert_close(both.mean[0], x[0])  # at t = 0 nothing is to be guessed
    assert float(both.cov[0].abs().max()) == 0


def test_data_set_is_remembered_up_close_and_averaged_from_afar(generator):
    data = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    memory = MixtureDenoiser.empirical(data, edm(10, 1e-4, 1e4))
    close = memory(data + 1e-5, 1)
    torch.testing.assert_close(close.mean, data, rtol=0, atol=1e-9)
    far = memory(torch.zeros(1, 2, dtype=torch.float64), 10)
    torch.testing.assert_close(far.mean[0], data.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(far.cov[0], data.T.cov(correction=0), rtol=0, atol=1e-3)


def test_label_picks_its_components():
    labels = torch.tensor([0, 1])
    denoiser, x = mixture(labels=labels), torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    one = MixtureDenoiser(torch.ones(1), MEANS[1:], COVS[1:], SCHEDULE)
    found = denoiser(x, 0.4, torch.tensor([1]))
    torch.testing.assert_close(found.mean, one(x, 0.4).mean)
    torch.testing.assert_close(
        denoiser.log_prob(x, 0.4, torch.tensor([1])), one.log_prob(x, 0.4) + WEIGHTS[1].log()
    )
    free = denoiser(x, 0.4, torch.tensor([-1]))
    torch.testing.assert_close(free.mean, mixture()(x, 0.4).mean)
    assert denoiser.classes == 2


def test_samples_have_the_moments_of_the_mixture(generator):
    x = mixture().sample(200_000, generator)
    mean = WEIGHTS @ MEANS
    off = MEANS - mean
    cov = (WEIGHTS[:, None, None] * (COVS + off[:, :, None] * off[:, None])).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=0.01)


def test_moons_at_time_zero_are_the_target():
    moons = Moons(scaled=True)
    denoiser = MixtureDenoiser(*moons.mixture(104), SCHEDULE)
    x = moons.sample(200, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(denoiser.log_prob(x, 0.0), moons.log_prob(x), rtol=0, atol=1e-4)


def test_chunks_do_not_matter(monkeypatch, generator):
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    whole = mixture()(x, 0.3)
    monkeypatch.setattr("lib.diffusion.exact.CHUNK", 56)
    for a, b in zip(mixture()(x, 0.3), whole, strict=True):
        torch.testing.assert_close(a, b)


def test_precision_of_the_answer_is_that_of_the_question(dtype):
    found = mixture()(torch.zeros(3, 2, dtype=dtype), 0.5)
    assert found.mean.dtype == found.cov.dtype == dtype


def test_bad_input_is_refused(unchecked):
    for weights, means, covs, name in (
        (torch.tensor([1.0, 0.0]), MEANS, COVS, "weights"),
        (torch.ones(3), MEANS, COVS, "weights"),
        (WEIGHTS, MEANS[0], COVS, "means"),
        (WEIGHTS, MEANS, COVS[:, 0], "covariances"),
        (WEIGHTS, MEANS, -COVS, "covariances"),
        (WEIGHTS, MEANS, COVS + torch.tensor([[0, 1.0], [0, 0]]), "covariances"),
        (WEIGHTS, MEANS * math.nan, COVS, "means"),
    ):
        with pytest.raises(ValueError, match=name):
            MixtureDenoiser(weights, means, covs, SCHEDULE)
    with pytest.raises(ValueError, match="labels"):
        mixture(labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="label"):
        mixture()(torch.zeros(1, 2), 0.5, torch.tensor([0]))
    with pytest.raises(ValueError, match="t: expected"):
        MixtureDenoiser.empirical(MEANS, SCHEDULE).log_prob(MEANS, 0.0)
    for x in (torch.zeros(3, 3), torch.zeros(2), torch.zeros(3, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="x: expected"):
            mixture()(x, 0.5)
