"""What every solver promises: shapes, seeds, dropped rows, held-out pairs, refusals."""

import copy
import math

import pytest
import torch

from lib.inverse import (
    ConditionalFlow,
    ConditionalVAE,
    FlowMatching,
    InvertibleSolver,
    MixtureDensityNetwork,
    PriorOnly,
)

D, d = 3, 2
SOLVERS = {
    "cINN, splines": lambda: ConditionalFlow(D, d, layers=2, hidden=(8,)),
    "cINN, affine": lambda: ConditionalFlow(D, d, kind="affine", layers=2, hidden=(8,)),
    "cINN, box": lambda: ConditionalFlow(D, d, layers=2, hidden=(8,), low=-9.0, high=9.0),
    "cINN, embedding": lambda: ConditionalFlow(
        D, d, layers=2, hidden=(8,), embedding=torch.nn.Linear(d, 4), embedded=4
    ),
    "INN, likelihood": lambda: InvertibleSolver(
        D, d, latent=2, layers=2, hidden=(8,), objective="likelihood"
    ),
    "INN, MMD": lambda: InvertibleSolver(D, d, latent=2, total=5, layers=2, hidden=(8,)),
    "MDN": lambda: MixtureDensityNetwork(D, d, components=3, hidden=(8,)),
    "cVAE": lambda: ConditionalVAE(D, d, latent=2, hidden=(8,)),
    "flow matching": lambda: FlowMatching(D, d, hidden=(8,), steps=3),
    "prior only": lambda: PriorOnly(D, d),
}
each = pytest.mark.parametrize("name", SOLVERS)
with_density = pytest.mark.parametrize("name", [n for n in SOLVERS if n[:4] in ("cINN", "MDN")])


def pairs(n, generator, dtype=torch.float32):
    """x ~ N(0, I), y = (x_1 + noise, x_2 x_3)."""
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    y = torch.stack([x[:, 0] + 0.1 * torch.randn(n, generator=generator), x[:, 1] * x[:, 2]], 1)
    return x.to(dtype), y.to(dtype)


def trained(name, generator, steps=3, dtype=torch.float32):
    torch.manual_seed(0)
    model = SOLVERS[name]().to(dtype)
    model.fit(*pairs(200, generator, dtype), steps=steps, batch_size=50)
    return model


