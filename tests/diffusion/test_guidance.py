"""Guidance: between, and beyond, what a denoiser says with and without a label."""

import pytest
import torch

from lib.diffusion import (
    DDIM,
    ClassifierGuided,
    Guided,
    Heun,
    MixtureDenoiser,
    NetworkDenoiser,
    NoiseMLP,
    from_betas,
)
from lib.diffusion.schedules import cosine, edm

MEANS = torch.tensor([[0.8, -0.3], [-0.6, 0.4], [0.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])
DENOISER = MixtureDenoiser(
    torch.tensor([0.2, 0.5, 0.3]), MEANS, 0.1 * torch.eye(2), cosine(10), LABELS
)
LABEL = torch.tensor([0, 1, -1, 1])


def points(generator):
    return torch.randn(4, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_weight_extrapolates_from_none_to_the_label(weight, generator):
    x = points(generator)
    without, given = DENOISER(x, 0.6).mean, DENOISER(x, 0.6, LABEL).mean
    found = Guided(DENOISER, weight)(x, 0.6, LABEL).mean
    torch.testing.assert_close(found, without + weight * (given - without))
    t = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    rows = Guided(DENOISER, weight)(x, t, LABEL).mean
    torch.testing.assert_close(rows[2], found[2])


def test_exact_classifier_makes_the_conditional_denoiser(generator):
    """Bayes' rule: score plus the gradient of log p(label | x_t) is the conditional score."""

    def log_prob(x, t, label):
        return DENOISER.log_prob(x, 0.6, label) - DENOISER.log_prob(x, 0.6)

    x = points(generator)
    found = ClassifierGuided(DENOISER, log_prob)(x, 0.6, LABEL).mean
    torch.testing.assert_close(found, DENOISER(x, 0.6, LABEL).mean)


def test_labels_steer_the_samples():
    label = torch.arange(2).repeat(100)
    x = DDIM(Guided(DENOISER, 2.0)).sample(
        200, 20, generator=torch.Generator().manual_seed(0), label=label
    )
    nearest = LABELS[torch.cdist(x.double(), MEANS).argmin(1)]
    assert float((nearest == label).double().mean()) >= 0.97


def test_bad_input_is_refused(unchecked):
    x = torch.zeros(4, 2)
    plain = MixtureDenoiser(torch.ones(3), MEANS, None, cosine(10))
    with pytest.raises(ValueError, match="denoiser"):
        Guided(plain, 1.0)
    for guided in (Guided(DENOISER, 1.0), ClassifierGuided(DENOISER, lambda *a: a)):
        with pytest.raises(ValueError, match="label"):
            guided(x, 0.5)


@pytest.mark.parametrize("kind", ["preserving", "exploding", "flow"])
def test_exact_classifier_may_have_a_level_for_each_row(kind, generator):
    """The classifier is told the level, of one row or of all, and x in the units of the kind."""
    denoiser = DENOISER.on(edm(10, 0.05, 5.0).as_kind(kind))

    def log_prob(x, level, label):
        y = (x / level.scale).double()
        components, _ = denoiser._components(y, level, None)
        given, _ = denoiser._components(y, level, label)
        return given.logsumexp(-1) - components.logsumexp(-1)

    guided = ClassifierGuided(denoiser, log_prob)
    x = points(generator)
    for t in (0.6, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)):
        torch.testing.assert_close(guided(x, t, LABEL).mean, denoiser(x, t, LABEL).mean)
    one, two = (
        DDIM(each).sample(4, 5, generator=torch.Generator().manual_seed(0), label=LABEL)
        for each in (guided, denoiser)
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_weight_of_the_classifier_scales_its_push(generator):
    def log_prob(x, level, label):
        return x @ torch.tensor([1.0, -2.0], dtype=x.dtype)

    x, plain = points(generator), DENOISER
    a, s = plain.schedule.alpha_sigma(0.6)
    push = torch.tensor([1.0, -2.0], dtype=torch.float64) * s**2 / a
    for weight in (0.0, 1.0, 3.0):
        found = ClassifierGuided(plain, log_prob, weight)(x, 0.6, LABEL).mean
        torch.testing.assert_close(found, plain(x, 0.6).mean + weight * push)


def test_guidance_does_not_sample_the_tilted_law():
    """Two classes N(+-1, 1): tilted by p(y | x)^2 and noised is not what guidance takes it for.

    Both start from the same law of x_T; were the guided score that of the noised tilted law, its
    exact flow would end in the tilted law. It ends too far out.
    """
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    wide = edm(10, 0.002, 80.0)
    both = MixtureDenoiser(torch.ones(2), means, torch.eye(1), wide, torch.tensor([0, 1]))
    n, label = 4000, torch.ones(4000, dtype=torch.long)
    source = torch.Generator().manual_seed(0)
    x = Heun(Guided(both, 2.0)).sample(n, 40, generator=source, label=label)
    side = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
    zero = torch.ones(len(side), dtype=torch.long)
    tilted = 2 * both.log_prob(side, 0.0, zero) - both.log_prob(side, 0.0)
    mean = float((tilted.softmax(0) * side[:, 0]).sum())
    assert float(x.mean()) > mean + 0.1
    # With weight one there is nothing to tilt, and the class itself comes out.
    x = Heun(Guided(both, 1.0)).sample(n, 40, generator=source, label=label)
    assert float(x.mean()) == pytest.approx(1.0, abs=0.07)


def test_another_schedule_is_refused_where_the_denoiser_refuses_it(unchecked):
    network = NetworkDenoiser(NoiseMLP(2, classes=2), cosine(10), (2,), predicts="eps")
    end = from_betas([0.1, 1.0])
    with pytest.raises(ValueError, match="schedule: expected some signal"):
        Guided(network, 2.0).on(end)
    guided = Guided(DENOISER, 2.0)
    moved, x = guided.on(end), torch.zeros(4, 2)
    assert moved(x, 1.0, LABEL).mean.isfinite().all()
    assert guided.denoiser.schedule is DENOISER.schedule
    for make in (
        lambda: ClassifierGuided(DENOISER, lambda x, level, label: x.sum(1)).on(end),
        lambda: ClassifierGuided(DENOISER.on(end), lambda x, level, label: x.sum(1)),
    ):
        with pytest.raises(ValueError, match="schedule: expected some signal at t = 1"):
            make()


def flat(x, level, label):
    return x.detach().sum(1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: Guided(3, 1.0), "denoiser: expected a Denoiser that knows"),
        (lambda x: Guided(DENOISER, float("nan")), "weight: expected finite"),
        (lambda x: Guided(DENOISER, "much"), "weight: expected"),
        (lambda x: Guided(DENOISER, 2.0)(x, 0.5, torch.tensor([0, 1, 2, 0])), "label: expected -1"),
        (lambda x: Guided(DENOISER, 2.0)(x, 0.5, LABEL[:3]), "label: expected 4 integers"),
        (lambda x: Guided(DENOISER, 2.0)(x, 0.5, LABEL.double()), "label: expected 4 integers"),
        (lambda x: ClassifierGuided(3, flat), "denoiser: expected a Denoiser"),
        (lambda x: ClassifierGuided(DENOISER, 3), "log_prob: expected a function"),
        (lambda x: ClassifierGuided(DENOISER, flat, float("nan")), "weight: expected finite"),
        (lambda x: ClassifierGuided(DENOISER, flat)(x, 0.5, LABEL[:3]), "label: expected 4 integ"),
        (lambda x: ClassifierGuided(DENOISER, flat)(x, 0.5, LABEL), "log_prob: .*differentiable"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(4, 2))
