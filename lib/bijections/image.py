"""Images (C, H, W): squeeze, multi-scale, dequantisation, logit with a margin, a small network.

A multi-scale flow leaves half of the channels alone after each scale. Here z keeps the shape of x,
so no list of latents of different sizes has to be carried about:

    inner = Compose([Squeeze(2 * C), *steps, Inverse(Squeeze(2 * C))])
    Compose([Squeeze(C), *steps, OnHalf(inner), Inverse(Squeeze(C))])

The half that `OnHalf` does not touch is latent already. Nest `OnHalf` for more scales.

Source: Dinh, Sohl-Dickstein and Bengio (2017), sections 3.6 and 4.1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from lib.bijections.base import Bijection, check_context, check_event, sum_event
from lib.bijections.elementwise import Sigmoid, minus_inf_unless
from lib.checks import number, reject, whole


class Squeeze(Bijection):
    """Squares of pixels become channels: (C, H, W) -> (C factor^2, H/factor, W/factor).

    Channel c of the image fills channels c factor^2 up to (c + 1) factor^2 - 1, row by row of its
    square. The log-determinant is 0.

    Args:
        channels: C. (Maps next to it know their sizes by it.)
        factor: side of a square, at least 2.

    Raises:
        ValueError: not integers; on call, a height or width that is not a multiple of the factor.
    """

    def __init__(self, channels: int, factor: int = 2) -> None:
        super().__init__()
        self.channels = whole("channels", channels)
        self.factor = whole("factor", factor, low=2)
        self.event_shape = (self.channels, None, None)

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        return (self.channels * self.factor**2, None, None)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            expected = f"height and width that are multiples of {self.factor}"
            reject("x", expected, f"{x.shape[-2]} x {x.shape[-1]}")
        # `pixel_unshuffle` and `pixel_shuffle` do the same, but not to an empty batch.
        *batch, channels, height, width = x.shape
        k = self.factor
        squares = x.reshape(*batch, channels, height // k, k, width // k, k)
        return squares.movedim((-3, -1), (-4, -3)).flatten(-5, -3), x.new_zeros(batch)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        *batch, _, height, width = z.shape
        k = self.factor
        squares = z.unflatten(-3, (self.channels, k, k)).movedim((-4, -3), (-3, -1))
        x = squares.reshape(*batch, self.channels, height * k, width * k)
        return x, z.new_zeros(batch)


class OnHalf(Bijection):
    """Apply a map to the second half of the channels: z = (x_1, f(x_2)).

    Args:
        bijection: a map of images that keeps their shape, or a map of single numbers.

    Raises:
        ValueError: not a bijection, or one that changes the shape; on call, an odd number of
            channels.
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        if not isinstance(bijection, Bijection):
            reject("bijection", "a Bijection", type(bijection).__name__)
        if bijection.latent_shape != bijection.event_shape or bijection.event_dim not in (0, 3):
            got = f"{bijection.event_shape} to {bijection.latent_shape}"
            reject("bijection", "a map of numbers or images that keeps their shape", got)
        self.bijection = bijection
        self.context_features = bijection.context_features
        channels, *sides = bijection.event_shape or (None, None, None)
        self.event_shape = (channels and 2 * channels, *sides)

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        self.bijection.initialise(self._halves("x", x)[1], context)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        first, second = self._halves("x", x)
        second, log_det = self.bijection(second, context)
        return self._joined(first, second, log_det)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        first, second = self._halves("z", z)
        second, log_det = self.bijection.inverse(second, context)
        return self._joined(first, second, log_det)

    def _halves(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        if value.shape[-3] % 2:
            reject(name, "an even number of channels", value.shape[-3])
        return value.chunk(2, dim=-3)

    def _joined(self, first: Tensor, second: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        if second.shape != first.shape:  # sizes that were not known beforehand
            reject("bijection", f"a map to {tuple(first.shape[-3:])}", tuple(second.shape[-3:]))
        return torch.cat([first, second], dim=-3), sum_event(log_det, 3 - self.bijection.event_dim)


class LogitMargin(Bijection):
    """z = logit(alpha + (1 - 2 alpha) x), from [0, 1] to R, with finite slope at both ends.

    The image of [0, 1] is [-c, c], c = logit(1 - alpha). The mass that a base on R has beyond c is
    that of x outside of [0, 1]: forward has log_det = -inf there and zero gradient, and inverse
    returns such an x with log_det = inf. A small alpha makes this mass small.

    Args:
        alpha: the margin, below 1/2.

    Raises:
        ValueError: alpha is not in (0, 1/2).

    Source: Papamakarios, Pavlakou and Murray (2017).
    """

    def __init__(self, alpha: float = 1e-6) -> None:
        super().__init__()
        self.alpha = number("alpha", alpha)
        if self.alpha >= 0.5:
            reject("alpha", "a number below 1/2", alpha)
        self.sigmoid = Sigmoid()

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        inside, width = (x >= 0) & (x <= 1), 1 - 2 * self.alpha
        x = x.clamp(0, 1)
        z, log_det = self.sigmoid.quantile(
            self.alpha + width * x,
            self.alpha + width * (1 - x),
        )
        # `clamp` passes the gradient on the ends themselves, where the slope is finite.
        return z, minus_inf_unless(inside, log_det + math.log(width))

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        width = 1 - 2 * self.alpha
        below, above, log_det = self.sigmoid.shares(z)
        x = torch.where(
            above < below, 1 - (above - self.alpha) / width, (below - self.alpha) / width
        )
        return x, -minus_inf_unless((x >= 0) & (x <= 1), math.log(width) - log_det)


class Dequantise:
    """Integers k in {0, ..., levels - 1} to numbers x = (k + u) / levels, u uniform on [0, 1).

    A density p of x gives the integers the probability of their cells, and Jensen's inequality

        log P(k) = log E_u p(x) - D log levels  >=  E_u log p(x) - D log levels .

    So the mean of log p(x) - D log levels is a lower bound; `bits_per_dim` reports it.

    Args:
        levels: number of values of a pixel, 256 for 8 bits.

    Raises:
        ValueError: not an integer of at least 2.

    Source: Theis, van den Oord and Bethge (2016).
    """

    def __init__(self, levels: int = 256) -> None:
        self.levels = whole("levels", levels, low=2)

    def dequantise(
        self, images: Integer[Tensor, "..."], generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """x in [0, 1], in torch's default precision; `quantise` returns exactly the images.

        Args:
            images: integers of any shape.
            generator: source of randomness, on the device of the images.

        Raises:
            ValueError: not integers, or outside of {0, ..., levels - 1}.
        """
        if not isinstance(images, Tensor) or images.is_floating_point() or images.is_complex():
            reject("images", "a tensor of integers", getattr(images, "dtype", type(images)))
        if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < self.levels:
            got = f"{int(images.min())} to {int(images.max())}"
            reject("images", f"integers from 0 to {self.levels - 1}", got)
        u = torch.rand(images.shape, generator=generator, device=images.device)
        x = (images + u) / self.levels
        # Rounding carries one point in a million over the edge of its cell: back to the middle.
        return torch.where(self.quantise(x) == images, x, (images + 0.5) / self.levels)

    def quantise(self, x: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The integers floor(x levels), those of x outside of [0, 1) being the nearest ones."""
        return (x * self.levels).floor().clamp(0, self.levels - 1).long()


def bits_per_dim(
    log_prob: Float[Tensor, "..."], features: int, levels: int = 256
) -> Float[Tensor, "..."]:
    """log2 levels - log_prob / (D log 2): the code length of a pixel channel, in bits.

    Args:
        log_prob: log p(x) of dequantised images x in [0, 1]^D, in nats.
        features: D, channels times height times width.
        levels: number of values of a pixel.

    Returns:
        Bits, of the shape of `log_prob`. Noise gives log2 levels, and lower is better.

    Raises:
        ValueError: D or levels are not positive integers.
    """
    features, levels = whole("features", features), whole("levels", levels, low=2)
    return math.log2(levels) - log_prob / (features * math.log(2))


class ConvNet(nn.Module):
    """3x3, 1x1 and 3x3 convolutions with ReLU, the conditioner of a coupling layer on images.

    The last layer starts at zero. Context enters as one number per hidden channel, the same at
    every pixel.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        hidden: channels in between.
        context_features: length of the context, 0 for none.

    Raises:
        ValueError: sizes that are not positive integers.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int = 64, context_features: int = 0
    ) -> None:
        super().__init__()
        self.in_channels = whole("in_channels", in_channels)
        self.context_features = whole("context_features", context_features, low=0)
        hidden, out_channels = whole("hidden", hidden), whole("out_channels", out_channels)
        self.first = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, hidden, 1)
        self.last = nn.Conv2d(hidden, out_channels, 3, padding=1)
        self.context = nn.Linear(context_features, hidden) if context_features else None
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        inputs: Float[Tensor, "n in_channels height width"],
        context: Float[Tensor, "n context_features"] | None = None,
    ) -> Float[Tensor, "n out_channels height width"]:
        """Images of `out_channels` channels, of the same height and width.

        Raises:
            ValueError: other shapes; context missing or superfluous.
        """
        check_event("inputs", inputs, (self.in_channels, None, None))
        context = check_context(context, self.context_features, inputs, 3)
        h = self.first(inputs)
        if self.context is not None:
            h = h + self.context(context)[..., None, None]
        return self.last(self.second(h.relu()).relu())
