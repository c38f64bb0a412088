"""Whole flows: each is a normalised density, and has the properties that its name promises."""

import math
import zlib

import pytest
import torch
from torch import nn

from lib.bijections import Autoregressive, Coupling, RationalQuadratic
from lib.flows import (
    autoregressive_flow,
    bounded_flow,
    circular_flow,
    coupling_flow,
    glow,
    planar_flow,
    radial_flow,
    spline_flow,
)

NET = {"hidden": (16,), "layers": 3}

# name: make(features, context_features), whether it takes one feature
RECIPES = {
    "coupling": (lambda d, c: coupling_flow(d, context_features=c, **NET), False),
    "coupling, LU": (
        lambda d, c: coupling_flow(d, mixing="lu", clamp="atan", context_features=c, **NET),
        False,
    ),
    "spline": (lambda d, c: spline_flow(d, context_features=c, **NET), True),
    "MAF": (lambda d, c: autoregressive_flow(d, context_features=c, **NET), True),
    "IAF": (lambda d, c: autoregressive_flow(d, inverse=True, context_features=c, **NET), True),
    "MAF of splines": (
        lambda d, c: autoregressive_flow(d, scalar=RationalQuadratic(5), context_features=c, **NET),
        True,
    ),
    "radial": (lambda d, c: radial_flow(d, layers=8, context_features=c), True),
    "planar": (lambda d, c: planar_flow(d, layers=8, context_features=c), True),
    "bounded": (lambda d, c: bounded_flow([0.1] * d, [0.7] * d, context_features=c, **NET), True),
    "circular": (lambda d, c: circular_flow(d, context_features=c, **NET), True),
}
PLANE = list(RECIPES)
LINE = [name for name, (_, one) in RECIPES.items() if one]
BOX = {"bounded": (0.1, 0.7), "circular": (-math.pi, math.pi)}


def made(name, features=2, dtype=torch.float64, context_features=0, scale=0.2, seed=0):
    """The flow with parameters drawn at a scale."""
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(name.encode()) + seed)
        flow = RECIPES[name][0](features, context_features)
        with torch.no_grad():
            for weight in flow.parameters():
                weight += scale * torch.randn(weight.shape)
    return flow.to(dtype)


