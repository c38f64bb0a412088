"""Coupling layers: one half is left alone, bit for bit, and decides about the other."""

import math

import pytest
import torch
from torch import nn

from lib.bijections import ConvNet, Coupling, RationalQuadratic, ScaleShift, Shift
from lib.nets import MLP

SCALARS = {"shift": Shift, "affine": ScaleShift, "spline": lambda: RationalQuadratic(4)}
every_scalar = pytest.mark.parametrize("scalar", SCALARS.values(), ids=SCALARS)


def drawn(f, generator, std=0.5, dtype=torch.float64):
    f = f.to(dtype)
    with torch.no_grad():
        for weight in f.parameters():
            weight += std * torch.randn(weight.shape, generator=generator).to(dtype)
    return f


class Calls:
    """How often a module is called."""

    def __init__(self, module):
        self.count = 0
        module.register_forward_hook(self.add)

    def add(self, *_):
        self.count += 1


@every_scalar
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("features", [2, 3, 5, 8])
def test_the_condition_is_unchanged_and_the_rest_is_not(scalar, swap, features, generator, dtype):
    f = drawn(Coupling(features, scalar(), hidden=(8,), swap=swap), generator, dtype=dtype)
    x = torch.randn(20, features, generator=generator).to(dtype)
    half = features // 2
    given, mapped = (slice(half, None), slice(half)) if swap else (slice(half), slice(half, None))
    for call in (f, f.inverse):
        z, _ = call(x)
        assert torch.equal(z[:, given], x[:, given])
        assert bool((z[:, mapped] != x[:, mapped]).all())


@every_scalar
@pytest.mark.parametrize("swap", [False, True])
def test_jacobian_has_the_blocks_of_the_docstring(scalar, swap, generator):
    f = drawn(Coupling(5, scalar(), hidden=(8,), activation="tanh", swap=swap), generator)
    x = torch.randn(5, generator=generator).double()
    J = torch.autograd.functional.jacobian(lambda v: f(v)[0], x)
    a, b = (slice(2, 5), slice(2)) if swap else (slice(2), slice(2, 5))
    assert torch.equal(J[a, a], torch.eye(len(J[a])).double())
    assert not J[a, b].any()
    assert torch.equal(J[b, b], torch.diag(J[b, b].diagonal()))
    assert bool((J[b, a] != 0).all())
    torch.testing.assert_close(J[b, b].diagonal().log().sum(), f(x)[1])


@every_scalar
def test_it_starts_as_the_identity(scalar, generator):
    x = torch.randn(20, 6, generator=generator)
    for f in (Coupling(6, scalar()), Coupling(6, scalar(), swap=True)):
        for z, log_det in (f(x), f.inverse(x)):
            torch.testing.assert_close(z, x, rtol=0, atol=2e-6)
            torch.testing.assert_close(log_det, torch.zeros(20), rtol=0, atol=2e-6)


@every_scalar
def test_the_network_is_called_once_in_each_direction(scalar, generator):
    own = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2 * scalar().size))
    for f in (Coupling(4, scalar(), hidden=(8,)), Coupling(4, scalar(), network=own)):
        calls = Calls(own if f.network is own else f.network.hidden)
        x = torch.randn(5, 4, generator=generator)
        z, _ = f(x)
        assert calls.count == 1
        f.inverse(z)
        assert calls.count == 2


@every_scalar
@pytest.mark.parametrize("context_features", [0, 3])
def test_a_network_of_ones_own_gives_the_same(scalar, context_features, generator):
    """The own network is the other code path: rows in place of columns."""
    f = drawn(
        Coupling(5, scalar(), hidden=(8,), context_features=context_features, swap=True), generator
    )

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = f.network

        def forward(self, a, context=None):
            assert (context is None) == (context_features == 0)
            return self.inner(a, context)

    g = Coupling(5, scalar(), network=Own(), context_features=context_features, swap=True).double()
    x = torch.randn(7, 5, generator=generator).double()
    context = torch.randn(7, 3, generator=generator).double() if context_features else None
    torch.testing.assert_close(g(x, context), f(x, context))
    torch.testing.assert_close(g.inverse(x, context), f.inverse(x, context))
    weights, others = list(f.parameters()), list(g.parameters())
    ours = torch.autograd.grad(f(x, context)[0].square().sum() + f(x, context)[1].sum(), weights)
    theirs = torch.autograd.grad(g(x, context)[0].square().sum() + g(x, context)[1].sum(), others)
    torch.testing.assert_close(theirs, ours)


def test_size_is_the_slower_index_of_the_output():
    """Output j * (features of b) + i is parameter j of feature i."""

    class Fixed(nn.Module):
        def forward(self, a):
            return torch.tensor([[0.1, 0.2, 10.0, 20.0]]).expand(len(a), 4)

    f = Coupling(4, ScaleShift("none"), network=Fixed())
    z, log_det = f(torch.ones(3, 4))
    expected = torch.tensor([1, 1, 10 + math.exp(0.1), 20 + math.exp(0.2)]).expand(3, 4)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(log_det, torch.full((3,), 0.3))


def test_context_reaches_the_map(generator):
    f = drawn(Coupling(4, ScaleShift(), hidden=(8,), context_features=2), generator)
    x = torch.randn(5, 4, generator=generator).double()
    context = torch.randn(5, 2, generator=generator).double()
    assert bool((f(x, context)[0][:, 2:] != f(x, -context)[0][:, 2:]).all())
    torch.testing.assert_close(f(x, context[0])[0][1:], f(x[1:], context[:1])[0])


