"""Oracles: what is in a picture, asked of somebody who is not under study."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.checks import whole
from lib.data.shapes import FACTORS, Shapes
from lib.noise import normal_like
from lib.training import History, fit


class Reading(NamedTuple):
    """What a `ShapeReader` sees.

    Attributes:
        log_shape: log-probabilities of the three shapes, ``(*batch, 3)``.
        factors: in the order of `lib.data.shapes.FACTORS`, ``(*batch, 8)``; the shape is the middle
            0.5, 1.5 or 2.5 of its interval.
    """

    log_shape: Tensor
    factors: Tensor

    @property
    def shape(self) -> Int[Tensor, "*batch"]:
        """0 ellipse, 1 triangle, 2 square."""
        return self.log_shape.argmax(-1)


class ShapeReader(nn.Module):
    """Reads the factors of `Shapes` from a picture: two convolutions and two linear layers.

    The turn is read as a point of the circle. Pictures are trained with pixel noise, so that the
    reader does not mind what a decoder leaves.

    Args:
        world: what is read.
        width: channels of the first convolution.

    Raises:
        ValueError: a width below one.
    """

    def __init__(self, world: Shapes, width: int = 16) -> None:
        super().__init__()
        width, quarter = whole("width", width), (world.side + 3) // 4
        self.world = world
        self.network = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * quarter**2, 256),
            nn.SiLU(),
            nn.Linear(256, 11),
        )

    def forward(self, pictures: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n 11"]:
        """Logits of the shape, then what `Shapes.embed` has."""
        return self.network(pictures)

    @torch.no_grad()
    def read(self, pictures: Float[Tensor, "*batch 3 side side"]) -> Reading:
        """What is in the pictures."""
        out = self(pictures.reshape(-1, *self.world.shape))
        log_shape, turn = out[:, :3].log_softmax(1), out[:, 5:7]
        low, high = self.world.low.to(out), self.world.high.to(out)
        seen = (low + high + (high - low) * out[:, [3, 3, 4, 4, 7, 8, 9, 10]]) / 2
        seen[:, 0] = log_shape.argmax(1) + 0.5
        seen[:, 3] = torch.atan2(turn[:, 1], turn[:, 0]) / (2 * math.pi) % 1
        batch = pictures.shape[:-3]
        return Reading(log_shape.reshape(*batch, 3), seen.reshape(*batch, len(FACTORS)))

    def fit(
        self,
        n: int = 60_000,
        *,
        steps: int = 2000,
        batch_size: int = 128,
        noise: float = 0.02,
        lr: float = 3e-3,
        seed: int = 0,
    ) -> History:
        """Train on `n` fresh pictures, with pixel noise of the given standard deviation."""
        generator = torch.Generator(self.world.device).manual_seed(seed)
        factors = self.world.sample(n, generator)
        data = self.world.render(factors), factors

        def loss(reader: ShapeReader, batch: tuple, generator: torch.Generator) -> dict:
            pictures, factors = batch
            out = reader(pictures + noise * normal_like(pictures, generator))
            square = (out - reader.world.embed(factors))[:, 3:].square().mean(0)
            return {
                "shape": cross_entropy(out[:, :3], factors[:, 0].long()) / 2,
                "others": square[:2].mean() + square[2:4].mean() + square[4] + square[5:].mean(),
            }

        options = {"batch_size": min(batch_size, n), "lr": lr, "schedule": "cosine", "seed": seed}
        return fit(self, loss, data, steps=steps, **options)
