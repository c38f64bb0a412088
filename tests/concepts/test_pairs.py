import pytest
import torch

from lib.concepts.pairs import class_pairs, draw_labels, shape_pairs
from lib.data.shapes import CONCEPTS, UPRIGHT, Shapes


@pytest.mark.parametrize("concepts", [UPRIGHT, CONCEPTS])
def test_pairs_share_what_their_label_says_and_nothing_else(concepts, dtype, device):
    generator = torch.Generator(device).manual_seed(0)
    world = Shapes(dtype=dtype, device=device)
    a, b, labels = shape_pairs(world, 2000, generator, concepts=concepts)
    for k, columns in enumerate(concepts.values(), 1):
        others = [column for column in range(8) if column not in columns]
        for label, same, other in ((k, list(columns), others), (-k, others, list(columns))):
            rows = labels == label
            assert rows.any()
            assert torch.equal(a[rows][:, same], b[rows][:, same])
            assert (a[rows][:, other] != b[rows][:, other]).all()
    assert a.dtype == b.dtype == dtype
    assert (b >= world.low).all() and (b < world.high).all()  # noqa: PT018


def test_pairs_take_the_concepts_of_their_world(generator):
    labels = torch.full((200,), 4)
    a, b, _ = shape_pairs(Shapes(upright=True), 200, generator, labels=labels)
    assert torch.equal(a[:, 5:], b[:, 5:])  # the fourth is the colour, where nothing turns
    a, b, _ = shape_pairs(Shapes(), 200, generator, labels=labels)
    assert torch.equal(a[:, 4], b[:, 4])  # and the size, where things do


def test_label_zero_shares_nothing(generator):
    a, b, _ = shape_pairs(Shapes(), 50, generator, labels=torch.zeros(50, dtype=torch.long))
    assert (a != b).all()


def test_labels_are_drawn_by_weight(generator):
    labels = draw_labels(6000, 3, generator, weights=[2, 1, 1])
    counts = torch.bincount(labels.abs(), minlength=4).double() / 6000
    assert (counts - torch.tensor([0, 0.5, 0.25, 0.25])).abs().max() < 0.03


def test_labels_are_drawn_evenly(generator):
    labels = draw_labels(8000, 4, generator, all_but=0.25)
    counts = torch.bincount(labels + 4, minlength=9).double() / 8000
    assert counts[4] == 0
    assert (counts[5:] - 0.75 / 4).abs().max() < 0.02
    assert (counts[:4] - 0.25 / 4).abs().max() < 0.02
    assert draw_labels(100, 2, generator, all_but=0.0).min() > 0


def test_members_of_a_class_are_paired(generator):
    classes = torch.tensor([2, 0, 2, 1, 0, 2, 0])
    labels = torch.tensor([1, 2, -2] * 1000)
    a, b, _ = class_pairs(classes, labels, generator)
    one, self = labels == 1, labels == -2
    assert (classes[a] == classes[b])[one].all()
    assert (a == b)[self].all()
    assert 0.2 < (classes[a] == classes[b])[labels == 2].double().mean() < 0.55
    # Each member is met equally often, given the class.
    met = torch.bincount(b[one][classes[a[one]] == 2], minlength=7)[[0, 2, 5]].double()
    assert (met / met.sum() - 1 / 3).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"concepts": {"one": (8,)}}, "concepts"),
        ({"concepts": {}}, "concepts"),
        ({"all_but": 1.5}, "all_but"),
        ({"weights": [1.0, 1.0]}, "weights"),
        ({"weights": [1.0, 1.0, 0.0, 1.0]}, "weights"),
        ({"labels": torch.tensor([1, 2])}, "labels"),
        ({"labels": torch.tensor([1, 2, 5])}, "labels"),
    ],
)
def test_bad_arguments_are_refused(options, name, unchecked):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        shape_pairs(Shapes(upright=True), 3, **options)


def test_nothing_cannot_be_paired(unchecked):
    with pytest.raises(ValueError, match=r"^classes: expected"):
        class_pairs(torch.zeros(0, dtype=torch.long), torch.tensor([1]))
