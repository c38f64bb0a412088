"""Inverses: passes of masked layers, rounding through many layers, splines at the extreme."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from flows.measure import Call, clock, compare, head, row, size, verdict
from lib.bijections import (
    Autoregressive,
    Compose,
    Coupling,
    Permutation,
    RationalQuadratic,
    ScalarMap,
    ScaleShift,
)
from lib.flows import Flow

FEATURES, BATCH = 64, 1024


def autoregressive(quick: bool) -> None:
    """Passes and milliseconds of sampling one masked layer with 64 features."""
    print("One masked layer, 64 features, hidden 2 x 128; 1,024 samples; calls of its network.\n")
    trained = 0.3 if quick else 8.0
    spline = RationalQuadratic(8, low=-5.0, high=5.0)
    cases = {
        "random": lambda: _random(ScaleShift(), 1),
        "random, last layer x 3": lambda: _random(ScaleShift(), 3),
        "trained, 8 common factors": lambda: _trained(ScaleShift(), _factors(), trained),
        "trained, chain of correlation 0.9": lambda: _trained(ScaleShift(), _chain(), trained),
        "spline, random": lambda: _random(spline, 1),
        "spline, random, last layer x 3": lambda: _random(spline, 3),
        "spline, trained, 8 common factors": lambda: _trained(spline, _factors(), trained),
    }
    calls: dict[str, dict[str, Call]] = {"affine": {}, "spline": {}}
    sizes: dict[str, str] = {}
    most = {"random": 0, "trained": 0}
    head("ours", "passes", "same as after 64 passes")
    for name, build in cases.items():
        layer, kl = build()
        flow = Flow(layer)
        z = torch.randn(BATCH, FEATURES)
        with torch.no_grad():
            x, log_det = layer.inverse(z)
        passes = layer.passes
        full, full_det = layer.inverse(z)  # with gradients it makes all passes
        assert layer.passes == FEATURES
        same = torch.equal(x, full) and torch.equal(log_det, full_det)
        label = name if kl is None else f"{name} (KL {kl:.2f} nats)"
        row(label, passes, "bit for bit" if same else "NO")
        start = "random" if kl is None else "trained"
        most[start] = max(most[start], passes)
        kind = "spline" if "spline" in name else "affine"
        calls[kind][f"ours, {name}"] = lambda flow=flow: flow.sample(BATCH)
        sizes[f"ours, {name}"] = f"{size(layer)}, {passes} calls"
    print()
    for start, passes in most.items():
        verdict(f"passes, {start}, the most", passes, 14, 0)
    for kind, peers in _masked_peers().items():
        for name, (module, network, sample) in peers.items():
            count = [0]
            add = lambda *_, count=count: count.__setitem__(0, count[0] + 1)  # noqa: E731
            hook = network.register_forward_hook(add)
            with torch.no_grad():
                sample()
            hook.remove()
            calls[kind][name] = torch.no_grad()(sample)
            sizes[name] = f"{size(module)}, {count[0]} calls"
        print()
        options = {"repeats": 3, "block": 0.01} if quick else {"repeats": 7}
        own = {name: sizes[name] for name in calls[kind]}
        compare({"sample": calls[kind]}, own, list(peers), **options)
    print(
        "\nPeers with their own start. nflows and normflows: one block, not residual (normflows'"
        "\nspline: residual, three hidden layers). In a chain the first number moves the last by"
        "\n0.9^63 = 0.0013, which float32 sees: only 64 passes give the same bits."
    )


def _random(scalar: ScalarMap, factor: float) -> tuple[Autoregressive, None]:
    """The start that torch gives a linear layer, times a factor."""
    layer = Autoregressive(FEATURES, scalar)
    layer.network.last.reset_parameters()
    with torch.no_grad():
        layer.network.last.weight *= factor
        layer.network.last.bias *= factor
    return layer, None


def _trained(scalar: ScalarMap, root: Tensor, seconds: float) -> tuple[Autoregressive, float]:
    """Fitted to N(0, R R') for some seconds; with its divergence."""
    layer = Autoregressive(FEATURES, scalar)
    flow, optimizer = Flow(layer), torch.optim.Adam(layer.parameters(), lr=2e-3)
    started = clock()
    while (share := (clock() - started) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 + math.cos(math.pi * share)) / 2
        loss = -flow.log_prob(torch.randn(256, FEATURES) @ root.mT).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    law = torch.distributions.MultivariateNormal(
        torch.zeros(FEATURES), root @ root.mT, validate_args=False
    )
    with torch.no_grad():
        x = torch.randn(20_000, FEATURES) @ root.mT
        return layer, float((law.log_prob(x) - flow.log_prob(x)).mean())


def _factors() -> Tensor:
    """A root of a correlation matrix: half of each variance from 8 factors."""
    loading = torch.nn.functional.normalize(torch.randn(FEATURES, 8), dim=1)
    return torch.linalg.cholesky(0.5 * loading @ loading.mT + 0.5 * torch.eye(FEATURES))


def _chain() -> Tensor:
    """A root of the correlation 0.9^|i - j|."""
    i = torch.arange(FEATURES)
    return torch.linalg.cholesky(0.9 ** (i[:, None] - i).abs().float())


def _masked_peers() -> dict[str, dict[str, tuple[nn.Module, nn.Module, Call]]]:
    """For each kind and library: the flow, the network whose calls are counted, a draw."""
    import normflows
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow as TheirFlow
    from nflows.transforms import autoregressive as theirs

    options = {"hidden_features": 128, "num_blocks": 1, "use_residual_blocks": False}
    bins = {"num_bins": 8, "tails": "linear", "tail_bound": 5.0}
    one = theirs.MaskedAffineAutoregressiveTransform(FEATURES, **options)
    two = theirs.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        features=FEATURES, **options, **bins
    )
    a, b = (TheirFlow(layer, StandardNormal([FEATURES])) for layer in (one, two))
    # Its `inverse` is the loop; its `sample` goes the other way, in one pass.
    other = normflows.flows.MaskedAffineAutoregressive(FEATURES, **options)
    base = normflows.distributions.DiagGaussian(FEATURES, trainable=False)
    c = normflows.NormalizingFlow(base, [other])
    # Its masked spline is turned around: here `sample` is the loop.
    masked = normflows.flows.AutoregressiveRationalQuadraticSpline(
        FEATURES, 1, 128, num_bins=8, tail_bound=5.0
    )
    f = normflows.NormalizingFlow(base, [masked])
    import zuko

    d = zuko.flows.MAF(FEATURES, transforms=1, hidden_features=(128, 128))
    e = zuko.flows.NSF(FEATURES, transforms=1, hidden_features=(128, 128), bins=8)
    return {
        "affine": {
            "nflows": (a, one.autoregressive_net, lambda: a.sample(BATCH)),
            "normflows": (
                c,
                other.autoregressive_net,
                lambda: c.inverse(torch.randn(BATCH, FEATURES)),
            ),
            "zuko": (d, d.transform.transforms[0].hyper, lambda: d().sample((BATCH,))),
        },
        "spline": {
            "nflows, spline": (b, two.autoregressive_net, lambda: b.sample(BATCH)),
            "normflows, spline": (f, masked.mprqat.autoregressive_net, lambda: f.sample(BATCH)),
            "zuko, NSF": (e, e.transform.transforms[0].hyper, lambda: e().sample((BATCH,))),
        },
    }


