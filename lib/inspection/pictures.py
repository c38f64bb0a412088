"""How sharp and how real pictures are, in numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.checks import floating, reject


def sharpness(images: Float[Tensor, "n *channels height width"]) -> Float[Tensor, "n"]:
    """Share of the power, the mean left out, in frequencies above half of the highest.

    0 for a blur, 1 for a chessboard, and about 0.8 for white noise: noise is sharp too, so it says
    something only next to the same number of real images.

    Raises:
        ValueError: images smaller than four pixels on a side, entries that are not finite.
    """
    _check(images)
    x = images.flatten(1, -3) if images.ndim > 3 else images[:, None]
    power = torch.fft.fft2(x - x.mean((-2, -1), keepdim=True)).abs().square()
    rows, columns = (torch.fft.fftfreq(k, device=x.device).abs() for k in x.shape[-2:])
    high = torch.maximum(rows[:, None], columns[None]) > 0.25
    total = power.sum((1, 2, 3)).clamp_min(torch.finfo(x.dtype).tiny)
    return (power * high).sum((1, 2, 3)) / total


def distance_to_means(
    images: Float[Tensor, "n *event"],
    data: Float[Tensor, "m *event"],
    labels: Int[Tensor, "m"],
    classes: Int[Tensor, "n"],
) -> Float[Tensor, "n"]:
    """Root mean square distance of each image to the mean image of its class.

    Args:
        images: what is judged.
        data: real images.
        labels: their classes.
        classes: of the judged images.

    Raises:
        ValueError: images of another shape than the data, a class without data.
    """
    if images.shape[1:] != data.shape[1:]:
        reject("images", f"the shape of the data, {tuple(data.shape[1:])}", tuple(images.shape[1:]))
    missing = set(classes.tolist()) - set(labels.tolist())
    if missing:
        reject("classes", "classes that the data have", sorted(missing))
    found = {c: data[labels == c].mean(0) for c in set(classes.tolist())}
    means = torch.stack([found[c] for c in classes.tolist()])
    return (images - means).square().flatten(1).mean(1).sqrt()


def nearest(
    images: Float[Tensor, "n *event"], data: Float[Tensor, "m *event"]
) -> Float[Tensor, "n"]:
    """Root mean square distance of each image to the nearest real one.

    Raises:
        ValueError: images of another shape than the data.
    """
    if images.shape[1:] != data.shape[1:] or not len(data):
        reject("images", f"the shape of the data, {tuple(data.shape[1:])}", tuple(images.shape[1:]))
    gap = torch.cdist(images.flatten(1), data.flatten(1)).min(1).values
    return gap / images[0].numel() ** 0.5


def _check(images: Tensor) -> None:
    floating("images", images)
    if images.ndim < 3 or min(images.shape[-2:]) < 4:
        reject("images", "shape (n, ..., height, width), sides of at least 4", tuple(images.shape))
