"""Coupling layers: one half of the event decides how the other half is mapped.

With x = (a, b), z = (a, g(b; theta(a))) has the Jacobian

    [ I            0      ]
    [ dg/da   diag(dg/db) ]

whose determinant is the product of dg/db: no derivative of the network theta is ever needed, and
g is inverted with the same theta(a), as a is still at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lib.bijections.base import Bijection, sum_event
from lib.bijections.scalar import Params, ScalarMap, check_scalar, grouped, split_params
from lib.checks import reject, whole
from lib.nets import MLP, check_network


class Coupling(Bijection):
    """z = (a, g(b; theta(a, context))) for any `ScalarMap` g.

    At the start the last layer of theta is zero and the map is the identity.

    Args:
        features: length of the event, at least 2; of images the number of channels.
        scalar: the map g: `Shift` (NICE), `ScaleShift` (RealNVP, Glow), `RationalQuadratic`
            (neural spline flow).
        hidden: widths of the network theta.
        activation: of the network.
        swap: a is the second half in place of the first. Layers take turns.
        context_features: length of the context.
        event_dim: 1 for vectors; 3 for images (C, H, W), split along the channels. An image needs a
            `network`.
        network: a network of one's own. ``network(a, context)`` returns shape
            ``(rows, size * features of b, *rest)``, with the `size` parameters of g as the slower
            index; context is None where there is none.

    Raises:
        ValueError: fewer than two features, an image without a network, arguments of other kinds.

    Source: Dinh, Krueger and Bengio (2015), section 3.2.
    """

    def __init__(
        self,
        features: int,
        scalar: ScalarMap,
        *,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        swap: bool = False,
        context_features: int = 0,
        event_dim: int = 1,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if event_dim not in (1, 3):
            reject("event_dim", "1 (vectors) or 3 (images)", event_dim)
        if event_dim == 3 and network is None:
            reject("network", "a network for images", "None")
        self.features = whole("features", features, low=2)
        self.event_shape = (self.features, *(None,) * (event_dim - 1))
        self.context_features = whole("context_features", context_features, low=0)
        if not isinstance(swap, bool):
            reject("swap", "True or False", repr(swap))
        self.swap = swap
        self.sizes = [self.features // 2, self.features - self.features // 2]
        first, second = list(range(self.sizes[0])), list(range(self.sizes[0], self.features))
        given, mapped = (second, first) if swap else (first, second)
        self.condition = check_scalar(scalar, self.features).part(
            given
        )  # it knows how its features are embedded
        self.scalar = scalar.part(mapped)
        self.network = check_network(network) or MLP(
            len(self.condition.columns(len(given))),
            self.scalar.size * len(mapped),
            hidden,
            context_features=context_features,
            activation=activation,
            zero_last=True,
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._map(x, context, self.scalar)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._map(z, context, self.scalar.inverse)

    def _map(self, x: Tensor, context: Tensor | None, g: Callable) -> tuple[Tensor, Tensor]:
        flat = x.ndim == self.event_dim + 1
        rows = x if flat else x.reshape(-1, *x.shape[-self.event_dim :])
        if context is not None:
            context = context.reshape(-1, self.context_features)
        first, second = rows.split(self.sizes, dim=1)
        a, b = (second, first) if self.swap else (first, second)
        b, log_slope = g(b, self.params(a, context))
        rows = torch.cat([b, a] if self.swap else [a, b], dim=1)
        log_det = sum_event(log_slope, self.event_dim)
        if flat:
            return rows, log_det
        return rows.reshape(x.shape), log_det.reshape(x.shape[: x.ndim - self.event_dim])

    def params(self, a: Tensor, context: Tensor | None) -> Params:
        """theta(a, context), shape ``(size, rows, features of b, *rest)``, or groups of it."""
        a, mapped = self.condition.embed(a), self.sizes[not self.swap]
        if self.scalar.groups and isinstance(self.network, MLP):
            return grouped(self.network, a, context, self.scalar.groups, mapped)
        params = self.network(a) if context is None else self.network(a, context)
        return split_params(params, self.scalar.size, mapped)

    def extra_repr(self) -> str:
        return f"features={self.features}, swap={self.swap}"
