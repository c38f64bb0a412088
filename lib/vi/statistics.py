"""Sufficient statistics: all that the data say, in a few float64 numbers that lost no digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.checks import floating, positive, reject, whole

CHUNK = 2**18  # numbers that are in float64 at the same time
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class SufficientStatistics:
    """All that a normal sample says about its mean and precision.

    Args:
        n: number of observations, at least 2.
        mean: xbar, a float64 scalar.
        s2: the biased variance 1/n sum (x_i - xbar)^2, a float64 scalar.

    Raises:
        ValueError: n below 2, a mean that is not finite, or a variance that is not positive.
    """

    n: int
    mean: Float[Tensor, ""]
    s2: Float[Tensor, ""]

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole("n", self.n, low=2))
        for name in ("mean", "s2"):
            value = floating(name, getattr(self, name), ndim=0).double()
            object.__setattr__(self, name, value)
        positive("s2", self.s2)

    @classmethod
    def of(cls, x: Tensor) -> SufficientStatistics:
        """One pass over the data, in float64 whatever their dtype, with memory for one chunk.

        Chunks are joined by the update of Chan, Golub and LeVeque (1983, equation 2.1), which has
        none of the cancellation of mean(x^2) - mean(x)^2.

        Args:
            x: at least two numbers that differ, shape ``(n,)``.

        Returns:
            The statistics, on the device of `x`.

        Raises:
            ValueError: another shape, fewer than two numbers, NaN or infinity, or constant data.
        """
        x = x if isinstance(x, Tensor) else floating("x", x)
        if x.ndim != 1 or len(x) < 2:
            reject("x", "shape (n,) with n at least 2", f"shape {tuple(x.shape)}")
        n, mean, squares, varies = 0, 0.0, 0.0, False
        for chunk in x.split(CHUNK):
            part = floating("x", chunk).double()
            varies = varies or bool((part != x[0]).any())
            k, centre = len(part), part.mean()
            rest = part - centre
            apart = centre - mean
            squares = squares + rest @ rest - rest.sum() ** 2 / k + apart**2 * (n * k / (n + k))
            n, mean = n + k, mean + apart * (k / (n + k))
        if not varies or not 0 < float(squares) < math.inf:
            reject("x", "numbers whose variance is positive and finite", f"{float(squares) / n:g}")
        return cls(n, mean, squares / n)


@dataclass(frozen=True)
class RegressionStatistics:
    """All that the data say: ||y - X beta||^2 = rss + ||z - R beta||^2, with X = Q R and z = Q^T y.

    The triangle R stands for X^T X = R^T R without squaring the condition number, and the residual
    sum of squares is a sum of squares, not the cancelling difference y^T y - z^T z.

    Attributes:
        n: number of observations.
        R: upper triangular, float64, shape ``(r, d)`` with r = min(n, d).
        z: float64, shape ``(r,)``.
        rss: squared length of the part of y outside the range of Q, a float64 scalar. Where X has
            full column rank, the residual sum of squares.
        rank: numerical rank of X, its columns scaled to equal length.
    """

    n: int
    R: Float[Tensor, "r d"]
    z: Float[Tensor, " r"]
    rss: Float[Tensor, ""]
    rank: int

    @classmethod
    def of(cls, X: Tensor, y: Tensor) -> RegressionStatistics:
        """Reduce the data, in float64 whatever their dtype, to what inference needs.

        Args:
            X: design, with a column of ones if an intercept is meant, shape ``(n, d)``.
            y: responses, shape ``(n,)``.

        Raises:
            ValueError: shapes that do not fit, fewer than two observations, NaN, constant zero
                y, or sizes outside of 1e-120 to 1e120.
        """
        X, y = floating("X", X, ndim=2).double(), floating("y", y, ndim=1).double()
        n, d = X.shape
        if n < 2:
            reject("X", "at least two rows", f"shape {(n, d)}")
        if len(y) != n:
            reject("y", f"shape {(n,)}, one response for each row of X", f"shape {tuple(y.shape)}")
        if not bool(y.any()):
            reject("y", "responses that are not all zero", "zeros")
        for name, largest in (("X", X.abs().amax(0)), ("y", y.abs().max())):
            if bool(((largest > 0) & ((largest < 1e-120) | (largest > 1e120))).any()):
                got = f"{float(largest.min()):g} to {float(largest.max()):g}"
                reject(name, "columns whose largest size is between 1e-120 and 1e120", got)
        Q, R = torch.linalg.qr(X)
        z = Q.T @ y
        length = torch.linalg.vector_norm(R, dim=0)
        length = torch.where(length > 0, length, 1)
        scaled = R / length
        # Coefficients so large that X = Q R no longer holds when multiplied by them do not count.
        beta = torch.linalg.pinv(scaled, rtol=math.sqrt(EPS)) @ z / length
        rest = residual(X, y, beta)
        for _ in range(2):  # what is left in the range of Q, and the rounding of that
            rest = rest - Q @ (Q.T @ rest)
        rss = rest @ rest
        if float(rss) <= n * (8 * EPS * float(y.abs().max())) ** 2:
            rss = torch.zeros_like(rss)  # an exact fit, up to rounding
        rank = int(torch.linalg.matrix_rank(scaled, rtol=max(n, d) * EPS))
        return cls(n, R, z, rss, rank)

    @property
    def d(self) -> int:
        """Number of coefficients."""
        return self.R.shape[1]


def residual(
    X: Float[Tensor, "n d"], y: Float[Tensor, " n"], beta: Float[Tensor, " d"]
) -> Float[Tensor, " n"]:
    """y - X beta in float64, rounded as if it had been computed with twice the digits.

    Noise of a millionth of the signal would otherwise keep ten digits only. Each product and sum
    comes with its exact rounding error (Ogita, Rump and Oishi 2005, algorithm 5.3, Dot2).
    """
    total, lost = y, torch.zeros_like(y)
    for x, b in zip(X.T, -beta, strict=True):
        product = x * b
        (x1, x2), (b1, b2) = _split(x), _split(b)
        lost = lost + (x2 * b2 - (((product - x1 * b1) - x2 * b1) - x1 * b2))
        longer = total + product
        back = longer - total
        lost = lost + ((total - (longer - back)) + (product - back))
        total = longer
    return total + lost


def _split(a: Tensor) -> tuple[Tensor, Tensor]:
    """a = high + low, 26 bits each, whose products are exact (Dekker 1971, section 5)."""
    c = (2**27 + 1) * a
    high = c - (c - a)
    return high, a - high
