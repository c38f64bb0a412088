"""The flow of an ordinary differential equation, and the divergence that its density needs.

A velocity v moves points, and its divergence is the rate of the log-determinant:

    dx/dt = v(x, t) ,     d log |det| / dt = tr dv/dx .

An explicit Runge-Kutta method with coefficients a, b and c_i = sum_j a_ij steps from t to t + h by

    k_i = v(x_i, t + c_i h) ,   x_i = x + h sum_j a_ij k_j ,     x <- x + h sum_i b_i k_i ,

and adds h sum_i b_i tr dv/dx(x_i, t + c_i h) to the log-determinant: the same method, applied to
both equations. The trace is a sum over unit vectors, or a mean over vectors of random signs:

    tr J = sum_i e_i^T J e_i = E e^T J e .
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from lib.bijections.base import Bijection, sum_event
from lib.checks import floating, reject, whole
from lib.nets import wholes

SOLVERS = {  # the rows of a, and b
    "euler": (((),), (1.0,)),
    "midpoint": (((), (1 / 2,)), (0.0, 1.0)),
    "heun": (((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": (((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
TRACES = ("exact", "hutchinson")


class ODE(Bijection):
    """A continuous normalising flow: z is where the velocity takes x from ``times[0]`` to the end.

    The inverse walks the same grid backwards. Map, inverse and log-determinant are those of the
    differential equation up to the truncation error of the solver, which is of order 1 (``euler``),
    2 (``midpoint``, ``heun``) or 4 (``rk4``) in the steps; so is what a round trip leaves. A step
    costs one call of the velocity for each stage: 1, 2, 2 or 4.

    Args:
        velocity: ``velocity(x, t)`` or, with context, ``velocity(x, t, context)``: of x of shape
            ``(n, *event)`` at the time t, a tensor of no dimensions; it moves each point on its
            own. The parameters of a module are those of the flow.
        event_shape: sizes of one data point.
        times: the grid from data to latent, rising or falling; at least two.
        solver: ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"rk4"``.
        trace: of dv/dx. ``"exact"``: one vector-Jacobian product for each entry of an event;
            ``"hutchinson"``: one for each probe, an unbiased estimate of the log-determinant.
        probes: vectors of random signs of each point of a batch, the same along the path and in
            both directions: the k-th point of every batch has the k-th probes.
        seed: of the probes. An attribute: a training on estimates sets it anew at each step, or
            the network learns to please the probes.
        context_features: length of the context, 0 for none.

    Raises:
        ValueError: a velocity that cannot be called or whose values are not of the shape and dtype
            of x, times that turn, an unknown solver or trace, sizes that are not whole numbers.

    Source: Chen, Rubanova, Bettencourt and Duvenaud (2018), theorem 1; the estimate: Grathwohl,
    Chen, Bettencourt, Sutskever and Duvenaud (2019), section 3.1; the solvers: Hairer, Nørsett and
    Wanner (1993), section II.1.
    """

    def __init__(
        self,
        velocity: Callable[..., Tensor],
        event_shape: Sequence[int],
        *,
        times: Float[Tensor, "_"] | Sequence[float],
        solver: str = "rk4",
        trace: str = "exact",
        probes: int = 1,
        seed: int = 0,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        if not callable(velocity):
            reject("velocity", "a function of x and t", type(velocity).__name__)
        for name, value, known in (("solver", solver, tuple(SOLVERS)), ("trace", trace, TRACES)):
            if value not in known:
                reject(name, f"one of {', '.join(known)}", repr(value))
        grid = floating("times", times, ndim=1).tolist()
        signs = {(after > before) - (after < before) for before, after in pairwise(grid)}
        if signs not in ({1}, {-1}):
            reject("times", "at least two, rising or falling", grid)
        self.velocity = velocity
        self.event_shape = tuple(wholes("event_shape", event_shape, low=1))
        self.context_features = whole("context_features", context_features, low=0)
        self.times, self.solver, self.trace = tuple(grid), solver, trace
        self.probes, self.seed = whole("probes", probes), whole("seed", seed, low=0)

    def transport(
        self,
        x: Float[Tensor, "..."],
        context: Float[Tensor, "..."] | None = None,
        *,
        reverse: bool = False,
    ) -> Float[Tensor, "..."]:
        """The map without its log-determinant: no derivative of the velocity.

        Args:
            x: shape ``(*batch, *event)``.
            context: as in `forward`.
            reverse: from latent to data.
        """
        for state in self.path(x, context, reverse=reverse):
            x = state
        return x

    def path(
        self,
        x: Float[Tensor, "..."],
        context: Float[Tensor, "..."] | None = None,
        *,
        reverse: bool = False,
    ) -> Iterator[Tensor]:
        """The states at all times of the grid, x itself the first; arguments as in `transport`."""
        context = self._check("z" if reverse else "x", x, self.event_shape, context)
        return (state for state, _ in self._walk(x, context, reverse, trace=False))

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        *_, end = self._walk(x, context, reverse=False, trace=True)
        return end

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        *_, end = self._walk(z, context, reverse=True, trace=True)
        return end

    def _walk(
        self, x: Tensor, context: Tensor | None, reverse: bool, trace: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """State and log-determinant (0 without the trace) at each time of the grid."""
        shape, batch = x.shape, x.shape[: x.ndim - self.event_dim]
        x = x.reshape(-1, *self.event_shape)
        context = None if context is None else context.reshape(-1, self.context_features)
        log_det = x.new_zeros(len(x))
        directions = self._directions(x) if trace else None
        (a, b), grid = SOLVERS[self.solver], self.times[:: -1 if reverse else 1]
        sizes = [after - before for before, after in pairwise(grid)]
        stages = [[t + h * sum(row) for row in a] for t, h in zip(grid, sizes, strict=False)]
        stages = torch.tensor(stages, dtype=x.dtype, device=x.device)  # one copy to the device
        yield x.reshape(shape), log_det.reshape(batch)
        for h, ts in zip(sizes, stages, strict=True):
            k: list[Tensor] = []
            for row, weight, t in zip(a, b, ts, strict=True):
                here, needed = _ahead(x, h, row, k), directions if weight else None
                slope, divergence = self._rates(here, t, context, needed)
                k.append(slope)
                if divergence is not None:
                    log_det = log_det + h * weight * divergence
            x = _ahead(x, h, b, k)
            yield x.reshape(shape), log_det.reshape(batch)

    def _rates(
        self, x: Tensor, t: Tensor, context: Tensor | None, directions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """v(x, t), and its divergence where there are directions e to form e^T (dv/dx) e from."""
        if directions is None:
            return self._velocity(x, t, context), None
        # Not `torch.autograd.grad`: this needs no graph around it, and leaves none without grad.
        slope, pull = vjp(lambda here: self._velocity(here, t, context), x)
        total = sum(sum_event(pull(e)[0] * e, self.event_dim) for e in directions)
        return slope, total if self.trace == "exact" else total / self.probes

    def _velocity(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        v = self.velocity(x, t) if context is None else self.velocity(x, t, context)
        if not isinstance(v, Tensor) or v.shape != x.shape or v.dtype != x.dtype:
            got = f"{v.dtype} of shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v)
            reject("velocity", f"values that are {x.dtype} of shape {tuple(x.shape)}", got)
        return v

    def _directions(self, x: Tensor) -> Tensor:
        """Unit vectors or random signs, shape ``(count, *x.shape)``."""
        if self.trace == "exact":
            size = math.prod(self.event_shape)
            unit = torch.eye(size, dtype=x.dtype, device=x.device)
            return unit.reshape(size, 1, *self.event_shape).expand(size, *x.shape)
        # Drawn on the CPU: the same on every device.
        source = torch.Generator().manual_seed(self.seed)
        bits = torch.randint(2, (len(x), self.probes, *self.event_shape), generator=source)
        return (2 * bits - 1).transpose(0, 1).to(x)


def _ahead(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_i w_i k_i."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x + (h * weight) * slope
    return x
