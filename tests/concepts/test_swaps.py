import pytest
import torch

from lib.concepts.swaps import explained, known, shape_values, swap_scores
from lib.data.shapes import Shapes


def people(n, generator, dtype=torch.float32):
    """Values of two concepts: a class of three, and a point of the plane."""
    return {
        "kind": torch.randint(3, (n,), generator=generator),
        "place": torch.randn(n, 2, generator=generator, dtype=dtype),
    }


def test_a_perfect_swap_has_ones_and_a_dead_one_zeros(dtype, device, generator):
    a, b = (
        {name: value.to(device) for name, value in people(500, generator, dtype).items()}
        for _ in range(2)
    )
    perfect = {"kind": a | {"kind": b["kind"]}, "place": a | {"place": b["place"]}, "rest": a}
    scores = swap_scores(perfect, a, b, {"place": 0.1})
    assert torch.equal(scores.wanted, torch.ones(3, 2))
    assert torch.equal(scores.takes, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(scores.fit, torch.ones(3, 2, dtype=scores.fit.dtype))
    assert torch.equal(scores.selectivity, torch.ones(2))
    dead = swap_scores({"kind": a, "place": a}, a, b, {"place": 0.1})
    assert torch.equal(dead.diagonal, torch.zeros(2))
    assert torch.equal(dead.selectivity, torch.zeros(2))
    assert dead.at("kind", "place") == 1


def test_names_that_mean_nothing_have_no_selectivity(generator):
    """Each block takes each concept with the same probability."""
    n = 20_000
    a, b = people(n, generator), people(n, generator)
    read = {}
    for block in ("kind", "place"):
        coin = torch.rand(n, generator=generator) < 0.3
        read[block] = {
            "kind": torch.where(coin, b["kind"], a["kind"]),
            "place": torch.where(coin[:, None], b["place"], a["place"]),
        }
    scores = swap_scores(read, a, b, {"place": 0.1})
    assert (scores.diagonal - 0.3).abs().max() < 0.02
    assert scores.selectivity.abs().max() < 0.03


def test_a_third_class_is_neither_taken_nor_kept():
    a, b = {"kind": torch.tensor([0, 0, 1])}, {"kind": torch.tensor([1, 1, 1])}
    scores = swap_scores({"kind": {"kind": torch.tensor([2, 1, 0])}}, a, b, {})
    assert scores.counts.tolist() == [2]
    assert (scores.takes.item(), scores.keeps.item()) == (0.5, 0.0)


def test_pairs_within_the_margin_do_not_count():
    a, b = {"x": torch.tensor([[0.0], [0.0]])}, {"x": torch.tensor([[0.05], [1.0]])}
    scores = swap_scores({"x": {"x": torch.tensor([[0.0], [0.9]])}}, a, b, {"x": 0.1})
    assert scores.counts.tolist() == [1]
    assert scores.takes.item() == 1


def test_explained_is_accuracy_or_r2(dtype):
    true = torch.tensor([[0.0], [1.0], [2.0]], dtype=dtype)
    assert explained(true, true) == 1
    assert explained(true.mean(0).expand(3, 1), true) == 0
    assert explained(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 2, 1])) == 0.75


def test_values_of_shapes(generator):
    factors = Shapes(upright=True).sample(10, generator)
    values = shape_values(factors)
    assert list(values) == ["shape", "position", "size", "colour"]
    assert torch.equal(values["shape"], factors[:, 0].long())
    assert torch.equal(values["colour"], factors[:, 5:])


def test_neighbours_know_what_a_block_holds(dtype, generator):
    block = torch.randn(2000, 2, generator=generator, dtype=dtype)
    curved = torch.stack([block[:, 0] ** 2, block[:, 1].sin()], 1)
    assert known(block, curved) > 0.9
    assert known(block, (block[:, 0] * block[:, 1] > 0).long()) > 0.9
    other = torch.randn(2000, 2, generator=generator, dtype=dtype)
    assert -0.15 < known(block, other) < 0.05
    assert -0.15 < known(block[:, :0], other) < 0.05


def test_bad_readings_are_refused(unchecked, generator):
    a, b = people(5, generator), people(5, generator)
    with pytest.raises(ValueError, match=r"^hybrids\['kind'\], b: expected"):
        swap_scores({"kind": {"kind": a["kind"]}}, a, b, {})
    with pytest.raises(ValueError, match=r"^hybrids\['kind'\]: expected"):
        swap_scores({"kind": a | {"place": a["place"][:, :1]}}, a, b, {})
    with pytest.raises(ValueError, match=r"^margin: expected"):
        swap_scores({"kind": a}, a, a, {})
    with pytest.raises(ValueError, match=r"^value: expected"):
        known(torch.zeros(50, 2), torch.zeros(49, 2))
    with pytest.raises(ValueError, match=r"^neighbours: expected"):
        known(torch.zeros(20, 2), torch.zeros(20, 2))
