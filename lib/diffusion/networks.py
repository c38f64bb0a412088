"""Networks that a denoiser can use: ``network(y, c_noise, label=None)`` with the shape of y.

c_noise is the noise level, log(sigma / alpha) / 4, for each row or one for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from lib.bijections.base import check_event
from lib.checks import reject, whole
from lib.diffusion.denoisers import FAR, check_label
from lib.diffusion.schedules import Schedule, check_schedule
from lib.nets import MLP, activation, wholes


class Condition(nn.Module):
    """What a network is told: the noise level in many numbers, and the class.

    The level itself, its sines and cosines at frequencies pi/2, pi, 2 pi, ..., and where there are
    classes a vector of length classes + 1 that is one at the class; its first entry is for none.

    Args:
        classes: number of classes; labels of -1 stand for none.
        count: frequencies.

    Attributes:
        features: length of what comes out.
    """

    def __init__(self, classes: int = 0, count: int = 4) -> None:
        super().__init__()
        self.classes = whole("classes", classes, low=0)
        frequencies = math.pi / 2 * 2.0 ** torch.arange(whole("count", count))
        self.register_buffer("frequencies", frequencies)
        self.features = 1 + 2 * count + (self.classes + 1 if self.classes else 0)

    def forward(
        self, n: int, c_noise: Float[Tensor, "_"], label: Int[Tensor, "n"] | None = None
    ) -> Float[Tensor, "_ features"]:
        """One row for each of n, or a single one if one level (and no class) is for all.

        Raises:
            ValueError: levels or labels of another number, labels out of range or for a network
                without classes.
        """
        if c_noise.ndim != 1 or len(c_noise) not in (1, n):
            reject("c_noise", f"one level or {n}, one for each row", tuple(c_noise.shape))
        if label is not None and not self.classes:
            reject("label", "None, as this network knows no classes", "labels")
        turns = c_noise[:, None] * self.frequencies.to(c_noise)
        told = torch.cat([c_noise[:, None], turns.cos(), turns.sin()], -1)
        if not self.classes:
            return told
        if label is None:
            label = torch.full((n,), -1, device=c_noise.device)
        check_label(label, n, self.classes)
        code = nn.functional.one_hot(label.long() + 1, self.classes + 1)
        return torch.cat([told.expand(n, -1), code.to(told)], -1)


class NoiseMLP(nn.Module):
    """A fully connected network that is told the noise level, and the class, in every layer.

    Each hidden layer is activation(W h + b + U e), with e the features of the noise level.

    Args:
        features: length of y.
        out_features: length of the output; None for that of y.
        hidden: widths of the hidden layers.
        classes: number of classes; labels of -1 stand for none.
        activation: between the layers.

    Raises:
        ValueError: sizes below one, an unknown activation.
    """

    def __init__(
        self,
        features: int,
        out_features: int | None = None,
        hidden: Sequence[int] = (128, 128, 128),
        *,
        classes: int = 0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        hidden = wholes("hidden", hidden, low=1)
        self.classes = whole("classes", classes, low=0)
        self.condition = Condition(self.classes)
        self.features = whole("features", features)
        sizes = [self.features, *hidden]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.told = nn.ModuleList(
            nn.Linear(self.condition.features, size, bias=False) for size in hidden
        )
        self.activation = _activation(activation)
        out = features if out_features is None else whole("out_features", out_features)
        self.last = nn.Linear(sizes[-1], out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        y: Float[Tensor, "n d"],
        c_noise: Float[Tensor, "_"],
        label: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n _"]:
        check_event("y", y, (self.features,))
        told = self.condition(len(y), c_noise, label)
        for layer, tell in zip(self.layers, self.told, strict=True):
            offset = layer.bias + tell(told)
            if len(offset) == 1:  # one level for all rows: no more than a bias
                y = linear(y, layer.weight, offset[0])
            else:
                y = linear(y, layer.weight).add_(offset)
            y = self.activation(y)
        return self.last(y)


_activation = activation


class OneHotMLP(nn.Module):
    """The network of the guide that the chapter starts from, kept to compare with.

    The step t = 1..T becomes one-hot, a linear map makes one number of it, and that number is one
    more input: time can shift the first layer, and does nothing else. T is part of the network.

    Args:
        schedule: whose T steps are counted.
        features: length of y.
        hidden: widths.

    Raises:
        ValueError: no schedule, or one whose steps a denoiser does not tell apart; sizes below one.

    Source: Elflein (2022), A practical guide to diffusion models.
    """

    def __init__(
        self, schedule: Schedule, features: int = 2, hidden: Sequence[int] = (100, 100, 100, 20)
    ) -> None:
        super().__init__()
        steps = torch.arange(1, check_schedule(schedule).steps + 1)
        levels = schedule.log_snr(steps).clamp(-FAR, FAR) / -8
        if not bool((levels.diff() > 0).all()):
            reject(
                "schedule", f"log-SNR that tells all steps apart within {FAR:g} of 0", "equal ones"
            )
        self.register_buffer("levels", levels)
        self.time = nn.Linear(schedule.steps, 1)
        self.mlp = MLP(features + 1, features, hidden, activation="leaky_relu")

    def forward(
        self, y: Float[Tensor, "n d"], c_noise: Float[Tensor, "_"], label: None = None
    ) -> Float[Tensor, "n d"]:
        middle = (self.levels[1:] + self.levels[:-1]) / 2
        step = torch.bucketize(c_noise.double(), middle)  # 0..T-1
        time = self.time.weight[0, step] + self.time.bias  # one-hot times a matrix is a column
        return self.mlp(torch.cat([y, time.view(-1, 1).expand(len(y), 1)], -1))
