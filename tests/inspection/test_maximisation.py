"""Activation maximisation: optima in closed form, priors that are put in, rows by themselves."""

import math

import pytest
import torch
from torch import nn

from lib.flows import coupling_flow
from lib.inspection import Density, Generator, Pixels, maximise_activation

W = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.0, -1.0]], dtype=torch.float64)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x @ W[0].to(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centre", [0.0, 0.4])
def test_linear_score_with_penalty_has_its_optimum(dtype, centre):
    """w.x - a |x - c|^2 is largest at c + w / 2a."""
    start = torch.zeros(2, 3, dtype=dtype)
    found = maximise_activation(linear, start, prior=Pixels(centre), weight=0.5, steps=800, lr=0.02)
    assert found.images.dtype == dtype
    torch.testing.assert_close(
        found.images, (centre + W[0]).to(dtype).expand(2, 3), atol=1e-3, rtol=0
    )
    assert torch.equal(found.images, found.latents)


def test_normal_density_and_generator_agree_on_the_same_law():
    """For a linear generator x = A z, the density of x and the latent prior have one optimum."""
    a = torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=a.dtype), a @ a.T)
    score = lambda x: x @ torch.tensor([1.0, -0.5], dtype=x.dtype)  # noqa: E731
    start = torch.ones(1, 2, dtype=torch.float64)
    options = {"steps": 3000, "lr": 0.01}
    by_density = maximise_activation(score, start, prior=Density(law.log_prob), **options)
    generator = Generator(lambda z: z @ a.T, lambda x: torch.linalg.solve(a, x.T).T)
    by_latent = maximise_activation(score, start, prior=generator, **options)
    exact = a @ a.T @ torch.tensor([1.0, -0.5], dtype=a.dtype)
    for found in (by_density, by_latent):
        torch.testing.assert_close(found.images[0], exact, atol=1e-3, rtol=0)


def test_flow_begins_at_the_given_image():
    torch.manual_seed(0)
    flow = coupling_flow(3, layers=2, hidden=(8,)).double()
    prior = Generator(lambda z: flow.bijection.inverse(z)[0], lambda x: flow.bijection(x)[0])
    start = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.decode(prior.encode(start)), start)
    found = maximise_activation(linear, start, prior=prior, steps=50)
    assert (found.scores + found.log_prior > found.history[0]).all()


def test_rows_do_not_disturb_each_other():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double().eval()
    start = torch.randn(5, 3, dtype=torch.float64)
    together = maximise_activation(lambda x: net(x)[:, 1], start, prior=Pixels(), steps=30)
    alone = maximise_activation(lambda x: net(x)[:, 1], start[2:3], prior=Pixels(), steps=30)
    torch.testing.assert_close(together.images[2:3], alone.images)
    assert all(w.grad is None for w in net.parameters())


def test_history_is_the_objective_before_each_step_and_limits_hold():
    start = torch.zeros(2, 3)
    found = maximise_activation(linear, start, steps=20, lr=0.2, limits=(-0.5, 0.5))
    assert found.history.shape == (20, 2)
    assert float(found.history[0, 0]) == 0
    torch.testing.assert_close(found.images, 0.5 * W[0].sign().float().expand(2, 3))
    assert torch.equal(start, torch.zeros(2, 3))


def test_transform_stands_between_image_and_objective():
    flipped = maximise_activation(
        linear, torch.zeros(1, 3), steps=20, limits=(-1.0, 1.0), transform=lambda x: -x
    )
    assert (flipped.images.sign() == -W[0].sign()).all()


BAD = {
    "no prior": (lambda: maximise_activation(linear, torch.zeros(1, 3), prior=3), "prior"),
    "train mode": (lambda: maximise_activation(nn.Linear(3, 1), torch.zeros(1, 3)), "evaluation"),
    "nan": (lambda: maximise_activation(linear, torch.full((1, 3), math.nan)), "init"),
    "empty": (lambda: maximise_activation(linear, torch.zeros(0, 3)), "init"),
    "one dimension": (lambda: maximise_activation(linear, torch.zeros(3)), "init"),
    "objective of another shape": (
        lambda: maximise_activation(lambda x: x, torch.zeros(2, 3)),
        "objective.*2 images",
    ),
    "no derivative": (
        lambda: maximise_activation(lambda x: x.detach().sum(1), torch.zeros(2, 3)),
        "differentiable",
    ),
    "limits of latents": (
        lambda: maximise_activation(
            linear, torch.zeros(1, 3), prior=Generator(lambda z: z), limits=(0.0, 1.0)
        ),
        "limits",
    ),
    "steps": (lambda: maximise_activation(linear, torch.zeros(1, 3), steps=0), "steps"),
    "lr": (lambda: maximise_activation(linear, torch.zeros(1, 3), lr=-1.0), "lr"),
    "weight": (
        lambda: maximise_activation(linear, torch.zeros(1, 3), prior=Pixels(), weight=-1.0),
        "weight",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        call()


def test_a_score_that_explodes_is_named_with_its_step():
    with pytest.raises(ArithmeticError, match="objective is not finite at step"):
        maximise_activation(lambda x: (1 / (0.2 - x)).sqrt().sum(1), torch.zeros(1, 3), lr=0.3)
