"""The 1,797 handwritten digits that scikit-learn carries: small images of real things, offline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lib.bijections.image import Dequantise
from lib.checks import number, reject, whole

LEVELS = 17  # of a pixel


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Attributes:
        images: integers 0..16, shape ``(N, 1, 8, 8)``, uint8.
        labels: 0..9, shape ``(N,)``, int64.
    """

    images: UInt8[Tensor, "n 1 8 8"]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Digits:
    """Disjoint parts that together hold each digit once."""

    train: Images
    validation: Images
    test: Images


def digits(
    validation: float = 0.1,
    test: float = 0.2,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Digits:
    """Split the 8x8 digits of scikit-learn into three parts, each class in the same proportions.

    Args:
        validation: fraction of each class for validation, rounded to whole images.
        test: fraction of each class for the test.
        seed: of the shuffle; a seed gives the same parts on each machine.
        device: where the tensors go.

    Returns:
        The parts, in shuffled order: 1,259, 179 and 359 images for the defaults.

    Raises:
        ValueError: fractions that are not positive or leave nothing to train on, a seed that is no
            integer.

    Source: Alpaydin and Kaynak (1998), UCI repository, optical recognition of handwritten digits.
    """
    from sklearn.datasets import load_digits  # takes a second, which other data need not pay

    fractions = number("validation", validation), number("test", test)
    if sum(fractions) > 0.9:
        reject("validation, test", "fractions that leave a tenth for training", fractions)
    bundle = load_digits()
    labels = torch.from_numpy(bundle.target).long()
    images = torch.from_numpy(bundle.images).to(torch.uint8)[:, None]
    generator = torch.Generator().manual_seed(whole("seed", seed, low=0))
    order = torch.randperm(len(labels), generator=generator)
    parts: list[list[Tensor]] = [[], [], []]
    for digit in range(10):
        own = order[labels[order] == digit]
        sizes = [round(fraction * len(own)) for fraction in fractions]
        for part, chosen in zip(parts, own.split([len(own) - sum(sizes), *sizes]), strict=True):
            part.append(chosen)
    rank = order.argsort()  # back to the shuffled order: no part is sorted by class
    chosen = [torch.cat(part) for part in parts]
    chosen = [part[rank[part].argsort()] for part in chosen]
    return Digits(*(Images(images[part].to(device), labels[part].to(device)) for part in chosen))


def coloured(
    images: UInt8[Tensor, "n 1 8 8"],
    generator: torch.Generator | None = None,
    *,
    colours: Float[Tensor, "n 3"] | None = None,
) -> tuple[Float[Tensor, "n 3 8 8"], Float[Tensor, "n 3"]]:
    """Digits in one colour each on black, and the colours.

    Integers become numbers by `Dequantise`, one draw for each pixel; one draw for an image would
    leave a lattice, on which a density is infinite.

    Args:
        images: integers 0..16.
        generator: source of noise and colours, on the device of the images.
        colours: red, green and blue in [0, 1]; None draws them by `inks`.

    Raises:
        ValueError: integers above 16, colours for another number of images or outside [0, 1].
    """
    if colours is None:
        colours = inks(len(images), generator, device=images.device)
    if colours.shape != (len(images), 3):
        reject("colours", f"shape ({len(images)}, 3)", tuple(colours.shape))
    if colours.numel() and not 0 <= float(colours.min()) <= float(colours.max()) <= 1:
        reject(
            "colours", "numbers in [0, 1]", f"{float(colours.min()):g} to {float(colours.max()):g}"
        )
    grey = Dequantise(LEVELS).dequantise(images, generator)
    return grey * colours[:, :, None, None], colours


def inks(
    n: int,
    generator: torch.Generator | None = None,
    *,
    dark: float = 0.2,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "n 3"]:
    """Colours, uniform on [dark, 1] in each channel.

    Raises:
        ValueError: `n` below one, `dark` outside [0, 1).
    """
    if not 0 <= number("dark", dark, zero=True) < 1:
        reject("dark", "a number in [0, 1)", dark)
    return dark + (1 - dark) * torch.rand(whole("n", n), 3, generator=generator, device=device)
