"""Every bijection in several regimes. A new one is one line here: all properties run over it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import bijections as b
from lib.bijections.scalar import CLAMPS
from lib.flows import coupling_flow, glow
from lib.inverse import LinearGaussian
from lib.nets import MLP


def normal(*event, scale=1.0):
    """Points of the whole space."""
    return lambda n, generator: scale * torch.randn(n, *event, generator=generator).double()


def uniform(*event, low=0.0, high=1.0):
    """Points inside a box, edges excluded."""

    def draw(n, generator):
        share = torch.rand(n, *event, generator=generator, dtype=torch.float64)
        return low + (high - low) * (0.02 + 0.96 * share)

    return draw


@dataclass(frozen=True)
class Entry:
    """How to make a bijection, and points of its domain.

    Attributes:
        make: the constructor, in float32, at its default initialisation.
        points: ``points(n, generator)`` draws data in float64.
        scale: standard deviation of the parameters that the properties draw.
        compiles: whether one graph without breaks is promised.
        jacobian: whether the domain is open (not a manifold in a larger space).
        extreme: largest standard deviation of the parameters, as a power of ten; in a deep stack
            of linear maps more than that leaves the floating-point numbers.
        idle: parameters that have nothing to do here.
    """

    make: Callable[[], b.Bijection]
    points: Callable[[int, torch.Generator], Tensor]
    scale: float = 0.5
    compiles: bool = True
    jacobian: bool = True
    extreme: float = 2.0
    idle: tuple[str, ...] = ()


def simplex(features):
    """Points of the simplex."""
    return lambda n, generator: torch.randn(n, features, generator=generator).double().softmax(-1)


ROADS = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 2.0]], [[0.0, 1.0], [3.0, 1.0]]])


def on_roads(n, generator):
    """Points of the three segments."""
    t = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    which = torch.randint(3, (n,), generator=generator)
    start, end = ROADS[which].double().unbind(1)
    return start + t * (end - start)


BOX = {"low": [-1.0, 0.0, 2.0], "high": [1.0, 3.0, 2.5]}
MIXED = ("free", "linear", "circular")


def couplings():
    return [b.Coupling(4, b.RationalQuadratic(4), hidden=(8,), swap=k % 2 == 1) for k in range(3)]


class Velocity(nn.Module):
    """A smooth velocity that reads the point, the time and one number of context."""

    def __init__(self):
        super().__init__()
        self.network = MLP(3, 2, (8,), context_features=1, activation="tanh")

    def forward(self, x, t, context):
        return self.network(torch.cat([x, t.expand(len(x), 1)], -1), context)


CATALOGUE: dict[str, Entry] = {
    # --- scalar maps with free parameters or context
    "shift": Entry(lambda: b.Elementwise(3, b.Shift()), normal(3)),
    "scale and shift": Entry(lambda: b.Elementwise(3, b.ScaleShift()), normal(3)),
    "scale and shift, context": Entry(
        lambda: b.Elementwise(3, b.ScaleShift("atan"), context_features=2, hidden=(8,)), normal(3)
    ),
    # --- elementwise
    "sigmoid": Entry(lambda: b.Sigmoid(), normal(2, scale=3.0)),
    "logit": Entry(lambda: b.Logit(), uniform(2)),
    "normal CDF": Entry(lambda: b.NormalCDF(), normal(2)),
    "tanh": Entry(lambda: b.Tanh(), normal(2)),
    "softplus": Entry(lambda: b.Softplus(), normal(2, scale=3.0)),
    "affine, fixed": Entry(lambda: b.Affine(1.0, 1.5), normal(2)),
    "affine, learnable": Entry(
        lambda: b.Affine(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]), learnable=True),
        normal(2),
    ),
    # --- coupling
    "additive coupling": Entry(lambda: b.Coupling(4, b.Shift(), hidden=(8,)), normal(4)),
    **{
        f"affine coupling, {clamp}": Entry(
            lambda clamp=clamp: b.Coupling(5, b.ScaleShift(clamp), hidden=(8,), swap=True),
            normal(5),
        )
        for clamp in CLAMPS
    },
    "affine coupling, context": Entry(
        lambda: b.Coupling(3, b.ScaleShift(), hidden=(8,), context_features=2), normal(3)
    ),
    "affine coupling, silu": Entry(
        lambda: b.Coupling(2, b.ScaleShift(), hidden=(8, 8), activation="silu"), normal(2)
    ),
    "spline coupling": Entry(
        lambda: b.Coupling(4, b.RationalQuadratic(5), hidden=(8,)), normal(4, scale=4.0)
    ),
    "spline coupling, swapped, context": Entry(
        lambda: b.Coupling(5, b.RationalQuadratic(5), hidden=(8,), swap=True, context_features=1),
        normal(5, scale=4.0),
    ),
    "spline coupling, box": Entry(
        lambda: b.Coupling(3, b.RationalQuadratic(4, ends="free", **BOX), hidden=(8,)),
        uniform(3, low=torch.tensor(BOX["low"]), high=torch.tensor(BOX["high"])),
    ),
    "spline coupling, mixed ends": Entry(
        lambda: b.Coupling(3, b.RationalQuadratic(4, ends=MIXED, low=-1.0, high=1.0), hidden=(8,)),
        uniform(3, low=-1.0),
    ),
    "spline coupling, stacked": Entry(lambda: b.Compose(couplings()), normal(4, scale=3.0), 0.3),
    # --- autoregressive
    "MAF": Entry(lambda: b.Autoregressive(4, b.ScaleShift(), hidden=(16, 16)), normal(4)),
    "MAF of one feature": Entry(
        lambda: b.Autoregressive(1, b.ScaleShift(), hidden=()),
        normal(1),
        idle=("network.last.weight",),
    ),
    "MAF, order, context": Entry(
        lambda: b.Autoregressive(
            3, b.ScaleShift(), hidden=(16,), order=[2, 0, 1], context_features=2
        ),
        normal(3),
    ),
    "IAF": Entry(lambda: b.Inverse(b.Autoregressive(4, b.ScaleShift(), hidden=(16,))), normal(4)),
    "autoregressive spline": Entry(
        lambda: b.Autoregressive(3, b.RationalQuadratic(4), hidden=(16,)), normal(3, scale=4.0)
    ),
    "autoregressive spline, mixed ends": Entry(
        lambda: b.Autoregressive(
            3, b.RationalQuadratic(4, ends=MIXED, low=-1.0, high=1.0), hidden=(16,)
        ),
        uniform(3, low=-1.0),
    ),
    # --- spline
    **{
        f"spline, {ends}": Entry(
            lambda ends=ends: b.Elementwise(2, b.RationalQuadratic(6, ends=ends, low=-2, high=3)),
            uniform(2, low=-2.0, high=3.0),
        )
        for ends in ("free", "linear", "circular")
    },
    "spline, mixed ends": Entry(
        lambda: b.Elementwise(3, b.RationalQuadratic(6, ends=MIXED, **BOX)),
        uniform(3, low=torch.tensor(BOX["low"]), high=torch.tensor(BOX["high"])),
    ),
    "spline, context": Entry(
        lambda: b.Elementwise(2, b.RationalQuadratic(3), context_features=2, hidden=(8,)),
        normal(2, scale=4.0),
    ),
    "spline, two bins": Entry(
        lambda: b.Elementwise(1, b.RationalQuadratic(2)), normal(1, scale=4.0)
    ),
    # --- planar, radial, Sylvester
    "planar": Entry(lambda: b.Planar(3), normal(3), 1.0),
    "planar of one feature": Entry(lambda: b.Planar(1), normal(1), 1.0),
    "planar, context": Entry(lambda: b.Planar(3, context_features=2), normal(3)),
    "radial": Entry(lambda: b.Radial(3), normal(3), 1.0),
    "radial of one feature": Entry(lambda: b.Radial(1), normal(1), 1.0),
    "radial, context": Entry(lambda: b.Radial(2, context_features=2), normal(2)),
    "sylvester": Entry(lambda: b.Sylvester(4), normal(4)),
    "sylvester, narrow": Entry(lambda: b.Sylvester(4, hidden=2), normal(4)),
    # --- linear
    "permutation": Entry(lambda: b.Permutation([2, 0, 1]), normal(3)),
    "ActNorm": Entry(lambda: b.ActNorm(3), normal(3)),
    "LU linear": Entry(lambda: b.LULinear(4), normal(4)),
    "LU linear without bias": Entry(lambda: b.LULinear(4, bias=False), normal(4)),
    "orthogonal": Entry(lambda: b.Orthogonal(4), normal(4)),
    # --- image
    "squeeze": Entry(lambda: b.Squeeze(2), normal(2, 4, 2)),
    "on half": Entry(lambda: b.OnHalf(b.ActNorm(2, event_dim=3)), normal(4, 2, 2)),
    "logit with margin": Entry(lambda: b.LogitMargin(0.05), uniform(2)),
    "ActNorm, image": Entry(lambda: b.ActNorm(3, event_dim=3), normal(3, 2, 2)),
    "1x1 convolution": Entry(lambda: b.LULinear(3, event_dim=3), normal(3, 2, 2)),
    "permuted channels": Entry(lambda: b.Permutation([2, 0, 1], event_dim=3), normal(3, 2, 2)),
    "image coupling": Entry(
        lambda: b.Coupling(4, b.ScaleShift(), network=b.ConvNet(2, 4, 6), event_dim=3),
        normal(4, 2, 3),
    ),
    "image spline coupling, context": Entry(
        lambda: b.Coupling(
            4,
            b.RationalQuadratic(3),
            network=b.ConvNet(2, 2 * 8, 6, context_features=2),
            event_dim=3,
            context_features=2,
        ),
        normal(4, 2, 3),
    ),
    "glow": Entry(
        lambda: glow((1, 4, 8), levels=2, steps=1, hidden=6).bijection,
        normal(1, 4, 8),
        0.2,
        extreme=-0.5,
    ),
    "regression": Entry(lambda: LinearGaussian(3, 2), normal(3)),
    # --- support
    **{
        f"interval, {kind}": Entry(
            lambda kind=kind: b.Interval(-1.0, 3.0, kind), uniform(2, low=-1.0, high=3.0)
        )
        for kind in ("logistic", "normal", "soft", "uniform")
    },
    "box": Entry(
        lambda: b.Interval(torch.tensor(BOX["low"]), torch.tensor(BOX["high"])),
        uniform(3, low=torch.tensor(BOX["low"]), high=torch.tensor(BOX["high"])),
    ),
    "half-line": Entry(lambda: b.HalfLine(1.0), uniform(2, low=1.0, high=9.0)),
    "half-line, downwards": Entry(lambda: b.HalfLine(1.0, -1), uniform(2, low=-9.0)),
    "simplex": Entry(lambda: b.Simplex(4), simplex(4), jacobian=False),
    "ball": Entry(lambda: b.Ball(3, 2.0), uniform(3, low=-1.1, high=1.1)),
    "segments": Entry(lambda: b.Segments(ROADS), on_roads, jacobian=False),
    # --- ODE; at larger scales 40 steps leave more than the tolerances
    "ODE": Entry(
        lambda: b.ODE(Velocity(), (2,), times=torch.linspace(0, 0.5, 41), context_features=1),
        normal(2),
        compiles=False,
        extreme=0.0,
    ),
    # --- combinations
    "inverse of a stack": Entry(lambda: b.Inverse(b.Compose(couplings())), normal(4), 0.3),
    "seed: logit and radial": Entry(
        lambda: b.Compose([b.Interval(1.0, 2.5), *(b.Radial(1) for _ in range(4))]),
        uniform(1, low=1.0, high=2.5),
    ),
    "realnvp": Entry(
        lambda: coupling_flow(3, layers=3, hidden=(8,), mixing="lu").bijection,
        normal(3),
        0.2,
        extreme=0.0,
    ),
}
