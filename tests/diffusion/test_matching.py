"""Flow matching: least squares finds the velocity, whatever the pairing."""

import pytest
import torch
from torch import nn

from lib.diffusion import FlowMatching, NoiseMLP, optimal_pairs
from lib.flows import Flow


def test_optimal_pairs_are_a_permutation_of_least_cost(generator):
    a, b = torch.randn(2, 40, 3, generator=generator)
    one, two = optimal_pairs(a, b)
    assert torch.equal(one, a)
    assert torch.equal(two[two[:, 0].argsort()], b[b[:, 0].argsort()])
    best = (one - two).square().sum()
    for _ in range(20):
        assert best <= (a - b[torch.randperm(40, generator=generator)]).square().sum()


def test_blocks_are_paired_each_by_itself(generator):
    a, b = torch.randn(2, 50, 2, generator=generator)
    _, found = optimal_pairs(a, b, block=20)
    for part in (slice(0, 20), slice(20, 40), slice(40, 50)):
        assert torch.equal(found[part], optimal_pairs(a[part], b[part])[1])
    assert torch.equal(optimal_pairs(a, b, block=99)[1], optimal_pairs(a, b)[1])


def test_optimal_pairs_of_numbers_are_sorted(generator):
    a, b = torch.randn(2, 50, 1, generator=generator)
    one, two = optimal_pairs(a, b)
    assert torch.equal(two[one[:, 0].argsort()], b.sort(0).values)


def test_loss_is_smallest_at_the_conditional_mean(generator):
    """N(0, 1) to N(m, s^2), independent pairs: v is linear in x, in closed form."""
    m, s = 2.0, 0.5

    class Exact(nn.Module):
        def __init__(self, off):
            super().__init__()
            self.off = off

        def forward(self, x, t):
            t = t[:, None]
            variance = (1 - t) ** 2 + (t * s) ** 2
            slope = (t * s**2 - (1 - t)) / variance
            return m + slope * (x - t * m) + self.off

    a = torch.randn(100_000, 1, generator=generator)
    b = m + s * torch.randn(100_000, 1, generator=generator)
    losses = [
        float(FlowMatching(1, network=Exact(off)).loss(a, b, torch.Generator().manual_seed(0)))
        for off in (-0.2, 0.0, 0.2)
    ]
    assert min(losses) == losses[1]
    assert losses[0] - losses[1] == pytest.approx(0.04, abs=0.01)  # off^2: nothing correlates


@pytest.mark.parametrize("pairing", ["independent", "optimal"])
@pytest.mark.parametrize("network", [None, "noise"])
def test_trained_field_carries_one_law_to_the_other(pairing, network):
    torch.manual_seed(0)
    network = NoiseMLP(1, hidden=(32, 32)) if network else None
    field = FlowMatching(1, hidden=(32, 32), network=network, pairing=pairing)

    def target(n, generator):
        return 2 + 0.5 * torch.randn(n, 1, generator=generator)

    field.fit(None, target, steps=300, batch_size=128, lr=1e-2, ema=None, devices="cpu")
    ode = field.ode(20, solver="midpoint")
    z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = ode.transport(z, reverse=True)
    assert float(x.mean()) == pytest.approx(2, abs=0.1)
    assert float(x.std()) == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(ode.transport(x), z, rtol=0, atol=0.02)


def test_bad_input_is_refused(unchecked):
    with pytest.raises(ValueError, match="pairing"):
        FlowMatching(2, pairing="sorted")
    with pytest.raises(ValueError, match="features"):
        FlowMatching(0)
    with pytest.raises(ValueError, match="network"):
        FlowMatching(2, network="mlp")
    with pytest.raises(ValueError, match="target"):
        FlowMatching(2).loss(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="steps"):
        FlowMatching(2).ode(0)


def test_velocity_takes_one_time_or_one_for_each_row(generator):
    torch.manual_seed(0)
    field, x = FlowMatching(2), torch.randn(4, 2, generator=generator)
    t = torch.full((4,), 0.3)
    for other in (torch.tensor(0.3), torch.full((1,), 0.3), torch.full((4, 1), 0.3), 0.3):
        torch.testing.assert_close(field(x, other), field(x, t))


def test_loss_is_the_error_along_straight_lines():
    """Of a field that says x itself, from 0 to e: |t e - e|^2, whose mean over t is |e|^2 / 3."""

    class Place(nn.Module):
        def forward(self, x, t):
            return x

    end = torch.tensor([3.0, -2.0]).expand(1000, 2)
    loss = FlowMatching(2, network=Place()).loss(0 * end, end)
    assert float(loss) == pytest.approx(13 / 2 / 3, rel=0.01)


