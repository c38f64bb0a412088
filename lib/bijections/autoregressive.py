"""Masked autoregressive flows: each number is mapped with parameters from the numbers before it.

    z_i = g(x_i; theta_i(x_1, ..., x_{i-1}, context))

One masked network computes all theta_i at once. The Jacobian is triangular, with dg/dx_i on its
diagonal. The inverse must find x_1 before theta_2: D steps, or fewer; see `Autoregressive`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.bijections.base import Bijection
from lib.bijections.scalar import Params, ScalarMap, check_scalar, grouped, split_params
from lib.checks import reject, whole
from lib.nets import activation as make_activation
from lib.nets import columns_of, wholes


class MaskedLinear(nn.Linear):
    """A linear layer whose weights are multiplied by a fixed mask of zeros and ones."""

    def __init__(self, mask: Float[Tensor, "out features"]) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.mask * self.weight, self.bias)


class MADE(nn.Module):
    """A network whose output for feature i sees the features that come before i, and the context.

    Args:
        degrees: rank of each input column in the order, from 0.
        outputs: rank of each output.
        hidden: widths of the hidden layers.
        context_features: length of the context, which every output sees.
        activation: between the layers.

    Source: Germain, Gregor, Murray and Larochelle (2015), section 3.
    """

    def __init__(
        self,
        degrees: Sequence[int],
        outputs: Sequence[int],
        hidden: Sequence[int] = (128, 128),
        *,
        context_features: int = 0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        degrees, outputs = wholes("degrees", degrees), wholes("outputs", outputs)
        if not outputs or not (degrees or context_features):
            reject("degrees and outputs", "at least one of each", f"{degrees} and {outputs}")
        make_activation(activation)  # refused also where there is no hidden layer
        # A unit of degree m sees ranks up to m, and feeds outputs of a greater rank. Degree -1 sees
        # only the context.
        before = torch.tensor([*degrees, *[-1] * context_features])
        low, high = -1 if context_features else 0, max(max(outputs), 1)
        self.hidden = nn.Sequential()
        for width in wholes("hidden", hidden, low=1):
            unit = torch.arange(width) * (high - low) // width + low
            self.hidden.append(MaskedLinear((before <= unit[:, None]).float()))
            self.hidden.append(make_activation(activation))
            before = unit
        self.last = MaskedLinear((before < torch.tensor(outputs)[:, None]).float())
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.last(self._body(x, context))

    def columns(
        self, x: Tensor, context: Tensor | None = None, sizes: Sequence[int] | None = None
    ) -> tuple[Tensor, ...]:
        """The transposed output in groups of the given sizes; see `lib.nets.columns_of`."""
        last = self.last
        return columns_of(last.mask * last.weight, last.bias, self._body(x, context), sizes)

    def _body(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.hidden(x if context is None else torch.cat([x, context], -1))


class Autoregressive(Bijection):
    """z_i = g(x_i; theta_i(x_<i, context)): one network call forward; a fixed point backward.

    The inverse repeats x <- g^-1(z; theta(x)), each time for all i at once. Pass k makes the first
    k numbers right, so D passes suffice, and a pass that changes nothing shows that no further one
    will: the loop stops there, with the same numbers bit for bit. (To see this it waits for the
    device once in each pass. Under `torch.compile`, where nothing can wait, it makes D passes; so
    it does where gradients flow through the inverse. For fast sampling with gradients, as in an
    inverse autoregressive flow, take ``Inverse(Autoregressive(...))``, and forward is the loop.)

    Args:
        features: length D of an event.
        scalar: the map g, e.g. `ScaleShift` (MAF) or `RationalQuadratic`.
        hidden: widths of the network.
        activation: of the network.
        order: the features in the order in which they are conditioned on; None is 0, 1, ..., D-1.
        context_features: length of the context.

    Attributes:
        passes: network calls of the last inverse that was not compiled.

    Raises:
        ValueError: an order that is no permutation, sizes below one.

    Source: Papamakarios, Pavlakou and Murray (2017), section 3; Kingma et al. (2016); the fixed
    point: Song, Meng, Liao and Ermon (2021), algorithm 1.
    """

    def __init__(
        self,
        features: int,
        scalar: ScalarMap,
        *,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        order: Sequence[int] | None = None,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.features = whole("features", features)
        order = range(self.features) if order is None else order
        order = wholes("order", order)
        if sorted(order) != list(range(self.features)):
            reject("order", f"a permutation of 0..{self.features - 1}", order)
        self.event_shape = (self.features,)
        self.context_features = whole("context_features", context_features, low=0)
        self.scalar = check_scalar(scalar, self.features).part(list(range(self.features)))
        rank = [order.index(k) for k in range(self.features)]
        self.network = MADE(
            [rank[k] for k in self.scalar.columns(self.features)],
            rank * self.scalar.size,
            hidden,
            context_features=self.context_features,
            activation=activation,
        )
        self.passes = 0

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, context = self._rows(x, context)
        z, log_slope = self.scalar(rows, self.params(rows, context))
        return z.reshape(x.shape), log_slope.sum(-1).reshape(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, context = self._rows(z, context)
        tensors = (rows, context, *self.parameters())
        wanted = any(t is not None and t.requires_grad for t in tensors)
        watched = torch.compiler.is_compiling() or (torch.is_grad_enabled() and wanted)
        x, log_slope = torch.zeros_like(rows), rows
        for passes in range(1, self.features + 1):  # noqa: B007
            before = x
            # A number that is not right yet may have overflowed, and 0 * inf would spread.
            x, log_slope = self.scalar.inverse(
                rows, self.params(before.nan_to_num(0.0, 0.0, 0.0), context)
            )
            if not watched and torch.equal(x, before):
                break
        if not torch.compiler.is_compiling():
            self.passes = passes
        return x.reshape(z.shape), log_slope.sum(-1).reshape(z.shape[:-1])

    def _rows(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        flat = None if context is None else context.reshape(-1, self.context_features)
        return x.reshape(-1, self.features), flat

    def params(self, x: Tensor, context: Tensor | None) -> Params:
        """theta(x, context), shape ``(size, rows, features)``, or groups of that shape."""
        x = self.scalar.embed(x)
        if self.scalar.groups:
            return grouped(self.network, x, context, self.scalar.groups, self.features)
        return split_params(self.network(x, context), self.scalar.size, self.features)