class Scaled(ScalarMap):
    """z = a(s) x + t with a scale of another library."""

    size = 2

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def scale(self, s: Tensor) -> Tensor:
        if self.kind == "clip":
            return s.clamp(-5, 3).exp()
        return torch.sigmoid(s + 2) if self.kind == "sigmoid" else nn.functional.softplus(s) + 1e-3

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale(params[0])
        return scale * x + params[1], scale.log().expand_as(x)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale(params[0])
        return (z - params[1]) / scale, -scale.log().expand_as(z)


SCALES = {
    "none": ScaleShift("none"),
    "hard, [-5, 3] (pyro)": Scaled("clip"),
    "tanh, 2": ScaleShift("tanh", 2.0),
    "atan, 2": ScaleShift("atan", 2.0),
    "softsign, 2 (default)": ScaleShift("softsign", 2.0),
    "softsign, 6.9 (zuko)": ScaleShift("softsign", 6.9),
    "sigmoid(s + 2) (Glow, nflows)": Scaled("sigmoid"),
    "softplus(s) + 1e-3 (nflows MAF)": Scaled("softplus"),
}


def roundtrip(quick: bool) -> None:
    """Rounding errors of the inverse of deep affine couplings, by the clamp of the log-scale."""
    seeds = 2 if quick else 11
    print(
        "float32, abs(x - inverse(forward(x))), median / largest of 256 points; 8 features, a"
        "\nrandom permutation before each coupling. Networks 4-128-128-8 with tanh, as torch starts"
        "\nthem, but for the last layer: normal weights, no bias, scaled so that its outputs"
        "\n(log-scales and shifts) have the given standard deviation on N(0, I). Medians over"
        f"\n{seeds} seeds; what is not finite is inf.\n"
    )
    columns = [(std, depth) for std in (0.6, 1.8) for depth in (16, 64)]
    head("clamp", *(f"std {std}, {depth} couplings" for std, depth in columns))
    table: dict[str, list[float]] = {}
    for name, scalar in SCALES.items():
        cells = []
        for std, depth in columns:
            errors = [_roundtrip_error(scalar, std, depth, seed) for seed in range(seeds)]
            middle = median(e[0] for e in errors)
            cells.append(f"{middle:.0e} / {median(e[1] for e in errors):.0e}")
            table.setdefault(name, []).append(middle)
        row(name, *cells)
    print()
    for k, (std, depth) in enumerate(columns):
        best = min(table, key=lambda name: table[name][k])
        ratio = table["softsign, 2 (default)"][k] / table[best][k]
        verdict(f"std {std}, {depth} couplings: the default over the best ({best})", ratio, 1)


