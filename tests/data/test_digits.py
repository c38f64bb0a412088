import pytest
import torch
from sklearn.datasets import load_digits

from lib.data.digits import coloured, digits, inks


def in_order(table):
    return torch.tensor(sorted(table.tolist()))


def rows(part):
    return torch.cat([part.labels[:, None], part.images.flatten(1).long()], 1)


def test_parts_hold_each_digit_once():
    split = digits()
    assert [len(part) for part in (split.train, split.validation, split.test)] == [1259, 179, 359]
    bundle = load_digits()
    labels = torch.from_numpy(bundle.target)[:, None]
    whole = torch.cat([labels, torch.from_numpy(bundle.data).long()], 1)
    parts = torch.cat([rows(part) for part in (split.train, split.validation, split.test)])
    assert torch.equal(in_order(parts), in_order(whole))


def test_classes_keep_their_proportions():
    split = digits(validation=0.15, test=0.25, seed=3)
    total = torch.bincount(torch.from_numpy(load_digits().target)).float()
    for part, fraction in [(split.train, 0.6), (split.validation, 0.15), (split.test, 0.25)]:
        counts = torch.bincount(part.labels, minlength=10)
        assert float((counts - fraction * total).abs().max()) <= 1
        # Shuffled: neighbours share their class about once in ten.
        assert (part.labels[1:] == part.labels[:-1]).float().mean() < 0.25


def test_images_are_integers_up_to_sixteen(device):
    train = digits(device=device).train
    assert (train.images.shape, train.images.dtype) == ((len(train), 1, 8, 8), torch.uint8)
    assert train.labels.dtype == torch.int64
    assert train.images.device.type == train.labels.device.type == device.type
    assert (int(train.images.min()), int(train.images.max())) == (0, 16)


def test_a_seed_gives_the_same_parts_and_leaves_the_global_state():
    before = torch.get_rng_state()
    first, second, other = digits(seed=1), digits(seed=1), digits(seed=2)
    assert torch.equal(rows(first.test), rows(second.test))
    assert not torch.equal(first.test.labels, other.test.labels)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"validation": 0.0}, "validation"),
        ({"test": -0.1}, "test"),
        ({"validation": 0.5, "test": 0.5}, "validation, test"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_arguments_are_refused(arguments, name, unchecked):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        digits(**arguments)


def test_colours_are_found_again_in_the_pixels(device, dtype):
    test = digits(device=device).test.images[:50]
    generator = torch.Generator(device).manual_seed(0)
    _, colours = coloured(test, generator)
    assert colours.min() >= 0.2
    assert colours.max() <= 1
    pictures, given = coloured(test, generator, colours=colours.to(dtype))
    assert pictures.shape == (50, 3, 8, 8)
    assert pictures.dtype == given.dtype == dtype
    # All channels of an image are one grey image times a number.
    grey = pictures / given[:, :, None, None]
    torch.testing.assert_close(grey[:, 0], grey[:, 1])
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    # Rounding down takes the noise away.
    assert ((17 * grey[:, :1]).floor() - test).abs().max() <= 1
    assert ((17 * grey[:, :1]).floor() == test).double().mean() > 0.999


def test_noise_differs_from_pixel_to_pixel_and_is_uniform(generator):
    blank = torch.zeros(500, 1, 8, 8, dtype=torch.uint8)
    noise = 17 * coloured(blank, generator, colours=torch.ones(500, 3))[0][:, 0]
    assert noise.flatten(1).std(1).min() > 0.15
    assert abs(float(noise.mean()) - 0.5) < 5 / (12 * 32_000) ** 0.5
    assert abs(float(noise.std()) - 12**-0.5) < 0.01
    flat = noise.flatten(1) - noise.mean()
    together = flat.T @ flat / 500 * 12
    assert (together - torch.diag(together.diagonal())).abs().max() < 0.25


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"colours": torch.ones(3, 3)}, "colours"),
        ({"colours": 2 * torch.ones(2, 3)}, "colours"),
    ],
)
def test_bad_colours_are_refused(options, name, unchecked):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        coloured(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), **options)


@pytest.mark.parametrize("dark", [1.0, -0.1])
def test_inks_of_no_colour_are_refused(dark, unchecked):
    with pytest.raises(ValueError, match=r"^dark: expected"):
        inks(3, dark=dark)


def test_pixels_above_sixteen_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"^images: expected"):
        coloured(torch.full((2, 1, 8, 8), 17, dtype=torch.uint8))
