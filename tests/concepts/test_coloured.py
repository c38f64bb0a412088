import pytest
import torch

from lib.concepts.coloured import DigitReader, digit_pairs
from lib.concepts.swaps import explained
from lib.data.digits import coloured, digits


@pytest.fixture(scope="module")
def split():
    return digits()


@pytest.fixture(scope="module")
def reader(split):
    return DigitReader(split.train, torch.Generator().manual_seed(0))


def test_the_oracle_reads_test_digits_and_their_colours(split, reader, generator):
    pictures, colours = coloured(split.test.images, generator)
    read = reader.read(pictures)
    assert explained(read["digit"], split.test.labels) > 0.98
    assert explained(read["colour"], colours) > 0.99


def test_a_colour_is_read_without_error_from_its_grey_picture(reader, dtype, generator):
    grey = torch.rand(20, 8, 8, generator=generator, dtype=dtype)
    grey = grey / grey.amax((1, 2), keepdim=True)
    colours = 0.2 + 0.8 * torch.rand(20, 3, generator=generator, dtype=dtype)
    read = reader.read(grey[:, None] * colours[:, :, None, None])
    torch.testing.assert_close(read["colour"], colours)


def test_the_digit_does_not_depend_on_the_colour(split, reader, generator):
    first, _ = coloured(split.test.images[:50], generator)
    tinted = first * torch.rand(50, 1, 1, 1, generator=generator)
    assert torch.equal(reader.read(first)["digit"], reader.read(tinted)["digit"])


def test_pairs_share_what_their_label_says(split, reader, generator):
    labels = torch.tensor([0, 1, 2, -2] * 150)
    a, b, _ = digit_pairs(split.train, 600, generator, labels=labels)
    first, second = reader.read(a), reader.read(b)
    same_digit = first["digit"] == second["digit"]
    same_colour = (first["colour"] - second["colour"]).norm(dim=1) < 0.1
    for label, digit, colour in ((0, 0.1, 0.0), (1, 1.0, 0.0), (2, 0.1, 1.0), (-2, 1.0, 0.0)):
        rows = labels == label
        assert abs(float(same_digit[rows].double().mean()) - digit) < 0.1
        assert abs(float(same_colour[rows].double().mean()) - colour) < 0.1


def test_what_cannot_be_paired_is_refused(split, unchecked):
    for labels in ([-1, 1], [1, 3], [1]):
        with pytest.raises(ValueError, match=r"^labels: expected"):
            digit_pairs(split.train, 2, labels=torch.tensor(labels))
