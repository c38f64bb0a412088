"""Small changes of a picture that change what a network says of it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.checks import number, whole


def fgsm(
    model: nn.Module,
    x: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    epsilon: float,
) -> Float[Tensor, "n channels height width"]:
    """x + epsilon sign(gradient of the cross-entropy), clamped to [0, 1].

    Args:
        model: from pictures to logits.
        x: pictures with values in [0, 1].
        labels: the classes to get away from.
        epsilon: largest change of a pixel.

    Raises:
        ValueError: an epsilon that is negative.

    Source: Goodfellow, Shlens and Szegedy (2015), section 4.
    """
    return (x + number("epsilon", epsilon, zero=True) * _uphill(model, x, labels)).clamp(0, 1)


def pgd(
    model: nn.Module,
    x: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    epsilon: float,
    *,
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n channels height width"]:
    """Steps of 2.5 epsilon / steps along the sign, each brought back into the cube around x.

    It starts at a random point of the cube, as in Madry et al. (2018), section 2.1.

    Args:
        model: from pictures to logits.
        x: pictures with values in [0, 1].
        labels: the classes to get away from.
        epsilon: half the side of the cube.
        steps: number of gradients.
        generator: source of the starting points.

    Raises:
        ValueError: an epsilon that is negative, steps below one.
    """
    epsilon, steps = number("epsilon", epsilon, zero=True), whole("steps", steps)
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    attacked = (x + epsilon * (2 * u - 1)).clamp(0, 1)
    for _ in range(steps):
        moved = attacked + 2.5 * epsilon / steps * _uphill(model, attacked, labels)
        attacked = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return attacked


def random_signs(
    x: Float[Tensor, "n channels height width"],
    epsilon: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n channels height width"]:
    """The control: as large a change as that of `fgsm`, in a direction that means nothing.

    Raises:
        ValueError: an epsilon that is negative.
    """
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (x + number("epsilon", epsilon, zero=True) * (2 * (u < 0.5) - 1)).clamp(0, 1)


def _uphill(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = cross_entropy(model(x), labels, reduction="sum")
    return torch.autograd.grad(loss, x)[0].sign()
