"""How well a flow inverts in the arithmetic that it runs in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lib.bijections.base import Bijection


@torch.no_grad()
def round_trip_error(
    bijection: Bijection, x: Float[Tensor, "..."], context: Float[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """Largest |x - f^-1(f(x))| of each event, shape ``(*batch)``; inf where it is not a number.

    A bijection of mathematics need not be one of floating-point numbers: rounding errors grow with
    the product of the slopes, so exponentially with depth. Worth a look during training.

    Source: Behrmann, Vicol, Wang, Grosse and Jacobsen (2021), section 3.
    """
    back, _ = bijection.inverse(bijection(x, context)[0], context)
    error = (back - x).abs().nan_to_num(torch.inf, torch.inf)
    dims = bijection.event_dim
    return error.flatten(-dims).amax(-1) if dims else error
