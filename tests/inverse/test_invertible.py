"""The invertible network: its layout, its losses one by one, and that it finds all the modes."""

import math

import pytest
import torch

from lib.inverse import InvertibleSolver, ramp
from lib.inverse.problems import EightModes
from lib.metrics import mmd_loss

X, Y = torch.randn(200, 2), torch.randn(200, 3)


def made(**options):
    torch.manual_seed(0)
    options = {"latent": 2, "total": 7, "layers": 2, "hidden": (8,), **options}
    return InvertibleSolver(2, 3, **options)


def test_the_layout():
    """[x, 0] of length 7 becomes [y, z, rest] of lengths 3, 2 and 2, and back."""
    model = made()
    y, z, rest = model(X)
    assert (y.shape[1], z.shape[1], rest.shape[1]) == (3, 2, 2)
    back = model.bijection.inverse(torch.cat([y, z, rest], 1))[0]
    torch.testing.assert_close(back[:, :2], X)
    torch.testing.assert_close(back[:, 2:], torch.zeros(200, 5), atol=1e-5, rtol=0)


def test_each_entry_of_x_meets_the_other():
    """The deal separates neighbours: x_2 changes through x_1 within two layers."""
    model = made()
    for p in model.bijection.parameters():
        torch.nn.init.normal_(p, std=0.3)
    J = torch.autograd.functional.jacobian(lambda v: torch.cat(model(v), 1), X[:1])[0, :, 0]
    assert bool((J.abs() > 1e-8).all())


@pytest.mark.parametrize("name", ["fit", "latent", "input", "reconstruction"])
def test_a_weight_of_zero_leaves_its_term_out(name, generator):
    full = made().loss(X, Y, generator)
    assert list(full) == ["fit", "latent", "input", "reconstruction"]
    assert set(full) - set(made(weights={name: 0.0}).loss(X, Y, generator)) == {name}
    doubled = made(weights={name: 2.0}).loss(X, Y, torch.Generator().manual_seed(1))
    single = made(weights={name: 1.0}).loss(X, Y, torch.Generator().manual_seed(1))
    torch.testing.assert_close(doubled[name], 2 * single[name])


def test_no_gradient_reaches_y_through_the_latent_term(generator):
    """The last map decides y through its first rows; the term moves the rows of z alone."""
    model = made(weights={"fit": 0.0, "input": 0.0, "reconstruction": 0.0})
    kept = {}
    cut = model._cut

    def record(out):
        kept["y"], kept["z"], rest = cut(out)
        kept["y"].retain_grad()
        kept["z"].retain_grad()
        return kept["y"], kept["z"], rest

    model._cut = record
    model.loss(X, Y, generator)["latent"].backward()
    assert kept["y"].grad is None
    assert float(kept["z"].grad.abs().max()) > 0


def test_the_joint_discrepancy_sees_what_the_marginal_one_cannot(generator):
    """z normal on its own, yet a copy of y: the marginal MMD is zero, the joint one is not."""
    z = torch.randn(1500, 1, generator=generator)
    fresh = torch.randn(1500, 1, generator=generator)
    other = torch.randn(1500, 1, generator=generator)
    marginal = mmd_loss(z, other)
    joint = mmd_loss(torch.cat([z, z], 1), torch.cat([z, fresh], 1))
    assert float(marginal) < 0.005 < 0.05 < float(joint)


def test_the_ramp():
    assert ramp(0.0) == pytest.approx(0.004)
    assert ramp(1.0) == 1.0
    full = 1 - math.log(2) / -math.log(0.002)
    assert ramp(full + 1e-6) == 1.0
    assert ramp(full - 1e-3) < 1.0
    values = [ramp(k / 50) for k in range(51)]
    assert values == sorted(values)


def test_the_likelihood_is_a_likelihood(generator):
    """Its loss is -log density of (x, padding), up to a constant: N(y, s) N(0, 1) N(0, s)."""
    model = made(objective="likelihood", noise=0.2).double()
    for p in model.bijection.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=generator)
    x, y = X.double()[:50], Y.double()[:50]
    terms = model.loss(x, y, torch.Generator().manual_seed(3))
    padded = model._pad(x, torch.Generator().manual_seed(3))
    out, log_det = model.bijection(padded)
    mean = torch.cat([y, torch.zeros(50, 4)], 1)
    sd = torch.tensor([0.2] * 3 + [1.0] * 2 + [0.2] * 2).double()
    log_p = torch.distributions.Normal(mean, sd).log_prob(out).sum(1) + log_det
    constant = sd.log().sum() + 3.5 * math.log(2 * math.pi)
    assert 7 * float(sum(terms.values()).detach()) == pytest.approx(
        float((-log_p.mean() - constant).detach())
    )


def test_it_learns_to_separate_two_modes(generator):
    """Maximum likelihood, label "some": given each label, its modes with their weights."""
    problem = EightModes("some")
    model = InvertibleSolver(
        2, 8, latent=2, layers=4, hidden=(16,), total=10, objective="likelihood", noise=0.3
    )
    model.fit(*problem.sample(20_000, generator), steps=400, batch_size=200, lr=1e-2)
    y = torch.nn.functional.one_hot(torch.tensor(1), 8).float()
    drawn, exact = model.sample(y, 1000, generator), problem.sample_posterior(y, 1000, generator)
    for side in (drawn, exact):
        assert float((side[:, 0] > 0).float().mean()) > 0.9
    low = float((drawn[:, 1] < -1.7).float().mean())
    assert 0.35 < low < 0.65
    assert float(mmd_loss(drawn, exact)) < 0.3  # one mode for two gives 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: made(total=4), r"total: expected at least 5, to hold x \(2\) and \[y, z\]"),
        (lambda: InvertibleSolver(9, 1, latent=1, total=8), "total: expected at least 9"),
        (lambda: made(latent=0), "latent: expected an integer of at least 1"),
        (lambda: made(objective="nll"), "objective: expected 'mmd' or 'likelihood'"),
        (lambda: made(kind="cubic"), "kind: expected 'affine' or 'spline'"),
        (lambda: made(weights={"x": 1.0}), "weights: expected some of fit, latent, input"),
        (lambda: made(weights={"fit": -1.0}), r"weights\['fit'\]: expected one non-negative"),
        (lambda: made(noise=0.0), "noise: expected one positive number"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
