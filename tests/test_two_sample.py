"""Distances between samples: closed forms, unbiasedness, errors, and what they can tell apart."""

import math

import pytest
import torch

from lib.metrics import c2st, gaussian, inverse_multiquadratic, mmd, mmd_loss

X = torch.zeros(5, 2)


def normal(n, d, generator, shift=0.0):
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def exact_gaussian_mmd(d, shift, h):
    """MMD^2 of N(0, I) and N(shift 1, I) for k = exp(-d^2 / 2 h^2), from Gaussian integrals."""
    inner = (h * h / (h * h + 2)) ** (d / 2)
    return 2 * inner * (1 - math.exp(-d * shift * shift / (2 * (h * h + 2))))


def test_mmd_against_its_closed_form(generator):
    d, shift, h = 3, 0.7, 1.5
    found = mmd(
        normal(4000, d, generator),
        normal(3000, d, generator, shift),
        lambda d2: gaussian(d2, (h,)),
    )
    assert abs(found.value - exact_gaussian_mmd(d, shift, h)) < 4 * found.stderr
    assert 0 < found.stderr < 0.1 * found.value


@pytest.mark.parametrize("kernel", [gaussian, inverse_multiquadratic])
def test_the_unbiased_estimate_is_zero_on_average_and_the_biased_one_is_not(kernel, generator):
    n, m, values, errors, biased = 60, 90, [], [], []
    for _ in range(300):
        x, y = normal(n, 2, generator), normal(m, 2, generator)
        found = mmd(x, y, kernel)
        values.append(found.value)
        errors.append(found.stderr)
        biased.append(float(mmd_loss(x, y, kernel, biased=True)))
    values, biased = torch.tensor(values), torch.tensor(biased)
    sd = float(values.std())
    assert abs(float(values.mean())) < 4 * sd / math.sqrt(300)
    assert sd < sum(errors) / 300 < 2.5 * sd  # never too small, even where the law is degenerate
    x = normal(4000, 2, generator)
    top = float(kernel(torch.zeros(1)))
    mean = float(kernel((x[:2000] - x[2000:]).square().sum(1)).mean())
    bias = (top - mean) * (1 / n + 1 / m)
    assert float(biased.mean()) == pytest.approx(bias, rel=0.1)


def test_the_standard_error_is_that_of_repeated_draws(generator):
    values, errors = [], []
    for _ in range(200):
        found = mmd(normal(100, 2, generator), normal(150, 2, generator, 0.5))
        values.append(found.value)
        errors.append(found.stderr)
    assert sum(errors) / 200 == pytest.approx(float(torch.tensor(values).std()), rel=0.25)


def test_loss_and_measure_agree_and_chunks_do_not_matter(generator, monkeypatch):
    x, y = normal(50, 3, generator), normal(70, 3, generator, 0.3)
    whole = mmd(x, y)
    assert float(mmd_loss(x, y)) == pytest.approx(whole.value, abs=1e-12)
    monkeypatch.setattr("lib.metrics.two_sample.CHUNK", 100)
    assert mmd(x, y).value == pytest.approx(whole.value, abs=1e-14)


def test_far_from_zero_the_measure_keeps_its_digits(generator):
    x, y = normal(200, 2, generator), normal(200, 2, generator, 0.5)
    assert mmd(x + 1e6, y + 1e6).value == pytest.approx(mmd(x, y).value, abs=1e-8)


def test_the_gradient_of_the_loss(generator):
    x, y = normal(4, 2, generator).requires_grad_(), normal(5, 2, generator)
    assert torch.autograd.gradcheck(lambda v: mmd_loss(v, y), x)


def test_a_classifier_finds_what_can_be_found(generator):
    """Between N(0, 1) and N(s, 1) the best accuracy is Phi(s / 2)."""
    n, s = 2000, 1.0
    found = c2st(normal(n, 1, generator, s), normal(n, 1, generator))
    best = 0.5 * (1 + math.erf(s / 2 / math.sqrt(2)))
    assert found.value == pytest.approx(best, abs=4 * found.stderr)
    same = c2st(normal(n, 2, generator), normal(n, 2, generator))
    assert same.value == pytest.approx(0.5, abs=4 * same.stderr)
    assert same.stderr == pytest.approx(math.sqrt(0.25 / (2 * n)))


def test_scale_and_place_do_not_matter_to_the_classifier(generator):
    """It is scaled by the reference: units cancel, up to rounding that training amplifies."""
    x, y = normal(500, 2, generator, 1.0), normal(500, 2, generator)
    scale = torch.tensor([2.0**10, 2.0**-10])
    assert c2st(scale * x, scale * y).value == c2st(x, y).value


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mmd(X, X[:, :1]), "y: expected 2 features, as x, got 1"),
        (lambda: mmd(X[:1], X), "x: expected a sample of shape .* n at least 2"),
        (lambda: mmd(X[0], X), "x: expected a sample of shape"),
        (lambda: mmd(X, X * math.nan), "y: expected finite numbers"),
        (lambda: mmd_loss([0.0], X), "x: expected a sample"),
        (lambda: c2st(X, X[:4]), "x: expected as many points as the reference, 4, got 5"),
        (lambda: c2st(X, X), "x: expected at least 10 points, got 5"),
        (lambda: c2st(X, X, folds=1), "folds: expected an integer of at least 2"),
        (lambda: c2st(X.repeat(4, 1) / 0, X.repeat(4, 1)), "x: expected finite numbers"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
