"""One number for each image: what all methods that look inside a network explain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.checks import floating, reject

Target = int | Int[Tensor, "_"] | Callable[[Tensor], Tensor]
Limits = tuple[float, float] | None


def check_model(model: Callable[[Tensor], Tensor]) -> None:
    """Refuse a network that is in training mode.

    Dropout and batch statistics would make the score of an image depend on chance and on the other
    images. No mode is changed behind the caller's back.

    Raises:
        ValueError: no callable; some part of the network is in training mode.
    """
    if not callable(model):
        reject("model", "a network", type(model).__name__)
    if isinstance(model, nn.Module):
        training = [name or "the network" for name, part in model.named_modules() if part.training]
        if training:
            reject("model", "a network in evaluation mode; call model.eval()", training[0])


def check_images(images: Tensor, limits: Limits = (0.0, 1.0), *, argument: str = "images") -> None:
    """Refuse what is no finite batch of images within the limits.

    Raises:
        ValueError: no floating-point tensor of shape ``(n, *event)`` with at least one row and one
            number, entries that are not finite or outside the limits.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = getattr(images, "dtype", type(images).__name__)
        reject(argument, "a floating-point tensor", got)
    floating(argument, images)
    if images.ndim < 2 or not images.numel():
        reject(argument, "a batch, shape (n, *event)", tuple(images.shape))
    if limits is not None:
        low, high = float(images.min()), float(images.max())
        if low < limits[0] or high > limits[1]:
            reject(argument, f"numbers in [{limits[0]:g}, {limits[1]:g}]", f"{low:g} to {high:g}")


def class_score(output: Tensor, target: Target) -> Float[Tensor, "n"]:
    """The score that is explained, from the output of a network.

    Args:
        output: of the network, ``(n, classes)`` unless the target is a function.
        target: a class for all, a class for each row, or a function from the output to one number
            for each row.

    Raises:
        ValueError: a class that does not exist, another number of classes than rows, a function
            that returns another shape.
    """
    if callable(target) and not isinstance(target, Tensor):
        found = target(output)
        if not isinstance(found, Tensor) or found.shape != output.shape[:1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            reject("target", f"a function to one number for each of {len(output)} rows", shape)
        return found
    if output.ndim != 2:
        reject("target", "a function, as the output is no (n, classes)", tuple(output.shape))
    index = torch.as_tensor(target, device=output.device)
    if index.dtype.is_floating_point or index.dtype in (torch.bool, torch.complex64):
        reject("target", "classes, integers", index.dtype)
    if index.ndim > 1 or index.numel() not in (1, len(output)):
        reject("target", f"one class or {len(output)}", tuple(index.shape))
    classes = output.shape[1]
    if index.min() < 0 or index.max() >= classes:
        reject("target", f"classes 0 to {classes - 1}", f"{int(index.min())} to {int(index.max())}")
    return output.gather(1, index.long().expand(len(output))[:, None])[:, 0]


def score(
    model: Callable[[Tensor], Tensor], images: Float[Tensor, "n *event"], target: Target
) -> Float[Tensor, "n"]:
    """The score of each image: an entry of the output before the softmax, as a rule.

    Raises:
        ValueError: as `class_score`; a network that returns no tensor with a row for each image.
    """
    output = model(images)
    if not isinstance(output, Tensor) or output.shape[:1] != images.shape[:1]:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        reject("model", f"an output with {len(images)} rows", shape)
    return class_score(output, target)


def gradient(
    model: Callable[[Tensor], Tensor], images: Float[Tensor, "n *event"], target: Target
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n"]]:
    """The derivative of each image's score with respect to that image, and the score.

    Raises:
        ValueError: as `score`; a network through which no derivative flows.
    """
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        found = score(model, x, target)
        slope = None
        if found.requires_grad:
            (slope,) = torch.autograd.grad(found.sum(), x, allow_unused=True)
    if slope is None:
        reject("model", "a score that is differentiable in the image", "one without a derivative")
    return slope, found.detach()