@each
def test_shapes_dtypes_and_seeds(name, generator, dtype):
    model = trained(name, generator, dtype=dtype)
    y = pairs(6, generator, dtype)[1].reshape(2, 3, d)
    before = torch.get_rng_state()
    first, second = (model.sample(y, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert (first.shape, first.dtype) == ((5, 2, 3, D), dtype)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert model.sample(y[0, 0], 4, generator).shape == (4, D)
    assert bool(first.isfinite().all())


@each
def test_the_same_seed_gives_the_same_weights(name):
    first, second = (trained(name, torch.Generator().manual_seed(4)) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@each
def test_a_state_dict_carries_everything(name, generator):
    model = trained(name, generator)
    other = SOLVERS[name]()
    if name == "prior only":
        other.bank = torch.zeros_like(model.bank)
    other.load_state_dict(model.state_dict())
    y, seed = torch.tensor([0.3, -0.2]), torch.Generator().manual_seed(5)
    again = copy.deepcopy(seed.get_state())
    first = model.sample(y, 7, seed)
    seed.set_state(again)
    assert torch.equal(first, other.sample(y, 7, seed))


@each
def test_spoilt_rows_are_left_out_with_a_count(name, generator):
    x, y = pairs(200, generator)
    spoilt = y.clone()
    spoilt[:7, 0], spoilt[7:9, 1] = math.nan, math.inf
    torch.manual_seed(0)
    model = SOLVERS[name]()
    with pytest.warns(UserWarning, match="9 of 200 simulations hold NaN or infinity"):
        model.fit(x, spoilt, steps=2, batch_size=50)
    assert model.dropped == 9
    torch.manual_seed(0)
    clean = SOLVERS[name]()
    clean.fit(x[9:], y[9:], steps=2, batch_size=50)
    assert clean.dropped == 0
    for a, b in zip(model.state_dict().values(), clean.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@with_density
def test_densities_are_those_of_the_samples(name, generator):
    """E q'/q = 1 under q, for q' the density at another observation."""
    model = trained(name, generator, steps=40, dtype=torch.float64)
    y = torch.tensor([[0.3, -0.2], [0.35, -0.15]], dtype=torch.float64)
    with torch.no_grad():
        x = model.sample(y[0], 20_000, generator)
        ratio = (model.log_prob(x, y[1]) - model.log_prob(x, y[0])).exp()
    error = float(ratio.std() / math.sqrt(len(ratio)))
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * error)
    assert error < 0.1


@with_density
def test_units_do_not_matter(name, generator):
    """Trained at another scale, a model is the same model: log q changes by the log of it."""
    if name == "cINN, box":
        pytest.skip("the box is in the units of x")
    x, y = pairs(200, generator, torch.float64)
    found = []
    for scale in (1.0, 2.0**-17):
        torch.manual_seed(0)
        model = SOLVERS[name]().double()
        model.fit(scale * x, scale * y, steps=5, batch_size=50)
        with torch.no_grad():
            found.append(model.log_prob(scale * x[:50], scale * y[:50]) + D * math.log(scale))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_held_out_pairs_keep_the_best_weights(generator):
    """Few pairs, many steps: the loss on the held-out pairs turns, and its best is kept."""
    x, y = pairs(60, generator)
    model = ConditionalFlow(D, d, layers=2, hidden=(64,))
    history = model.fit(x, y, steps=600, lr=1e-2, validation=0.3, patience=8, schedule=None, seed=1)
    assert history.reason == "held-out loss"
    assert history.steps < 600
    seen = history.terms["validation"]
    held = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:18]
    with torch.no_grad():
        now = -float(model.log_prob(x[held], y[held]).mean())
    assert now == pytest.approx(min(seen), abs=1e-5)
    assert seen[-1] > min(seen)


def test_a_constant_observation_is_no_division_by_zero(generator):
    x, y = pairs(100, generator)
    y[:, 1] = 3.0
    model = ConditionalFlow(D, d, layers=1, hidden=(8,))
    model.fit(x, y, steps=2)
    assert bool(model.sample(y[0], 5, generator).isfinite().all())


def model():
    return ConditionalFlow(D, d, layers=1, hidden=(8,))


X, Y = torch.zeros(9, D), torch.zeros(9, d)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: model().fit(X[:, :2], Y, steps=1), r"x: expected shape \(\*batch, 3\)"),
        (lambda: model().fit(X, Y[:5], steps=1), r"y: expected shape \(9, 2\), got \(5, 2\)"),
        (lambda: model().fit(X[0], Y[0], steps=1), "x: expected shape"),
        (lambda: model().fit(X / 0, Y, steps=1), "x, y: expected at least one pair without NaN"),
        (lambda: model().fit(X.long(), Y, steps=1), "x: expected a tensor of floating-point"),
        (lambda: model().fit(X, Y, steps=1, validation=0.9), "validation: expected a share"),
        (lambda: model().fit(X, Y, steps=1, validation=-0.1), "validation: expected"),
        (lambda: model().fit(X, Y, steps=1, patience=0), "patience: expected an integer"),
        (lambda: model().sample(Y[0, :1], 3), r"y: expected shape \(\*batch, 2\), got \(1,\)"),
        (lambda: model().sample(Y[0] / 0, 3), "y: expected finite observations, got 1 with NaN"),
        (lambda: model().sample(Y[0], 0), "n: expected an integer of at least 1"),
        (lambda: model().log_prob(X[:, :2], Y), r"x: expected shape \(\*batch, 3\)"),
        (lambda: FlowMatching(D, d).log_prob(X, Y), "model: expected one that has a density"),
        (lambda: ConditionalFlow(0, d), "features: expected an integer of at least 1"),
        (lambda: ConditionalFlow(D, 0), "observed: expected an integer of at least 1"),
        (lambda: ConditionalFlow(D, d, kind="cubic"), "kind: expected 'affine' or 'spline'"),
        (lambda: ConditionalFlow(D, d, low=0.0), "low, high: expected both or neither"),
        (lambda: ConditionalFlow(D, d, low=1.0, high=0.0), "low and high: expected low < high"),
        (lambda: ConditionalFlow(D, d, noise=-1.0), "noise: expected one non-negative number"),
        (lambda: ConditionalFlow(D, d, embedded=3), "embedding, embedded: expected a network"),
        (lambda: MixtureDensityNetwork(D, d, components=0), "components: expected"),
        (lambda: ConditionalVAE(D, d, latent=0), "latent: expected an integer"),
        (lambda: FlowMatching(D, d, steps=0), "steps: expected an integer"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
