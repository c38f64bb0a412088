import math

import pytest
import torch

from lib.data.shapes import CONCEPTS, FACTORS, Shapes


@pytest.fixture
def world():
    return Shapes(dtype=torch.float64)


def at(world, **values):
    """One picture's factors: an ellipse in the middle, but for what is given."""
    base = {"shape": 0.5, "x": 0, "y": 0, "turn": 0, "size": 0.35, "red": 1, "green": 0.5}
    base |= {"blue": 0.25} | values
    return torch.tensor([base[name] for name in FACTORS], dtype=world.dtype)


def test_factors_are_uniform_and_independent(world, generator):
    factors = world.sample(20_000, generator)
    u = (factors - world.low) / (world.high - world.low)
    assert ((u >= 0) & (u < 1)).all()
    se = math.sqrt(1 / 12 / len(u))
    assert ((u[:, 1:].mean(0) - 0.5).abs() < 5 * se).all()
    share = torch.bincount(factors[:, 0].long(), minlength=3) / len(u)
    assert ((share - 1 / 3).abs() < 5 * math.sqrt(2 / 9 / len(u))).all()
    off = torch.corrcoef(u.T) - torch.eye(8)
    assert off.abs().max() < 5 / math.sqrt(len(u))


def test_density_is_constant_where_samples_are_and_integrates_to_one(world, generator):
    factors = world.sample(1000, generator)
    log_prob = world.log_prob(factors)
    assert log_prob.std() == 0
    box = world.low + (world.high - world.low) * torch.rand(
        100_000, 8, generator=generator, dtype=torch.float64
    )
    volume = (world.high - world.low).prod()
    mass = world.log_prob(box).exp().mean() * volume
    assert abs(mass - 1) < 5 * math.sqrt(4 / len(box))
    assert world.log_prob(at(world, x=0.36)) == -math.inf
    assert world.log_prob(at(world, shape=0.9)) == -math.inf


def test_an_upright_world_does_not_turn(generator):
    world = Shapes(upright=True, dtype=torch.float64)
    factors = world.sample(100, generator)
    assert factors[:, 3].abs().max() == 0
    assert factors[:, [0, 1, 2, 4, 5, 6, 7]].std(0).min() > 0.01
    assert "turn" not in world.concepts
    # The turn is uniform on an interval of length one, so that its density is one.
    assert torch.equal(world.log_prob(factors), Shapes(dtype=torch.float64).log_prob(factors))
    factors[:, 3] = 0.5
    assert (world.log_prob(factors) == -math.inf).all()


@pytest.mark.parametrize("shape", [0.5, 1.5, 2.5])
def test_all_shapes_have_the_area_of_the_disc(shape):
    fine = Shapes(256, edge=1e-3, dtype=torch.float64)
    picture = fine.render(at(fine, shape=shape, turn=0.3))
    area = picture[0].sum() * (2 / 256) ** 2
    assert abs(area / (math.pi * 0.35**2) - 1) < 0.02


@pytest.mark.parametrize("shape", [0.5, 1.5, 2.5])
def test_a_turn_is_a_circle_and_half_of_it_is_seen(world, shape):
    start, whole, half = (world.render(at(world, shape=shape, turn=t)) for t in (0.0, 1.0, 0.5))
    assert torch.allclose(start, whole, atol=1e-12)
    assert (start - half).abs().max() > 0.1


def test_directions(world):
    """x goes right, y goes up, a turn is counter-clockwise."""
    picture = world.render(at(world, x=0.3, y=0.3))[0]
    row, column = divmod(int(picture.argmax()), 16)
    assert row < 8 <= column
    # An ellipse turned by an eighth of a circle: right and up belong together.
    picture = world.render(at(world, turn=0.25))[0]
    assert picture[5, 10] > 0.5 > picture[5, 5]


def test_colours_and_range(world, generator):
    pictures = world.render(world.sample(500, generator))
    assert pictures.shape == (500, 3, 16, 16)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    picture = world.render(at(world))
    assert torch.allclose(picture[1], picture[0] / 2)


def test_gradient_of_the_renderer(world, generator):
    factors = world.sample(6, generator).requires_grad_()
    assert torch.autograd.gradcheck(world.render, factors, atol=1e-5)
    grad = torch.autograd.grad(world.render(factors).square().sum(), factors)[0]
    assert (grad[:, 0] == 0).all()
    assert (grad[:, 4:] != 0).all()


def test_bias_ties_the_largest_channel_to_the_shape(world, generator):
    biased = world.sample(5000, generator, bias=0.9)
    hits = (biased[:, 5:].argmax(1) == biased[:, 0].long()).double().mean()
    assert abs(hits - (0.9 + 0.1 / 3)) < 5 * math.sqrt(0.07 / 5000)
    every = world.sample(500, generator, bias=1.0)
    assert (every[:, 5:].argmax(1) == every[:, 0].long()).all()
    # The values stay those of the uniform law; only their order changes.
    assert abs(biased[:, 5:].mean() - 0.6) < 0.02


def test_embedding_tells_pictures_apart_and_clip_stays_inside(world, generator):
    factors = world.sample(50, generator)
    turned = factors.clone()
    turned[:, 3] = (turned[:, 3] + 1) % 1
    assert torch.allclose(world.embed(factors), world.embed(turned))
    assert world.embed(factors)[:, :3].sum(1).eq(1).all()
    wild = world.clip(10 * torch.randn(100, 8, generator=generator, dtype=torch.float64))
    assert ((wild >= world.low) & (wild < world.high)).all()
    world.render(wild)
    assert torch.equal(world.clip(factors), factors)


def test_concepts_name_each_factor_once():
    assert sorted(k for columns in CONCEPTS.values() for k in columns) == list(range(len(FACTORS)))


def test_device_and_dtype_follow_the_factors(device, dtype):
    world = Shapes(dtype=dtype, device=device)
    factors = world.sample(4, torch.Generator(device).manual_seed(0))
    assert (factors.dtype, factors.device.type) == (dtype, device.type)
    assert world.render(factors.to(torch.float32)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: Shapes(1), "side"),
        (lambda: Shapes(edge=0.0), "edge"),
        (lambda: Shapes(dtype=torch.int64), "dtype"),
        (lambda: Shapes().sample(0), "n"),
        (lambda: Shapes().sample(3, bias=1.5), "bias"),
        (lambda: Shapes().render(torch.zeros(2, 7)), "factors"),
        (lambda: Shapes().render(torch.full((2, 8), math.nan)), "factors"),
        (lambda: Shapes().render(torch.full((2, 8), 3.0)), "factors"),
        (lambda: Shapes().log_prob(torch.zeros(2, 7)), "factors"),
    ],
)
def test_bad_input_is_named(unchecked, call, argument):
    with pytest.raises(ValueError, match=argument):
        call()
