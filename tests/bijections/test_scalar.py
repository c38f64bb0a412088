"""Maps of single numbers: clamps, affine maps, and free or conditional parameters."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from lib.bijections import (
    Autoregressive,
    Coupling,
    Elementwise,
    RationalQuadratic,
    ScalarMap,
    ScaleShift,
    Shift,
)
from lib.bijections.scalar import CLAMPS, clamp

every_clamp = pytest.mark.parametrize("kind", CLAMPS)
bounded = pytest.mark.parametrize("kind", [kind for kind in CLAMPS if kind != "none"])


def log_scales():
    s = torch.logspace(-6, 6, 200, dtype=torch.float64)
    return torch.cat([-s.flip(0), torch.zeros(1).double(), s])


# --- clamps


@every_clamp
@pytest.mark.parametrize("bound", [0.3, 2.0, 7.0])
def test_clamps_are_odd_and_increase_with_slope_one_at_zero(kind, bound):
    s = log_scales().requires_grad_()
    c = clamp(s, kind, bound)
    assert torch.equal(clamp(-s, kind, bound), -c)
    assert bool((c.diff() >= 0).all())
    (slope,) = torch.autograd.grad(c.sum(), s)
    middle = len(s) // 2
    assert c[middle] == 0
    assert float(slope[middle]) == 1
    assert bool(((slope >= 0) & (slope <= 1)).all())


@bounded
def test_clamps_keep_their_bound_and_come_close_to_it(kind, dtype):
    s = log_scales().to(dtype)
    for bound in (0.3, 2.0):
        c = clamp(s, kind, bound)
        assert float(c.abs().max()) <= bound * (1 + torch.finfo(dtype).eps)
        assert float(c.abs().max()) > 0.999 * bound
    infinite = clamp(torch.tensor([1e30], dtype=dtype), kind, 2.0)
    torch.testing.assert_close(infinite, torch.tensor([2.0], dtype=dtype))


def test_clamps_have_the_derivatives_that_are_promised():
    """1 / (1 + |s| / a)^2, 1 / (1 + (pi s / 2 a)^2), 1 - tanh^2, and a step."""
    s, a = log_scales().requires_grad_(), 1.7
    closed = {
        "softsign": (1 + s.abs() / a) ** -2,
        "atan": 1 / (1 + (math.pi * s / (2 * a)) ** 2),
        "tanh": torch.cosh((s / a).clamp(-300, 300)) ** -2,
        "hard": (s.abs() <= a).double(),
        "none": torch.ones_like(s),
    }
    for kind in CLAMPS:
        (slope,) = torch.autograd.grad(clamp(s, kind, a).sum(), s)
        closed[kind] = closed[kind].detach()
        torch.testing.assert_close(slope, closed[kind], rtol=1e-6, atol=1e-14)
    assert float(closed["atan"][-1]) > 1e-13  # like 1 / s^2 at s = 1e6, where tanh has 0
    assert float(closed["tanh"][-1]) < 1e-200


# --- affine maps


@every_clamp
def test_scale_and_shift_is_what_it_says_and_inverts(kind, generator, dtype):
    g = ScaleShift(kind, 1.5)
    x = torch.randn(50, 3, generator=generator).to(dtype)
    params = 2 * torch.randn(2, 50, 3, generator=generator).to(dtype)
    z, log_slope = g(x, params)
    c = clamp(params[0], kind, 1.5)
    torch.testing.assert_close(z, c.exp() * x + params[1])
    assert torch.equal(log_slope, c)
    back, home = g.inverse(z, params)
    eps = 8 * torch.finfo(dtype).eps
    rounding = eps * (x.abs() + (params[1].abs() + z.abs()) * (-c).exp())
    assert bool(((back - x).abs() <= rounding).all())
    assert torch.equal(home, -log_slope)


def test_scale_of_no_clamp_is_the_exponential():
    z, log_slope = ScaleShift("none")(torch.ones(1, 1), torch.tensor([[[5.0]], [[0.0]]]))
    assert float(log_slope) == 5
    torch.testing.assert_close(z, torch.full((1, 1), math.exp(5)))


def test_shift_keeps_volume(generator):
    x, t = torch.randn(2, 50, 3, generator=generator)
    z, log_slope = Shift()(x, t[None])
    assert torch.equal(z, x + t)
    assert not log_slope.any()
    back, home = Shift().inverse(z, t[None])
    torch.testing.assert_close(back, x)
    assert not home.any()


@every_clamp
def test_extreme_log_scales_have_finite_gradients(kind, dtype):
    s = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=dtype)
    if kind == "none":
        s = s.clamp(-50, 50)
    params = torch.stack([s, s])[..., None].requires_grad_()
    x = torch.ones(5, 1, dtype=dtype, requires_grad=True)
    for call in (ScaleShift(kind), ScaleShift(kind).inverse):
        z, log_slope = call(x, params)
        for value in (z, log_slope, *torch.autograd.grad((z + log_slope).sum(), (x, params))):
            assert value.isfinite().all()


# --- parameters that are free or come from a context


@pytest.mark.parametrize("scalar", [Shift(), ScaleShift(), RationalQuadratic(4)])
def test_free_parameters_start_at_the_identity_and_are_per_feature(scalar, generator):
    f = Elementwise(3, scalar).double()
    x = torch.randn(20, 3, generator=generator).double()
    torch.testing.assert_close(f(x)[0], x)
    torch.testing.assert_close(f(x)[1], torch.zeros(20).double(), rtol=0, atol=1e-12)
    with torch.no_grad():
        f.params[:, 1] = torch.randn(scalar.size, generator=generator)
    z, _ = f(x)
    torch.testing.assert_close(z[:, ::2], x[:, ::2])
    assert bool((z[:, 1] != x[:, 1]).all())


def test_context_sets_the_parameters(generator):
    """z = exp(c(W y)_1) x + (W y)_2 with a linear network."""
    net = nn.Linear(2, 2 * 3)
    f = Elementwise(3, ScaleShift("none"), context_features=2, network=net).double()
    x, context = torch.randn(7, 3).double(), torch.randn(7, 2, generator=generator).double()
    s, t = net(context).unflatten(-1, (2, 3)).unbind(1)
    z, log_det = f(x, context)
    torch.testing.assert_close(z, s.exp() * x + t)
    torch.testing.assert_close(log_det, s.sum(-1))
    torch.testing.assert_close(f.inverse(z, context), (x, -log_det))
    default = Elementwise(3, ScaleShift(), context_features=2, hidden=())
    assert torch.equal(default(x.float(), context.float())[0], x.float())


def test_gradients_of_the_context(generator):
    f = Elementwise(2, ScaleShift("atan"), context_features=2, hidden=(4,), activation="tanh")
    f = f.double()
    with torch.no_grad():
        for weight in f.parameters():
            weight.normal_(generator=generator)
    x, context = torch.randn(2, 3, 2, generator=generator).double().unbind(0)
    given = (x.requires_grad_(), context.requires_grad_())
    assert gradcheck(f, given)
    assert gradcheck(f.inverse, given)


# --- a map of one's own


class Cubic(ScalarMap):
    """z = x + exp(a) x^3, solved by Cardano: three methods make a flow of any kind."""

    size = 1

    def forward(self, x, params):
        a = params[0].exp()
        return x + a * x**3, (1 + 3 * a * x**2).log()

    def inverse(self, z, params):
        a = params[0].exp()
        x = 2 / (3 * a).sqrt() * torch.sinh(torch.asinh(1.5 * (3 * a).sqrt() * z) / 3)
        return x, -(1 + 3 * a * x**2).log()


@pytest.mark.parametrize("make", [Elementwise, Coupling, Autoregressive])
def test_any_scalar_map_works_everywhere(make, generator):
    f = make(3, Cubic()).double()
    with torch.no_grad():
        for weight in f.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    x = torch.randn(10, 3, generator=generator).double()
    z, log_det = f(x)
    torch.testing.assert_close(f.inverse(z), (x, -log_det))
    J = torch.autograd.functional.jacobian(lambda v: f(v)[0], x[0])
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], log_det[0])


# --- refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ScaleShift("sigmoid"), "clamp: expected one of softsign, atan, tanh, hard, none"),
        (lambda: ScaleShift(None), "clamp: expected one of"),
        (lambda: ScaleShift(["tanh"]), "clamp: expected one of"),
        (lambda: ScaleShift(bound=0.0), "bound: expected one positive number"),
        (lambda: ScaleShift(bound=math.inf), "bound: expected one positive number"),
        (lambda: ScaleShift(bound="2"), "bound: expected one positive number"),
        (lambda: Elementwise(0, Shift()), "features: expected an integer of at least 1"),
        (lambda: Elementwise(3, Shift), "scalar: expected a ScalarMap .* got type"),
        (lambda: Elementwise(3, ScalarMap()), "scalar: expected a ScalarMap with parameters"),
        (lambda: Elementwise(3, Shift(), network=nn.Linear(1, 3)), "network: expected None"),
        (lambda: Elementwise(3, Shift(), context_features=-1), "context_features: expected"),
        (
            lambda: Elementwise(3, Shift(), context_features=2, network="net"),
            "network: expected a Module or None, got str",
        ),
        (
            lambda: Elementwise(3, Shift(), context_features=2, network=nn.Linear(2, 1))(
                torch.zeros(5, 3), torch.zeros(5, 2)
            ),
            r"network: expected 1 x 3 = 3 outputs, got shape \(5, 1\)",
        ),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
