"""A bijection and a base law make a density that one can evaluate and sample.

    log p(x | context) = log p_z(f(x; context)) + log |det df/dx|

`Flow` is that density as a module; ``flow(context)`` is a `torch.distributions` law, and a Pyro one
where Pyro has been imported.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.func import functional_call

from lib.bijections.base import Bijection, check_context, check_event, sum_event
from lib.checks import reject, whole
from lib.flows.bases import AnyBase, Base, StandardNormal


class Flow(nn.Module):
    """A law on data space: the base law, pulled back through a bijection.

    Args:
        bijection: from data to latent.
        base: of the latent: a `Base`, a `torch.distributions` law, or None for N(0, I).
        support: where the law lives: a constraint; ``"base"`` where the bijection maps the support
            of the base onto itself; None asks the bijection for its domain.

    Attributes:
        event_shape: sizes of one data point.
        context_features: length of the context, 0 for none.

    Raises:
        ValueError: not a bijection, a base whose events do not fit, sizes that nothing tells.
    """

    def __init__(
        self,
        bijection: Bijection,
        base: Base | Distribution | None = None,
        *,
        support: constraints.Constraint | str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(bijection, Bijection):
            reject("bijection", "a Bijection", type(bijection).__name__)
        latent = bijection.latent_shape
        if base is None:
            if None in latent or not latent:
                reject("base", "a base law, as the bijection takes events of any size", "None")
            base = StandardNormal(latent)
        base = AnyBase(base) if isinstance(base, Distribution) else base
        if not isinstance(base, Base):
            reject("base", "a Base, a torch.distributions law or None", type(base).__name__)
        shape = tuple(base.event_shape)
        if len(latent) > len(shape) or not _fits(latent, shape[len(shape) - len(latent) :]):
            reject("base", f"events of shape {latent}", shape)
        # Sizes left open are those of the base; a base of more dimensions makes them events too.
        event = bijection.event_shape
        event = shape if event == latent else (*shape[: len(shape) - len(latent)], *event)
        if None in event:
            reject("bijection", "events of known sizes", event)
        if bijection.context_features and len(shape) > len(latent):
            reject("base", f"events of shape {latent}, as there is context", shape)
        self.bijection, self.base = bijection, base
        self.event_shape = torch.Size(event)
        self.context_features = bijection.context_features
        self._support = support

    @property
    def support(self) -> constraints.Constraint:
        """The set outside of which the density is zero."""
        own = self._support or self.bijection.support or constraints.real
        own = self.base.support if own == "base" else own
        return constraints.independent(own, len(self.event_shape) - own.event_dim)

    def log_prob(
        self, x: Float[Tensor, "..."], context: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "..."]:
        """log p(x | context) in nats, shape ``(*batch)``; -inf outside the support.

        Args:
            x: shape ``(*batch, *event)``.
            context: shape ``(*batch, context_features)``, or one that expands to it.

        Raises:
            ValueError: events or context of another shape or kind, or NaN.
        """
        self._check(x, context)
        compiling = torch.compiler.is_compiling()
        # The sum is finite where all numbers are (or it overflows, and the long way is taken).
        finite = None if not compiling and bool(x.sum().isfinite()) else x.isfinite()
        if finite is not None:
            if not compiling and bool(x.isnan().any()):
                reject("x", "numbers", f"{int(x.isnan().sum())} of {x.numel()} NaN")
            x = x.masked_fill(~finite, 0.0)
        z, log_det = self.bijection(x, context)
        extra = len(self.event_shape) - self.bijection.event_dim
        log_prob = self.base.log_prob(z) + sum_event(log_det, extra)
        outside = log_prob == -math.inf
        if finite is not None:
            outside = outside | ~finite.flatten(x.ndim - len(self.event_shape)).all(-1)
        return log_prob.masked_fill(outside, -math.inf)  # and no gradient

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] | int = (),
        context: Float[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "..."]:
        """Samples of shape ``(*sample_shape, *batch of the context, *event)``."""
        return self.sample_and_log_prob(sample_shape, context, generator)[0]

    def sample_and_log_prob(
        self,
        sample_shape: Sequence[int] | int = (),
        context: Float[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Samples, differentiable in the parameters, and their log-density.

        The density comes from the latents that were drawn: one call of each network, and a sample
        at the edge of the floating-point numbers is not mapped back.

        Raises:
            ValueError: context missing, superfluous or of another shape.
        """
        single = isinstance(sample_shape, int | float | str)
        shape = (sample_shape,) if single else tuple(sample_shape)
        shape = tuple(whole("sample_shape", size, low=0) for size in shape)
        self._check(None, context)
        if context is not None:
            shape = (*shape, *context.shape[:-1])
        z = self.base.sample(shape, generator)
        context = check_context(context, self.context_features, z, len(self.base.event_shape))
        x, log_det = self.bijection.inverse(z, context)
        extra = len(self.base.event_shape) - len(self.bijection.latent_shape)
        return x, self.base.log_prob(z) - sum_event(log_det, extra)

    def forward(self, context: Float[Tensor, "..."] | None = None) -> Distribution:
        """The law given a context, with the batch shape of the context."""
        shape = () if context is None else context.shape[:-1]
        law = _pyro_law() if "pyro" in sys.modules else FlowDistribution
        return law(self, context, torch.Size(shape))

    def _check(self, x: Tensor | None, context: Tensor | None) -> None:
        """What the bijection does not look at: the precision of x, and NaN in the context."""
        if x is not None:
            check_event("x", x, tuple(self.event_shape))
            weight = next(self.parameters(), x)
            if weight.dtype != x.dtype:
                reject("x", f"the precision of the flow, {weight.dtype}", x.dtype)
        if context is not None and self.context_features:
            check_event("context", context, (self.context_features,))
            if not torch.compiler.is_compiling() and bool(context.isnan().any()):
                reject("context", "numbers", f"{int(context.isnan().sum())} NaN")

    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the layers that start from data (`ActNorm`) from a batch."""
        self.bijection.initialise(x, context)


def _fits(sizes: Sequence[int | None], given: Sequence[int]) -> bool:
    return all(n in (None, m) for n, m in zip(sizes, given, strict=True))


class FlowDistribution(Distribution):
    """A flow at one context, as a `torch.distributions` law with reparameterised samples.

    As other laws, it holds the tensors that were its parameters when it was made, also where
    `functional_call` has only lent them to the flow. `log_prob` of the very tensor that `rsample`
    returned uses the latents that were drawn, as long as neither the tensor nor a parameter has
    changed since.
    """

    has_rsample = True
    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, flow: Flow, context: Tensor | None, batch_shape: torch.Size) -> None:
        self.flow, self.context, self._last = flow, context, None
        self._weights = dict(flow.named_parameters())
        # No validation: a point outside the support has log-density -inf.
        super().__init__(batch_shape, flow.event_shape, validate_args=False)
        check_context(context, flow.context_features, torch.zeros((*batch_shape, 1)), 1)

    @property
    def support(self) -> constraints.Constraint:
        return self.flow.support

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> FlowDistribution:
        context = self.context
        if context is not None:
            context = context.expand(*batch_shape, context.shape[-1])
        law = type(self)(self.flow, context, torch.Size(batch_shape))
        law._weights = self._weights
        return law

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = (
            tuple(sample_shape) if self.context is not None else (*sample_shape, *self.batch_shape)
        )
        x, log_prob = self._call("sample_and_log_prob", shape, self.context)
        self._last = (x, self._state(x), log_prob)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        if (
            self._last is not None
            and self._last[0] is value
            and self._last[1] == self._state(value)
        ):
            return self._last[2]
        check_event("value", value, tuple(self.event_shape))
        events = value.ndim - len(self.event_shape)
        batch = torch.broadcast_shapes(value.shape[:events], self.batch_shape)
        return self._call("log_prob", value.expand(*batch, *self.event_shape), self.context)

    def _call(self, method: str, *args: Any) -> Any:
        """A method of the flow at the parameters of this law."""
        now = dict(self.flow.named_parameters())
        if all(now[name] is w for name, w in self._weights.items()):
            return getattr(self.flow, method)(*args)
        lent = {f"flow.{name}": w for name, w in self._weights.items()}
        return functional_call(_Method(self.flow, method), lent, args)

    def _state(self, x: Tensor) -> tuple:
        """What must be the same for a kept density to be the right one."""
        weights = tuple(w._version for w in self._weights.values())
        return x._version, torch.is_grad_enabled(), weights


class _Method(nn.Module):
    """A method of a flow as a `forward`, which is what `functional_call` calls."""

    def __init__(self, flow: Flow, method: str) -> None:
        super().__init__()
        self.flow, self.method = flow, method

    def forward(self, *args: Any) -> Any:
        return getattr(self.flow, self.method)(*args)


@cache
def _pyro_law() -> type[FlowDistribution]:
    """The same law with the methods that Pyro asks of the laws of its sites."""
    from pyro.distributions.torch_distribution import TorchDistributionMixin

    return type("FlowDistribution", (FlowDistribution, TorchDistributionMixin), {})
