"""One bin of a rational-quadratic spline: its curve both ways, its derivative, and its choice.

On a bin of width w and height h, with chord s = h / w, slopes d0 and d1 at its ends, and
xi = (x - x_k) / w, the map and its derivative are

    z     = z_k + h (s xi^2 + d0 xi (1 - xi)) / q
    dz/dx = s^2 (d1 xi^2 + 2 s xi (1 - xi) + d0 (1 - xi)^2) / q^2
    q     = s (xi^2 + (1 - xi)^2) + (d0 + d1) xi (1 - xi)

and nothing in them is subtracted. Neither is anything in the inverse, see `solve_bin`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from lib.bijections.scalar import clamp


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
    rising = q >= 0
    a, b = torch.where(rising, up, total), torch.where(rising, total, down)  # xi to 1 - xi
    a, b = a / (a + b), b / (a + b)
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


class OnBin(torch.autograd.Function):
    """`evaluate_bin` or `solve_bin`, with the slopes taken from the bins beside.

    ``apply(offset, beyond, w, h, raw, bound, backward)``: w and h hold the bins (before, this,
    after); raw a number for each end of the bin, whose slope is exp(clamp(raw)) times the harmonic
    mean of the chords on its two sides; beyond, or None, how far the point lies outside of the
    spline, which goes on with the slope of the chord.

    The derivative is written out: autograd would keep three times as many numbers and make twice
    as many passes over them. It consists of differentiable operations on the inputs, hence a second
    derivative is autograd's.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        offset: Tensor,
        beyond: Tensor | None,
        w: Tensor,
        h: Tensor,
        raw: Tensor,
        bound: float,
        backward: bool,
    ) -> tuple[Tensor, Tensor]:
        d0, d1 = _slopes(w / h, raw, bound)
        inner, log_slope = (solve_bin if backward else evaluate_bin)(offset, w[1], h[1], d0, d1)
        if beyond is not None:
            inner = inner + beyond * (w[1] / h[1] if backward else h[1] / w[1])
        return inner, log_slope

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        *given, ctx.bound, ctx.inverse = inputs
        ctx.save_for_backward(*given)

    @staticmethod
    def backward(ctx, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:
        offset, beyond, ws, hs, raw = ctx.saved_tensors
        run = ws / hs
        d0, d1 = _slopes(run, raw, ctx.bound)
        w, h = ws[1], hs[1]
        s = h / w
        if ctx.inverse:  # both shares from the side where they are exact
            a = solve_bin(offset, w, h, d0, d1)[0] / w
            b = solve_bin(h - offset, w, h, d1, d0)[0] / w
        else:
            a = (offset / w).clamp(0, 1)
            b = 1 - a
        # y = (z - z_k) / h and L = log dz/dx are functions of a, s, d0 and d1.
        up, down, turn = d1 * a, d0 * b, b - a
        y, rest = a * (s * a + down), b * (s * b + up)
        q = y + rest
        y, rest, in_q = y / q, rest / q, a * b / q
        top = up * a + 2 * s * a * b + down * b
        y_a = s * top / (q * q)
        L_a = 2 * ((up - down + s * turn) / top - turn * (d0 + d1 - 2 * s) / q)
        if ctx.inverse:  # z is given: a moves so that y stays
            grad_log = -grad_log
            of_a = w * grad + grad_log * L_a
            of_y = -of_a / y_a
            grad_offset, of_w = -of_y / h, w * a * grad
        else:
            of_y = h * grad
            of_a = of_y * y_a + grad_log * L_a
            grad_offset, of_w = of_a / w, -a * of_a
        # From here on with respect to logarithms. All of s, d0, d1 times c: y stays, L gains log c.
        in_top, both, twice = grad_log / top, of_y * in_q, 2 * grad_log * in_q
        of_d0 = d0 * (both * rest - twice) + down * b * in_top
        of_d1 = up * a * in_top - d1 * (both * y + twice)
        of_s = grad_log - of_d0 - of_d1
        grad_beyond = None
        if beyond is not None:
            grad_beyond = grad * (run[1] if ctx.inverse else s)
            of_s = of_s - beyond * grad_beyond if ctx.inverse else of_s + beyond * grad_beyond
        of_d = torch.stack([of_d0, of_d1])
        m0, m1 = of_d / (run[:2] + run[1:])
        before, this, after = m0 * run[0], (m0 + m1) * run[1] + of_s, m1 * run[2]
        grad_ws = -torch.stack([before, this - of_w, after]) / ws
        grad_hs = torch.stack([before, this + of_y * y, after]) / hs
        grad_raw = of_d / (1 + raw.abs() / ctx.bound) ** 2
        return grad_offset, grad_beyond, grad_ws, grad_hs, grad_raw, None, None


def _slopes(run: Tensor, raw: Tensor, bound: float) -> Tensor:
    """Slopes at both ends of a bin; `run` = w / h of the bins (before, this, after)."""
    return 2 * clamp(raw, "softsign", bound).exp() / (run[:2] + run[1:])


@torch.no_grad()
def right_ends(share: Tensor, floor: float) -> Tensor:
    """Where K bins end, whose sizes are floor + (1 - K floor) share."""
    ends = (share * (1 - len(share) * floor)).add_(floor)
    if ends.device.type != "cpu" or torch.compiler.is_compiling():
        return ends.cumsum(0)
    for before, row in pairwise(ends.unbind(0)):  # 2 to 12 times as fast as cumsum, which jumps
        row.add_(before)
    return ends


@torch.no_grad()
def find(ends: Tensor, point: Tensor) -> Tensor:
    """The bin in which a point of [0, 1] lies: a whole number in the dtype of the point, (1, ...).

    Comparisons give booleans, which are several times slower to make and to count.
    """
    return (point - ends[:-1]).sign_().clamp_min_(0).sum(0, keepdim=True)


def rows(start: int, stop: int, like: Tensor) -> Tensor:
    """start, ..., stop - 1 along the first dimension."""
    steps = torch.arange(start, stop, dtype=like.dtype, device=like.device)
    return steps.view(-1, *(1,) * (like.ndim - 1))


class Select(torch.autograd.Function):
    """Start of bin k, and sizes of the bins (before, k, after) that the index holds.

    Sizes are floor + (1 - K floor) share, and both results are linear in the shares. Autograd would
    fill a table of K rows with zeros for each number taken from it; written out, the derivative
    fills one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        share: Tensor, ends: Tensor, index: Tensor, k: Tensor, floor: float
    ) -> tuple[Tensor, Tensor]:
        shape = (-1, *index.shape[1:])
        start = ends.expand(shape).gather(0, index[:1]) * k.clamp(max=1)  # before bin 0: nothing
        sizes = share.expand(shape).gather(0, index).mul_(1 - len(share) * floor).add_(floor)
        return start[0], sizes

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        share, _, index, k, ctx.floor = inputs
        ctx.shape = share.shape
        ctx.save_for_backward(index, k)

    @staticmethod
    def backward(ctx, start: Tensor, sizes: Tensor) -> tuple[Tensor | None, ...]:
        index, k = ctx.saved_tensors
        K = ctx.shape[0]
        total = 1 - K * ctx.floor
        below = (k - rows(0, K, k)).clamp_min_(0).clamp_max_(1)  # 1 for each bin below k
        grad = below.mul_(total * start).scatter_add_(0, index, total * sizes)
        return grad.sum_to_size(ctx.shape), None, None, None, None
