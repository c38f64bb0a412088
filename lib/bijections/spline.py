"""The monotone rational-quadratic spline: one formula for an interval, the line and the circle.

On a bin of width w and height h, with chord s = h / w, slopes d0 and d1 at its ends, and
xi = (x - x_k) / w, the map and its derivative are

    z     = z_k + h (s xi^2 + d0 xi (1 - xi)) / q
    dz/dx = s^2 (d1 xi^2 + 2 s xi (1 - xi) + d0 (1 - xi)^2) / q^2
    q     = s (xi^2 + (1 - xi)^2) + (d0 + d1) xi (1 - xi)

and nothing in them is subtracted. Neither is anything in the inverse, see `solve_bin`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lib.bijections.scalar import Params, ScalarMap, clamp
from lib.checks import floating, number, reject, whole

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
        return self._map(x, params, evaluate_bin, backward=False)

    def inverse(self, z: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        return self._map(z, params, solve_bin, backward=True)

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

    def _map(
        self, x: Tensor, params: Params, curve: Callable, *, backward: bool
    ) -> tuple[Tensor, Tensor]:
        given, dtype = x.dtype, torch.promote_types(x.dtype, torch.float32)
        # Features first: what is reduced over the bins then lies in contiguous rows.
        x = x.to(dtype).movedim(1, 0).contiguous()
        params = params.split(self.groups) if isinstance(params, Tensor) else params
        params = tuple(part.to(dtype).movedim(2, 1).contiguous() for part in params)
        low, high = self._bounds(dtype, (1,) * (x.ndim - 1))
        u = (x - low) / (high - low)
        if self.phased:
            u = self._turn(u, 0.0 if backward else params[-1][0])
        v, log_slope = self._unit(u, params, curve, backward)
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

    def _unit(
        self, u: Tensor, params: tuple[Tensor, ...], curve: Callable, backward: bool
    ) -> tuple[Tensor, Tensor]:
        """The spline on [0, 1], and the straight lines beyond."""
        floor = self.min_bin
        widths, heights, logits = params[:3]
        inside = u.clamp(0, 1)
        w_all, x_all = _bins(widths, floor)
        h_all, z_all = _bins(heights, floor)
        k = (inside >= (z_all if backward else x_all)[:-1]).sum(0, keepdim=True)
        linear = self._is("linear", u)
        index = torch.cat([self._beside(k, -1, u), k, self._beside(k, 1, u)])
        x_k, w0, w, w1 = _Select.apply(widths, w_all, x_all, index, floor)
        z_k, h0, h, h1 = _Select.apply(heights, h_all, z_all, index, floor)
        steep = self._steepness(logits, k, u)
        run = w / h
        d0, d1 = 2 * steep[0] / (w0 / h0 + run), 2 * steep[1] / (run + w1 / h1)
        if backward:
            inner, log_slope = curve(inside - z_k, w, h, d0, d1)
            v, slope = x_k + inner, run
        else:
            inner, log_slope = curve(inside - x_k, w, h, d0, d1)
            v, slope = z_k + inner, h / w
        if linear is not False:
            v = self._pick(linear, v + (u - inside) * slope, v)
        return v, log_slope

    def _beside(self, k: Tensor, step: int, like: Tensor) -> Tensor:
        """The bin before or after bin k: on a circle the next one, at an end the bin itself."""
        circular, K = self._is("circular", like), self.bins
        if circular is False:
            return (k + step).clamp(0, K - 1)
        around = (k + step) % K
        return self._pick(circular, around, (k + step).clamp(0, K - 1))

    def _steepness(self, logits: Tensor, k: Tensor, like: Tensor) -> Tensor:
        """The slopes at both ends of bin k, over the harmonic mean of the chords beside them."""
        circular, linear = self._is("circular", like), self._is("linear", like)
        K, index = self.bins, torch.cat([k, k + 1])
        if linear is True:  # the outer knots have no parameter
            index = (index - 1).clamp(0, K - 2)
        elif circular is not False:
            index = self._pick(circular, index % K, index)
        chosen = logits.expand(-1, *k.shape[1:]).gather(0, index)
        if linear is not False:
            outer = torch.cat([k == 0, k == K - 1])
            chosen = self._pick(linear, chosen.masked_fill(outer, 0.0), chosen)
        return clamp(chosen, "softsign", math.log(self.steepness)).exp()

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


@torch.no_grad()
def _bins(logits: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Sizes floor + share of K bins, share = (1 - K floor) softmax(logits): shares, right ends."""
    K, share = len(logits), logits.softmax(0).mul_(1 - len(logits) * floor)
    steps = floor * torch.arange(1, K + 1, dtype=logits.dtype, device=logits.device)
    return share, share.cumsum(0).add_(steps.view(K, *(1,) * (logits.ndim - 1)))


