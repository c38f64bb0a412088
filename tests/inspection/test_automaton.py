"""A network that counts modulo two, and the machine that it is."""

import pytest
import torch

from lib.inspection import Recognizer, extract


def counter() -> Recognizer:
    """Parity by hand: hidden units say 'sum >= 1' and 'sum >= 2' of state and symbol."""
    net = Recognizer(2, 3).double()
    with torch.no_grad():
        for w in net.parameters():
            w.zero_()
        big = 40.0  # units: or, and, of (parity, symbol); parity = or - and - so three units
        cell = net.cell
        # unit 0: last or, unit 1: last and, in {-1, 1}; the parity bit is (or - and) / 2
        cell.weight_hh_l0[0] = torch.tensor([big / 2, -big / 2, 0.0])
        cell.weight_hh_l0[1] = torch.tensor([big / 2, -big / 2, 0.0])
        cell.weight_ih_l0[0] = torch.tensor([0.0, big])
        cell.weight_ih_l0[1] = torch.tensor([0.0, big])
        cell.bias_ih_l0[0], cell.bias_ih_l0[1] = -big / 2, -3 * big / 2
        net.answer.weight[1] = torch.tensor([1.0, -1.0, 0.0])
        net.answer.bias[1] = -1.0
    return net


def test_machine_of_a_parity_network():
    net = counter()
    strings = torch.randint(2, (200, 12), generator=torch.Generator().manual_seed(0))
    parity = strings.cumsum(1) % 2
    assert torch.equal(net(strings).argmax(-1), parity)
    machine = extract(net, strings, 3)  # even after 0, odd, even after two ones
    assert machine.agreement == 1
    longer = torch.randint(2, (50, 300), generator=torch.Generator().manual_seed(1))
    assert torch.equal(machine(longer), longer.cumsum(1) % 2)
    assert machine.centres.shape == (3, 3)
    group = machine.equivalent()
    assert group.unique().numel() == 2  # parity needs two states
    assert torch.equal(group[machine.answers == 1].unique(), group[machine.answers == 1][:1])
    assert machine.transitions.shape == (3, 2)


def test_training_finds_parity_of_short_strings():
    torch.manual_seed(0)
    net = Recognizer(2, 4)
    strings = torch.randint(2, (400, 3))
    history = net.fit(strings, strings.cumsum(1) % 2, steps=300, seed=0)
    assert history.losses[-1] < 0.5 * history.losses[0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "strings",
    [torch.zeros(2, 3), torch.full((2, 3), 2), torch.full((2, 3), -1), torch.zeros(3).long()],
)
def test_strings_outside_the_alphabet_are_refused(strings):
    with pytest.raises(ValueError, match="strings"):
        counter()(strings)


def test_more_states_than_the_strings_visit_are_refused():
    with pytest.raises(ValueError, match="strings"):
        extract(counter(), torch.zeros(2, 4).long(), 5)
