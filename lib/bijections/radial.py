"""The radial flow, with its inverse in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lib.bijections.base import Bijection
from lib.checks import whole


class Radial(Bijection):
    """The map that pushes points away from a centre x0, or pulls them in:

        z = x + beta (x - x0) / (alpha + r),   r = |x - x0|,   alpha > 0,   beta > -alpha .

    In terms of s = alpha + beta > 0 the radius becomes R = r (s + r) / (alpha + r), and

        log |det| = (D - 1) log(R / r) + log((r^2 + 2 alpha r + alpha s) / (alpha + r)^2)

    is made of positive terms. The inverse is the non-negative root of a quadratic equation,
    r^2 + (s - R) r - alpha R = 0. With alpha = softplus(a) and s = softplus(b) for free numbers a
    and b, the map is the identity at initialisation, around a random centre.

    Args:
        features: length D of x; 1 will do.
        context_features: length of the context. A linear map of it is added to (x0, a, b).

    Raises:
        ValueError: sizes that are not whole numbers.

    Source: Rezende and Mohamed (2015), equation 14 and appendix A.2.
    """

    def __init__(self, features: int, *, context_features: int = 0) -> None:
        super().__init__()
        self.event_shape = (whole("features", features),)
        self.context_features = whole("context_features", context_features, low=0)
        self.centre = nn.Parameter(torch.randn(features))
        self.a = nn.Parameter(torch.zeros(()))
        self.b = nn.Parameter(torch.zeros(()))
        if context_features:
            self.conditioner = nn.Linear(context_features, features + 2, bias=False)
            nn.init.zeros_(self.conditioner.weight)

    def _parameters_at(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x0, alpha and s; the last two at least the eps of the dtype, with a last dimension."""
        centre, a, b = self.centre, self.a[None], self.b[None]
        if context is not None:
            shifts = self.conditioner(context).split([len(centre), 1, 1], -1)
            centre, a, b = centre + shifts[0], a + shifts[1], b + shifts[2]
        eps = torch.finfo(centre.dtype).eps
        return centre, softplus(a) + eps, softplus(b) + eps

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        centre, alpha, s = self._parameters_at(context)
        offset = x - centre
        r = _norm(offset)
        return centre + offset * ((s + r) / (alpha + r)), self._log_det(r, alpha, s)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        centre, alpha, s = self._parameters_at(context)
        offset = z - centre
        R = _norm(offset)
        unit = (R + s + alpha).detach()  # lengths in units of this: no square overflows
        half = (R - s) / unit / 2
        product = (alpha / unit) * (R / unit)
        # The two roots have the product -alpha R: what is far from 0 is found without cancellation.
        size = torch.where(half >= 0, half, -half)
        far = size + (half.square() + product).sqrt()
        r = unit * torch.where(half >= 0, far, product / far)
        return centre + offset * ((alpha + r) / (s + r)), -self._log_det(r, alpha, s)

    def _log_det(self, r: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
        """The log-determinant at radius r, from the shares alpha and r have in alpha + r."""
        share, rest = alpha / (alpha + r), r / (alpha + r)
        stretch = s / (alpha + r)
        radial = rest * (1 + share) + share * stretch
        if self.event_shape[0] == 1:  # no direction but the radial one
            return radial.log()[..., 0]
        tangential = (rest + stretch).log()
        return ((self.event_shape[0] - 1) * tangential + radial.log())[..., 0]


def _norm(offset: Tensor) -> Tensor:
    """The length over the last dimension, which is kept; its gradient at 0 is 0.

    Long vectors are scaled before they are squared.
    """
    if offset.shape[-1] == 1:
        return offset.abs()
    scale = offset.detach().abs().amax(-1, keepdim=True).clamp(min=1)
    return scale * torch.linalg.vector_norm(offset / scale, dim=-1, keepdim=True)
