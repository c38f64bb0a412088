"""Autoregressive maps: triangular by their masks, inverted exactly in as few passes as it takes."""

import math
from itertools import permutations

import pytest
import torch
from torch.autograd import gradcheck

from lib.bijections import (
    MADE,
    Autoregressive,
    Inverse,
    RationalQuadratic,
    ScalarMap,
    ScaleShift,
    Shift,
)

SCALARS = {"affine": ScaleShift, "spline": lambda: RationalQuadratic(4)}
every_scalar = pytest.mark.parametrize("scalar", SCALARS.values(), ids=SCALARS)


def joined(params):
    """All parameters in one tensor, whether they come in groups or not."""
    return torch.cat(params) if isinstance(params, tuple) else params


def drawn(f, generator, std=0.5, dtype=torch.float64):
    f = f.to(dtype)
    with torch.no_grad():
        for weight in f.parameters():
            weight += std * torch.randn(weight.shape, generator=generator).to(dtype)
    return f


def theta_of_x(f, x):
    """|d theta_i / d x_j|, the largest over the parameters of a feature."""
    J = torch.autograd.functional.jacobian(lambda v: joined(f.params(v[None], None))[:, 0], x)
    return J.abs().amax(0)


# --- who sees whom


@every_scalar
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_parameters_see_what_comes_before_in_the_order_and_all_of_it(scalar, order, generator):
    f = Autoregressive(3, scalar(), hidden=(32, 32), activation="tanh", order=order)
    f = drawn(f, generator)
    seen = theta_of_x(f, torch.randn(3, generator=generator).double())[list(order)][:, list(order)]
    strictly_lower = torch.ones(3, 3).double().tril(-1)
    assert torch.equal((seen > 0).double(), strictly_lower)


@pytest.mark.parametrize("hidden", [(), (1,), (2, 3), (7,), (64, 2, 64)])
@pytest.mark.parametrize("features", [1, 2, 6])
@pytest.mark.parametrize("context_features", [0, 2])
def test_no_width_breaks_the_order(hidden, features, context_features, generator):
    """Also layers that are narrower than the event, and none at all."""
    options = {"hidden": hidden, "activation": "tanh", "context_features": context_features}
    f = drawn(Autoregressive(features, ScaleShift(), **options), generator)
    x = torch.randn(features, generator=generator).double()
    context = torch.randn(2, generator=generator).double() if context_features else None

    def theta(x):
        return joined(f.params(x[None], None if context is None else context[None]))[:, 0]

    seen = torch.autograd.functional.jacobian(theta, x).abs().amax(0)
    assert not seen.triu().any()
    z, log_det = f(x, context)
    J = torch.autograd.functional.jacobian(lambda v: f(v, context)[0], x)
    assert not J.triu(1).any()
    torch.testing.assert_close(J.diagonal().log().sum(), log_det)
    torch.testing.assert_close(f.inverse(z, context), (x, -log_det))


@pytest.mark.parametrize("hidden", [(), (4,), (16, 16)])
def test_context_reaches_every_parameter_also_of_the_first(hidden, generator):
    options = {"hidden": hidden, "activation": "tanh", "context_features": 2}
    f = drawn(Autoregressive(3, ScaleShift(), order=[2, 0, 1], **options), generator)
    x = torch.randn(1, 3, generator=generator).double()
    context = torch.randn(2, generator=generator).double()
    J = torch.autograd.functional.jacobian(lambda c: f.params(x, c[None])[:, 0], context)
    assert bool((J != 0).all())


def test_columns_of_an_embedding_have_the_rank_of_their_feature(generator):
    """Cosine and sine of a circle are two columns, and both come before the next feature."""
    ends = ("circular", "linear", "circular")
    scalar = RationalQuadratic(3, ends=ends, low=-3.0, high=3.0)
    f = Autoregressive(3, scalar, hidden=(32, 32), activation="tanh", order=[1, 2, 0])
    seen = theta_of_x(drawn(f, generator), torch.tensor([0.3, -1.0, 2.0]).double())
    expected = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 1, 0]])
    assert torch.equal((seen > 0).long(), expected)


def test_made_returns_its_columns_transposed(generator):
    net = drawn(MADE([0, 1, 2], [0, 1, 2] * 2, (8,), context_features=2), generator)
    x, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    torch.testing.assert_close(net.columns(x, context)[0], net(x, context).mT)


@every_scalar
def test_it_starts_as_the_identity(scalar, generator):
    x = torch.randn(20, 4, generator=generator)
    f = Autoregressive(4, scalar())
    for z, log_det in (f(x), f.inverse(x)):
        torch.testing.assert_close(z, x, rtol=0, atol=2e-6)
        torch.testing.assert_close(log_det, torch.zeros(20), rtol=0, atol=2e-6)
    f.inverse(x.detach())
    with torch.no_grad():
        f.inverse(x)
    assert f.passes == 2  # the second pass sees that the first was right


# --- the inverse


@every_scalar
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_stopping_early_gives_the_same_bits(scalar, factor, seed):
    """Where gradients are wanted the loop runs all D passes: the reference."""
    generator = torch.Generator().manual_seed(seed)
    f = Autoregressive(16, scalar(), hidden=(32, 32))
    drawn(f, generator, std=0.05 * factor, dtype=torch.float32)
    z = 2 * torch.randn(50, 16, generator=generator)
    full, log_det = f.inverse(z)
    assert f.passes == 16
    with torch.no_grad():
        early, early_log_det = f.inverse(z)
    assert f.passes < 16
    assert torch.equal(early, full)
    assert torch.equal(early_log_det, log_det)
    torch.testing.assert_close(f(full)[0], z, rtol=1e-4, atol=1e-4)


