"""Base laws of flows: modules that move with the flow, and sample from a given generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from lib.bijections.base import sum_event
from lib.checks import reject, whole


class Base(nn.Module):
    """Independent numbers of one law, standard in each coordinate.

    Args:
        event_shape: sizes of one latent; an integer is the length of a vector.

    Raises:
        ValueError: sizes below one.
    """

    support = constraints.real

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        sizes = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.event_shape = torch.Size(whole("event_shape", size) for size in sizes)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # dtype and device

    def log_prob(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p(z) in nats, shape ``(*batch)``."""
        return sum_event(self._log_density(z), len(self.event_shape))

    def sample(
        self, sample_shape: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """Independent samples, shape ``(*sample_shape, *event)``."""
        options = {"dtype": self.anchor.dtype, "device": self.anchor.device}
        return self._draw((*sample_shape, *self.event_shape), generator, options)

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}"

    def _log_density(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def _draw(self, shape: tuple, generator: torch.Generator | None, options: dict) -> Tensor:
        raise NotImplementedError


class StandardNormal(Base):
    """N(0, I)."""

    def _log_density(self, z: Tensor) -> Tensor:
        return -0.5 * z * z - 0.5 * math.log(2 * math.pi)

    def log_prob(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        constant = 0.5 * math.log(2 * math.pi) * math.prod(self.event_shape)
        return -0.5 * sum_event(z * z, len(self.event_shape)) - constant

    def _draw(self, shape: tuple, generator: torch.Generator | None, options: dict) -> Tensor:
        return torch.randn(shape, generator=generator, **options)


class StandardLogistic(Base):
    """The law whose distribution function is the sigmoid."""

    def _log_density(self, z: Tensor) -> Tensor:
        return nn.functional.logsigmoid(z) + nn.functional.logsigmoid(-z)

    def _draw(self, shape: tuple, generator: torch.Generator | None, options: dict) -> Tensor:
        u = torch.rand(shape, generator=generator, dtype=torch.float64, device=options["device"])
        u = u.clamp(min=2.0**-54)  # a draw of exactly zero
        return (u.log() - (-u).log1p()).to(options["dtype"])


class Uniform(Base):
    """The uniform law on a box, edges included; -inf outside.

    Args:
        event_shape: sizes of one latent.
        low: lower end, a number or one for each entry.
        high: upper end.

    Raises:
        ValueError: low >= high.
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        low: float | Tensor = 0.0,
        high: float | Tensor = 1.0,
    ) -> None:
        super().__init__(event_shape)
        low, high = (torch.as_tensor(side, dtype=torch.float64) for side in (low, high))
        if not bool((low < high).all()) or not bool((high - low).isfinite().all()):
            reject("low", "finite numbers below high", f"{low}, high {high}")
        low, high = (side.expand(self.event_shape).clone() for side in (low, high))
        self.register_buffer("low", low, persistent=False)  # float64: as exact as it was given
        self.register_buffer("high", high, persistent=False)

    @property
    def support(self) -> constraints.Constraint:
        low, high = self.low.to(self.anchor.dtype), self.high.to(self.anchor.dtype)
        return constraints.interval(low, high)

    def _log_density(self, z: Tensor) -> Tensor:
        low, high = self.low.to(z.dtype), self.high.to(z.dtype)
        density = -(high - low).log().expand_as(z)
        return density.masked_fill((z < low) | (z > high), -math.inf)

    def _draw(self, shape: tuple, generator: torch.Generator | None, options: dict) -> Tensor:
        low, high = self.low.to(options["dtype"]), self.high.to(options["dtype"])
        share = torch.rand(shape, generator=generator, **options)
        return (low + (high - low) * share).clamp(low, high)


class AnyBase(Base):
    """A law of `torch.distributions` as a base, with the batch counted as part of the event.

    It stays on the device of its tensors, and samples from the global random state.
    """

    def __init__(self, law: Distribution) -> None:
        super().__init__((*law.batch_shape, *law.event_shape))
        self.law = law

    @property
    def support(self) -> constraints.Constraint:
        return self.law.support

    def log_prob(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return sum_event(self.law.log_prob(z), len(self.law.batch_shape))

    def _draw(self, shape: tuple, generator: torch.Generator | None, options: dict) -> Tensor:
        if generator is not None:
            reject("generator", "None, as torch.distributions take none", "a generator")
        return self.law.sample(shape[: len(shape) - len(self.event_shape)])
