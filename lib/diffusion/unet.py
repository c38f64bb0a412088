"""A U-Net of small images: ``network(y, c_noise, label=None)`` with the shape of y.

Blocks at each resolution, from fine to coarse and back; on the way back each block also sees what
the block of the same size had found on the way down. Noise level and class scale and shift every
block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from lib.checks import reject, whole
from lib.diffusion.networks import Condition
from lib.nets import wholes


class UNet(nn.Module):
    """Residual blocks at len(widths) resolutions, each half of the one before; starts at zero.

    Args:
        channels: of an image.
        widths: channels at each resolution, the finest first.
        blocks: at each resolution on the way down; on the way up there is one more.
        classes: number of classes; labels of -1 stand for none.
        embedding: length of the features of noise level and class.

    Attributes:
        classes: see above.
        divisor: image sizes are multiples of it, 2^(len(widths) - 1).

    Raises:
        ValueError: sizes below one, no widths.

    Source: Ronneberger, Fischer and Brox (2015); with noise levels: Ho et al. (2020), appendix B;
    scale and shift, blocks that start as the identity: Dhariwal and Nichol (2021), section 3.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        *,
        blocks: int = 1,
        classes: int = 0,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        self.channels, self.classes = whole("channels", channels), whole("classes", classes, low=0)
        widths, blocks = wholes("widths", widths, low=1), whole("blocks", blocks)
        if not widths:
            reject("widths", "at least one width", widths)
        told = whole("embedding", embedding)
        self.divisor = 2 ** (len(widths) - 1)
        self.condition = Condition(self.classes)
        self.told = nn.Sequential(
            nn.Linear(self.condition.features, told), nn.SiLU(), nn.Linear(told, told), nn.SiLU()
        )
        self.first = nn.Conv2d(self.channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, seen = widths[0], [widths[0]]
        for level, size in enumerate(widths):
            if level:
                self.down.append(Resize(width, size, down=True))
                width = size
                seen.append(width)
            for _ in range(blocks):
                self.down.append(Block(width, size, told))
                width = size
                seen.append(width)
        self.middle = Block(width, width, told)
        for level, size in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(Block(width + seen.pop(), size, told))
                width = size
            if level:
                self.up.append(Resize(width, widths[level - 1], down=False))
                width = widths[level - 1]
        self.norm = norm(width)
        self.last = zero(nn.Conv2d(width, self.channels, 3, padding=1))

    def forward(
        self,
        y: Float[Tensor, "n channels height width"],
        c_noise: Float[Tensor, "_"],
        label: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n channels height width"]:
        """What `NetworkDenoiser` asks for, at one noise level or at one for each image.

        Raises:
            ValueError: other channels, sizes that are no multiple of `divisor`, noise levels of
                another number, labels out of range or for a network without classes.
        """
        if y.ndim != 4 or y.shape[1] != self.channels:
            reject("y", f"images of {self.channels} channels", tuple(y.shape))
        if y.shape[2] % self.divisor or y.shape[3] % self.divisor:
            reject("y", f"height and width that {self.divisor} divides", tuple(y.shape))
        told = self.told(self.condition(len(y), c_noise, label))
        h = self.first(y)
        seen = [h]
        for part in self.down:
            h = part(h, told)
            seen.append(h)
        h = self.middle(h, told)
        for part in self.up:
            h = part(torch.cat([h, seen.pop()], 1) if isinstance(part, Block) else h, told)
        return self.last(silu(self.norm(h)))


class Block(nn.Module):
    """x + conv(silu(scale norm(conv(silu(norm(x)))) + shift)); the last convolution starts at 0."""

    def __init__(self, width: int, out: int, told: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(out)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.conv2 = zero(nn.Conv2d(out, out, 3, padding=1))
        self.told = nn.Linear(told, 2 * out)
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(
        self, x: Float[Tensor, "n w height width"], told: Float[Tensor, "_ told"]
    ) -> Float[Tensor, "n out height width"]:
        scale, shift = self.told(told)[:, :, None, None].chunk(2, 1)
        h = self.norm2(self.conv1(silu(self.norm1(x))))
        return self.skip(x) + self.conv2(silu(torch.addcmul(shift, 1 + scale, h)))


class Resize(nn.Module):
    """Half or double the size: four neighbours become channels, or the other way round."""

    def __init__(self, width: int, out: int, *, down: bool) -> None:
        super().__init__()
        mix = nn.Conv2d(4 * width, out, 1) if down else nn.Conv2d(width, 4 * out, 1)
        self.maps = nn.Sequential(
            *([nn.PixelUnshuffle(2), mix] if down else [mix, nn.PixelShuffle(2)])
        )

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return self.maps(x)


def norm(width: int) -> nn.GroupNorm:
    """Group normalisation, in 8 groups or as many as divide both."""
    return nn.GroupNorm(math.gcd(8, width), width)


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weight and bias of zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
