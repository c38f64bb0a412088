"""Bijections from a support to R^k or to the unit box, for densities that end.

    Interval, HalfLine        per number, or per feature (a box is an `Interval` of vectors)
    Simplex, Ball, Segments   for vectors

Each `forward` takes a point of the support to the latent. Ends belong to the support and give
finite numbers; outside of it log_det = -inf, hence log p = -inf, with zero gradient in x. Bounds
given as numbers are kept in float64 and rounded to the precision of x when they meet it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import constraints

from lib.bijections.base import Bijection, check_event, sum_event
from lib.bijections.elementwise import (
    CDF,
    NormalCDF,
    Numbers,
    Sigmoid,
    Softplus,
    SoftUniform,
    clamp_inside,
    minus_inf_unless,
    per_feature,
)
from lib.checks import floating, number, reject, whole


class Inside(constraints.Constraint):
    """The support of a bijection as a constraint of `torch.distributions`."""

    def __init__(self, bijection: Support) -> None:
        self.bijection = bijection
        super().__init__()

    @property
    def event_dim(self) -> int:
        return self.bijection.event_dim

    def check(self, value: Tensor) -> Tensor:
        return self.bijection.contains(value)


class Support(Bijection):
    """A bijection that knows where its data live."""

    def contains(self, x: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Whether each event of ``(*batch, *event)`` lies in the support, its ends included."""
        raise NotImplementedError

    @property
    def support(self) -> constraints.Constraint:
        """The support as a constraint of `torch.distributions`, ends included."""
        return Inside(self)


