"""A flow as the guide of a Pyro model: a posterior that need not be Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from pyro.infer import autoguide
from torch import Tensor
from torch.distributions import Distribution

from lib.bijections.base import check_event
from lib.checks import floating, reject
from lib.flows import Flow, coupling_flow

__all__ = ["FlowGuide"]


class FlowGuide(autoguide.AutoContinuous):
    """q(u) = a flow, over all latents of a model at once, in unconstrained space.

    log q of a sample comes from the latents of the flow that were drawn for it. Only where it is
    asked for at other parameters, as sticking the landing does, the sample is mapped back; that is
    one more call of each coupling, but D calls of an inverse autoregressive layer.

    Args:
        model: a Pyro model whose latents are continuous.
        make_flow: called with their number D, returns a `Flow` of vectors of length D; it is called
            when the guide first runs, and takes the device and the dtype of the model. The default
            is `coupling_flow`, for which D must be at least 2.
        start: samples in unconstrained space, ``(n, D)``, from which the normalisation of the flow
            is set: say those of a Gaussian fit, ``fit_guide(model).posterior().sample((1000,))``.

    Attributes:
        flow: the flow, once the guide has run.

    Raises:
        ValueError: arguments of another kind. When the guide first runs: not a flow, one of events
            of another length or with context, samples of another length.

    Source: Rezende and Mohamed (2015), section 4.
    """

    flow: Flow

    def __init__(
        self,
        model: Callable,
        make_flow: Callable[[int], Flow] = coupling_flow,
        *,
        start: Float[Tensor, "n features"] | None = None,
    ) -> None:
        if not callable(make_flow):
            reject("make_flow", "a callable", type(make_flow).__name__)
        super().__init__(model)
        self.make_flow = make_flow
        self.start = None if start is None else floating("start", start, ndim=2).detach()

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        flow, like = self.make_flow(self.latent_dim), self._init_loc()
        if not isinstance(flow, Flow):
            reject("make_flow", "a callable that returns a Flow", type(flow).__name__)
        if flow.event_shape != like.shape or flow.context_features:
            got = f"{tuple(flow.event_shape)}, context of length {flow.context_features}"
            reject("make_flow", f"a flow of events {tuple(like.shape)} without context", got)
        flow = flow.to(like)
        if self.start is not None:
            check_event("start", self.start, tuple(like.shape))
            flow.initialise(self.start.to(like))
        self.flow = flow

    def get_posterior(self, *args: Any, **kwargs: Any) -> Distribution:
        """The flow as a law over unconstrained space, event shape ``(D,)``."""
        return self.flow()
