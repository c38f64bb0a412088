"""Maps of single numbers whose parameters come from elsewhere: what a coupling layer applies.

A `ScalarMap` is elementwise, z = g(x; params). Where the parameters come from is another matter:
they are free (`Elementwise`), computed from the other half (`Coupling`), or from the coordinates
before (`Autoregressive`). Any map works in all three.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.bijections.base import Bijection
from lib.checks import number, reject, whole
from lib.nets import MLP, check_network

Params = Tensor | tuple[Tensor, ...]


class ScalarMap(nn.Module):
    """An increasing map of each number, the identity where all parameters are zero.

    Attributes:
        size: parameters for each number.
        features: the number of features that it is for, None for any number.
        groups: sizes of the groups of parameters, where they are wanted one by one and with the
            rows of a batch next to each other in memory: reductions over a group are then fast.
    """

    size: int = 0
    features: int | None = None
    groups: tuple[int, ...] = ()

    def forward(
        self,
        x: Float[Tensor, "rows features *rest"],
        params: Float[Tensor, "size #rows features *rest"],
    ) -> tuple[Float[Tensor, "rows features *rest"], Float[Tensor, "rows features *rest"]]:
        """z and log dz/dx, each with the shape of x."""
        raise NotImplementedError

    def inverse(
        self,
        z: Float[Tensor, "rows features *rest"],
        params: Float[Tensor, "size #rows features *rest"],
    ) -> tuple[Float[Tensor, "rows features *rest"], Float[Tensor, "rows features *rest"]]:
        """x and log dx/dz, each with the shape of z."""
        raise NotImplementedError

    def part(self, features: list[int]) -> ScalarMap:
        """The map for some of the features, where it differs from one to the next."""
        return self

    def embed(self, x: Tensor) -> Tensor:
        """What a network should see in place of x, shape (rows, features) to (rows, columns)."""
        return x

    def columns(self, features: int) -> list[int]:
        """For each column of `embed` the feature from which it comes."""
        return list(range(features))


class Shift(ScalarMap):
    """z = x + t: the additive map, which keeps volume. Source: Dinh, Krueger and Bengio (2015)."""

    size = 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x + params[0], torch.zeros_like(x)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return z - params[0], torch.zeros_like(z)


CLAMPS = ("softsign", "atan", "tanh", "hard", "none")


def clamp(s: Tensor, kind: str, bound: float) -> Tensor:
    """Bound a log-scale: slope one at zero, values within +-`bound`.

    ``"softsign"`` s / (1 + |s| / bound) and ``"atan"`` keep a gradient that falls like 1 / s^2;
    that of ``"tanh"`` falls like exp(-2 |s| / bound), that of ``"hard"`` is zero outside.
    """
    if kind == "softsign":
        return s / (1 + s.abs() / bound)
    if kind == "atan":
        half_turn = 2 * bound / torch.pi
        return half_turn * torch.atan(s / half_turn)
    if kind == "tanh":
        return bound * torch.tanh(s / bound)
    if kind == "hard":
        return s.clamp(-bound, bound)
    return s


class ScaleShift(ScalarMap):
    """z = exp(c(s)) x + t, with a bounded log-scale c(s); see `clamp`.

    The bound matters: the error of the inverse grows exponentially with depth, with a base that the
    largest scale sets. Larger scales are the business of an `ActNorm` between the layers.

    Args:
        clamp: ``"softsign"``, ``"atan"``, ``"tanh"``, ``"hard"`` or ``"none"``.
        bound: of the log-scale.

    Raises:
        ValueError: another name, or a bound that is not positive.

    Source: Dinh, Sohl-Dickstein and Bengio (2017), equations 7 and 8.
    """

    size = 2

    def __init__(self, clamp: str = "softsign", bound: float = 2.0) -> None:
        super().__init__()
        if clamp not in CLAMPS:
            reject("clamp", f"one of {', '.join(CLAMPS)}", repr(clamp))
        self.clamp, self.bound = clamp, number("bound", bound)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = params.unbind(0)
        log_scale = clamp(raw, self.clamp, self.bound)
        return torch.addcmul(shift, log_scale.exp(), x), log_scale.expand_as(x)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = params.unbind(0)
        log_scale = clamp(-raw, self.clamp, self.bound)  # every clamp is odd
        return (z - shift) * log_scale.exp(), log_scale.expand_as(z)

    def extra_repr(self) -> str:
        return f"{self.clamp}, bound={self.bound:g}"


class Elementwise(Bijection):
    """A `ScalarMap` on each feature, with free parameters or with parameters from the context.

    Args:
        features: length of an event.
        scalar: the map.
        context_features: length of the context, 0 for free parameters.
        hidden: widths of the network that reads the context.
        activation: of the network.
        network: a network of one's own, ``network(context) -> (rows, size * features)``.

    Raises:
        ValueError: not a map, sizes below one, a network without context.
    """

    def __init__(
        self,
        features: int,
        scalar: ScalarMap,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.features = whole("features", features)
        self.event_shape = (self.features,)
        self.context_features = whole("context_features", context_features, low=0)
        self.scalar = check_scalar(scalar, features).part(list(range(features)))
        if network is not None and not context_features:
            reject("network", "None, where there is no context", type(network).__name__)
        if context_features:
            self.network = check_network(network) or MLP(
                context_features,
                scalar.size * features,
                hidden,
                activation=activation,
                zero_last=True,
            )
        else:
            self.params = nn.Parameter(torch.zeros(scalar.size, features))

    def _params(self, context: Tensor | None) -> Tensor:
        if context is None:
            return self.params[:, None]
        flat = self.network(context.reshape(-1, self.context_features))
        return split_params(flat, self.scalar.size, self.features)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, log_slope = self.scalar(x.reshape(-1, self.features), self._params(context))
        return z.reshape(x.shape), log_slope.sum(-1).reshape(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, log_slope = self.scalar.inverse(z.reshape(-1, self.features), self._params(context))
        return x.reshape(z.shape), log_slope.sum(-1).reshape(z.shape[:-1])


def check_scalar(scalar: ScalarMap, features: int) -> ScalarMap:
    """The argument, if it is a `ScalarMap` for so many features."""
    if not isinstance(scalar, ScalarMap) or scalar.size < 1:
        reject("scalar", "a ScalarMap with parameters", type(scalar).__name__)
    if scalar.features not in (None, features):
        reject("scalar", f"a map of {features} features", f"one of {scalar.features}")
    return scalar


def split_params(params: Tensor, size: int, features: int) -> Tensor:
    """The output of a network, shape (rows, size * features, ...), as (size, rows, features, ...).

    A wrong number of columns is refused here, as it could broadcast.
    """
    if params.ndim < 2 or params.shape[1] != size * features:
        wanted = f"{size} x {features} = {size * features} outputs"
        reject("network", wanted, f"shape {tuple(params.shape)}")
    return params.view(len(params), size, features, *params.shape[2:]).movedim(1, 0)


def grouped(
    network: nn.Module, x: Tensor, context: Tensor | None, groups: Sequence[int], features: int
) -> tuple[Tensor, ...]:
    """The groups of parameters of an `MLP` or `MADE`, each of shape (size, rows, features)."""
    if network.last.out_features != sum(groups) * features:
        wanted = f"{sum(groups)} x {features} = {sum(groups) * features} outputs"
        reject("network", wanted, f"shape {(len(x), network.last.out_features)}")
    columns = network.columns(x, context, [size * features for size in groups])
    return tuple(c.unflatten(0, (-1, features)).mT for c in columns)