class _Uniform(CDF):
    """F(x) = x on [0, 1]: the third choice of `Interval`."""

    def shares(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, 1 - x, torch.zeros_like(x)

    def quantile(self, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(above < below, 1 - above, below), torch.zeros_like(below)


KINDS: dict[str, type[CDF]] = {
    "logistic": Sigmoid,
    "normal": NormalCDF,
    "soft": SoftUniform,
    "uniform": _Uniform,
}


class Interval(Support):
    """z = F^-1((x - low) / (high - low)), from [low, high] to R or, uniform, to [0, 1].

    F is the distribution function of the base: with a base of the same kind the flow that does
    nothing else is the uniform density on the interval. The distance from the nearer end is what
    counts, so both ends saturate alike. A point on an end gets the z of the nearest float inside.
    The uniform kind is affine; its inverse continues beyond [0, 1].

    Args:
        low: lower ends: one number, or one per feature.
        high: upper ends, above the lower ones.
        kind: ``"logistic"`` (logit), ``"normal"`` (Phi^-1), ``"soft"`` (bent near the ends only,
            see `SoftUniform`) or ``"uniform"`` (onto [0, 1]).

    Raises:
        ValueError: NaN or infinite bounds, low not below high, lengths that differ, another kind.
    """

    def __init__(self, low: Numbers = 0.0, high: Numbers = 1.0, kind: str = "logistic") -> None:
        super().__init__()
        if kind not in KINDS:
            reject("kind", " or ".join(map(repr, KINDS)), repr(kind))
        low, high = per_feature(low=floating("low", low), high=floating("high", high))
        width = high - low
        if not bool(((width > 0) & width.isfinite()).all()):
            reject("low and high", "low < high, a finite distance apart", f"{low} and {high}")
        self.event_shape = tuple(low.shape)
        self.kind = kind
        self.cdf = KINDS[kind]()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    @property
    def support(self) -> constraints.Constraint:
        if not self.event_dim:
            return constraints.interval(self.low, self.high)
        dtype = torch.get_default_dtype()  # vectors in float64 would make all that meets them so
        ends = constraints.interval(self.low.to(dtype), self.high.to(dtype))
        return constraints.independent(ends, 1)

    def contains(self, x: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        inside = (x >= self.low.to(x.dtype)) & (x <= self.high.to(x.dtype))
        return inside.all(-1) if self.event_dim else inside

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ends = (self.low, self.high, self.high - self.low)
        return tuple(end.to(like.dtype) for end in ends)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        low, high, width = self._ends(x)
        inside = self.contains(x)
        x = _without_gradient_unless(inside, x, self.event_dim)
        x = x.clamp(low, high) if self.kind == "uniform" else clamp_inside(x, low, high)
        # A wide interval may push the share of one float below the smallest normal number.
        least = 0.0 if self.kind == "uniform" else torch.finfo(x.dtype).tiny
        below, above = ((x - low) / width).clamp(min=least), ((high - x) / width).clamp(min=least)
        z, log_det = self.cdf.quantile(below, above)
        return z, minus_inf_unless(inside, sum_event(log_det - width.log(), self.event_dim))

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        low, high, width = self._ends(z)
        below, above, log_det = self.cdf.shares(z)
        x = torch.where(above < below, high - width * above, low + width * below)
        return x, sum_event(log_det + width.log(), self.event_dim)


class HalfLine(Support):
    """x = edge + sign softplus(sign z), from [edge, inf) for sign 1 or (-inf, edge] for -1 to R.

    It increases for either sign, and far from the edge it is the shift z = x - edge, so that the
    far tail of the density is the base's own; a logarithm would turn it into that of a log-normal.

    Args:
        edge: where the support ends: one number, or one per feature.
        sign: 1 for a support above the edge, -1 for one below.

    Raises:
        ValueError: a NaN or infinite edge, another sign.
    """

    def __init__(self, edge: Numbers = 0.0, sign: int = 1) -> None:
        super().__init__()
        if sign not in (1, -1):
            reject("sign", "1 or -1", sign)
        (edge,) = per_feature(edge=floating("edge", edge))
        self.event_shape = tuple(edge.shape)
        self.sign = sign
        self.softplus = Softplus()
        self.register_buffer("edge", edge)

    @property
    def support(self) -> constraints.Constraint:
        if self.sign < 0:
            return Inside(self)  # torch has no "less than or equal"
        if not self.event_dim:
            return constraints.greater_than_eq(self.edge)
        edge = self.edge.to(torch.get_default_dtype())
        return constraints.independent(constraints.greater_than_eq(edge), 1)

    def contains(self, x: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        inside = (self.sign * (x - self.edge.to(x.dtype)) >= 0) & x.isfinite()
        return inside.all(-1) if self.event_dim else inside

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        edge, inside = self.edge.to(x.dtype), self.contains(x)
        largest = edge.new_full((), torch.finfo(x.dtype).max)
        x = _without_gradient_unless(inside, x, self.event_dim)
        # Clamped on the scale of x, where the nearest float beyond the edge is known.
        x = self.sign * clamp_inside(self.sign * x, self.sign * edge, largest)
        distance = (self.sign * (x - edge)).clamp(max=torch.finfo(x.dtype).max)
        z, log_det = self.softplus.inverse(distance)
        return self.sign * z, minus_inf_unless(inside, sum_event(log_det, self.event_dim))

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        distance, log_det = self.softplus(self.sign * z)
        return self.edge.to(z.dtype) + self.sign * distance, sum_event(log_det, self.event_dim)


class Simplex(Support):
    """z = V' log x, from shares x of D things that sum to 1 to R^(D-1): the isometric log-ratio.

    The columns of V are orthonormal and each sums to 0; x = softmax(V z). Equal shares go to 0, and
    no share is preferred: a permutation of x is a rotation or reflection of z. Each share keeps its
    own digits down to the smallest float, as nothing is subtracted from 1.

    The log-determinant is relative to the Lebesgue measure of the first D-1 coordinates, the
    convention of `torch.distributions.Dirichlet`: -log det = log(D)/2 + sum_i log x_i over all D.
    The sum may be off by 1e-6, as in `constraints.simplex`.

    Args:
        features: D, at least 2.

    Raises:
        ValueError: D is not an integer of at least 2.

    Source: Egozcue, Pawlowsky-Glahn, Mateu-Figueras and Barcelo-Vidal (2003).
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = whole("features", features, low=2)
        self.event_shape = (self.features,)
        k = torch.arange(1, self.features, dtype=torch.float64)
        row = torch.arange(self.features)[:, None]
        # Column k compares the mean of the first k logarithms with the next one (Helmert).
        V = torch.where(row < k, 1 / k, torch.where(row == k, -1.0, 0.0)) * (k / (k + 1)).sqrt()
        self.register_buffer("V", V)

    @property
    def latent_shape(self) -> tuple[int | None, ...]:
        return (self.features - 1,)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.simplex

    def contains(self, x: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return constraints.simplex.check(x)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        inside = self.contains(x)
        x = _without_gradient_unless(inside, x, 1)
        logs = x.clamp(torch.finfo(x.dtype).tiny, 1.0).log()
        log_det = -logs.sum(-1) - math.log(self.features) / 2
        return logs @ self.V.to(x.dtype), minus_inf_unless(inside, log_det)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        logs = (z @ self.V.to(z.dtype).T).log_softmax(-1)
        return logs.exp(), logs.sum(-1) + math.log(self.features) / 2


class Ball(Support):
    """z = y / sqrt(1 - |y|^2) with y = x / radius, from the closed ball around 0 to R^D.

    Its inverse is y = z / sqrt(1 + |z|^2), and log det = -(D + 2)/2 log(1 - |y|^2) - D log radius.
    The edge is far, at |z| = 4e3 in float32. The bulk of a normal z, |z|^2 = D, stays 1/D inside of
    it, as the bulk of the uniform density does.

    Args:
        features: D.
        radius: of the ball.

    Raises:
        ValueError: D is not a positive integer, the radius not a positive number.
    """

    def __init__(self, features: int, radius: float = 1.0) -> None:
        super().__init__()
        self.features = whole("features", features)
        self.radius = number("radius", radius)
        self.event_shape = (self.features,)

    def contains(self, x: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        # A point that was put on the sphere is there up to the rounding of D squares.
        slack = (self.features + 2) * torch.finfo(x.dtype).eps
        return (x / self.radius).square().sum(-1) <= 1 + slack

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        inside = self.contains(x)
        y = torch.where(inside[..., None], x, 0.0) / self.radius
        gap = (1 - y.square().sum(-1)).clamp(min=torch.finfo(x.dtype).eps / 2)
        log_det = -(self.features + 2) / 2 * gap.log() - self.features * math.log(self.radius)
        return y / gap.sqrt()[..., None], minus_inf_unless(inside, log_det)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # Scaled by its largest entry, as |z|^2 overflows; the scale cancels, so no gradient.
        size = z.detach().abs().amax(-1, keepdim=True).clamp(min=1.0)
        y = z / size
        squares = size.pow(-2) + y.square().sum(-1, keepdim=True)  # (1 + |z|^2) / size^2
        log_det = -(self.features + 2) * (size.log() + squares.log() / 2).squeeze(-1)
        return self.radius * y / squares.sqrt(), log_det + self.features * math.log(self.radius)


class Segments(Support):
    """Line segments in the plane, laid end to end: a point x and its arc length s in [0, L].

    A density of s is one on the segments, per unit of length: log det = 0. Two uses:

    - one density of s on [0, L], with the usual `forward` and `inverse`. It ties together what
      happens to be neighbours in s: the end of one segment and the start of the next;
    - `split` a point into the segment i and t in [0, 1], model P(i) and p(t | i) with i as context,
      and `join`: log p(x) = log P(i) + log p(t | i) - log lengths[i]. Better where segments branch.

    A point is projected to the nearest segment. At a crossing the one with the lower index wins
    (up to rounding); the crossings have no length. s beyond [0, L] is taken to its nearer end.

    Args:
        vertices: shape ``(S, 2, 2)``: segment, start and end, coordinates.
        tolerance: largest distance from the segments that counts as on them; by default 1e-5 of
            the largest coordinate.

    Raises:
        ValueError: another shape, NaN, a segment without length, a tolerance that is negative.
    """

    event_shape = (2,)
    latent_shape = (1,)

    def __init__(
        self, vertices: Float[Tensor, "segments 2 2"], tolerance: float | None = None
    ) -> None:
        super().__init__()
        vertices = floating("vertices", vertices, ndim=3)
        if vertices.shape[1:] != (2, 2):
            reject("vertices", "shape (segments, 2, 2)", tuple(vertices.shape))
        self.register_buffer("vertices", vertices.detach().clone())
        if bool((self.lengths == 0).any()):
            reject("vertices", "segments with a length", "a start equal to its end")
        if tolerance is None:
            tolerance = 1e-5 * float(vertices.abs().max())
        self.tolerance = number("tolerance", tolerance, zero=True)

    @property
    def lengths(self) -> Float[Tensor, " segments"]:
        """Length of each segment."""
        return torch.linalg.vector_norm(self.vertices[:, 1] - self.vertices[:, 0], dim=-1)

    @property
    def knots(self) -> Float[Tensor, " knots"]:
        """Where the segments start in s, and after the last one the total length L."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0))

    def split(
        self, x: Float[Tensor, "*batch 2"]
    ) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """The nearest segment, the place on it from 0 to 1, and the distance from it.

        Raises:
            ValueError: x does not end in two coordinates.
        """
        check_event("x", x, self.event_shape)
        start, end = self.vertices.to(x.dtype).unbind(1)
        along, offset = end - start, x[..., None, :] - start
        t = ((offset * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
        index = (offset - t[..., None] * along).square().sum(-1).argmin(-1)
        t = t.gather(-1, index[..., None]).squeeze(-1)
        return index, t, torch.linalg.vector_norm(x - self.join(index, t), dim=-1)

    def join(
        self, index: Int[Tensor, "*batch"], t: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch 2"]:
        """The point at place t, from 0 to 1, of the segment with this index."""
        start, end = _rows(self.vertices.to(t.dtype), index).unbind(-2)
        t, along = t[..., None], end - start
        return torch.where(t > 0.5, end - (1 - t) * along, start + t * along)

    def contains(self, x: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return self.split(x)[2] <= self.tolerance

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # Far points come to the border of a box that is wide enough for them to stay off the map.
        reach = 1 + 2 * self.tolerance + 2 * self.vertices.abs().amax().to(x.dtype)
        index, t, distance = self.split(x.clamp(-reach, reach))
        inside = distance <= self.tolerance
        s = _rows(self.knots.to(x.dtype), index) + t * _rows(self.lengths.to(x.dtype), index)
        s = torch.where(inside, s, s.detach())
        return s[..., None], minus_inf_unless(inside, torch.zeros_like(s))

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        s, knots = z.squeeze(-1), self.knots.to(z.dtype)
        index = torch.searchsorted(knots[1:-1].contiguous(), s.detach().contiguous(), right=True)
        t = ((s - _rows(knots, index)) / _rows(self.lengths.to(z.dtype), index)).clamp(0, 1)
        return self.join(index, t), torch.zeros_like(s)


def _without_gradient_unless(inside: Tensor, x: Tensor, dims: int) -> Tensor:
    """x, with zero gradient for a whole event outside: also in its entries that are inside."""
    return torch.where(inside[(..., *(None,) * dims)], x, x.detach())


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index], without the wait for the device that a single index would cost."""
    return table[index[None]].squeeze(0)
