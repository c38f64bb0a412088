"""What a score depends on: the gradient, its integral along a path, and covering parts.

All three return a number for each entry of an image, in units of the score (the gradient: score per
unit of brightness), and scale nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.checks import reject, whole
from lib.inspection.scores import Limits, Target, check_images, check_model, gradient, score

Model = Callable[[Tensor], Tensor]


def saliency(
    model: Model,
    images: Float[Tensor, "n *event"],
    target: Target,
    *,
    signed: bool = False,
    limits: Limits = (0.0, 1.0),
) -> Float[Tensor, "n *event"]:
    """The gradient dS/dI: by how much the score changes with the brightness of each entry.

    Args:
        model: a network in evaluation mode.
        images: where the gradient is taken.
        target: whose score; see `score`.
        signed: keep the sign; otherwise absolute values, as in the source.
        limits: of the images; None allows all numbers.

    Raises:
        ValueError: as `check_model`, `check_images` and `score`; no derivative.

    Source: Simonyan, Vedaldi and Zisserman (2014), section 3.
    """
    check_model(model)
    check_images(images, limits)
    slope, _ = gradient(model, images, target)
    return slope if signed else slope.abs()


def integrated_gradients(
    model: Model,
    images: Float[Tensor, "n *event"],
    target: Target,
    *,
    baseline: Float[Tensor, "*_"] | float = 0.0,
    steps: int = 50,
    chunk: int = 256,
    limits: Limits = (0.0, 1.0),
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n"]]:
    """The gradient averaged along the line from a baseline, times the difference to it.

        A_i = (x_i - b_i) int_0^1 dS/dx_i (b + a (x - b)) da ,     sum_i A_i = S(x) - S(b) .

    The integral is by the rule of Gauss and Legendre.

    Args:
        model: a network in evaluation mode.
        images: what is explained.
        target: whose score.
        baseline: where the line begins: a number, an image, or one for each image.
        steps: nodes of the rule.
        chunk: images in one call of the network.
        limits: of the images; None allows all numbers.

    Returns:
        The attributions A, and by how much their sum misses S(x) - S(b): the error of the rule.

    Raises:
        ValueError: as `saliency`; a baseline that does not fit the images.

    Source: Sundararajan, Taly and Yan (2017), equation 1 and proposition 1.
    """
    check_model(model)
    check_images(images, limits)
    start = _baseline(baseline, images)
    nodes, weights = np.polynomial.legendre.leggauss(whole("steps", steps))
    rows = max(1, whole("chunk", chunk) // len(images))
    slope = torch.zeros_like(images)
    for k in range(0, steps, rows):
        some = torch.as_tensor((1 + nodes[k : k + rows]) / 2).to(images)
        weight = torch.as_tensor(weights[k : k + rows] / 2).to(images)
        line = torch.stack([start + a * (images - start) for a in some])
        found, _ = gradient(model, line.flatten(0, 1), _repeat(target, len(some), len(images)))
        slope += torch.einsum("k,k...->...", weight, found.view_as(line))
    made = (images - start) * slope
    with torch.no_grad():
        change = score(model, images, target) - score(model, start, target)
    return made, made.flatten(1).sum(1) - change


@torch.no_grad()
def occlusion(
    model: Model,
    images: Float[Tensor, "n channels height width"],
    target: Target,
    *,
    size: int = 8,
    stride: int | None = None,
    baseline: Float[Tensor, "*_"] | float = 0.0,
    chunk: int = 256,
    limits: Limits = (0.0, 1.0),
) -> Float[Tensor, "n height width"]:
    """By how much the score falls when a square is covered; where squares overlap, the mean.

    Args:
        model: a network in evaluation mode; it need not be differentiable.
        images: what is explained.
        target: whose score.
        size: side of the square in pixels.
        stride: from one square to the next; None is `size`. The last are cut off at the border.
        baseline: what covers: a number, an image, or one for each image.
        chunk: images in one call of the network.
        limits: of the images; None allows all numbers.

    Raises:
        ValueError: as `saliency`, but for the derivative; a square larger than the image, a stride
            that leaves pixels uncovered.

    Source: Zeiler and Fergus (2014), section 4.2.
    """
    check_model(model)
    check_images(images, limits)
    if images.ndim != 4:
        reject("images", "shape (n, channels, height, width)", tuple(images.shape))
    n, _, height, width = images.shape
    size = whole("size", size)
    stride = whole("stride", size if stride is None else stride)
    if size > min(height, width):
        reject("size", f"at most {min(height, width)}, the side of the image", size)
    if stride > size:
        reject("stride", f"at most the size of the square, {size}", stride)
    cover = _baseline(baseline, images)
    whole_score = score(model, images, target)
    total, times = images.new_zeros(n, height, width), images.new_zeros(height, width)
    for windows in _parts(height, width, size, stride, max(1, whole("chunk", chunk) // n)):
        line = images.expand(len(windows), *images.shape).clone()
        for covered, window in zip(line, windows, strict=True):
            covered[(..., *window)] = cover[(..., *window)]
        found = score(model, line.flatten(0, 1), _repeat(target, len(windows), n))
        for fall, window in zip(whole_score - found.view(len(windows), n), windows, strict=True):
            total[(..., *window)] += fall[:, None, None]
            times[window] += 1
    return total / times


def _parts(
    height: int, width: int, size: int, stride: int, rows: int
) -> Iterator[list[tuple[slice, slice]]]:
    """Squares, several at a time."""
    top, left = (
        [slice(k * stride, k * stride + size) for k in range(math.ceil((side - size) / stride) + 1)]
        for side in (height, width)
    )
    windows = list(product(top, left))
    for k in range(0, len(windows), rows):
        yield windows[k : k + rows]


def _baseline(baseline: Tensor | float, images: Tensor) -> Tensor:
    try:
        made = torch.as_tensor(baseline).to(images).expand_as(images)
    except (RuntimeError, TypeError, ValueError):
        got = tuple(baseline.shape) if isinstance(baseline, Tensor) else repr(baseline)
        reject("baseline", f"a number or a shape that fits {tuple(images.shape)}", got)
    if not made.isfinite().all():
        reject("baseline", "finite numbers", "inf or NaN")
    return made


def _repeat(target: Target, times: int, n: int) -> Target:
    """The target for `times` copies of a batch of n, one after the other."""
    if isinstance(target, Tensor) and target.ndim == 1 and len(target) == n:
        return target.repeat(times)
    if callable(target) and not isinstance(target, Tensor):
        return lambda output: torch.cat([target(part) for part in output.split(n)])
    return target
