"""The Sylvester flow: planar flows that work together, invertible row by row."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lib.bijections.base import Bijection
from lib.bijections.linear import householder
from lib.bijections.planar import constrain, log_slope, solve_tanh
from lib.checks import reject, whole


class Sylvester(Bijection):
    """A residual layer of M hidden units in the span of M orthonormal columns:

        z = x + Q R tanh(v),   v = R~ Q^T x + b,   log |det| = sum_i log(1 + T_ii sech^2 v_i)

    with R and R~ upper triangular, T = R~ R. For T_ii > -1 the map is invertible: then

        v + T tanh v = R~ Q^T z + b

    is solved from the last row to the first, one scalar equation each (`solve_tanh`). The diagonal
    of R is constrained as u of a planar flow is (`constrain`). The identity at initialisation
    (R = 0), with Q from random reflections.

    Args:
        features: length D of x.
        hidden: number M <= D of hidden units, by default D.

    Raises:
        ValueError: sizes that are not positive whole numbers, or more hidden units than features.

    Source: van den Berg et al. (2018), equations 10 to 13, with Q as a product of reflections.
    """

    def __init__(self, features: int, *, hidden: int | None = None) -> None:
        super().__init__()
        features = whole("features", features)
        hidden = features if hidden is None else whole("hidden", hidden)
        if hidden > features:
            reject("hidden", f"at most features = {features}", hidden)
        self.event_shape = (features,)
        self.vectors = nn.Parameter(torch.randn(features, hidden))  # read below the diagonal
        self.outer = nn.Parameter(torch.zeros(hidden, hidden))  # R before its constraint
        self.inner = nn.Parameter(torch.randn(hidden, hidden) / math.sqrt(hidden))  # R~
        self.bias = nn.Parameter(torch.zeros(hidden))

    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Q (D, M), R and R~ (M, M), and the slopes 1 + T_ii (M)."""
        diagonal, slope = constrain(self.inner.diagonal()[:, None], self.outer.diagonal()[:, None])
        R = self.outer.triu(1) + torch.diag(diagonal[:, 0])
        return householder(self.vectors), R, self.inner.triu(), slope

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        Q, R, inner, slope = self.matrices()
        v = x @ Q @ inner.T + self.bias
        return x + v.tanh() @ R.T @ Q.T, log_slope(v, slope).sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        Q, R, inner, slope = self.matrices()
        T, c = inner @ R, z @ Q @ inner.T + self.bias
        rows: list[Tensor] = []
        for i in reversed(range(len(slope))):
            rest = c[..., i]
            if rows:
                rest = rest - torch.stack(rows, -1).tanh() @ T[i, i + 1 :]
            rows.insert(0, solve_tanh(slope[i] - 1, rest))
        v = torch.stack(rows, -1)
        return z - v.tanh() @ R.T @ Q.T, -log_slope(v, slope).sum(-1)
