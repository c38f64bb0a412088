"""Networks of a denoiser: what they are told of the noise level and of the class."""

import pytest
import torch
from torch import nn

from lib.diffusion import SCHEDULES, NetworkDenoiser, NoiseMLP, OneHotMLP
from lib.diffusion.networks import Condition
from lib.diffusion.schedules import cosine, polynomial


def started(network):
    """The same network with a last layer that is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(network.last.weight)
    return network


def test_features_of_the_level_are_itself_and_its_waves(dtype):
    c = torch.linspace(-2, 2, 5, dtype=dtype)
    found = Condition(count=2)(5, c)
    turns = torch.pi / 2 * c
    columns = (c, turns.cos(), (2 * turns).cos(), turns.sin(), (2 * turns).sin())
    torch.testing.assert_close(found, torch.stack(columns, 1), rtol=1e-5, atol=1e-6)


def test_every_layer_is_told_the_level():
    """A network with one layer switched off from the noise still hears of it in the other."""
    y = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    low, high = torch.zeros(1), torch.ones(1)
    for k in (0, 1):
        net = started(NoiseMLP(2, hidden=(8, 8)))
        nn.init.zeros_(net.told[k].weight)
        assert not torch.allclose(net(y, low), net(y, high))
    nn.init.zeros_(net.told[0].weight)
    torch.testing.assert_close(net(y, low), net(y, high))


def test_rows_do_not_see_each_other():
    net = started(NoiseMLP(2, 3, hidden=(8,), classes=2))
    y, c = torch.randn(4, 2), torch.linspace(-1, 1, 4)
    label = torch.tensor([0, 1, -1, 0], dtype=torch.int32)
    found = net(y, c, label)
    assert found.shape == (4, 3)
    for k in range(4):
        alone = net(y[k : k + 1], c[k : k + 1], label[k : k + 1])
        torch.testing.assert_close(found[k], alone[0])


def test_no_class_has_a_place_of_its_own():
    level = torch.zeros(1)
    code = Condition(3)(3, level, torch.tensor([-1, 0, 2]))[:, 9:]
    assert code.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(Condition(3)(2, level)[:, 9:], code[:1].expand(2, 4))


@pytest.mark.parametrize("name", SCHEDULES)
def test_level_finds_its_step_on_every_schedule(name):
    """The column of t - 1 is the one that the linear map reads, whatever the schedule."""
    schedule = SCHEDULES[name](10)
    net = OneHotMLP(schedule, hidden=(4,))
    heard = []
    net.mlp.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0][:, -1]))
    made = NetworkDenoiser(net, schedule, (2,), predicts="x0")
    steps = torch.arange(1, 11)
    made(torch.zeros(10, 2), steps)
    torch.testing.assert_close(heard[0], net.time(torch.eye(10))[:, 0])
    for t in steps:
        heard.clear()
        made(torch.zeros(3, 2), t)
        torch.testing.assert_close(heard[0], net.time(torch.eye(10))[t - 1].expand(3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda y: NoiseMLP(0), "features: expected an integer"),
        (lambda y: NoiseMLP(2, 0), "out_features: expected an integer"),
        (lambda y: NoiseMLP(2, hidden=(0,)), "hidden: expected an integer"),
        (lambda y: NoiseMLP(2, classes=-1), "classes: expected an integer"),
        (lambda y: NoiseMLP(2, activation="step"), "activation: expected one of"),
        (lambda y: NoiseMLP(3)(y, torch.zeros(1)), "y: expected shape"),
        (lambda y: NoiseMLP(2)(y, torch.zeros(3)), "c_noise: expected one level or 4"),
        (lambda y: NoiseMLP(2)(y, torch.zeros(1), torch.zeros(4).long()), "label: expected None"),
        (
            lambda y: Condition(3)(4, torch.zeros(1), torch.tensor([0, 1, 2, 3])),
            r"label: expected -1..2, got 0 to 3",
        ),
        (
            lambda y: Condition(3)(4, torch.zeros(1), torch.tensor([-2, 0, 0, 0])),
            r"label: expected -1..2, got -2",
        ),
        (
            lambda y: Condition(3)(4, torch.zeros(1), torch.zeros(4)),
            "label: expected 4 integers, got torch.float32",
        ),
        (
            lambda y: Condition(3)(4, torch.zeros(1), torch.zeros(4).bool()),
            "label: expected 4 integers",
        ),
        (
            lambda y: Condition(3)(4, torch.zeros(1), torch.zeros(3).long()),
            "label: expected 4 integers",
        ),
        (
            lambda y: Condition(3)(4, torch.zeros(1), [0, 1, 1, 0]),
            "label: expected 4 integers in a tensor, got list",
        ),
        (lambda y: OneHotMLP(10), "schedule: expected a Schedule, got int"),
        (lambda y: OneHotMLP(polynomial(1000)), "schedule: expected log-SNR that tells"),
        (lambda y: OneHotMLP(cosine(5), hidden=(0,)), "hidden: expected an integer"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(4, 2))