class _Select(torch.autograd.Function):
    """Start of bin k, and sizes of the bins (before, k, after) that the index holds.

    Autograd would fill a table of K rows with zeros for each number taken from it; written out,
    the derivative fills one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, share: Tensor, ends: Tensor, index: Tensor, floor: float
    ) -> tuple[Tensor, ...]:
        shape, k = (-1, *index.shape[1:]), index[1:2]
        chosen = share.expand(shape).gather(0, index) + floor
        start = ends.expand(shape).gather(0, (k - 1).clamp(min=0)).masked_fill(k == 0, 0.0)
        return start[0], *chosen.unbind(0)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        logits, share, _, index, ctx.floor = inputs
        ctx.save_for_backward(logits, share, index)

    @staticmethod
    def backward(ctx, start: Tensor, *chosen: Tensor) -> tuple[Tensor | None, ...]:
        logits, share, index = ctx.saved_tensors
        K = len(logits)
        total = 1 - K * ctx.floor
        row = torch.arange(K, device=index.device).view(K, *(1,) * (index.ndim - 1))
        grad = torch.where(row < index[1], start, 0.0).scatter_add_(0, index, torch.stack(chosen))
        grad = grad.sum_to_size(logits.shape)
        if torch.is_grad_enabled():  # a second derivative is wanted
            share = total * logits.softmax(0)
            grad = share * grad
            grad = torch.addcmul(grad, share, grad.sum(0), value=-1 / total)
        else:
            grad = grad.mul_(share)
            grad = grad.addcmul_(share, grad.sum(0), value=-1 / total)
        return grad, None, None, None, None


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


def evaluate_bin(
    offset: Tensor, w: Tensor, h: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    """z - z_k and log dz/dx at x - x_k = `offset`."""
    a = (offset / w).clamp(0, 1)
    return _curve(a, 1 - a, h, h / w, d0, d1)


def solve_bin(
    offset: Tensor, w: Tensor, h: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    """x - x_k and log dx/dz at z - z_k = `offset`.

    With u = offset / h and v = 1 - u, xi solves a quadratic whose discriminant over h^2 is

        q^2 + 4 s^2 u v,    q = d0 v - d1 u,

    a sum of non-negative terms. Of the two forms of the root, each sign of q has one that adds.
    """
    u, v = (offset / h).clamp(0, 1), ((h - offset) / h).clamp(0, 1)
    s = h / w
    q = d0 * v - d1 * u
    up, down = 2 * s * u, 2 * s * v
    total = q.abs() + (q * q + up * down).sqrt()
    small = torch.where(q >= 0, up, down)  # the smaller of xi and 1 - xi, but for a factor
    near, far = small / (total + small), total / (total + small)
    a, b = torch.where(q >= 0, near, far), torch.where(q >= 0, far, near)  # xi, 1 - xi
    return w * a, -_curve(a, b, h, s, d0, d1)[1]


def _curve(
    a: Tensor, b: Tensor, h: Tensor, s: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    """z - z_k and log dz/dx at xi = a, 1 - xi = b."""
    aa, ab, bb = a * a, a * b, b * b
    q = s * (aa + bb) + (d0 + d1) * ab
    ratio = s / q
    slope = ratio * ratio * (d1 * aa + 2 * s * ab + d0 * bb)
    return h * (s * aa + d0 * ab) / q, slope.log()
