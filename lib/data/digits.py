"""The 1,797 handwritten digits that scikit-learn carries: small images of real things, offline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from lib.checks import number, reject, whole


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