@torch.no_grad()
def _roundtrip_error(scalar: ScalarMap, std: float, depth: int, seed: int) -> tuple[float, float]:
    """The median and the largest error over 256 points of one random flow."""
    torch.manual_seed(seed)
    parts = []
    for _ in range(depth):
        coupling = Coupling(8, scalar, activation="tanh")
        last = coupling.network.last
        last.weight.normal_()
        last.weight *= std / coupling.network(torch.randn(4096, 4)).std()
        parts += [Permutation(torch.randperm(8).tolist()), coupling]
    flow = Compose(parts)
    x = torch.randn(256, 8)
    error = (x - flow.inverse(flow(x)[0])[0]).abs().amax(-1)
    error = error.masked_fill(~error.isfinite(), math.inf)
    return float(error.median()), float(error.max())


Spline = Callable[[Tensor, Tensor, bool], Tensor]


def inverse(quick: bool) -> None:
    """The inverse of a rational-quadratic spline at extreme logits."""
    n = 2_000 if quick else 20_000
    print(
        f"{n:,} points uniform on [-5, 5], each with a random spline of 8 bins, float32. Errors:"
        "\nabs(z - f(f^-1(z))) and abs(x - f^-1(f(x))), which steep and flat places magnify:"
        "\nmedian / largest of the finite ones. zuko bends less: it bounds the logits softly.\n"
    )
    head("", "std of the logits", "NaN or inf", "raised", "error in z", "error in x")
    ours = RationalQuadratic(8, low=-5.0, high=5.0)
    bad = 0
    for std in (20.0, 100.0):
        torch.manual_seed(0)
        logits = std * torch.randn(n, ours.size)
        points = 10 * torch.rand(n) - 5
        for name, spline in {"ours": _our_spline(ours), **_peer_splines()}.items():
            there, back = (
                _there_and_back(spline, points, logits, first) for first in (True, False)
            )
            broken = sum(int((~e.isfinite()).sum()) for e in (there, back) if isinstance(e, Tensor))
            raised = next((e for e in (there, back) if isinstance(e, str)), "-")
            bad += (broken + (raised != "-")) * (name == "ours")
            row(name, f"{std:g}", broken, raised, _finite(there), _finite(back))
    print()
    verdict("ours: points that are not finite, and exceptions", bad, 0, 0)


def _there_and_back(spline: Spline, points: Tensor, logits: Tensor, first: bool) -> Tensor | str:
    """Errors of inverse and forward, in this order if `first`; or the name of the exception."""
    try:
        return (spline(spline(points, logits, first), logits, not first) - points).abs()
    except Exception as error:
        return type(error).__name__


def _finite(errors: Tensor | str) -> str:
    if isinstance(errors, str):
        return "-"
    errors = errors[errors.isfinite()]
    return f"{float(errors.median()):.0e} / {float(errors.max()):.0e}"


def _our_spline(scalar: RationalQuadratic) -> Spline:
    def spline(x: Tensor, logits: Tensor, inverse: bool) -> Tensor:
        params = logits.mT[..., None]
        return (scalar.inverse if inverse else scalar)(x[:, None], params)[0][:, 0]

    return spline


def _peer_splines() -> dict[str, Spline]:
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline as of_nflows
    from normflows.utils.splines import unconstrained_rational_quadratic_spline as of_normflows

    def wrap(function: Callable) -> Spline:
        def spline(x: Tensor, logits: Tensor, inverse: bool) -> Tensor:
            parts = (part.clone() for part in logits.split([8, 8, 7], 1))
            return function(x, *parts, inverse=inverse, tails="linear", tail_bound=5.0)[0]

        return spline

    import zuko

    def of_zuko(x: Tensor, logits: Tensor, inverse: bool) -> Tensor:
        transform = zuko.transforms.MonotonicRQSTransform(*logits.split([8, 8, 7], 1), bound=5.0)
        return transform.inv(x) if inverse else transform(x)

    return {"nflows": wrap(of_nflows), "normflows": wrap(of_normflows), "zuko": of_zuko}
