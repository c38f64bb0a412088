"""The small networks: shapes, transposed output, zero start, refusals."""

import pytest
import torch
from torch import nn

from lib.nets import ACTIVATIONS, MLP, activation, check_network, wholes


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
@pytest.mark.parametrize(("features", "context_features"), [(3, 0), (3, 2), (0, 2)])
def test_columns_are_the_output_transposed(name, hidden, features, context_features, generator):
    options = {"context_features": context_features, "activation": name}
    net = MLP(features, 4, hidden, **options).double()
    x = torch.randn(6, features, generator=generator).double()
    context = None
    if context_features:
        context = torch.randn(6, context_features, generator=generator).double()
    out = net(x, context)
    assert out.shape == (6, 4)
    torch.testing.assert_close(net.columns(x, context)[0], out.mT)
    weights = list(net.parameters())
    probe = torch.randn(6, 4, generator=generator).double()
    ours = torch.autograd.grad((net.columns(x, context)[0] * probe.mT).sum(), weights)
    theirs = torch.autograd.grad((net(x, context) * probe).sum(), weights)
    torch.testing.assert_close(ours, theirs)


def test_it_is_the_formula(generator):
    net = MLP(3, 2, (5,), context_features=1, activation="tanh")
    x, y = torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)
    first = net.hidden[0]
    h = torch.tanh(torch.cat([x, y], -1) @ first.weight.T + first.bias)
    torch.testing.assert_close(net(x, y), h @ net.last.weight.T + net.last.bias)


def test_no_hidden_layer_is_linear(generator):
    net = MLP(3, 2, ())
    x, y = torch.randn(2, 4, 3, generator=generator)
    torch.testing.assert_close(net(x + y) - net(y), net(x) - net(torch.zeros(4, 3)))
    assert len(list(net.parameters())) == 2


def test_zero_last_is_zero_and_trains(generator):
    net = MLP(3, 2, (8,), zero_last=True)
    x = torch.randn(4, 3, generator=generator)
    assert not net(x).any()
    net(x).sum().backward()
    assert bool(net.last.weight.grad.any())
    assert MLP(3, 2, (8,)).last.weight.any()


def test_leading_dimensions_are_kept(generator):
    net = MLP(3, 2, (8,))
    x = torch.randn(4, 5, 3, generator=generator)
    torch.testing.assert_close(net(x)[1, 2], net(x[1, 2]))
    assert net(x[:0]).shape == (0, 5, 2)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch(name):
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(activation(name)(x), getattr(nn.functional, name)(x))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MLP(0, 3), "features: expected something to read, features or context, got 0"),
        (lambda: MLP(-1, 3), "features: expected an integer of at least 0"),
        (lambda: MLP("2", 3), "features: expected an integer"),
        (lambda: MLP(2.0, 3), "features: expected an integer"),
        (lambda: MLP(2, 0), "out_features: expected an integer of at least 1"),
        (lambda: MLP(2, 3, [0]), "hidden: expected an integer of at least 1"),
        (lambda: MLP(2, 3, 5), "hidden: expected a sequence of integers, got 5"),
        (lambda: MLP(2, 3, None), "hidden: expected a sequence of integers, got None"),
        (lambda: MLP(2, 3, "5"), "hidden: expected a sequence of integers"),
        (lambda: MLP(2, 3, context_features=-1), "context_features: expected"),
        (lambda: MLP(2, 3, activation="gelu"), "activation: expected one of relu, silu, tanh, elu"),
        (lambda: MLP(2, 3, (), activation="gelu"), "activation: expected one of"),
        (lambda: MLP(2, 3, activation=["relu"]), "activation: expected one of"),
        (lambda: activation(None), "activation: expected one of"),
        (lambda: check_network(nn.Linear), "network: expected a Module or None, got type"),
        (lambda: wholes("order", [0, 1.5]), "order: expected an integer of at least 0, got 1.5"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()


def test_no_network_is_no_network():
    net = MLP(2, 3)
    assert check_network(None) is None
    assert check_network(net) is net