def test_straight_pairs_need_one_step():
    """Where paths do not cross, the velocity is constant along each, and Euler is exact."""

    class Shift(nn.Module):
        def forward(self, x, t):
            return x.new_tensor([2.0, -1.0]).expand_as(x)

    field, z = FlowMatching(2, network=Shift(), pairing="optimal"), torch.randn(50, 2)
    x = z + torch.tensor([2.0, -1.0])
    assert float(field.loss(z, x[torch.randperm(50)])) < 1e-10  # the pairs find themselves
    ode = field.ode(1)
    torch.testing.assert_close(ode.transport(z, reverse=True), x)
    found, log_det = ode(x)
    torch.testing.assert_close(found, z)
    assert not log_det.any()
    independent = FlowMatching(2, network=Shift()).loss(z, x[torch.randperm(50)])
    assert float(independent) > 0.5


def test_optimal_pairs_of_images_are_those_of_their_pixels(generator):
    a, b = torch.randn(2, 9, 3, 4, generator=generator)
    _, images = optimal_pairs(a, b)
    _, rows = optimal_pairs(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(images.flatten(1), rows)


def test_density_of_the_ode_is_that_of_the_target(generator):
    """N(0, 1) to N(m, s^2) by the exact velocity: the change of variables gives its density."""
    m, s = 2.0, 0.5

    class Exact(nn.Module):
        def forward(self, x, t):
            t = t.view(-1, 1)
            variance = (1 - t) ** 2 + (t * s) ** 2
            return m + (t * s**2 - (1 - t)) / variance * (x - t * m)

    flow = Flow(FlowMatching(1, network=Exact()).ode(50, solver="rk4"))
    x = m + s * torch.randn(20, 1, generator=generator, dtype=torch.float64)
    exact = torch.distributions.Normal(m, s).log_prob(x)[:, 0]
    torch.testing.assert_close(flow.log_prob(x), exact, rtol=0, atol=1e-6)


class Column(nn.Module):
    def forward(self, x, t):
        return x[:, :1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, x: FlowMatching(2, activation="step"), "activation: expected one of"),
        (lambda f, x: FlowMatching(2, hidden=(0,)), "hidden: expected an integer"),
        (lambda f, x: f(torch.zeros(3, 3), 0.5), "x: expected shape"),
        (lambda f, x: f(x.double(), 0.5), "x: expected the precision of the network"),
        (lambda f, x: f(x, torch.zeros(2)), "t: expected one time or 3 times"),
        # broadcasting would hide that a network has too few outputs
        (lambda f, x: FlowMatching(2, network=Column())(x, 0.5), "network: expected an output"),
        (lambda f, x: FlowMatching(2, network=Column()).loss(x, x), "network: expected an output"),
        (lambda f, x: f.loss(x.long(), x.long()), "source: expected a tensor of floating"),
        (lambda f, x: f.loss(x, x.double()), "target: expected torch.float32"),
        (lambda f, x: f.loss(x[:0], x[:0]), "source: expected at least one point"),
        (lambda f, x: f.loss(torch.zeros(3, 3), torch.zeros(3, 3)), "x: expected shape"),
        (lambda f, x: optimal_pairs(x, x[:2]), "target: expected shape"),
        (lambda f, x: optimal_pairs(x, x.double()), "target: expected torch.float32"),
        (lambda f, x: optimal_pairs(x * float("nan"), x), "source: expected finite"),
        (lambda f, x: optimal_pairs(x, x + float("inf")), "target: expected finite"),
        (lambda f, x: optimal_pairs(x.long(), x.long()), "source: expected a tensor of floating"),
        (lambda f, x: optimal_pairs(x[0], x[0]), r"source: expected shape \(n, \*event\)"),
        (lambda f, x: optimal_pairs(1, 2), "source: expected a tensor of floating"),
        (lambda f, x: optimal_pairs(x, x, block=0), "block: expected an integer of at least 1"),
        (lambda f, x: f.fit(x, None, steps=1), "source, target: expected two laws"),
        (lambda f, x: f.fit(None, x, steps=1), "source, target: expected two laws"),
        (lambda f, x: f.fit(x, lambda n, g: x, steps=1), "source, target: expected two laws"),
        (lambda f, x: f.fit(x, x[:2], steps=1), "target: expected shape"),
        (lambda f, x: f.fit(None, None, steps=1), "source, target: expected two laws"),
        (lambda f, x: f.fit(x, x, steps=1, batch_size=0), "batch_size"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call(FlowMatching(2), torch.zeros(3, 2))


def test_pairs_that_are_given_stay_together(generator):
    """x to x + 3 in pairs: the velocity is 3 everywhere, which no other pairing has."""
    torch.manual_seed(0)
    x = 2 * torch.rand(500, 1, generator=generator) - 1
    field = FlowMatching(1, hidden=(32, 32))
    field.fit(x, x + 3, steps=500, batch_size=100, lr=1e-2, ema=None, devices="cpu")
    with torch.no_grad():
        moved = field.ode(1).transport(x, reverse=True) - x
    torch.testing.assert_close(moved, torch.full_like(x, 3.0), rtol=0, atol=0.1)
