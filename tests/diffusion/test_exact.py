"""The exact denoiser against integration, automatic derivatives and its own limits."""

import copy
import math
import pickle

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from lib.data.targets import Moons
from lib.diffusion import MixtureDenoiser, Schedule
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


def test_posterior_of_one_gaussian_is_the_closed_form():
    """Precisions add: Cov^-1 = C^-1 + (a / s)^2 I, Cov^-1 mean = C^-1 m + (a / s^2) x."""
    one = MixtureDenoiser(torch.ones(1), MEANS[:1], COVS[0], SCHEDULE)
    x, eye = torch.tensor([[0.4, -1.2]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for t in (0.1, 0.6, 1.0):
        a, s = SCHEDULE.alpha_sigma(t)
        cov = (COVS[0].inverse() + (a / s) ** 2 * eye).inverse()
        found = one(x, t)
        torch.testing.assert_close(found.cov[0], cov)
        mean = cov @ (COVS[0].inverse() @ MEANS[0] + a / s**2 * x[0])
        torch.testing.assert_close(found.mean[0], mean)


def test_law_of_total_expectation_and_variance(generator):
    """The means average to the mean; their spread and the covariances add up to that of data."""
    denoiser, t = mixture(), 0.5
    x, _ = SCHEDULE.noise(denoiser.sample(200_000, generator), t, generator)
    found = denoiser(x, t)
    mean = WEIGHTS @ MEANS
    off = MEANS - mean
    total = (WEIGHTS[:, None, None] * (COVS + off[:, :, None] * off[:, None])).sum(0)
    torch.testing.assert_close(found.mean.mean(0), mean, rtol=0, atol=0.01)
    parts = found.cov.mean(0) + found.mean.T.cov()
    torch.testing.assert_close(parts, total, rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", ["preserving", "exploding", "flow"])
def test_another_schedule_knows_the_same_at_the_same_noise(kind, generator):
    """Only the log-SNR matters: here at the square of the time, and x_t in units of its kind."""
    denoiser = mixture()
    other = Schedule(lambda u: SCHEDULE.log_snr(u**2), 10, kind)
    t = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    scale = (other.sigma(t.sqrt()) / SCHEDULE.sigma(t))[:, None]
    here, there = denoiser(x, t), denoiser.on(other)(x * scale, t.sqrt())
    torch.testing.assert_close(here.mean, there.mean)
    torch.testing.assert_close(here.cov, there.cov)
    assert denoiser.schedule is SCHEDULE


def test_mismatch_of_a_gaussian_in_two_dimensions(generator):
    """KL(N(a m, S) || N(0, I)) = (tr S + |a m|^2 - D - log det S) / 2, S = a^2 C + s^2 I."""
    for kind in ("preserving", "exploding", "flow"):
        schedule = edm(10, 0.05, 2.0).as_kind(kind)
        one = MixtureDenoiser(torch.ones(1), MEANS[:1], COVS[0], schedule)
        a2 = float(schedule.alpha_bar(1.0))
        S = a2 * COVS[0] + (1 - a2) * torch.eye(2, dtype=torch.float64)
        exact = (S.trace() + a2 * MEANS[0].square().sum() - 2 - S.logdet()) / 2
        found = one.mismatch(100_000, generator)
        assert found.stderr < 0.01
        assert found.value == pytest.approx(float(exact), abs=4 * found.stderr)


def test_score_and_noise_of_a_class_are_those_of_its_components():
    denoiser, x = mixture(labels=torch.tensor([0, 1])), torch.tensor([[0.2, 0.1]]).double()
    one = MixtureDenoiser(torch.ones(1), MEANS[1:], COVS[1:], SCHEDULE)
    label = torch.tensor([1])
    torch.testing.assert_close(denoiser.score(x, 0.4, label), one.score(x, 0.4))
    torch.testing.assert_close(denoiser.noise(x, 0.4, label), one.noise(x, 0.4))


def test_sample_of_a_class_is_of_that_class(generator):
    denoiser = MixtureDenoiser(WEIGHTS, MEANS, None, SCHEDULE, torch.tensor([1, 0]))
    label = torch.tensor([0, 1, 0, -1])
    x = denoiser.sample(4, generator, label)
    torch.testing.assert_close(x[:3], MEANS[[1, 0, 1]])


def test_casts_leave_it_in_float64():
    """What `.float()` of a model does to its weights would cost the exact one its digits."""
    denoiser, x = mixture(), torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    wanted = denoiser(x, 0.4).mean
    assert torch.equal(denoiser.float()(x, 0.4).mean, wanted)
    assert torch.equal(torch.nn.Sequential(denoiser).half()[0](x, 0.4).mean, wanted)


def test_empty_batches_pass():
    denoiser, x = mixture(), torch.zeros(0, 2)
    mean, cov = denoiser(x, 0.5)
    assert (mean.shape, cov.shape) == ((0, 2), (0, 2, 2))
    assert denoiser.log_prob(x, 0.5).shape == (0,)


def test_copies_are_equal():
    denoiser = mixture(labels=torch.tensor([0, 1]))
    x = torch.tensor([[0.2, 0.1]])
    again = pickle.loads(pickle.dumps(denoiser))
    fresh = MixtureDenoiser(WEIGHTS.flip(0), -MEANS, COVS, SCHEDULE, torch.tensor([1, 0]))
    fresh.load_state_dict(denoiser.state_dict())
    for twin in (copy.deepcopy(denoiser), again, fresh):
        assert torch.equal(
            twin(x, 0.5, torch.tensor([1])).mean, denoiser(x, 0.5, torch.tensor([1])).mean
        )


LABELLED = mixture(labels=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: MixtureDenoiser(WEIGHTS, MEANS, COVS, "cosine"), "schedule: expected"),
        (lambda x: mixture(labels=[0, 1]), "labels: expected 2 integers"),
        (lambda x: mixture(labels=torch.tensor([0.0, 1.0])), "labels: expected 2 integers"),
        (lambda x: mixture(labels=torch.tensor([0, 2])), "labels: expected -1..1"),
        (lambda x: mixture(labels=torch.tensor([1, 1])), "labels: expected every class"),
        (lambda x: mixture(labels=torch.tensor([-1, 0])), "labels: expected every class"),
        (lambda x: LABELLED(x, 0.5, torch.tensor([0, 1, 2])), "label: expected -1..1"),
        (lambda x: LABELLED(x, 0.5, torch.tensor([0, 1, -2])), "label: expected -1..1"),
        (lambda x: LABELLED(x, 0.5, torch.tensor([0, 1])), "label: expected 3 integers"),
        (lambda x: LABELLED(x, 0.5, torch.zeros(3)), "label: expected 3 integers"),
        (lambda x: LABELLED(x, 0.5, 1), "label: expected 3 integers in a tensor, got int"),
        (lambda x: LABELLED.log_prob(x, 0.5, torch.tensor([0, 1, 2])), "label: expected -1..1"),
        (lambda x: LABELLED.sample(3, label=torch.tensor([0, 1, 2])), "label: expected -1..1"),
        (lambda x: LABELLED.sample(3, label=torch.tensor([0])), "label: expected 3 integers"),
        (lambda x: mixture().log_prob(x, 0.5, torch.zeros(3).long()), "label: expected None"),
        (lambda x: mixture().sample(3, label=torch.zeros(3).long()), "label: expected None"),
        (lambda x: mixture().log_prob(torch.zeros(3, 3), 0.5), "x: expected"),
        (lambda x: mixture().log_prob(x.long(), 0.5), "x: expected"),
        (lambda x: mixture().score(x, 0.0), "t: expected times above 0"),
        (lambda x: mixture().noise(x, torch.tensor([0.5, 0.0, 1.0])), "t: expected times above 0"),
        (lambda x: mixture().sample(0), "n: expected"),
        (lambda x: mixture().sample(1.5), "n: expected"),
        (lambda x: mixture().mismatch(1), "n: expected"),
        (
            # all data on a line have no density in the plane
            lambda x: mixture(covs=torch.ones(2, 2)).log_prob(x, 0.0),
            "t: expected times above 0",
        ),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(3, 2))
