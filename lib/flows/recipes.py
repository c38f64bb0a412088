"""Whole flows in one line each.

All start near the identity. `Flow.initialise` then sets the normalisation from a batch of data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from lib.bijections.autoregressive import Autoregressive
from lib.bijections.base import Bijection, Compose, Inverse
from lib.bijections.coupling import Coupling
from lib.bijections.image import ConvNet, OnHalf, Squeeze
from lib.bijections.linear import ActNorm, LULinear
from lib.bijections.planar import Planar
from lib.bijections.radial import Radial
from lib.bijections.scalar import Elementwise, ScalarMap, ScaleShift, check_scalar
from lib.bijections.spline import RationalQuadratic, interval
from lib.checks import number, reject, whole
from lib.flows.bases import StandardNormal, Uniform
from lib.flows.flow import Flow
from lib.nets import wholes


def coupling_flow(
    features: int,
    *,
    layers: int = 8,
    hidden: Sequence[int] = (128, 128),
    clamp: str = "softsign",
    bound: float = 2.0,
    activation: str = "relu",
    mixing: str = "swap",
    context_features: int = 0,
) -> Flow:
    """Affine couplings in turns (RealNVP). See `ScaleShift` for `clamp` and `bound`.

    Args:
        features: length of an event, at least 2.
        layers: number of couplings.
        hidden: widths of the networks.
        clamp: of the log-scale.
        bound: of the log-scale.
        activation: of the networks.
        mixing: ``"swap"``: the halves take turns. ``"lu"``: also a learned linear map after each
            layer; the order is then free, and the flow slower.
        context_features: length of the context.

    Source: Dinh, Sohl-Dickstein and Bengio (2017); linear maps: Kingma and Dhariwal (2018).
    """
    options = {"hidden": hidden, "activation": activation, "context_features": context_features}
    return Flow(
        _stack(
            features,
            layers,
            mixing,
            lambda k: Coupling(features, ScaleShift(clamp, bound), swap=k % 2 == 1, **options),
        )
    )


def spline_flow(
    features: int,
    *,
    layers: int = 4,
    bins: int = 8,
    bound: float = 5.0,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    mixing: str = "swap",
    context_features: int = 0,
) -> Flow:
    """Spline couplings in turns; straight lines outside of [-bound, bound].

    Of one feature there are no halves: its spline has free parameters, or those of the context.

    Source: Durkan, Bekasov, Murray and Papamakarios (2019).
    """
    features, bound = whole("features", features), number("bound", bound)
    scalar = RationalQuadratic(bins, low=-bound, high=bound)
    options = {"hidden": hidden, "activation": activation, "context_features": context_features}
    return Flow(
        _stack(
            features,
            layers if features > 1 else 1,
            mixing,
            lambda k: _spline_layer(features, scalar, k, options),
        )
    )


def autoregressive_flow(
    features: int,
    *,
    layers: int = 4,
    scalar: ScalarMap | None = None,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    inverse: bool = False,
    context_features: int = 0,
) -> Flow:
    """Autoregressive layers with the order reversed from one to the next.

    Args:
        features: length of an event.
        layers: number of layers.
        scalar: `ScaleShift` (the default) or any other map.
        hidden: widths of the networks.
        activation: of the networks.
        inverse: False evaluates densities in one call per layer (MAF); True samples in one (IAF).
        context_features: length of the context.

    Source: Papamakarios, Pavlakou and Murray (2017); inverse: Kingma et al. (2016).
    """
    scalar = ScaleShift() if scalar is None else scalar
    options = {"hidden": hidden, "activation": activation, "context_features": context_features}

    def make(k: int) -> Bijection:
        order = range(features) if k % 2 == 0 else range(features)[::-1]
        layer = Autoregressive(features, scalar, order=list(order), **options)
        return Inverse(layer) if inverse else layer

    return Flow(_stack(features, layers, "swap", make))


def radial_flow(features: int, *, layers: int = 32, context_features: int = 0) -> Flow:
    """A chain of `Radial` maps. Source: Rezende and Mohamed (2015), equation 14."""
    return Flow(
        _stack(
            features, layers, "swap", lambda k: Radial(features, context_features=context_features)
        )
    )


def planar_flow(features: int, *, layers: int = 32, context_features: int = 0) -> Flow:
    """A chain of `Planar` maps. Source: Rezende and Mohamed (2015), equation 10."""
    return Flow(
        _stack(
            features, layers, "swap", lambda k: Planar(features, context_features=context_features)
        )
    )


def bounded_flow(
    low: float | Sequence[float] | Tensor,
    high: float | Sequence[float] | Tensor,
    *,
    layers: int = 4,
    bins: int = 16,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    min_bin: float = 1e-4,
    context_features: int = 0,
) -> Flow:
    """Splines from a box onto itself with free ends, over the uniform law: nothing leaves the box.

    Args:
        low: lower end of each feature; a number is a box of one feature.
        high: upper end.
        layers: couplings; of one feature there is one spline.
        bins: of each spline.
        hidden: widths of the networks.
        activation: of the networks.
        min_bin: see `RationalQuadratic`.
        context_features: length of the context.

    Raises:
        ValueError: low >= high.
    """
    low, high = interval(low, high)
    low, high = low.reshape(-1), high.reshape(-1)
    features, base = len(low), Uniform(len(low), low, high)
    scalar = RationalQuadratic(bins, ends="free", low=low, high=high, min_bin=min_bin)
    options = {"hidden": hidden, "activation": activation, "context_features": context_features}
    return Flow(_splines(features, layers, scalar, options), base, support="base")


def circular_flow(
    features: int = 1,
    *,
    layers: int = 4,
    bins: int = 16,
    low: float = -math.pi,
    high: float = math.pi,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    context_features: int = 0,
) -> Flow:
    """Circular splines over the uniform law: densities on the circle and on the torus.

    The density is that of angles in [low, high]; other angles are taken modulo their difference.

    Source: Rezende et al. (2020), section 3.1.
    """
    scalar = RationalQuadratic(bins, ends="circular", low=low, high=high)
    options = {"hidden": hidden, "activation": activation, "context_features": context_features}
    base = Uniform(features, low, high)
    return Flow(_splines(features, layers, scalar, options), base, support="base")


def glow(
    shape: Sequence[int],
    *,
    levels: int = 2,
    steps: int = 8,
    hidden: int = 64,
    scalar: ScalarMap | None = None,
    context_features: int = 0,
) -> Flow:
    """The multi-scale image flow: squeeze, `steps` of (ActNorm, 1x1 convolution, coupling), split.

    At each level the first half of the channels is done; the rest goes on to the next level. The
    latent has the shape of the image, with every number back in its place.

    Args:
        shape: (channels, height, width), both sides divisible by 2^levels.
        levels: number of scales.
        steps: of each scale.
        hidden: channels within the coupling networks.
        scalar: map of the couplings; None is `ScaleShift`.
        context_features: length of the context.

    Raises:
        ValueError: sides that cannot be halved so often.

    Source: Kingma and Dhariwal (2018), figure 2; Dinh et al. (2017), section 3.6.
    """
    shape = tuple(wholes("shape", shape, low=1))
    if len(shape) != 3 or any(side % 2 ** whole("levels", levels) for side in shape[1:]):
        reject("shape", f"(channels, height, width), sides divisible by {2**levels}", shape)
    scalar = ScaleShift() if scalar is None else scalar

    def step(size: int, k: int) -> list[Bijection]:
        check_scalar(scalar, size)
        first, swap = size // 2, k % 2 == 1
        given, mapped = (size - first, first) if swap else (first, size - first)
        net = ConvNet(given, scalar.size * mapped, hidden, context_features=context_features)
        options = {"swap": swap, "event_dim": 3, "context_features": context_features}
        mixing = [ActNorm(size, event_dim=3), LULinear(size, event_dim=3)]
        return [*mixing, Coupling(size, scalar, network=net, **options)]

    def scale(size: int, level: int) -> Compose:
        parts = [part for k in range(whole("steps", steps)) for part in step(4 * size, k)]
        deeper = [OnHalf(scale(2 * size, level + 1))] if level < levels else []
        squeeze = Squeeze(size)
        return Compose([squeeze, *parts, *deeper, Inverse(squeeze)])

    return Flow(scale(shape[0], 1), StandardNormal(shape))


def _stack(features: int, layers: int, mixing: str, make: Callable[[int], Bijection]) -> Compose:
    if mixing not in ("swap", "lu"):
        reject("mixing", "'swap' or 'lu'", repr(mixing))
    parts: list[Bijection] = [ActNorm(features)]
    for k in range(whole("layers", layers)):
        parts.append(make(k))
        if mixing == "lu":
            parts.append(LULinear(features))
    return Compose(parts)


def _splines(features: int, layers: int, scalar: ScalarMap, options: dict) -> Compose:
    count = whole("layers", layers) if features > 1 else 1
    return Compose([_spline_layer(features, scalar, k, options) for k in range(count)])


def _spline_layer(features: int, scalar: ScalarMap, k: int, options: dict) -> Bijection:
    if features > 1:
        return Coupling(features, scalar, swap=k % 2 == 1, **options)
    return Elementwise(1, scalar, **options)