@pytest.mark.parametrize("kind", ["hard", "none", "tanh"])
def test_bound_of_the_scale(kind, generator):
    f = drawn(Coupling(4, ScaleShift(kind, 1.0), hidden=(8,)), generator, std=3.0)
    log_det = f(torch.randn(200, 4, generator=generator).double())[1].abs().max()
    assert bool(log_det <= 2.0) is (kind != "none")


# --- images


def test_images_are_split_along_channels(generator):
    """A network without reach over pixels makes a vector coupling at each pixel."""
    vector = drawn(Coupling(3, ScaleShift(), hidden=(8,), activation="tanh"), generator)

    class PerPixel(nn.Module):
        def forward(self, a):
            return vector.network(a.movedim(1, -1)).movedim(-1, 1)

    f = Coupling(3, ScaleShift(), network=PerPixel(), event_dim=3).double()
    x = torch.randn(2, 4, 3, 5, 6, generator=generator).double()
    z, log_det = f(x)
    each, logs = vector(x.movedim(2, -1))
    torch.testing.assert_close(z, each.movedim(-1, 2))
    torch.testing.assert_close(log_det, logs.sum((-1, -2)))
    torch.testing.assert_close(f.inverse(z), (x, -log_det))


@pytest.mark.parametrize("ends", ["circular", ("free", "circular", "linear", "free")])
def test_images_with_an_interval_per_channel(ends, generator):
    """Also where an image is as wide as it has channels."""
    low, high = torch.tensor([0.0, -3.0, -1.0, 5.0]), torch.tensor([1.0, 3.0, 1.0, 6.0])
    scalar = RationalQuadratic(3, ends=ends, low=low, high=high)
    inputs = len(scalar.part([0, 1]).columns(2))
    net = ConvNet(inputs, 2 * scalar.part([2, 3]).size, 6)
    f = drawn(Coupling(4, scalar, network=net, event_dim=3), generator)
    share = torch.rand(3, 4, 2, 2, generator=generator)
    x = (low[:, None, None] + (high - low)[:, None, None] * share).double()
    z, log_det = f(x)
    torch.testing.assert_close(f.inverse(z), (x, -log_det))
    J = torch.autograd.functional.jacobian(lambda v: f(v)[0], x[0]).reshape(16, 16)
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], log_det[0])


# --- circles as conditions


def test_no_seam_where_a_circle_is_the_condition(generator):
    """Angles -pi and pi are one point: the map of the other half and its slope are the same."""
    f = drawn(
        Coupling(2, RationalQuadratic(4, ends="circular", low=-math.pi, high=math.pi)),
        generator,
        std=0.3,
    )
    b = torch.linspace(-3, 3, 50).double()

    def at(angle):
        """The map of b, its log-slope, and their derivatives with respect to the angle."""
        angle = torch.full_like(b, angle).requires_grad_()
        z, log_det = f(torch.stack([angle, b], -1))
        turned = torch.stack([z[:, 1].cos(), z[:, 1].sin()], -1)  # where z itself may jump
        slopes = [
            torch.autograd.grad(out.sum(), angle, retain_graph=True)[0]
            for out in (z[:, 1], log_det)
        ]
        return turned.detach(), log_det.detach(), *slopes

    left, right = at(math.pi), at(-math.pi)
    for one, other in zip(left[:2], right[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    for one, other in zip(left[2:], right[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        assert float(one.abs().max()) > 1e-3  # it does depend on the angle
    assert float((at(0.0)[1] - left[1]).abs().max()) > 1e-3


# --- refusals

X = torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Coupling(1, Shift()), "features: expected an integer of at least 2, got 1"),
        (lambda: Coupling(-3, Shift()), "features: expected an integer of at least 2"),
        (lambda: Coupling("4", Shift()), "features: expected an integer of at least 2"),
        (lambda: Coupling(4.0, Shift()), "features: expected an integer of at least 2"),
        (lambda: Coupling(4, None), "scalar: expected a ScalarMap .* got NoneType"),
        (lambda: Coupling(4, ScaleShift), "scalar: expected a ScalarMap .* got type"),
        (lambda: Coupling(4, Shift(), event_dim=2), r"event_dim: expected 1 .* or 3"),
        (lambda: Coupling(4, Shift(), event_dim=3), "network: expected a network for images"),
        (lambda: Coupling(4, Shift(), hidden=8), "hidden: expected a sequence of integers, got 8"),
        (lambda: Coupling(4, Shift(), hidden=(0,)), "hidden: expected an integer of at least 1"),
        (lambda: Coupling(4, Shift(), hidden="88"), "hidden: expected a sequence of integers"),
        (lambda: Coupling(4, Shift(), activation="gelu", hidden=()), "activation: expected one of"),
        (lambda: Coupling(4, Shift(), swap="no"), "swap: expected True or False, got 'no'"),
        (lambda: Coupling(4, Shift(), context_features=-1), "context_features: expected"),
        (lambda: Coupling(4, Shift(), network=lambda a: a), "network: expected a Module or None"),
        (lambda: Coupling(4, Shift())(X[:, :3]), r"x: expected shape \(\*batch, 4\)"),
        # Fewer outputs than parameters would broadcast.
        *(
            (
                lambda s=s, n=n: Coupling(4, s, network=nn.Linear(2, n))(X),
                "network: expected .* out",
            )
            for s, n in ((Shift(), 1), (ScaleShift(), 2), (ScaleShift(), 3), (ScaleShift(), 8))
        ),
        (
            lambda: Coupling(4, RationalQuadratic(8), network=MLP(2, 23))(X),
            r"network: expected 23 x 2 = 46 outputs, got shape \(5, 23\)",
        ),
        (
            lambda: Coupling(4, Shift(), network=ConvNet(2, 1, 4), event_dim=3)(
                torch.zeros(5, 4, 2, 2)
            ),
            "network: expected 1 x 2 = 2 outputs",
        ),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
