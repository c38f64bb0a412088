"""Random numbers in the likeness of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal draws with the shape, dtype and device of `x`."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
