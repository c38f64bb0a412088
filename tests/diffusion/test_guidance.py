"""Guidance: between, and beyond, what a denoiser says with and without a label."""

import pytest
import torch

from lib.diffusion import DDIM, ClassifierGuided, Guided, MixtureDenoiser
from lib.diffusion.schedules import cosine

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
