"""Compose and Inverse: parts that fit, sums that are right, and refusals in words."""

import pytest
import torch
from torch import nn

from lib.bijections import (
    ActNorm,
    Affine,
    Autoregressive,
    Ball,
    Bijection,
    Compose,
    Coupling,
    Elementwise,
    Interval,
    Inverse,
    LULinear,
    OnHalf,
    Orthogonal,
    Permutation,
    ScaleShift,
    Sigmoid,
    Simplex,
    Softplus,
    Squeeze,
    Tanh,
)


def drawn(module, generator, std=0.5):
    module = module.double()
    with torch.no_grad():
        for weight in module.parameters():
            weight += std * torch.randn(weight.shape, generator=generator)
    return module


def stack(generator):
    """Vector maps, maps of single numbers, and two of the maps take context."""
    return drawn(
        Compose(
            [
                ActNorm(4),
                Coupling(4, ScaleShift(), hidden=(8,), context_features=2),
                Tanh(),
                Autoregressive(4, ScaleShift(), hidden=(8,), context_features=2),
                Orthogonal(4, generator=generator),
            ]
        ),
        generator,
    )


# --- composition


def test_it_is_the_composition_and_log_dets_add(generator):
    f = stack(generator)
    x = torch.randn(6, 4, generator=generator).double()
    context = torch.randn(6, 2, generator=generator).double()
    z, total = x, 0.0
    for part in f:
        z, log_det = part(z, context if part.context_features else None)
        total = total + (log_det if part.event_dim else log_det.sum(-1))
    ours, log_det = f(x, context)
    assert torch.equal(ours, z)
    torch.testing.assert_close(log_det, total)
    back, home = f.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(home, -total)


def test_it_slices_like_a_list(generator):
    f = stack(generator)
    assert len(f) == 5
    assert [type(part) for part in f] == [type(f[k]) for k in range(5)]
    assert f[-1] is f[4]
    assert [type(part) for part in f[::-2]] == [Orthogonal, Tanh, ActNorm]
    assert f[:1].context_features == 0
    assert f[1:2].context_features == 2
    assert f[2:3].event_shape == ()
    assert f[:2][0] is f[0]
    assert f[0].loc in set(f[:2].parameters())
    x = torch.randn(6, 4, generator=generator).double()
    context = torch.randn(6, 2, generator=generator).double()
    z, first = f[:3](x, context)
    z, second = f[3:](z, context)
    torch.testing.assert_close((z, first + second), f(x, context))
    with pytest.raises(IndexError):
        f[5]


def test_numbers_vectors_and_images_mix(generator):
    """A map of numbers or of rows acts on each of them, and its log-dets are summed."""
    f = Compose([Softplus(), drawn(LULinear(3), generator), ActNorm(2, event_dim=3), Tanh()])
    assert f.event_dim == 3
    assert f.event_shape == (2, None, 3)
    x = torch.randn(5, 2, 4, 3, generator=generator).double()
    z, log_det = f(x)
    assert log_det.shape == (5,)
    J = torch.autograd.functional.jacobian(lambda v: f(v)[0], x[0]).reshape(24, 24)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(J)[1])
    torch.testing.assert_close(f.inverse(z)[1], -log_det)
    only_numbers = Compose([Softplus(), Tanh()])
    assert only_numbers.event_shape == ()
    assert only_numbers(x)[1].shape == x.shape


def test_nested_is_flat(generator):
    parts = list(stack(generator))
    x = torch.randn(6, 4, generator=generator).double()
    context = torch.randn(6, 2, generator=generator).double()
    nested = Compose([Compose(parts[:2]), Compose([Compose(parts[2:4])]), parts[4]])
    torch.testing.assert_close(nested(x, context), Compose(parts)(x, context))
    torch.testing.assert_close(nested.inverse(x, context), Compose(parts).inverse(x, context))


def test_a_part_may_be_used_twice(generator):
    f = drawn(ActNorm(3), generator)
    x = torch.randn(5, 3, generator=generator).double()
    z, log_det = Compose([f, f])(x)
    torch.testing.assert_close(z, f(f(x)[0])[0])
    torch.testing.assert_close(log_det, 2 * f(x)[1])
    assert len(list(Compose([f, f]).parameters())) == 2


# --- shapes that change


