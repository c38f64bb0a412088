"""Activation maximisation: an image that a score likes, and that a prior does not mind.

One optimiser, and a prior that is put in: a penalty on pixels, a density over images, or a
generator, whose latent is then what moves.

    maximise   S(x) + weight * log p(x) ,      x = decode(z) .
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.checks import number, reject, whole
from lib.inspection.scores import check_images, check_model


@runtime_checkable
class Prior(Protocol):
    """What images are likely, and in which coordinates they are moved."""

    def encode(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *latent"]:
        """The coordinates of images: where the search begins."""

    def decode(self, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *event"]:
        """The images at coordinates."""

    def log_prob(
        self, z: Float[Tensor, "n *latent"], x: Float[Tensor, "n *event"]
    ) -> Float[Tensor, "n"]:
        """The logarithm of the prior, up to a constant; x is decode(z)."""


@dataclass(frozen=True)
class Pixels:
    """-|x - centre|^2 of the pixels: the plain prior.

    Attributes:
        centre: an image, or a number.

    Source: Simonyan, Vedaldi and Zisserman (2014), section 2, where the centre is zero.
    """

    centre: Tensor | float = 0.0

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return -(x - self.centre).square().flatten(1).sum(1)


@dataclass(frozen=True)
class Density:
    """A density over images; it is the pixels that move.

    Attributes:
        log_density: from images to the logarithm of a density, for example ``flow.log_prob``.
    """

    log_density: Callable[[Tensor], Tensor]

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return self.log_density(x)


@dataclass(frozen=True)
class Generator:
    """A generator with latent N(0, I): every image that it can make is allowed.

    A flow is one too, and can begin at any image, because it inverts.

    Attributes:
        generate: from latents to images.
        invert: from images to latents; None where the generator has no way back, and the search
            then begins at latents.
    """

    generate: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor] | None = None

    def encode(self, x: Tensor) -> Tensor:
        return x if self.invert is None else self.invert(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.generate(z)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return -z.square().flatten(1).sum(1) / 2


@dataclass(frozen=True)
class Maximised:
    """What a search found.

    Attributes:
        images: ``(n, *event)``.
        latents: their coordinates, which are the images where the prior has no others.
        scores: S of each, ``(n,)``.
        log_prior: of each, without the weight, ``(n,)``.
        history: of S + weight * log p before each step, ``(steps, n)``.
    """

    images: Tensor
    latents: Tensor
    scores: Tensor
    log_prior: Tensor
    history: Tensor


def maximise_activation(
    objective: Callable[[Float[Tensor, "n *event"]], Float[Tensor, "n"]],
    init: Float[Tensor, "n *_"],
    *,
    prior: Prior | None = None,
    weight: float = 1.0,
    steps: int = 200,
    lr: float = 0.05,
    limits: tuple[float, float] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Maximised:
    """Climb S(x) + weight * log p(x) from each start, with Adam.

    Each start is moved by itself: a batch gives what its rows would give one by one. Parameters of
    networks get no gradients.

    Args:
        objective: from images to one score each; for a class c of a network, for example
            ``lambda x: model(x)[:, c]``. A module must be in evaluation mode.
        init: images; or latents, where the prior is a `Generator` that does not invert.
        prior: None has no preference.
        weight: of the prior.
        steps: of the optimiser.
        lr: its step length, in units of the coordinates that move.
        limits: images are kept within, by clipping after each step; only for priors that move
            pixels.
        transform: between image and objective, for example a random shift.

    Raises:
        ValueError: an `init` that is empty or not finite, a module in training mode, an objective
            or a prior that returns another shape or has no derivative, limits with a generator.
        ArithmeticError: the score is no longer finite; the message names the step.

    Source: Erhan, Bengio, Courville and Vincent (2009); a class and an L2 penalty: Simonyan,
        Vedaldi and Zisserman (2014), equation 1; priors as here: Nguyen et al. (2016), Synthesizing
        the preferred inputs for neurons in neural networks via deep generator networks.
    """
    check_model(objective)
    check_images(init, limits=None, argument="init")
    if prior is not None and not isinstance(prior, Prior):
        reject("prior", "encode, decode and log_prob", type(prior).__name__)
    prior, weight = Pixels() if prior is None else prior, 0.0 if prior is None else weight
    weight, steps, lr = number("weight", weight, zero=True), whole("steps", steps), number("lr", lr)
    if limits is not None and not isinstance(prior, Pixels | Density):
        reject("limits", "None, as the prior moves latents", limits)
    with torch.no_grad():
        start = prior.encode(init.detach())
    z = start.detach().clone().requires_grad_()
    optimizer, history = torch.optim.Adam([z], lr=lr), []
    for step in range(steps + 1):
        with torch.enable_grad():
            x = prior.decode(z)
            scores = objective(x if transform is None else transform(x))
            log_prior = prior.log_prob(z, x)
            for name, values in (("objective", scores), ("prior", log_prior)):
                _check_scores(name, values, len(init), step)
            total = scores + weight * log_prior
            if step == steps:
                break
            (slope,) = torch.autograd.grad(total.sum(), z, allow_unused=True)
        if slope is None or not scores.requires_grad:
            reject("objective", "one that is differentiable in the image", "no derivative")
        history.append(total.detach())
        z.grad = -slope
        optimizer.step()
        if limits is not None:
            with torch.no_grad():
                z.clamp_(*limits)
    kept = (x, z, scores, log_prior, torch.stack(history))
    return Maximised(*(value.detach().clone() for value in kept))


def _check_scores(name: str, values: Tensor, n: int, step: int) -> None:
    if not isinstance(values, Tensor) or values.shape != (n,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        reject(name, f"one number for each of {n} images", shape)
    if not values.isfinite().all():
        raise ArithmeticError(f"{name} is not finite at step {step}; a smaller lr may help")
