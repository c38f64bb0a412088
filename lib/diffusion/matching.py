"""Flow matching: learn the velocity that carries one law to another along straight lines.

Draw a pair (x_0, x_1) and a time t; the point between them is x_t = (1 - t) x_0 + t x_1, and

    loss = E |v(x_t, t) - (x_1 - x_0)|^2

is smallest for v = E[x_1 - x_0 | x_t], whose ordinary differential equation carries the law of x_0
to the law of x_1, whatever the pairing. Independent pairs cross, so the paths bend; pairs of an
optimal transport plan between two batches cross little, so few steps of a solver follow them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.bijections.base import check_event
from lib.bijections.ode import ODE
from lib.checks import floating, reject, whole
from lib.diffusion.denoisers import stratified_times
from lib.metrics.transport import assign
from lib.nets import MLP, check_network
from lib.noise import normal_like
from lib.training import History, fit

Pairing = Literal["independent", "optimal"]
Law = Callable[[int, torch.Generator], Tensor]


class FlowMatching(nn.Module):
    """A velocity field from source (t = 0) to target (t = 1), and the flow that it makes.

    Args:
        features: D, length of x.
        hidden: widths of the network.
        network: another one, ``network(x, t)`` with x ``(n, D)`` and t ``(n,)`` or ``(1,)``, for
            example a `NoiseMLP`; None is an `MLP` of both, joined.
        activation: between its layers.
        pairing: "independent", or "optimal": exact optimal transport within each batch.

    Raises:
        ValueError: another pairing, sizes below one, a network that is no module.

    Source: Lipman et al. (2023); independent and optimal pairs: Tong et al. (2024), Improving and
    generalizing flow-based generative models with minibatch optimal transport, section 3.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: Sequence[int] = (64, 64, 64),
        network: nn.Module | None = None,
        activation: str = "silu",
        pairing: Pairing = "independent",
    ) -> None:
        super().__init__()
        if pairing not in ("independent", "optimal"):
            reject("pairing", "'independent' or 'optimal'", repr(pairing))
        self.features, self.pairing = whole("features", features), pairing
        if check_network(network) is None:
            network = _Joined(features, hidden, activation)
        self.network = network

    def forward(self, x: Float[Tensor, "n d"], t: Tensor | float) -> Float[Tensor, "n d"]:
        """The velocity at points and times: one time, or one for each row."""
        check_event("x", x, (self.features,))
        weight = next(self.parameters(), x)
        if weight.dtype != x.dtype:
            reject("x", f"the precision of the network, {weight.dtype}", x.dtype)
        t = torch.as_tensor(t).to(x).reshape(-1)
        if x.ndim != 2 or len(t) not in (1, len(x)):
            reject("t", f"one time or {len(x)} times, one for each row", tuple(t.shape))
        velocity = self.network(x, t)
        if velocity.shape != x.shape:  # which broadcasting would hide
            reject("network", f"an output of shape {tuple(x.shape)}", tuple(velocity.shape))
        return velocity

    def loss(
        self,
        source: Float[Tensor, "n d"],
        target: Float[Tensor, "n d"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The mean squared error of the velocity, over pairs and dimensions.

        Raises:
            ValueError: batches of different shapes or precisions, empty ones.
        """
        _check_pair(source, target)
        if self.pairing == "optimal":
            source, target = optimal_pairs(source, target)
        n = len(source)
        t = stratified_times(n, generator, device=source.device, dtype=source.dtype)
        t = t[torch.randperm(n, generator=generator, device=source.device), None]
        error = self(torch.lerp(source, target, t), t) - (target - source)
        return error.square().mean()

    def fit(
        self,
        source: Law | Float[Tensor, "n d"] | None,
        target: Law | Float[Tensor, "n d"],
        *,
        steps: int,
        batch_size: int = 256,
        **options: Any,
    ) -> History:
        """Minimise `loss` over steps of the optimiser.

        A learning rate of 0.005 that falls to zero along a cosine, and an average of the weights
        with a decay of 0.998, by default.

        Args:
            source: ``law(n, generator)``, from which each step draws anew; None for N(0, I). Or a
                tensor, whose rows and those of a tensor `target` are pairs.
            target: likewise, but not None.
            steps: of the optimiser.
            batch_size: pairs in a step.
            **options: of `lib.training.fit`.

        Raises:
            ValueError: a tensor and a law; tensors of different shapes.
        """
        common = {"lr": 5e-3, "schedule": "cosine", "ema": 0.998} | options
        if isinstance(target, Tensor) and isinstance(source, Tensor):
            _check_pair(source, target)
            size = min(whole("batch_size", batch_size), len(source))
            return fit(self, _pairs, (source, target), steps=steps, batch_size=size, **common)
        if not callable(target) or not (source is None or callable(source)):
            kinds = f"{type(source).__name__} and {type(target).__name__}"
            reject("source, target", "two laws (or None and a law), or two tensors", kinds)
        size = whole("batch_size", batch_size)

        def loss(field: FlowMatching, _: None, generator: torch.Generator) -> Tensor:
            end = target(size, generator)
            start = normal_like(end, generator) if source is None else source(size, generator)
            return field.loss(start, end, generator)

        return fit(self, loss, steps=steps, **common)

    def ode(self, steps: int = 100, *, solver: str = "euler", trace: str = "exact") -> ODE:
        """The bijection from target (data) to source (latent) along a grid of equal steps."""
        times = torch.linspace(1, 0, whole("steps", steps) + 1, dtype=torch.float64).tolist()
        return ODE(self, (self.features,), times=times, solver=solver, trace=trace)


def _pairs(field: FlowMatching, pairs: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    return field.loss(*pairs, generator)


class _Joined(nn.Module):
    """A network of x and t, joined."""

    def __init__(self, features: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.mlp = MLP(features + 1, features, hidden, activation=activation)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, t[:, None].expand(len(x), 1)], -1))


def _check_pair(source: Tensor, target: Tensor) -> None:
    check_event("source", source, ())
    check_event("target", target, ())
    if source.ndim < 2:
        reject("source", "shape (n, *event)", tuple(source.shape))
    if source.shape != target.shape:
        reject("target", f"shape {tuple(source.shape)}, as the source", tuple(target.shape))
    if source.dtype != target.dtype:
        reject("target", f"{source.dtype}, as the source", target.dtype)
    if not len(source):
        reject("source", "at least one point", "none")


def optimal_pairs(
    source: Float[Tensor, "n *event"],
    target: Float[Tensor, "n *event"],
    block: int | None = None,
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Both batches, the target reordered to make the sum of squared distances smallest.

    Exact, by the assignment algorithm on the CPU, whose time grows with the cube of the points. So
    many pairs are made in blocks, each optimal by itself; made once, they cost a training less than
    a plan in each batch.

    Args:
        source: one batch.
        target: the other.
        block: points in a block, the last of which may be smaller; None takes all at once.

    Raises:
        ValueError: batches of different shapes or precisions, empty ones, NaN; `block` below one.
    """
    _check_pair(source, target)
    for name, value in (("source", source), ("target", target)):
        floating(name, value)
    size = len(source) if block is None else whole("block", block)
    parts = zip(source.flatten(1).split(size), target.flatten(1).split(size), strict=True)
    order = torch.cat([k * size + assign(a, b)[0] for k, (a, b) in enumerate(parts)])
    return source, target[order]