def test_squeezed_channels_are_known_to_the_maps_behind(generator):
    f = drawn(Compose([ActNorm(3, event_dim=3), Squeeze(3), LULinear(12, event_dim=3)]), generator)
    assert f.event_shape == (3, None, None)
    assert f.latent_shape == (12, None, None)
    x = torch.randn(2, 3, 4, 6, generator=generator).double()
    z, log_det = f(x)
    assert z.shape == (2, 12, 2, 3)
    back, home = f.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(home, -log_det)
    assert Compose([f, Inverse(Squeeze(3))]).latent_shape == (3, None, None)
    assert Compose([Squeeze(1), Squeeze(4)]).latent_shape == (16, None, None)
    with pytest.raises(ValueError, match="parts: expected events that fit together"):
        Compose([f, Squeeze(3)])


def test_sizes_are_known_without_a_neighbour_that_tells():
    """A squeeze next to maps of single numbers: the stack still says that it changes the shape."""
    f = Compose([Tanh(), Squeeze(2), Softplus()])
    assert f.event_shape == (2, None, None)
    assert f.latent_shape == (8, None, None)
    with pytest.raises(ValueError, match=r"bijection: expected a map .* keeps their shape"):
        OnHalf(f)
    assert OnHalf(Compose([Squeeze(2), Inverse(Squeeze(2))])).event_shape == (4, None, None)


def test_simplex_in_front_of_maps_of_one_number_less(generator):
    f = drawn(Compose([Simplex(4), ActNorm(3), Tanh()]), generator)
    assert f.event_shape == (4,)
    assert f.latent_shape == (3,)
    x = torch.randn(5, 4, generator=generator).double().softmax(-1)
    z, log_det = f(x)
    assert z.shape == (5, 3)
    back, home = f.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(home, -log_det)
    with pytest.raises(ValueError, match="parts: expected events that fit together"):
        Compose([Simplex(4), ActNorm(4)])


def test_support_is_that_of_the_first_part():
    assert Compose([Interval(0.0, 1.0), Tanh()]).support is not None
    assert Compose([Tanh(), Interval(-1.0, 1.0)]).support is None
    assert Compose([Ball(2), ActNorm(2)]).support.check(torch.tensor([0.5, 0.5]))


# --- inverse


def test_inverse_swaps_directions_and_undoes_itself(generator):
    f = stack(generator)
    x = torch.tanh(torch.randn(6, 4, generator=generator).double())
    context = torch.randn(6, 2, generator=generator).double()
    g = Inverse(f)
    assert g.context_features == 2
    torch.testing.assert_close(g(x, context), f.inverse(x, context), rtol=0, atol=0)
    torch.testing.assert_close(g.inverse(x, context), f(x, context), rtol=0, atol=0)
    torch.testing.assert_close(Inverse(g)(x, context), f(x, context), rtol=0, atol=0)


def test_inverse_of_a_stack_is_the_stack_of_inverses(generator):
    f = stack(generator)
    z, _ = f(
        torch.randn(6, 4, generator=generator).double(),
        context := torch.randn(6, 2, generator=generator).double(),
    )
    g = Compose([Inverse(part) for part in reversed(list(f))])
    torch.testing.assert_close(g(z, context), Inverse(f)(z, context))


def test_inverse_swaps_shapes():
    f = Inverse(Squeeze(2))
    assert (f.event_shape, f.latent_shape) == ((8, None, None), (2, None, None))
    g = Inverse(Compose([Simplex(3), ActNorm(2)]))
    assert (g.event_shape, g.latent_shape) == ((2,), (3,))


# --- initialisation


def test_initialise_reaches_each_part_with_what_comes_out_of_the_one_before(generator):
    f = Compose([ActNorm(3), Permutation([2, 0, 1]), LULinear(3), Sigmoid(), ActNorm(3)])
    x = 5 + 3 * torch.randn(500, 3, generator=generator)
    f.initialise(x)
    for k in (1, 5):
        z, _ = f[:k](x)
        torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(3), rtol=0, atol=1e-3)