def test_pass_k_makes_the_first_k_numbers_right(generator):
    """With strong dependence nothing is right before its turn, and D + 0 passes are made."""
    f = Autoregressive(6, Shift(), hidden=())
    with torch.no_grad():
        f.network.last.weight.fill_(10.0)
        z = torch.randn(9, 6, generator=generator)
        x, _ = f.inverse(z)
    assert f.passes == 6
    expected = torch.zeros(9, 6)
    for k in range(6):
        expected[:, k] = z[:, k] - 10 * expected[:, :k].sum(-1)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_one_feature_takes_one_pass():
    f = Autoregressive(1, ScaleShift(), hidden=())
    with torch.no_grad():
        f.inverse(torch.randn(5, 1))
    assert f.passes == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_does_not_hang(value):
    f = Autoregressive(5, ScaleShift(), hidden=(8,))
    with torch.no_grad():
        x, _ = f.inverse(torch.full((3, 5), value))
    assert not x.isfinite().any()
    assert f.passes <= 5


@every_scalar
def test_gradients_of_the_inverse_are_exact(scalar, generator):
    f = Autoregressive(3, scalar(), hidden=(6,), activation="tanh", context_features=1)
    f = drawn(f, generator)
    z = torch.randn(2, 3, generator=generator).double().requires_grad_()
    context = torch.randn(2, 1, generator=generator).double().requires_grad_()
    assert gradcheck(f.inverse, (z, context))
    names, weights = zip(*f.named_parameters(), strict=True)
    f.forward = f.inverse

    def run(*weights):
        lent = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(f, lent, (z.detach(), context.detach()))

    assert gradcheck(run, weights, fast_mode=True)


@every_scalar
def test_inverse_autoregressive_flow(scalar, generator):
    """`Inverse` samples in one call and evaluates in the loop; both are one map."""
    f = drawn(Autoregressive(4, scalar(), hidden=(16,), order=[3, 1, 0, 2]), generator)
    iaf = Inverse(f)
    z = torch.randn(7, 4, generator=generator).double()
    calls = []
    f.network.register_forward_hook(lambda *_: calls.append(1))
    body = f.network.hidden[0]
    body.register_forward_hook(lambda *_: calls.append(2))
    x, home = iaf.inverse(z)
    assert calls.count(2) == 1
    back, log_det = iaf(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det, -home)
    J = torch.autograd.functional.jacobian(lambda v: iaf(v)[0], x[0])
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], log_det[0])


def test_batch_of_no_events():
    f = Autoregressive(3, ScaleShift(), hidden=(4,))
    for call in (f, f.inverse):
        x, log_det = call(torch.zeros(2, 0, 3))
        assert x.shape == (2, 0, 3)
        assert log_det.shape == (2, 0)


# --- refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Autoregressive(0, Shift()), "features: expected an integer of at least 1"),
        (lambda: Autoregressive("3", Shift()), "features: expected an integer of at least 1"),
        (lambda: Autoregressive(3, None), "scalar: expected a ScalarMap"),
        (lambda: Autoregressive(3, ScalarMap()), "scalar: expected a ScalarMap with parameters"),
        (lambda: Autoregressive(3, Shift(), hidden=5), "hidden: expected a sequence of integers"),
        (lambda: Autoregressive(3, Shift(), hidden=(0,)), "hidden: expected an integer"),
        (lambda: Autoregressive(3, Shift(), activation="x", hidden=()), "activation: expected"),
        (lambda: Autoregressive(3, Shift(), context_features=-1), "context_features: expected"),
        *(
            (
                lambda order=order: Autoregressive(3, Shift(), order=order),
                f"order: expected {words}",
            )
            for order, words in (
                ([0, 1, 3], "a permutation of 0..2"),
                ([0, 1], "a permutation"),
                ([0, 1, 1], "a permutation"),
                ([], "a permutation"),
                ([0, 1, -1], "an integer of at least 0"),
                ([0.2, 1.1, 2.9], "an integer"),
                ([True, False, 2], "an integer"),
                ([None, 1, 2], "an integer"),
                ("012", "a sequence of integers"),
                (3, "a sequence of integers"),
            )
        ),
        (lambda: MADE([], []), "degrees and outputs: expected at least one of each"),
        (lambda: MADE([0], [-1]), "outputs: expected an integer of at least 0"),
        (lambda: MADE("01", [0]), "degrees: expected a sequence of integers"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()


def test_order_may_be_a_tensor(unchecked):
    f = Autoregressive(3, Shift(), hidden=(), order=torch.tensor([2, 0, 1]))
    with torch.no_grad():
        f.network.last.weight.fill_(1.0)
    seen = theta_of_x(f, torch.zeros(3))
    assert torch.equal(seen, torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 0, 0]]))


def test_an_overflow_on_the_way_does_not_spread():
    """The first rounds map wrong guesses, and an unbounded scale may make them infinite."""
    f = Autoregressive(3, ScaleShift("none"), hidden=())
    with torch.no_grad():  # s_2 = 200 x_1, s_3 = -200 x_2, where x_2 = e^-80 is first taken for 1
        f.network.last.weight[1:3] += 200 * torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
        z = torch.tensor([[0.4, 1.0, 0.1]])
        x, log_det = f.inverse(z)
        back, forth = f(x)
    assert x.isfinite().all()
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(forth, -log_det)