def grid(name, features, points, reach):
    """Midpoints of a grid that holds nearly all of the mass, and the volume of a cell."""
    low, high = BOX.get(name, (-reach, reach))
    width = (high - low) / points
    line = low + width * (torch.arange(points, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(*[line] * features).view(-1, features), width**features


def count(module):
    """A list that grows by one with each call of the module."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", LINE)
def test_mass_one_on_the_line(name, given):
    flow = made(name, 1, context_features=2 * given)
    x, cell = grid(name, 1, 100_000, 60.0)
    context = torch.tensor([0.3, -1.0], dtype=torch.float64) if given else None
    with torch.no_grad():
        mass = flow.log_prob(x, context).exp().sum() * cell
    assert float(mass) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", PLANE)
def test_mass_one_on_the_plane(name):
    flow = made(name)
    x, cell = grid(name, 2, 400, 14.0)
    with torch.no_grad():
        density = flow.log_prob(x).exp()
        samples = flow.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert float(density.sum() * cell) == pytest.approx(1, abs=2e-3)
    # The samples are from that very density: their mean is its mean.
    mean = (density[:, None] * x).sum(0) * cell
    error = samples.std(0) / math.sqrt(len(samples))
    assert bool(((samples.mean(0) - mean).abs() < 4 * error + 2e-3).all())


@pytest.mark.parametrize("name", PLANE)
def test_the_density_of_a_sample_is_that_of_its_latent(name, dtype):
    flow = made(name, 2 if name == "coupling" else 3, dtype, context_features=2)
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(50, 2, generator=generator).to(dtype)
    x, kept = flow.sample_and_log_prob((4,), context, generator)
    assert x.dtype == kept.dtype == dtype
    assert kept.shape == (4, 50)
    tol = 5e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(flow.log_prob(x, context), kept, rtol=tol, atol=tol)


@pytest.mark.parametrize("name", PLANE)
def test_a_new_flow_is_near_the_base_and_learns(name):
    """The start is finite and not degenerate, and one batch gives each parameter a gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = RECIPES[name][0](2, 0)
    x = flow.sample(200, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = flow.log_prob(x) - flow.base.log_prob(x)
    assert float(gap.abs().mean()) < 1.0
    flow.log_prob(x).mean().backward()
    assert all(bool(w.grad.isfinite().all()) for w in flow.parameters())


# --- cost


@pytest.mark.parametrize("name", ["coupling", "coupling, LU", "spline", "bounded", "circular"])
def test_couplings_call_each_network_once(name):
    flow = made(name, 4)
    layers = [m for m in flow.modules() if isinstance(m, Coupling)]
    assert layers
    calls = [count(layer.network.hidden) for layer in layers]
    x = flow.sample(5)
    assert [len(c) for c in calls] == [1] * len(layers)
    flow.log_prob(x)
    assert [len(c) for c in calls] == [2] * len(layers)
    flow.sample_and_log_prob(5)
    assert [len(c) for c in calls] == [3] * len(layers)
    law = flow()
    law.log_prob(law.rsample((5,)))
    assert [len(c) for c in calls] == [4] * len(layers)


def test_glow_calls_each_network_once():
    flow = glow((1, 4, 4), levels=2, steps=2, hidden=4)
    calls = [count(m.network) for m in flow.modules() if isinstance(m, Coupling)]
    assert len(calls) == 4
    flow.sample_and_log_prob(3)
    assert [len(c) for c in calls] == [1] * 4


@pytest.mark.parametrize("scalar", [None, RationalQuadratic(5)], ids=["affine", "spline"])
def test_maf_samples_in_at_most_d_passes_with_the_numbers_of_d(scalar):
    features = 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = autoregressive_flow(features, layers=2, hidden=(16,), scalar=scalar).double()
    layers = [m for m in flow.modules() if isinstance(m, Autoregressive)]
    flow.sample(20)
    assert [layer.passes for layer in layers] == [2, 2]  # identity: nothing to wait for
    with torch.no_grad():
        for weight in flow.parameters():
            weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    calls = [count(layer.network.hidden) for layer in layers]
    x = flow.sample(20, generator=torch.Generator().manual_seed(2))
    assert [len(c) for c in calls] == [layer.passes for layer in layers]
    assert all(layer.passes <= features for layer in layers)
    full, _ = flow.sample_and_log_prob(20, generator=torch.Generator().manual_seed(2))
    assert [layer.passes for layer in layers] == [features] * 2  # with gradients there are D
    assert torch.equal(x, full)


def test_iaf_samples_in_one_pass():
    flow = autoregressive_flow(6, layers=2, hidden=(16,), inverse=True)
    calls = [
        count(layer.network.hidden) for layer in flow.modules() if isinstance(layer, Autoregressive)
    ]
    flow.sample_and_log_prob(7)
    assert [len(c) for c in calls] == [1, 1]


# --- circles


def test_the_circle_has_no_seam():
    flow = made("circular", 1, scale=1.0)
    gaps = []
    for eps in (1e-2, 1e-4, 1e-6):
        ends = torch.tensor([[math.pi - eps], [-math.pi + eps]], dtype=torch.float64)
        gaps.append(float(flow.log_prob(ends).detach().diff().abs()))
    assert gaps[1] < 0.05 * gaps[0]
    assert gaps[2] < 0.05 * gaps[1]
    assert gaps[2] < 1e-4


@pytest.mark.parametrize("angle", [0, 1])
def test_the_torus_has_no_seam_also_as_a_condition(angle):
    """log p(phi_0, phi_1) is continuous in each angle: also where it is what a network reads."""
    flow = made("circular", 2, scale=1.0)
    gap = {}
    for eps in (1e-3, 1e-6):
        x = torch.linspace(-3, 3, 50).double()[:, None].repeat(1, 2)
        left, right = x.clone(), x.clone()
        left[:, angle], right[:, angle] = -math.pi + eps, math.pi - eps
        gap[eps] = float((flow.log_prob(left) - flow.log_prob(right)).abs().max())
    assert gap[1e-6] < 1e-2 * gap[1e-3] + 1e-9


def test_a_turn_of_the_circle_turns_the_density():
    flow = made("circular", 2)
    x = flow.sample(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(x + 2 * math.pi), flow.log_prob(x))
    assert bool(flow.support.check(x).all())


def test_the_mass_of_a_circle_of_any_length():
    flow = circular_flow(1, low=0.0, high=24.0, hidden=(16,)).double()
    nn.init.normal_(next(flow.parameters()), generator=torch.Generator().manual_seed(0))
    hours = torch.arange(24_000, dtype=torch.float64)[:, None] / 1000 + 0.0005
    assert float(flow.log_prob(hours).exp().sum() / 1000) == pytest.approx(1, abs=1e-5)


# --- boxes


def test_the_ends_of_a_box_are_free():
    """The density at an end takes any value, and is not pinned to zero or to that of the base."""
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    found = torch.cat([bounded_at(seed).log_prob(ends).detach() for seed in range(20)]).exp()
    assert float(found.min()) < 0.5
    assert float(found.max()) > 2


def bounded_at(seed):
    flow = bounded_flow(0.0, 1.0).double()
    nn.init.normal_(next(flow.parameters()), generator=torch.Generator().manual_seed(seed))
    return flow


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (-1 / 3, 1e-3), (1e3, 1e3 + 0.1), (0, 1)])
@pytest.mark.parametrize("features", [1, 2])
def test_a_box_ends_where_it_says(low, high, features, dtype):
    flow = bounded_flow([low] * features, [high] * features, layers=2, hidden=(8,))
    with torch.no_grad():
        for weight in flow.parameters():
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    flow = flow.to(dtype)
    middle = torch.full((1, features), (low + high) / 2, dtype=dtype)
    for end, away in ((low, -math.inf), (high, math.inf)):
        for k in range(features):
            x = middle.clone()
            x[:, k] = end
            assert math.isfinite(float(flow.log_prob(x)))
            x[:, k] = torch.nextafter(x[:, k], torch.full_like(x[:, k], away))
            assert float(flow.log_prob(x)) == -math.inf
    corners = torch.tensor([[low] * features, [high] * features], dtype=dtype)
    assert bool(flow.log_prob(corners).isfinite().all())
    x = flow.sample(2000, generator=torch.Generator().manual_seed(1))
    assert bool(flow.support.check(x).all())
    assert bool(flow.log_prob(x).isfinite().all())


# --- images


@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 8, 4), (2, 4, 4)])
def test_the_latent_of_glow_has_the_shape_of_the_image(shape, dtype):
    flow = glow(shape, levels=2, steps=2, hidden=6)
    with torch.no_grad():
        for weight in flow.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    flow = flow.to(dtype)
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    latent, _ = flow.bijection(images)
    assert latent.shape == images.shape
    assert flow.event_shape == shape
    assert flow.log_prob(images).shape == (5,)
    back, _ = flow.bijection.inverse(latent)
    tol = 1e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(back, images, rtol=tol, atol=tol)


