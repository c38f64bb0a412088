"""The few small networks that the chapters share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.checks import reject, whole

ACTIVATIONS = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def activation(name: str) -> nn.Module:
    """A non-linearity by name: ``"relu"``, ``"silu"``, ``"tanh"`` or ``"elu"``."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        reject("activation", f"one of {', '.join(ACTIVATIONS)}", repr(name))
    return ACTIVATIONS[name]()


def columns_of(
    weight: Float[Tensor, "out features"],
    bias: Float[Tensor, "out"],
    x: Float[Tensor, "rows features"],
    sizes: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "_ rows"], ...]:
    """The output of a linear layer, transposed and in groups of outputs, computed as such.

    For what is reduced over groups of outputs: the rows then lie next to each other in memory, and
    no gradient has to be put together from its parts.

    Args:
        weight: of the layer.
        bias: of the layer.
        x: its input.
        sizes: outputs in each group; None is one group.
    """
    sizes = [len(weight)] if sizes is None else list(sizes)
    groups = zip(weight.split(sizes), bias.split(sizes), strict=True)
    return tuple(torch.mm(w, x.mT).add_(b[:, None]) for w, b in groups)


class MLP(nn.Module):
    """A fully connected network; the context, where there is one, is joined to the input.

    Args:
        features: length of the input, which may be 0 where there is context.
        out_features: length of the output.
        hidden: widths of the hidden layers.
        context_features: length of the context.
        activation: between the layers.
        zero_last: start with an output of zero (a coupling layer then starts as the identity).

    Raises:
        ValueError: sizes below one, an unknown activation, nothing to read.
    """

    def __init__(
        self,
        features: int,
        out_features: int,
        hidden: Sequence[int] = (128, 128),
        *,
        context_features: int = 0,
        activation: str = "relu",
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        features = whole("features", features, low=0)
        inputs = features + whole("context_features", context_features, low=0)
        if not inputs:
            reject("features", "something to read, features or context", 0)
        sizes = [inputs, *wholes("hidden", hidden, low=1)]
        _activation(activation)  # refused also where there is no hidden layer
        self.in_features, self.context_features = features, context_features
        self.hidden = nn.Sequential()
        for before, after in pairwise(sizes):
            self.hidden.append(nn.Linear(before, after))
            self.hidden.append(_activation(activation))
        self.last = nn.Linear(sizes[-1], whole("out_features", out_features))
        if zero_last:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "*batch features"], context: Float[Tensor, "*batch c"] | None = None
    ) -> Float[Tensor, "*batch out"]:
        return self.last(self._body(x, context))

    def columns(
        self,
        x: Float[Tensor, "rows features"],
        context: Float[Tensor, "rows c"] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "_ rows"], ...]:
        """The transposed output in groups of the given sizes; see `columns_of`."""
        return columns_of(self.last.weight, self.last.bias, self._body(x, context), sizes)

    def _body(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.hidden(x if context is None else torch.cat([x, context], -1))


_activation = activation


def wholes(argument: str, values: Sequence[int], *, low: int = 0) -> list[int]:
    """A list of integers of at least `low`, or a ``ValueError``."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        reject(argument, "a sequence of integers", repr(values))
    return [whole(argument, value, low=low) for value in values]


def check_network(network: nn.Module | None) -> nn.Module | None:
    """The argument, if it is a module or None."""
    if network is not None and not isinstance(network, nn.Module):
        reject("network", "a Module or None", type(network).__name__)
    return network
