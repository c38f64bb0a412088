"""Flow matching: least squares finds the velocity, whatever the pairing."""

import pytest
import torch
from torch import nn

from lib.diffusion import FlowMatching, NoiseMLP, optimal_pairs
from lib.training import fit


def test_optimal_pairs_are_a_permutation_of_least_cost(generator):
    a, b = torch.randn(2, 40, 3, generator=generator)
    one, two = optimal_pairs(a, b)
    assert torch.equal(one, a)
    assert torch.equal(two[two[:, 0].argsort()], b[b[:, 0].argsort()])
    best = (one - two).square().sum()
    for _ in range(20):
        assert best <= (a - b[torch.randperm(40, generator=generator)]).square().sum()


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

    def loss(field, _, generator):
        a, b = torch.randn(2, 128, 1, generator=generator)
        return field.loss(a, 2 + 0.5 * b, generator)

    fit(field, loss, steps=300, lr=1e-2, schedule="cosine", devices="cpu")
    ode = field.ode(20, solver="midpoint")
    z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
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
