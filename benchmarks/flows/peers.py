"""The same coupling flows in five libraries: one network class, one architecture, one base law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lib.bijections import Compose, Coupling, RationalQuadratic, ScaleShift
from lib.flows import Flow

FEATURES, HIDDEN, BINS, BOUND = 64, (128, 128), 8, 5.0
HALF = FEATURES // 2


@dataclass
class Model:
    """A flow of some library: its module, and two functions that all have."""

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]

    def __post_init__(self) -> None:
        bend(self.module)


class Net(nn.Sequential):
    """The conditioner for libraries that take any network."""

    hidden_features = 1  # nflows and normflows divide by its root; without it they warn

    def __init__(self, inputs: int, outputs: int) -> None:
        layers = [
            layer for pair in pairwise((inputs, *HIDDEN)) for layer in (nn.Linear(*pair), nn.ReLU())
        ]
        super().__init__(*layers, nn.Linear(HIDDEN[-1], outputs))

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


@torch.no_grad()
def bend(module: nn.Module) -> None:
    """Normal numbers of deviation 0.1 in the last layers: no flow is the identity."""
    for w in module.parameters():
        if w.shape[0] not in HIDDEN:
            w.normal_(0, 0.1)


def masks(layers: int) -> list[Tensor]:
    """1 where a feature is mapped: the second half, the first, the second, ..."""
    second = torch.arange(FEATURES) >= HALF
    return [second if k % 2 == 0 else ~second for k in range(layers)]


def ours(layers: int, spline: bool) -> Model:
    scalar = RationalQuadratic(BINS, low=-BOUND, high=BOUND) if spline else ScaleShift()
    couplings = [Coupling(FEATURES, scalar, hidden=HIDDEN, swap=k % 2 == 1) for k in range(layers)]
    flow = Flow(Compose(couplings))
    return Model(flow, flow.log_prob, flow.sample)


def nflows(layers: int, spline: bool) -> Model:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow as TheirFlow
    from nflows.transforms import (
        AffineCouplingTransform,
        CompositeTransform,
        PiecewiseRationalQuadraticCouplingTransform,
    )

    def layer(mask: Tensor) -> nn.Module:
        if not spline:
            return AffineCouplingTransform(mask, Net)
        return PiecewiseRationalQuadraticCouplingTransform(
            mask, Net, num_bins=BINS, tails="linear", tail_bound=BOUND
        )

    chain = CompositeTransform([layer(mask.long()) for mask in masks(layers)])
    flow = TheirFlow(chain, StandardNormal([FEATURES]))
    return Model(flow, flow.log_prob, flow.sample)


def normflows(layers: int, spline: bool) -> Model:
    import normflows
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    def spline_layer(mask: Tensor) -> nn.Module:
        # Its wrapper knows residual networks only; the layer within it takes any network.
        wrapper = normflows.flows.CoupledRationalQuadraticSpline(FEATURES, 1, 1)
        wrapper.prqct = PiecewiseRationalQuadraticCoupling(
            mask.long(), Net, num_bins=BINS, tails="linear", tail_bound=BOUND
        )
        return wrapper

    chain: list[nn.Module] = []
    for mask in masks(layers):
        if spline:
            chain.append(spline_layer(mask))
        else:
            chain.append(normflows.flows.AffineCouplingBlock(Net(HALF, 2 * HALF)))
            chain.append(normflows.flows.Permute(FEATURES, mode="swap"))
    flow = normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(FEATURES, trainable=False), chain
    )
    return Model(flow, flow.log_prob, lambda n: flow.sample(n)[0])


def freia(layers: int, spline: bool) -> Model | None:
    """Each GLOW block is two couplings with a network each. It has no such spline."""
    if spline:
        return None
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import GLOWCouplingBlock

    inn = SequenceINN(FEATURES)
    for _ in range(layers // 2):
        inn.append(GLOWCouplingBlock, subnet_constructor=Net)

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = inn(x)
        return -0.5 * (z * z).sum(-1) - 0.5 * FEATURES * math.log(2 * math.pi) + log_det

    return Model(inn, log_prob, lambda n: inn(torch.randn(n, FEATURES), rev=True)[0])


def zuko(layers: int, spline: bool, nsf: bool = False) -> Model:
    """Coupling transforms on the same halves; or its NSF with passes=2, as its manual has it."""
    import zuko
    from zuko.flows.coupling import GeneralCouplingTransform

    options = {"hidden_features": HIDDEN}
    if nsf:
        flow = zuko.flows.NSF(FEATURES, transforms=layers, passes=2, bins=BINS, **options)
    else:
        if spline:
            options["univariate"] = zuko.transforms.MonotonicRQSTransform
            options["shapes"] = ((BINS,), (BINS,), (BINS - 1,))
        # Its mask marks what is kept.
        chain = [
            GeneralCouplingTransform(FEATURES, mask=~mask, **options) for mask in masks(layers)
        ]
        base = zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(FEATURES), torch.ones(FEATURES), buffer=True
        )
        flow = zuko.flows.Flow(chain, base)
    return Model(flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)))


def all_of(layers: int, spline: bool) -> dict[str, Model]:
    """Ours first, zuko last; ours is checked to be the same after zuko has been imported."""
    models = {"ours": ours(layers, spline)}
    x = torch.randn(256, FEATURES)
    before = models["ours"].log_prob(x)
    for build in (nflows, normflows, freia, zuko):
        if (model := build(layers, spline)) is not None:
            models[build.__name__.replace("freia", "FrEIA")] = model
    if spline:
        models["zuko NSF(passes=2)"] = zuko(layers, spline, nsf=True)
    assert torch.equal(before, models["ours"].log_prob(x))
    for name, model in models.items():
        with torch.no_grad():
            assert model.log_prob(x).isfinite().all(), name
            assert model.sample(10).shape == (10, FEATURES), name
    return models
