"""Seconds of a training step, of a density and of samples; and of the networks alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flows import peers
from flows.measure import Call, compare, size, verdict

BATCH = 1024
ALONE = "conditioner networks alone"
COMPILED = "ours, torch.compile"


def affine(quick: bool) -> None:
    """Eight affine couplings."""
    print("Eight affine couplings, 64 features, networks 32-128-128-64, batch 1024, float32.\n")
    medians = _section(layers=8, spline=False, quick=quick)
    for column, rows in medians.items():
        fastest = min(t for name, t in rows.items() if name not in ("ours", ALONE, COMPILED))
        verdict(f"{column}: ours over the fastest peer", rows["ours"] / fastest, 1)
        verdict(f"{column}: ours over its networks alone", rows["ours"] / rows[ALONE], 1.25)
    print(
        "\nFrEIA: 4 GLOW blocks are 8 couplings, each with a network of the same size. normflows'"
        "\nsample computes the density too. The networks alone: the very networks of ours, each on"
        "\na half of the batch; in training the input of all but the first wants a gradient, as it"
        "\ndoes in the flow."
    )


def spline(quick: bool) -> None:
    """Four spline couplings."""
    print(
        "Four spline couplings, 8 bins, 64 features, 2 x 128, linear tails beyond 5, batch 1024.\n"
    )
    medians = _section(layers=4, spline=True, quick=quick)
    for column, rows in medians.items():
        fastest = min(t for name, t in rows.items() if name not in ("ours", ALONE, COMPILED))
        verdict(f"{column}: ours over the fastest peer", rows["ours"] / fastest, 0.5)
    print(
        "\nLast layers N(0, 0.1^2): no spline is the identity. FrEIA has no rational-quadratic"
        "\nspline. normflows and nflows with our network class, zuko with its own of the same size;"
        "\nthe NSF(passes=2) of zuko also computes parameters for the half that needs no network."
        "\nnormflows' sample computes the density too."
    )


def _section(layers: int, spline: bool, quick: bool) -> dict[str, dict[str, float]]:
    models = peers.all_of(layers, spline)
    x = torch.randn(BATCH, peers.FEATURES)
    flow = models["ours"].module
    networks = nn.ModuleList([coupling.network for coupling in flow.bijection])
    sizes = {name: size(model.module) for name, model in models.items()}
    columns: dict[str, dict[str, Call]] = {"train step": {}, "log_prob": {}, "sample": {}}
    for name, model in models.items():
        _add(
            columns, name, model.module, model.log_prob, lambda model=model: model.sample(BATCH), x
        )
    sizes[ALONE] = size(networks)
    whole = [part.contiguous() for part in x.split(peers.HALF, 1)]
    wanted = [whole[0], *(whole[k % 2].clone().requires_grad_() for k in range(1, layers))]

    def alone(inputs: list[Tensor]) -> list[Tensor]:
        call = (lambda net, a: net.columns(a)[0]) if spline else (lambda net, a: net(a))
        return [call(net, a) for net, a in zip(networks, inputs, strict=True)]

    def loss(_: Tensor) -> Tensor:
        return torch.stack([out.mean() for out in alone(wanted)])

    plain = [whole[k % 2] for k in range(layers)]
    _add(columns, ALONE, networks, loss, lambda: alone(plain), x, density=lambda: alone(plain))
    try:
        compiled = peers.ours(layers, spline).module
        log_prob = torch.compile(compiled.log_prob, fullgraph=True)
        inverse = torch.compile(compiled.bijection.inverse, fullgraph=True)
        draw = lambda: inverse(compiled.base.sample((BATCH,)))  # noqa: E731
        log_prob(x).mean().backward()
        with torch.no_grad():
            draw(), log_prob(x)
        sizes[COMPILED] = size(compiled)
        _add(columns, COMPILED, compiled, log_prob, draw, x)
    except Exception as error:
        print(f"(torch.compile failed: {type(error).__name__})\n")
    others = [name for name in models if name != "ours"]
    options = {"repeats": 3, "block": 0.01} if quick else {}
    return compare(columns, sizes, others, **options)


def _add(
    columns: dict[str, dict[str, Call]],
    name: str,
    module: nn.Module,
    log_prob: Callable[[Tensor], Tensor],
    sample: Call,
    x: Tensor,
    density: Call | None = None,
) -> None:
    """One model in the three columns. The learning rate is so small that no spline flattens."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        (-log_prob(x).mean()).backward()
        optimizer.step()

    columns["train step"][name] = step
    columns["log_prob"][name] = torch.no_grad()(density or (lambda: log_prob(x)))
    columns["sample"][name] = torch.no_grad()(sample)
