"""A normal law cut to an interval, accurate however far out the interval lies."""

from __future__ import annotations

import torch
from scipy.special import ndtri_exp
from torch import Tensor

log_ndtr = torch.special.log_ndtr


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """log P(low < Z < high) of a standard normal Z, for low < high."""
    log_low, log_high, _ = _left(low, high)
    return log_high + (-torch.expm1(log_low - log_high)).log()


def quantile(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The value below which a standard normal law, cut to (low, high), has the probability u."""
    log_low, log_high, flip = _left(low, high)
    u = torch.where(flip, 1 - u, u)
    log_p = torch.logaddexp(log_low + torch.log1p(-u), log_high + u.log())
    z = torch.from_numpy(ndtri_exp(log_p.clamp(max=-1e-300).cpu().numpy())).to(u)
    return torch.where(flip, -z, z).clamp(low, high)


def _left(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log Phi at both ends, mirrored to the left side, where it keeps its digits."""
    flip = low + high > 0
    left, right = torch.where(flip, -high, low), torch.where(flip, -low, high)
    return log_ndtr(left), log_ndtr(right), flip