def test_initialise_passes_context_to_those_that_want_it(generator):
    seen = []

    class Spy(Bijection):
        def __init__(self, features):
            super().__init__()
            self.event_shape, self.context_features = (2,), features

        def initialise(self, x, context=None):
            seen.append(context)

        def _forward(self, x, context):
            assert (context is None) == (self.context_features == 0)
            return x, x.new_zeros(x.shape[:-1])

    context = torch.randn(7, 3, generator=generator)
    Compose([Spy(0), Spy(3), ActNorm(2), Spy(0)]).initialise(torch.randn(7, 2), context)
    assert seen[0] is None
    assert seen[1] is context
    assert seen[2] is None


# --- context


def test_context_expands_to_the_batch(generator):
    f = stack(generator)
    x = torch.randn(3, 5, 4, generator=generator).double()
    one = torch.randn(2, generator=generator).double()
    row = torch.randn(5, 2, generator=generator).double()
    for context in (one, row, row[None], one.expand(1, 1, 2)):
        full = context.expand(3, 5, 2)
        torch.testing.assert_close(f(x, context), f(x, full), rtol=0, atol=0)


# --- refusals

X = torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Compose([]), "parts: expected bijections, at least one, got none"),
        (lambda: Compose([Tanh(), Tanh()])[2:], "parts: expected bijections, at least one"),
        (lambda: Compose([Tanh, Tanh()]), "parts: expected bijections, .* got type, Tanh"),
        (lambda: Compose([nn.Linear(2, 2)]), "parts: expected bijections, .* got Linear"),
        (lambda: Compose(None), "parts: expected bijections, .* got NoneType"),
        (lambda: Compose(Tanh()), "parts: expected bijections, .* got Tanh"),
        (lambda: Compose([ActNorm(2), ActNorm(3)]), "parts: .* fit together, .* ActNorm with"),
        (lambda: Compose([ActNorm(3), ActNorm(2, event_dim=3)])(X), "shape .*any, 3"),
        (
            lambda: Compose([Elementwise(4, ScaleShift(), context_features=k) for k in (2, 3)]),
            r"parts: expected one length of context, got \[2, 3\]",
        ),
        (
            lambda: Compose(
                [ActNorm(2, event_dim=3), Elementwise(4, ScaleShift(), context_features=2)]
            ),
            "parts: expected maps of 3 dimensions where they take context, got Elementwise of 1",
        ),
        (lambda: Inverse(Tanh), "bijection: expected a Bijection, got type"),
        (lambda: Inverse(None), "bijection: expected a Bijection, got NoneType"),
        (lambda: ActNorm(4)(torch.tensor(1.0)), r"x: expected shape \(\*batch, 4\), got \(\)"),
        (lambda: ActNorm(4)(X.numpy()), "x: expected a tensor of floating.* got ndarray"),
        (lambda: ActNorm(4)(X.tolist()), "x: expected a tensor of floating.* got list"),
        (lambda: ActNorm(4)("x"), "x: expected a tensor of floating.* got str"),
        (lambda: ActNorm(4)(None), "x: expected a tensor of floating.* got NoneType"),
        (lambda: ActNorm(4)(X > 0), "x: expected a tensor of floating.* got torch.bool"),
        (lambda: ActNorm(4)(X.to(torch.complex64)), "x: .* got torch.complex64"),
        (lambda: Affine([0.0, 1.0]).inverse(X), r"z: expected shape \(\*batch, 2\)"),
        (lambda: Compose([ActNorm(4)])(X, X), "context: expected None"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()


# --- what a batch may look like


def test_odd_batches_are_batches(generator):
    f = drawn(Compose([ActNorm(4), Coupling(4, ScaleShift(), hidden=(8,))]), generator)
    x = torch.randn(6, 4, generator=generator).double()
    z, log_det = f(x)
    crooked = torch.stack([x, -x], -1)[..., 0].T.contiguous().T
    assert not crooked.is_contiguous()
    torch.testing.assert_close(f(crooked), (z, log_det), rtol=0, atol=0)
    torch.testing.assert_close(f(x[:1].expand(6, 4))[0], z[:1].expand(6, 4))
    for batch in ((0,), (3, 0), (1, 2, 1, 3, 1)):
        for call in (f, f.inverse):
            value, log = call(torch.zeros(*batch, 4).double())
            assert value.shape == (*batch, 4)
            assert log.shape == batch
    with torch.inference_mode():
        torch.testing.assert_close(f(x), (z, log_det))
    torch.testing.assert_close(torch.func.vmap(f)(x), (z, log_det))
