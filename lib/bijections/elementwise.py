"""Maps of single numbers: cumulative distribution functions, tanh, softplus, affine.

Each has both directions and the logarithm of its slope, stable in both tails. A bounded image has
two ends, and a float is not equally fine at both: near 0 floats go down to 1e-38, near 1 they are
6e-8 apart (float32; 1e-308 and 1e-16 in float64). So a logit is exact at both ends as a function
of the float that comes, but it reaches -87 at the lower end of (0, 1) and 16.6 at the upper one.

An inverse treats every end alike. Inside: exact. On an end: the value at the nearest float inside,
hence finite. Beyond: that same value, with log_det = -inf and zero gradient, so that
log p = base + log_det is -inf. Floats nearer to 0 than the smallest normal number count as that
number, as their reciprocal overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lib.bijections.base import Bijection, Inverse, sum_event
from lib.checks import floating, positive, reject

Numbers = Tensor | Sequence[float] | float

LOG_2PI = math.log(2 * math.pi)
MAX_LOG_SCALE = 60.0  # exp(60) = 1e26 leaves room on both sides of float32


def clamp_inside(
    x: Float[Tensor, "..."], low: Float[Tensor, "..."], high: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The float nearest to x of those strictly between low and high; zero gradient if moved.

    Args:
        x: any numbers.
        low: the lower end, which broadcasts with x.
        high: the upper end.

    Returns:
        x, at least one float and one smallest normal number away from both ends.
    """
    tiny = torch.finfo(x.dtype).tiny
    first = torch.maximum(torch.nextafter(low, high), low + tiny)
    last = torch.minimum(torch.nextafter(high, low), high - tiny)
    return x.clamp(first, last)


