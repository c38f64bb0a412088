"""The conditional flow: its linear layer in closed form, boxes, what it learns."""

import math

import pytest
import torch

from lib.bijections import SoftUniform
from lib.inverse import ConditionalFlow, LinearGaussian, negative_log_likelihood
from lib.inverse.problems import GaussianLinear

DOUBLE = torch.float64


def linear_pairs(n, generator):
    """x = A y + b + L e with a known A, b and L."""
    A = torch.tensor([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]], dtype=DOUBLE)
    L = torch.tensor([[1.0, 0, 0], [0.3, 0.5, 0], [-0.2, 0.1, 2.0]], dtype=DOUBLE)
    y = torch.randn(n, 2, generator=generator, dtype=DOUBLE)
    e = torch.randn(n, 3, generator=generator, dtype=DOUBLE)
    return y @ A.T + torch.tensor([5.0, 0, -1]) + e @ L.T, y, A, L


def test_least_squares_leave_white_residuals(generator):
    """Of the very data, the latents have mean 0, covariance I, and nothing in common with y."""
    x, y, _, _ = linear_pairs(500, generator)
    f = LinearGaussian(3, 2).double()
    f.initialise(x, y)
    z, log_det = f(x, y)
    eye = torch.eye(3, dtype=DOUBLE)
    torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-7, rtol=0)
    torch.testing.assert_close(z.mT @ z / 500, eye, atol=1e-7, rtol=0)
    torch.testing.assert_close(z.mT @ y / 500, torch.zeros(3, 2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(f.inverse(z, y), (x, -log_det))
    J = torch.autograd.functional.jacobian(lambda v: f(v, y[:1])[0], x[:1])[0, :, 0]
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], log_det[0])


def test_the_linear_layer_finds_the_law(generator):
    x, y, A, L = linear_pairs(200_000, generator)
    f = LinearGaussian(3, 2).double()
    f.initialise(x, y)
    zero, one = torch.zeros(1, 3).double(), torch.eye(2).double()
    at = lambda y: f.inverse(zero.expand(len(y), 3), y)[0]  # noqa: E731
    slope = (at(one) - at(torch.zeros(2, 2).double())).mT
    torch.testing.assert_close(slope, A, atol=0.03, rtol=0)
    S = f.log_scale.exp()[:, None] * f.factor
    torch.testing.assert_close(S.detach(), L, atol=0.02, rtol=0)


def test_collinear_and_constant_observations(generator):
    """One-hot labels add up to one, a second column copies the first: W is not unique, x is."""
    label = torch.arange(4).repeat(50)
    y = torch.nn.functional.one_hot(label, 4).double()
    y = torch.cat([y, y[:, :1], torch.ones_like(y[:, :1])], 1)
    x = label[:, None] + 0.1 * torch.randn(200, 2, generator=generator, dtype=DOUBLE)
    f = LinearGaussian(2, 6).double()
    f.initialise(x, y)
    means = f.inverse(torch.zeros_like(x), y)[0]
    for k in range(4):
        torch.testing.assert_close(means[label == k][0], x[label == k].mean(0), atol=1e-5, rtol=0)


def test_an_entry_that_y_determines(generator):
    """Its spread given y is zero; the map stays finite and invertible."""
    y = torch.randn(100, 1, generator=generator, dtype=DOUBLE)
    x = torch.cat([3 * y, torch.randn(100, 1, generator=generator, dtype=DOUBLE)], 1)
    f = LinearGaussian(2, 1).double()
    f.initialise(x, y)
    z, log_det = f(x, y)
    assert bool(log_det.isfinite().all())
    torch.testing.assert_close(f.inverse(z, y)[0], x)


def test_it_starts_at_the_exact_posterior_of_a_linear_problem(generator):
    """Before any training step: Gaussian linear, KL = the sampling error of a regression."""
    problem = GaussianLinear(dtype=DOUBLE)
    model = ConditionalFlow(10, 10, layers=2, hidden=(8,)).double()
    n = 20_000
    model.fit(*problem.sample(n, generator), steps=0)
    found = negative_log_likelihood(model, problem, 5000, generator)
    # 10 x 11 coefficients and 55 covariances, each of which costs 1 / 2n nats on average.
    expected = (110 + 55) / (2 * n)
    assert found.excess == pytest.approx(expected, abs=6 * found.stderr + 0.5 * expected)


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_nothing_leaves_the_box(kind, generator):
    x = torch.rand(500, 2, generator=generator)
    y = x[:, :1] + 0.1 * torch.randn(500, 1, generator=generator)
    model = ConditionalFlow(2, 1, kind=kind, layers=2, hidden=(16,), low=0.0, high=[1.0, 1.0])
    model.fit(x, y, steps=30, lr=1e-2)
    drawn = model.sample(torch.tensor([[0.0], [5.0], [-5.0]]), 2000, generator)
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    outside = torch.tensor([[1.01, 0.5], [-0.01, 0.5], [0.5, math.inf]])
    with torch.no_grad():
        assert bool((model.log_prob(outside, y[0]) == -math.inf).all())
    # Mass by the substitution x = F(t) of the squash: the density may be infinite at an edge.
    t = torch.linspace(-60, 60, 601, dtype=torch.float64)
    x, log_slope = SoftUniform()(torch.cartesian_prod(t, t))
    weight = log_slope.sum(1).exp() * (t[1] - t[0]) ** 2
    with torch.no_grad():
        log_p = model.double().log_prob(x, torch.tensor([0.2]).double())
    assert float((log_p.exp() * weight).sum()) == pytest.approx(1, abs=1e-3)


def test_one_feature(generator):
    x = torch.randn(300, 1, generator=generator)
    model = ConditionalFlow(1, 1, layers=2, hidden=(8,))
    model.fit(x, x + 0.1, steps=5)
    assert model.sample(x[0], 4, generator).shape == (4, 1)


def test_encode_and_decode_are_inverse_and_swap_the_condition(generator):
    x, y, _, _ = linear_pairs(300, generator)
    model = ConditionalFlow(3, 2, layers=2, hidden=(8,)).double()
    model.fit(x, y, steps=20)
    z = model.encode(x, y)
    torch.testing.assert_close(model.decode(z, y), x)
    assert float((model.decode(z, y.flip(0)) - x).abs().mean()) > 0.1


def test_noise_on_y_gives_a_surface_its_width(generator):
    """x = y exactly: with noise s on the standardised y, x given y is N(y, s^2 sd^2)."""
    x = torch.randn(4000, 1, generator=generator, dtype=DOUBLE)
    model = ConditionalFlow(1, 1, layers=1, hidden=(16,), noise=0.1).double()
    model.fit(x, x, steps=600, lr=1e-2, batch_size=1000)
    drawn = model.sample(torch.zeros(1, dtype=DOUBLE), 4000, generator)
    assert float(drawn.std()) == pytest.approx(0.1, rel=0.1)
