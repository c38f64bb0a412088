"""One protocol for every invertible map: z, log_det = f(x, context), and f.inverse(z, context).

The change of variables turns a density of z into one of x:

    log p_x(x) = log p_z(f(x)) + log |det Df(x)| .
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from lib.checks import reject

Size = tuple[int | None, ...]


class Bijection(nn.Module):
    """An invertible, differentiable map with both log-determinants.

    A subclass sets `event_shape` (and `context_features` where it takes context) and writes
    `_forward` and `_inverse`, which see checked input.

    Attributes:
        event_shape: sizes of one data point x, ``None`` where any size will do; ``()`` for a map
            that acts on each number alone.
        context_features: length of the context, 0 for none.
    """

    event_shape: Size = ()
    context_features: int = 0

    @property
    def latent_shape(self) -> Size:
        """Sizes of one latent z: those of x, but for the few maps that reshape."""
        return self.event_shape

    @property
    def support(self) -> Constraint | None:
        """The domain as a `torch.distributions` constraint; None for the whole space."""
        return None

    @property
    def event_dim(self) -> int:
        """Number of dimensions of one data point; `log_det` has the dimensions before them."""
        return len(self.event_shape)

    def forward(
        self, x: Float[Tensor, "..."], context: Float[Tensor, "..."] | None = None
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """From data to latent.

        Args:
            x: data, shape ``(*batch, *event)``.
            context: shape ``(*batch, context_features)``, or one that expands to it; None where the
                map takes none.

        Returns:
            z, and log |det dz/dx| in nats of shape ``(*batch)``.

        Raises:
            ValueError: an event of another shape; integers; context missing, superfluous or of the
                wrong shape. (NaN is refused where a call may wait for the device: in `Flow`.)
        """
        return self._forward(x, self._check("x", x, self.event_shape, context))

    def inverse(
        self, z: Float[Tensor, "..."], context: Float[Tensor, "..."] | None = None
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """From latent to data; the log-determinant is minus that of `forward` at the same point."""
        return self._inverse(z, self._check("z", z, self.latent_shape, context))

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set what depends on data (an `ActNorm`) from a batch; most maps have nothing to set."""

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _check(
        self, name: str, value: Tensor, event: Size, context: Tensor | None
    ) -> Tensor | None:
        """The context, expanded to the batch of `value`; or a ``ValueError`` in words."""
        check_event(name, value, event)
        return check_context(context, self.context_features, value, len(event))


def check_event(name: str, value: Tensor, event: Size) -> None:
    """Whether a tensor of floating-point numbers ends in the sizes of an event."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        reject(name, "a tensor of floating-point numbers", got)
    if not event:
        return
    sizes = tuple(value.shape[value.ndim - len(event) :]) if value.ndim >= len(event) else None
    if sizes is None or any(n is not None and n != m for n, m in zip(event, sizes, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in event)
        reject(name, f"shape (*batch, {wanted})", tuple(value.shape))


def check_context(
    context: Tensor | None, features: int, value: Tensor, event_dim: int
) -> Tensor | None:
    """The context of shape ``(*batch, features)`` for a batch of values, or None for none."""
    if not features:
        if context is not None:
            reject("context", "None, as this map takes no context", "a context")
        return None
    if context is None:
        reject("context", f"a tensor of shape (*batch, {features})", "None")
    check_event("context", context, (features,))
    batch = value.shape[: value.ndim - event_dim]
    if context.shape[:-1] == batch:
        return context
    try:
        return context.expand(*batch, features)
    except RuntimeError:
        reject("context", f"a batch that expands to {tuple(batch)}", tuple(context.shape[:-1]))


def sum_event(log_det: Tensor, dims: int) -> Tensor:
    """Sum over the last `dims` dimensions, of which there may be none."""
    return log_det.flatten(-dims).sum(-1) if dims else log_det


class Compose(Bijection):
    """Apply maps one after the other: f = f_K o ... o f_1, log-determinants added up.

    Slices like a list: ``f[:3]``, ``f[-1]``, ``len(f)``, iteration.

    Args:
        parts: the maps, the one next to the data first; maps of single numbers mix with maps of
            vectors or images, and count as acting on each entry.

    Raises:
        ValueError: no maps, not maps, events or contexts that do not fit together.
    """

    def __init__(self, parts: Iterable[Bijection]) -> None:
        super().__init__()
        if not isinstance(parts, Iterable):
            reject("parts", "bijections, at least one", type(parts).__name__)
        parts = list(parts)
        if not parts or not all(isinstance(part, Bijection) for part in parts):
            got = ", ".join(type(part).__name__ for part in parts) or "none"
            reject("parts", "bijections, at least one", got)
        self.parts = nn.ModuleList(parts)
        contexts = {part.context_features for part in parts} - {0}
        if len(contexts) > 1:
            reject("parts", "one length of context", sorted(contexts))
        self.context_features = contexts.pop() if contexts else 0
        dims = max(part.event_dim for part in parts)
        for part in parts:
            if part.context_features and part.event_dim < dims:  # it would be taken for a batch
                got = f"{type(part).__name__} of {part.event_dim}"
                reject("parts", f"maps of {dims} dimensions where they take context", got)
        here: Size = (None,) * dims
        first: Size | None = None
        for part in parts:
            here = _merge(here, part.event_shape, part)
            if part.latent_shape != part.event_shape:
                first = here if first is None else first
                here = here[: dims - part.event_dim] + part.latent_shape
        self._latent_shape = here
        self.event_shape = here if first is None else first

    @property
    def latent_shape(self) -> Size:
        return self._latent_shape

    @property
    def support(self) -> Constraint | None:
        return self.parts[0].support

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total: Tensor | float = 0.0
        for part in self.parts:
            x, log_det = part(x, context if part.context_features else None)
            total = total + sum_event(log_det, self.event_dim - part.event_dim)
        return x, total

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total: Tensor | float = 0.0
        for part in reversed(self.parts):
            z, log_det = part.inverse(z, context if part.context_features else None)
            total = total + sum_event(log_det, self.event_dim - part.event_dim)
        return z, total

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        for part in self.parts:
            own = context if part.context_features else None
            part.initialise(x, own)
            with torch.no_grad():
                x, _ = part(x, own)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.parts)

    @overload
    def __getitem__(self, index: int) -> Bijection: ...
    @overload
    def __getitem__(self, index: slice) -> Compose: ...
    def __getitem__(self, index: int | slice) -> Bijection:
        if isinstance(index, slice):
            return Compose(list(self.parts)[index])
        return self.parts[index]


def _merge(a: Size, b: Size, part: Bijection) -> Size:
    """Sizes that satisfy both; `b` is aligned at the right."""
    b = (None,) * (len(a) - len(b)) + b
    if any(None not in (n, m) and n != m for n, m in zip(a, b, strict=True)):
        reject("parts", f"events that fit together, here {a}", f"{type(part).__name__} with {b}")
    return tuple(m if n is None else n for n, m in zip(a, b, strict=True))


class Inverse(Bijection):
    """The same map in the other direction: `forward` and `inverse` swapped."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        if not isinstance(bijection, Bijection):
            reject("bijection", "a Bijection", type(bijection).__name__)
        self.bijection = bijection
        self.event_shape = bijection.latent_shape
        self.context_features = bijection.context_features

    @property
    def latent_shape(self) -> Size:
        return self.bijection.event_shape

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse(x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.bijection(z, context)
