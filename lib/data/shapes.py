"""Small pictures of coloured shapes: a law of factors, and a differentiable renderer."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from lib.checks import number, reject, whole

SHAPES = ("ellipse", "triangle", "square")
FACTORS = ("shape", "x", "y", "turn", "size", "red", "green", "blue")
CONCEPTS = {
    "shape": (0,),
    "position": (1, 2),
    "turn": (3,),
    "size": (4,),
    "colour": (5, 6, 7),
}
UPRIGHT = {name: columns for name, columns in CONCEPTS.items() if name != "turn"}
_LOW = (0.0, -0.35, -0.35, 0.0, 0.25, 0.2, 0.2, 0.2)
_HIGH = (3.0, 0.35, 0.35, 1.0, 0.42, 1.0, 1.0, 1.0)
_SPREAD = 0.1  # of the shape around 0.5, 1.5 and 2.5
_FOLD = (2, 3, 4)  # turns by 2 pi / fold leave a shape as it is


class Shapes:
    """One shape of one colour on black, in a picture that spans [-1, 1]^2 with y upwards.

    The factors are independent, and uniform on intervals; each picture has one vector of them:

    - `shape` in [0, 3): its floor is 0 ellipse, 1 triangle, 2 square. The rest of it does nothing;
      drawn within 0.1 of the middle, it makes the law continuous, as `Dequantise` does for pixels.
    - `x`, `y`: the centre, within 0.35 of the middle.
    - `turn` in [0, 1), a circle: counter-clockwise by 2 pi turn / k, k = 2, 3, 4 being the order of
      the symmetry. So a turn can always be seen, and 1 is 0.
    - `size`: radius of the disc of the same area. All shapes of one size have one area.
    - `red`, `green`, `blue` in [0.2, 1].

    Args:
        side: pixels of a side.
        edge: width of the soft edge, a scale of the logistic function; half a pixel by default.
        upright: whether nothing turns, the turn being 0.
        dtype: of the factors that are drawn.
        device: of the factors that are drawn.

    Attributes:
        low: lower ends of the box, ``(8,)``, in the order of `FACTORS`.
        high: upper ends.
        concepts: columns of the factors by concept, without the turn where nothing turns.

    Raises:
        ValueError: sides below two, an edge that is not positive, a dtype that is not floating.
    """

    features = len(FACTORS)

    def __init__(
        self,
        side: int = 16,
        *,
        edge: float | None = None,
        upright: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.side = whole("side", side, low=2)
        self.edge = 1 / self.side if edge is None else number("edge", edge)
        self.upright = upright
        self.concepts = UPRIGHT if upright else CONCEPTS
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            reject("dtype", "a floating-point dtype", dtype)
        self.dtype, self.device = dtype, torch.device(device)
        options = {"dtype": dtype, "device": self.device}
        self.low, self.high = torch.tensor(_LOW, **options), torch.tensor(_HIGH, **options)
        self.shape = (3, self.side, self.side)

    def sample(
        self, n: int, generator: torch.Generator | None = None, *, bias: float = 0.0
    ) -> Float[Tensor, "n 8"]:
        """Factors, drawn independently.

        Args:
            n: how many.
            generator: source of randomness, on the device of the factors.
            bias: probability that the shape decides on the colour: its own channel (ellipse red,
                triangle green, square blue) then swaps places with the largest.

        Raises:
            ValueError: `n` below one, a bias outside [0, 1].
        """
        if not 0 <= number("bias", bias, zero=True) <= 1:
            reject("bias", "a probability", bias)
        options = {"generator": generator, "dtype": self.dtype, "device": self.device}
        u = torch.rand(whole("n", n), self.features, **options)
        factors = self.low + (self.high - self.low) * u
        middle = factors[:, 0].floor() + 0.5
        factors[:, 0] = middle + 2 * _SPREAD * (factors[:, 0] - middle)
        # Rounding may carry a factor onto the open end of its interval.
        factors = torch.minimum(factors, torch.nextafter(self.high, self.low))
        colour, own = factors[:, 5:], factors[:, :1].long()
        largest = colour.argmax(1, keepdim=True)
        swapped = colour.scatter(1, largest, colour.gather(1, own))
        swapped = swapped.scatter(1, own, colour.gather(1, largest))
        decided = torch.rand(n, 1, **options) < bias
        factors[:, 5:] = torch.where(decided, swapped, colour)
        if self.upright:
            factors[:, 3] = 0
        return factors

    def log_prob(self, factors: Float[Tensor, "*batch 8"]) -> Float[Tensor, "*batch"]:
        """log p of factors without bias: a constant where they can be, -inf elsewhere.

        Where nothing turns, it is the density of the seven others.

        Raises:
            ValueError: another last dimension.
        """
        self._check(factors)
        low, high = self.low.to(factors), self.high.to(factors)
        near = (factors[..., 0] % 1 - 0.5).abs() <= _SPREAD
        inside = near & ((factors >= low) & (factors < high)).all(-1)
        if self.upright:
            inside &= factors[..., 3] == 0  # the turn's interval has length 1: its log is 0
        log_volume = (high - low)[1:].log().sum() + math.log(3 * 2 * _SPREAD)
        return torch.where(inside, -log_volume, -math.inf)

    def embed(self, factors: Float[Tensor, "*batch 8"]) -> Float[Tensor, "*batch 11"]:
        """Factors as numbers that can be averaged, for least squares.

        The shape as one of three, x and y, cosine and sine of the turn, then size and colour; what
        has ends is scaled to [-1, 1].
        """
        self._check(factors)
        low, high = self.low.to(factors), self.high.to(factors)
        scaled = (2 * factors - low - high) / (high - low)
        shape = one_hot(factors[..., 0].long().clamp(0, 2), 3).to(factors)
        angle = 2 * math.pi * factors[..., 3:4]
        parts = [shape, scaled[..., 1:3], angle.cos(), angle.sin(), scaled[..., 4:]]
        return torch.cat(parts, -1)

    def clip(self, factors: Float[Tensor, "*batch 8"]) -> Float[Tensor, "*batch 8"]:
        """The nearest factors in the box, for the output of networks: the open ends stay open."""
        self._check(factors)
        low, high = self.low.to(factors), self.high.to(factors)
        return torch.maximum(torch.minimum(factors, torch.nextafter(high, low)), low)

    def render(self, factors: Float[Tensor, "*batch 8"]) -> Float[Tensor, "*batch 3 side side"]:
        """Pictures with values in [0, 1]; differentiable in all factors but the shape.

        The turn is taken modulo one; other factors outside of the box are drawn as they are.

        Raises:
            ValueError: another last dimension, NaN or infinite factors, a shape outside [0, 3).
        """
        self._check(factors)
        if not bool(torch.isfinite(factors).all()):
            reject("factors", "finite numbers", "NaN or infinity")
        flat = factors.reshape(-1, self.features)
        which = flat[:, 0].detach().floor().long()
        if flat.numel() and not 0 <= int(which.min()) <= int(which.max()) <= 2:
            low, high = float(flat[:, 0].min()), float(flat[:, 0].max())
            reject("factors", "shapes in [0, 3)", f"{low:g} to {high:g}")
        inside = torch.sigmoid(-self._distance(flat, which) / self.edge)
        pictures = flat[:, 5:, None, None] * inside[:, None]
        return pictures.reshape(*factors.shape[:-1], *self.shape)

    def _check(self, factors: Tensor) -> None:
        if factors.ndim == 0 or factors.shape[-1] != self.features:
            reject("factors", "a last dimension of 8", tuple(factors.shape))

    def _distance(self, flat: Tensor, which: Tensor) -> Tensor:
        """Signed distance of each pixel to the edge, negative inside; exact for straight edges.

        Beyond a corner it is the larger of the distances to the two lines.
        """
        fold = flat.new_tensor(_FOLD)[which]
        angle = 2 * math.pi * flat[:, 3] / fold
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        line = (torch.arange(self.side, device=flat.device) + 0.5) * (2 / self.side) - 1
        line = line.to(flat)
        across = line[None, None, :] - flat[:, 1, None, None]
        up = -line[None, :, None] - flat[:, 2, None, None]
        size = flat[:, 4, None, None]
        u, v = (cos * across + sin * up) / size, (cos * up - sin * across) / size
        distance = torch.zeros_like(u)
        for k, edge_of in enumerate((_ellipse, _triangle, _square)):
            rows = (which == k).nonzero()[:, 0]
            distance = distance.index_copy(0, rows, edge_of(u[rows], v[rows]))
        return size * distance


# Each has the area of the unit disc, pi.


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    """Axes sqrt 2 and 1 / sqrt 2; the distance to first order, value over slope."""
    a2, b2 = 2.0, 0.5
    tiny = torch.finfo(u.dtype).tiny
    level = (u.square() / a2 + v.square() / b2).clamp(min=tiny).sqrt()
    slope = (u.square() / a2**2 + v.square() / b2**2).clamp(min=tiny).sqrt()
    return level * (level - 1) / slope


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    """Equilateral; its area is 3 sqrt 3 r^2 for the inner radius r."""
    half = math.sqrt(3) / 2
    across = torch.maximum(half * u - v / 2, -half * u - v / 2)
    return torch.maximum(across, v) - math.sqrt(math.pi / (3 * math.sqrt(3)))


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - math.sqrt(math.pi) / 2
