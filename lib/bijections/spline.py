"""The monotone rational-quadratic spline: one formula for an interval, the line and the circle.

What happens on one bin is in `lib.bijections.bins`; here the bins are put together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lib.bijections.bins import OnBin, Select, evaluate_bin, find, right_ends, rows, solve_bin
from lib.bijections.scalar import Params, ScalarMap
from lib.checks import floating, number, reject, whole

__all__ = ["ENDS", "RationalQuadratic", "evaluate_bin", "interval", "solve_bin"]

ENDS = ("free", "linear", "circular")


class RationalQuadratic(ScalarMap):
    """A spline from [low, high] onto itself, with three kinds of ends.

    - ``"free"``: the slopes at both ends are free, and nothing lies outside: log dz/dx = -inf
      there. For densities on an interval, with a uniform base.
    - ``"linear"``: outside, the map goes on as a straight line with the slope of the last chord.
    - ``"circular"``: numbers are angles, taken modulo high - low; the slopes at both ends are
      equal, and the circle is turned by a learned phase. A network sees cosine and sine.

    The slope at a knot is the harmonic mean of the chords beside it, times a factor in
    [1 / `steepness`, `steepness`]. Together with `min_bin` this bounds the derivative everywhere:
    see `slope_bounds`. (A floor under the slopes of the knots alone would not: between two steep
    knots a spline can be as flat as 2 s^2 / (s + d).)

    Args:
        bins: number K of bins.
        ends: one kind, or one for each feature.
        low: left end of the interval, one number or one for each feature.
        high: right end.
        min_bin: least width and height of a bin, as a share of the interval.
        steepness: largest ratio of a slope to the mean of its neighbouring chords.

    Raises:
        ValueError: low >= high, bins that do not fit, another kind of ends.

    Source: Gregory and Delbourgo (1982); Durkan, Bekasov, Murray and Papamakarios (2019), section
    3.1; circles: Rezende et al. (2020), section 3.1.
    """

    def __init__(
        self,
        bins: int = 8,
        *,
        ends: str | Sequence[str] = "linear",
        low: float | Sequence[float] | Tensor = -5.0,
        high: float | Sequence[float] | Tensor = 5.0,
        min_bin: float = 1e-3,
        steepness: float = 50.0,
    ) -> None:
        super().__init__()
        self.bins = whole("bins", bins, low=2)
        self.min_bin, self.steepness = number("min_bin", min_bin), number("steepness", steepness)
        if not self.min_bin * self.bins < 1:
            reject("min_bin", f"less than 1 / bins = {1 / self.bins:g}", min_bin)
        if not self.steepness > 1:
            reject("steepness", "a number greater than 1", steepness)
        if self.steepness > 1e12 * self.min_bin:  # the cube of a slope must be a float32
            reject("steepness", f"at most 1e12 min_bin = {1e12 * self.min_bin:g}", steepness)
        each = isinstance(ends, Iterable) and not isinstance(ends, str)
        kinds = list(ends) if each else [ends]
        if not kinds or any(kind not in ENDS for kind in kinds):
            reject("ends", f"one of {', '.join(ENDS)}, or one for each feature", repr(ends))
        self.ends = kinds[0] if len(set(kinds)) == 1 else tuple(kinds)
        low, high = interval(low, high)
        counts = {len(kinds)} if each else set()
        counts |= {len(low)} if low.ndim else set()
        if len(counts) > 1:
            reject("ends", f"one for each of {len(low)} features, as low and high", len(kinds))
        self.features = counts.pop() if counts else None
        self.low, self.high = None, None
        for name, side in (("low", low), ("high", high)):
            if side.ndim:
                delattr(self, name)
                self.register_buffer(name, side, persistent=False)
            else:
                setattr(self, name, float(side))
        self.knots = {"linear": bins - 1, "circular": bins}.get(self.ends, bins + 1)
        self.phased = "circular" in kinds
        self.groups = (bins, bins, self.knots, *[1] * self.phased)
        self.size = sum(self.groups)
        if not isinstance(self.ends, str):
            for name in ENDS:
                mask = torch.tensor([kind == name for kind in kinds])
                self.register_buffer(name, mask, persistent=False)

    @property
    def slope_bounds(self) -> tuple[float, float]:
        """Bounds of dz/dx that hold for all parameters and all points.

        With G the steepness, chords lie in [c, 1 / c], and the slope at a knot in [c / G, G / c],
        at most 2 G times a chord beside it. At a fixed xi, dz/dx is quasi-concave in d0 and in d1,
        so it is least where both are at an end of their range, and never below half of c / G.
        It is at most max(d0, d1, 2 s). Both bounds are reached in the limit, the lower for large G.
        """
        c, G = self.min_bin / (1 - (self.bins - 1) * self.min_bin), self.steepness
        return c / (2 * G), max(G, 2) / c

    def forward(self, x: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._map(x, params, backward=False)

    def inverse(self, z: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._map(z, params, backward=True)

    def part(self, features: list[int]) -> RationalQuadratic:
        if self.features is None:
            return self
        return RationalQuadratic(
            self.bins,
            ends=self.ends if isinstance(self.ends, str) else [self.ends[k] for k in features],
            low=self.low if isinstance(self.low, float) else self.low[features],
            high=self.high if isinstance(self.high, float) else self.high[features],
            min_bin=self.min_bin,
            steepness=self.steepness,
        )

    def embed(self, x: Tensor) -> Tensor:
        kinds = self._kinds(x.shape[1])
        if set(kinds) <= {"linear"}:
            return x
        low, high = self._bounds(x.dtype, (1,) * (x.ndim - 2))
        centred = 2 * (x - low) / (high - low) - 1
        columns = []
        for k, kind in enumerate(kinds):
            angle = math.pi * centred[:, k]
            plain = x[:, k] if kind == "linear" else centred[:, k]
            columns += [angle.cos(), angle.sin()] if kind == "circular" else [plain]
        return torch.stack(columns, 1)

    def columns(self, features: int) -> list[int]:
        kinds = self._kinds(features)
        return [k for k, kind in enumerate(kinds) for _ in range(1 + (kind == "circular"))]

    def _kinds(self, features: int) -> list[str]:
        return [self.ends] * features if isinstance(self.ends, str) else list(self.ends)

    def _bounds(self, dtype: torch.dtype, rest: tuple[int, ...]) -> tuple:
        if isinstance(self.low, float):
            return self.low, self.high
        return self.low.to(dtype).view(-1, *rest), self.high.to(dtype).view(-1, *rest)

    def extra_repr(self) -> str:
        return f"bins={self.bins}, ends={self.ends}"

    def _map(self, x: Tensor, params: Params, *, backward: bool) -> tuple[Tensor, Tensor]:
        given, dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
        # Features first: what is reduced over the bins then lies in contiguous rows.
        x = x.to(dtype).movedim(1, 0).contiguous()
        params = params.split(self.groups) if isinstance(params, Tensor) else params
        params = tuple(part.to(dtype).movedim(2, 1).contiguous() for part in params)
        low, high = self._bounds(dtype, (1,) * (x.ndim - 1))
        u = (x - low) / (high - low)
        if self.phased:
            u = self._turn(u, 0.0 if backward else params[-1][0])
        v, log_slope = self._unit(u, params, backward)
        if self.phased and backward:
            v = self._turn(v, -params[3][0])
        z = low + (high - low) * v
        free = self._is("free", x)
        if free is not False:
            z = self._pick(free, z.clamp(low, high), z)
            outside = (x < low) | (x > high)
            outside = outside if free is True else outside & free
            log_slope = log_slope.masked_fill(outside, math.inf if backward else -math.inf)
        return z.movedim(0, 1).to(given), log_slope.movedim(0, 1)

    def _unit(self, u: Tensor, params: tuple[Tensor, ...], backward: bool) -> tuple[Tensor, Tensor]:
        """The spline on [0, 1], and the straight lines beyond."""
        floor, inside = self.min_bin, u.clamp(0, 1)
        widths, heights, logits = params[0].softmax(0), params[1].softmax(0), params[2]
        x_ends, z_ends = right_ends(widths, floor), right_ends(heights, floor)
        k = find(z_ends if backward else x_ends, inside)
        index = self._beside(k)
        x_k, w = Select.apply(widths, x_ends, index, k, floor)
        z_k, h = Select.apply(heights, z_ends, index, k, floor)
        raw, bound = self._knots(logits, k), math.log(self.steepness)
        start, other = (z_k, x_k) if backward else (x_k, z_k)
        linear = self._is("linear", u)
        beyond = None if linear is False else self._pick(linear, u - inside, torch.zeros_like(u))
        inner, log_slope = OnBin.apply(inside - start, beyond, w, h, raw, bound, backward)
        return other + inner, log_slope

    def _beside(self, k: Tensor) -> Tensor:
        """The bins (before, k, after): on a circle the next one, at an end the bin itself."""
        circular, K = self._is("circular", k[0]), self.bins
        near = k + rows(-1, 2, k)
        stopped = near if circular is True else near.clamp(0, K - 1)
        around = near if circular is False else near % K
        return self._pick(circular, around, stopped).long()

    def _knots(self, logits: Tensor, k: Tensor) -> Tensor:
        """The parameters of the knots at both ends of bin k."""
        circular, linear = self._is("circular", k[0]), self._is("linear", k[0])
        K, knot = self.bins, k + rows(0, 2, k)
        index = knot
        if linear is True:  # the outer knots have no parameter
            index = (knot - 1).clamp(0, K - 2)
        elif circular is not False:
            index = self._pick(circular, knot % K, knot)
        chosen = logits.expand(-1, *k.shape[1:]).gather(0, index.long())
        if linear is not False:
            inner = (knot * (K - knot)).clamp(max=1)
            chosen = self._pick(linear, chosen * inner, chosen)
        return chosen

    def _turn(self, u: Tensor, phase: Tensor | float) -> Tensor:
        turned = u + phase
        return self._pick(self._is("circular", u), turned - turned.floor().detach(), u)

    def _is(self, kind: str, like: Tensor) -> bool | Tensor:
        """Whether features have ends of this kind: all, none, or a mask that broadcasts."""
        if isinstance(self.ends, str):
            return self.ends == kind
        return getattr(self, kind).view(-1, *(1,) * (like.ndim - 1))

    @staticmethod
    def _pick(mask: bool | Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(mask, yes, no) if isinstance(mask, Tensor) else yes if mask else no


def interval(
    low: float | Sequence[float] | Tensor, high: float | Sequence[float] | Tensor
) -> tuple[Tensor, Tensor]:
    """Both ends as float64 tensors of one shape, () or (features,); or a ``ValueError``."""
    low, high = floating("low", low).double(), floating("high", high).double()
    shapes = {tuple(low.shape), tuple(high.shape)} - {()}
    if len(shapes) > 1 or max(low.ndim, high.ndim) > 1:
        got = f"shapes {tuple(low.shape)} and {tuple(high.shape)}"
        reject("low and high", "numbers, or one for each feature", got)
    if not bool((low < high).all()) or not bool((high - low).isfinite().all()):
        reject("low", "numbers below high, a finite distance apart", f"{low}, high {high}")
    return tuple(side.clone() for side in torch.broadcast_tensors(low, high))
