"""The small networks: shapes, transposed output, zero start, refusals."""

import pytest
import torch
from torch import nn

from lib.nets import (
    ACTIVATIONS,
    MLP,
    VAE,
    SmallClassifier,
    activation,
    check_network,
    wholes,
)


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
    made = activation(name)(x.clone())  # some work in place
    torch.testing.assert_close(made, getattr(nn.functional, name)(x))


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


def test_elbo_of_a_vae_is_its_formula(generator):
    vae = VAE((1, 2, 3), 2, (5,), noise=0.1)
    x = torch.rand(4, 1, 2, 3, generator=generator)
    terms = vae.loss(x, torch.Generator().manual_seed(3))
    mean, sd = vae.encode(x)
    z = mean + sd * torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    error = (x - vae.decode(z)).square().sum((1, 2, 3)) / (2 * 0.1**2)
    q, p = torch.distributions.Normal(mean, sd), torch.distributions.Normal(0, 1)
    divergence = torch.distributions.kl_divergence(q, p).sum(1)
    torch.testing.assert_close(terms["reconstruction"], error.mean())
    torch.testing.assert_close(terms["divergence"], divergence.mean())


def test_a_vae_learns_to_rebuild_and_to_remove_noise(generator):
    place = torch.rand(500, 1, generator=generator)
    x = torch.sigmoid((torch.linspace(0, 1, 12) - place) * 20).view(-1, 1, 3, 4)
    torch.manual_seed(0)
    vae = VAE((1, 3, 4), 2, (32,), noise=0.05, blur=0.1)
    vae.fit(x, steps=600, batch_size=64, lr=5e-3)
    with torch.no_grad():
        noisy = x + 0.1 * torch.randn(x.shape, generator=generator)
        again = vae.decode(vae.encode(noisy)[0])
    assert (again - x).square().mean() < 0.5 * 0.1**2
    assert vae.decode(torch.zeros(2, 5, 2)).shape == (2, 5, 1, 3, 4)


def test_a_small_classifier_names_its_layers(generator):
    net = SmallClassifier((3, 15, 9), 4, width=2, hidden=7)
    x = torch.rand(5, 3, 15, 9, generator=generator)
    found = net.representations(x)
    assert {name: rows.shape[1] for name, rows in found.items()} == net.sizes
    assert list(found) == ["conv1", "conv2", "fc3", "logits"]
    torch.testing.assert_close(net(x), found["logits"])
    assert all((found[name] >= 0).all() for name in ("conv1", "conv2", "fc3"))


@pytest.mark.parametrize("blur", [0.0, 0.2])
def test_a_small_classifier_learns_where_the_light_is(blur, generator):
    x = 0.2 * torch.rand(400, 1, 8, 8, generator=generator)
    labels = torch.arange(400) % 2
    x[labels == 1, :, :, 4:] += 0.5
    torch.manual_seed(0)
    net = SmallClassifier((1, 8, 8), 2, width=4, hidden=16)
    net.fit(x, labels, steps=150, blur=blur)
    assert (net(x).argmax(1) == labels).float().mean() > 0.98


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: VAE((3, 0), 2), "shape"),
        (lambda: VAE((3, 4), 0), "latent"),
        (lambda: VAE((3, 4), 2, noise=0.0), "noise"),
        (lambda: VAE((3, 4), 2, blur=-1.0), "blur"),
        (lambda: VAE((3, 4), 2).encode(torch.zeros(2, 4, 3)), "x"),
        (lambda: VAE((3, 4), 2).decode(torch.zeros(2, 3)), "z"),
        (lambda: SmallClassifier((3, 8, 8), 1), "classes"),
        (lambda: SmallClassifier((8, 8), 2), "shape"),
        (lambda: SmallClassifier((3, 8, 8), 2)(torch.zeros(1, 3, 8, 9)), "x"),
    ],
)
def test_networks_for_images_name_bad_input(unchecked, call, argument):
    with pytest.raises(ValueError, match=argument):
        call()
