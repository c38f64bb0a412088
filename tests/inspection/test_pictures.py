"""Numbers for pictures: limits that are known."""

import pytest
import torch

from lib.inspection import distance_to_means, nearest, sharpness


def test_sharpness_of_waves_boards_and_noise():
    row = torch.arange(16.0)
    slow = torch.sin(2 * torch.pi * row / 16).expand(1, 16, 16)
    board = ((row[:, None] + row) % 2)[None]
    assert float(sharpness(slow)) == pytest.approx(0, abs=1e-6)
    assert float(sharpness(board)) == pytest.approx(1, abs=1e-6)
    noise = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.fft.fftfreq(16).abs()
    share = (torch.maximum(rows[:, None], rows) > 0.25).sum() / (16 * 16 - 1)
    assert float(sharpness(noise).mean()) == pytest.approx(float(share), abs=0.01)


def test_sharpness_ignores_brightness_and_contrast_and_a_flat_image_has_none():
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sharpness(x), sharpness(0.2 * x + 0.7), rtol=1e-3, atol=1e-3)
    assert float(sharpness(torch.zeros(1, 8, 8))) == 0


def test_distances():
    data = torch.stack([torch.zeros(4, 4), torch.ones(4, 4), torch.full((4, 4), 3.0)])
    labels, x = torch.tensor([0, 0, 1]), torch.full((2, 4, 4), 2.0)
    found = distance_to_means(x, data, labels, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([1.5, 1.0]))
    torch.testing.assert_close(nearest(x, data), torch.ones(2))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sharpness(torch.rand(2, 3, 3)), "images"),
        (lambda: sharpness(torch.full((1, 8, 8), torch.nan)), "images"),
        (lambda: nearest(torch.rand(2, 4, 4), torch.rand(2, 5, 5)), "images"),
        (
            lambda: distance_to_means(
                torch.rand(1, 4), torch.rand(2, 4), torch.tensor([0, 1]), torch.tensor([2])
            ),
            "classes",
        ),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
