import pytest
import torch

from lib.concepts import ShapeReader
from lib.data.shapes import CONCEPTS, Shapes


def test_an_oracle_reads_every_factor():
    """Trained for fewer steps than on a page, still near what is asked of an oracle."""
    world, generator = Shapes(), torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    reader = ShapeReader(world)
    reader.fit(20_000, steps=1000)
    factors = world.sample(2000, generator)
    seen = reader.read(world.render(factors))
    assert (seen.shape == factors[:, 0].long()).float().mean() > 0.97
    assert torch.equal(seen.factors[:, 0].long(), seen.shape)
    for name in ("position", "size", "colour"):
        k = list(CONCEPTS[name])
        error = (seen.factors[:, k] - factors[:, k]).square().mean(0)
        assert (1 - error / factors[:, k].var(0)).min() > 0.93, name
    turn = (2 * torch.pi * (seen.factors[:, 3] - factors[:, 3])).cos().mean()
    assert turn > 0.85


def test_shapes_of_batches(device):
    world = Shapes(device=device)
    reader = ShapeReader(world, 4).to(device)
    pictures = torch.rand(2, 3, 3, 16, 16, device=device)
    seen = reader.read(pictures)
    assert (seen.shape.shape, seen.factors.shape) == ((2, 3), (2, 3, 8))
    assert seen.factors.device.type == device.type
    assert torch.allclose(seen.log_shape.exp().sum(-1), torch.ones(2, 3, device=device))


def test_other_sides():
    for side in (2, 9, 32):
        world = Shapes(side)
        assert ShapeReader(world, 2)(world.render(world.sample(3))).shape == (3, 11)


def test_bad_input_is_named(unchecked):
    with pytest.raises(ValueError, match="width"):
        ShapeReader(Shapes(), 0)