def test_glow_with_context():
    flow = glow((1, 4, 4), levels=1, steps=1, hidden=4, context_features=3)
    context = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    x, kept = flow.sample_and_log_prob((2,), context)
    assert x.shape == (2, 5, 1, 4, 4)
    torch.testing.assert_close(flow.log_prob(x, context), kept, rtol=1e-4, atol=1e-4)


def test_initialise_standardises_a_batch():
    flow = coupling_flow(3, layers=2, hidden=(8,))
    x = 5 + 3 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    flow.initialise(x)
    z, _ = flow.bijection(x)  # the couplings start as the identity
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(3), rtol=0, atol=1e-2)


def test_bad_arguments_are_refused_in_words(unchecked):
    for low, high in ((1.0, 1.0), (2.0, 1.0), ([0.0, 1.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match=r"^low.*: expected .*, got"):
            bounded_flow(low, high)
    with pytest.raises(ValueError, match=r"^low.*: expected"):
        circular_flow(1, low=1.0, high=0.0)
    for shape in ((1, 6, 8), (4, 4), (1, 4, 6)):
        with pytest.raises(ValueError, match=r"^shape: expected \(channels, height, width\)"):
            glow(shape, levels=2)
    for option in ({"levels": 0}, {"steps": 0}, {"hidden": 0}):
        with pytest.raises(ValueError, match=r"expected an integer of at least 1"):
            glow((1, 4, 4), **option)
    with pytest.raises(ValueError, match=r"^mixing: expected 'swap' or 'lu', got 'random'"):
        coupling_flow(2, mixing="random")
    with pytest.raises(ValueError, match=r"^mixing: expected"):
        spline_flow(2, mixing="random")
    with pytest.raises(ValueError, match=r"^features: expected an integer of at least 2"):
        coupling_flow(1)
    for make in (coupling_flow, spline_flow, autoregressive_flow, radial_flow, planar_flow):
        with pytest.raises(ValueError, match=r"^layers: expected an integer of at least 1"):
            make(2, layers=0)
        with pytest.raises(ValueError, match=r"expected an integer of at least"):
            make(0)