def minus_inf_unless(
    inside: Bool[Tensor, "..."], log_det: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """log_det, and -inf with zero gradient where `inside` is false."""
    return log_det.masked_fill(~inside, -math.inf)


class CDF(Bijection):
    """A cumulative distribution function F that is symmetric about 0, from R to (0, 1).

    A subclass writes `shares` and `quantile`. Both speak of F(x) and of 1 - F(x), as only the
    smaller of the two has all its digits.
    """

    def shares(
        self, x: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
        """F(x), 1 - F(x) and log F'(x)."""
        raise NotImplementedError

    def quantile(
        self, below: Float[Tensor, "..."], above: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """The x with F(x) = below and 1 - F(x) = above, both positive; and -log F'(x)."""
        raise NotImplementedError

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        below, _, log_det = self.shares(x)
        return below, log_det

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        share = clamp_inside(z, z.new_zeros(()), z.new_ones(()))
        x, log_det = self.quantile(share, 1 - share)
        return x, minus_inf_unless((z >= 0) & (z <= 1), log_det)


class Sigmoid(CDF):
    """The logistic function z = 1 / (1 + exp(-x)), from R to (0, 1).

    Its inverse, the logit, is `Logit`. log dz/dx = -softplus(x) - softplus(-x).
    """

    def shares(
        self, x: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
        return x.sigmoid(), (-x).sigmoid(), logsigmoid(x) + logsigmoid(-x)

    def quantile(
        self, below: Float[Tensor, "..."], above: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        low, high = below.log(), above.log()
        return low - high, -low - high


class Logit(Inverse):
    """z = log x - log(1 - x), from [0, 1] to R: `Sigmoid` backwards, -inf outside of [0, 1]."""

    def __init__(self) -> None:
        super().__init__(Sigmoid())


class NormalCDF(CDF):
    """The standard normal distribution function z = Phi(x), from R to (0, 1).

    log dz/dx = -x^2/2 - log(2 pi)/2. Its inverse takes uniform numbers to normal ones.
    """

    def shares(
        self, x: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
        t = x * math.sqrt(0.5)  # erfc keeps its digits where 1 + erf cancels
        return torch.erfc(-t) / 2, torch.erfc(t) / 2, -(x.square() + LOG_2PI) / 2

    def quantile(
        self, below: Float[Tensor, "..."], above: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        upper = above < below
        x = torch.special.ndtri(torch.where(upper, above, below))
        return torch.where(upper, -x, x), (x.square() + LOG_2PI) / 2


class SoftUniform(CDF):
    """The distribution function of U(-w/2, w/2) plus logistic noise, w = 64.

    Straight in the middle, bent by the noise only near both ends: what it maps to an interval keeps
    its shape, but for the last 1/64 at each end. With s = softplus,

        F(x) = (s(x + w/2) - s(x - w/2)) / w ,
        F'(x) = sigmoid(x + w/2) sigmoid(w/2 - x) (1 - exp(-w)) / w ,

    and F(x) = u at x + w/2 = log(exp(wu) - 1) - log(1 - exp(wu - w)).
    """

    width = 64.0
    constant = math.log1p(-math.exp(-width)) - math.log(width)

    def shares(
        self, x: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
        half = self.width / 2
        right, left = logsigmoid(-x - half), logsigmoid(half - x)  # minus softplus
        up, down = logsigmoid(x - half), logsigmoid(x + half)
        below, above = (left - right) / self.width, (down - up) / self.width
        return below, above, down + left + self.constant

    def quantile(
        self, below: Float[Tensor, "..."], above: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        upper = above < below
        u = self.width * torch.where(upper, above, below)  # at most w/2, but for rounding
        rest = (-torch.expm1(-u)).log() - torch.log1p(-torch.exp(u - self.width))
        x = u + rest - self.width / 2
        half = self.width / 2
        log_slope = logsigmoid(x + half) + logsigmoid(half - x) + self.constant
        return torch.where(upper, -x, x), -log_slope


class Tanh(Bijection):
    """z = tanh(x), from R to (-1, 1).

    log dz/dx = log(1 - z^2) = 2 (log 2 - x - softplus(-2x)), written so that both tails are alike:
    dz/dx = 4 sigmoid(2x) sigmoid(-2x).
    """

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.tanh(), math.log(4) + logsigmoid(2 * x) + logsigmoid(-2 * x)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        one = z.new_ones(())
        inner = clamp_inside(z, -one, one)
        low, high = torch.log1p(inner), torch.log1p(-inner)
        return (low - high) / 2, minus_inf_unless((z >= -1) & (z <= 1), -low - high)


class Softplus(Bijection):
    """z = log(1 + exp(x)), from R to (0, inf): exp at the left, the identity at the right.

    log dz/dx = -softplus(-x). Its inverse is x = z + log(1 - exp(-z)), which neither overflows at
    large z nor cancels at small z.
    """

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # torch's own softplus drops exp(-x) beyond x = 20, which float64 can see.
        return -logsigmoid(-x), logsigmoid(x)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        largest = z.new_full((), torch.finfo(z.dtype).max)
        inner = clamp_inside(z, z.new_zeros(()), largest)
        log_slope = (-torch.expm1(-inner)).log()
        return inner + log_slope, minus_inf_unless((z >= 0) & (z <= largest), -log_slope)


class Affine(Bijection):
    """z = (x - loc) / scale.

    Args:
        loc: one number, or one per feature.
        scale: positive; one number, or one per feature.
        learnable: whether loc and log scale are parameters. The scale is then held in
            [exp(-60), exp(60)].

    Raises:
        ValueError: NaN or infinite numbers, a scale that is not positive, lengths that differ.
    """

    def __init__(
        self, loc: Numbers = 0.0, scale: Numbers = 1.0, *, learnable: bool = False
    ) -> None:
        super().__init__()
        loc, scale = per_feature(loc=floating("loc", loc), scale=positive("scale", scale))
        self.event_shape = tuple(loc.shape)
        self.learnable = learnable
        if learnable:
            log_scale = scale.log()
            if float(log_scale.abs().max()) > MAX_LOG_SCALE:
                reject("scale", "numbers in [exp(-60), exp(60)]", f"maximum {scale.max():g}")
            dtype = torch.get_default_dtype()
            self.loc = nn.Parameter(loc.to(dtype))
            self.log_scale = nn.Parameter(log_scale.to(dtype))
        else:
            self.register_buffer("loc", loc)
            self.register_buffer("scale", scale)

    def _terms(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """loc, log scale, and log scale summed over each event of `like`."""
        if self.learnable:
            log_scale = self.log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
        else:
            log_scale = self.scale.log()
        loc, log_scale = self.loc.to(like.dtype), log_scale.to(like.dtype)
        return loc, log_scale, sum_event(log_scale.expand_as(like), self.event_dim)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale, log_det = self._terms(x)
        if self.learnable:  # a product: the slope of a quotient has the square of the scale
            return (x - loc) * (-log_scale).exp(), -log_det
        return (x - loc) / self.scale.to(x.dtype), -log_det

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale, log_det = self._terms(z)
        scale = log_scale.exp() if self.learnable else self.scale.to(z.dtype)
        return loc + scale * z, log_det


def per_feature(**numbers: Tensor) -> tuple[Tensor, ...]:
    """Copies of numbers, or vectors with one number per feature, broadcast with each other.

    Raises:
        ValueError: more than one dimension, or lengths that differ.
    """
    for name, value in numbers.items():
        if value.ndim > 1:
            reject(name, "one number or one per feature", f"shape {tuple(value.shape)}")
    try:
        same = torch.broadcast_tensors(*numbers.values())
    except RuntimeError:
        lengths = " and ".join(str(tuple(value.shape)) for value in numbers.values())
        reject(" and ".join(numbers), "one length", lengths)
    return tuple(value.detach().clone() for value in same)
