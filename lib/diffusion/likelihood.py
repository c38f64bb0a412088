"""What a denoiser says of the density of the data: exactly, by an equation; or as a bound.

Write y = cos(phi) x_0 + sin(phi) eps: all schedules differ only in how fast they turn. Along

    dy/dphi = E[eps cos(phi) - x_0 sin(phi) | y] = (y cos(phi) - mean) / sin(phi)

the law of y is at each angle that of the forward process, without any noise drawn. So from the data
to the noise this is a bijection, and the change of variables gives log p(x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.bijections.ode import ODE
from lib.checks import floating, reject, whole
from lib.data.targets.base import LOG_2PI
from lib.diffusion.denoisers import Denoiser, Level
from lib.diffusion.samplers import Variance, kernel, levels
from lib.flows import Flow
from lib.noise import normal_like


class Velocity(nn.Module):
    """dy/dphi of a denoiser, as a function of y and the angle."""

    def __init__(self, denoiser: Denoiser, label: int | None = None) -> None:
        super().__init__()
        self.denoiser, self.label = denoiser, label

    def forward(self, y: Float[Tensor, "n *event"], angle: Tensor) -> Float[Tensor, "n *event"]:
        a, s = angle.cos(), angle.sin()
        level = Level(a, s, 2 * (a / s).log(), 1.0)
        label = None
        if self.label is not None:
            label = torch.full((len(y),), self.label, device=y.device)
        return (a * y - self.denoiser.posterior(y, level, label).mean) / s


def probability_flow(
    denoiser: Denoiser,
    steps: int = 60,
    *,
    solver: str = "rk4",
    trace: str = "exact",
    probes: int = 1,
    label: int | None = None,
) -> Flow:
    """The denoiser as a continuous normalising flow, with samples and log-densities.

    It runs from t = 1 / (steps + 1) (below it, data are data) to t = 1, where the base is N(0, I).
    So it is the density of data with that little noise, from a start with
    `MixtureDenoiser.mismatch`.

    Args:
        denoiser: of any schedule; its times are those of the grid.
        steps: of the solver.
        solver: of `lib.bijections.ODE`.
        trace: "exact" in few dimensions, "hutchinson" in many.
        probes: of the latter.
        label: one class, for a denoiser that knows them.

    Raises:
        ValueError: no denoiser, a label that is no class, and what `ODE` refuses.

    Source: Song et al. (2021), section 4.3.
    """
    schedule = _check(denoiser).schedule
    if label is not None:
        denoiser.check_label(torch.as_tensor([label]), 1)
    grid = schedule.grid(whole("steps", steps) + 1)[:-1].flip(0)
    angles = torch.atan((-schedule.log_snr(grid) / 2).exp()).unique()  # pi / 2 may repeat
    ode = ODE(
        Velocity(denoiser, label),
        denoiser.event_shape,
        times=angles.tolist(),
        solver=solver,
        trace=trace,
        probes=probes,
    )
    return Flow(ode)


def _check(denoiser: Denoiser) -> Denoiser:
    if not isinstance(denoiser, Denoiser):
        reject("denoiser", "a Denoiser", type(denoiser).__name__)
    return denoiser


@dataclass(frozen=True)
class Bound:
    """The negative evidence lower bound of points x, in its terms, all in nats and of shape (n,).

    Attributes:
        prior: KL(q(x_T | x) || N(0, I)).
        steps: KL(q(x_s | x_t, x) || p(x_s | x_t)) at one draw of x_t, ``(T - 1, n)``, noise first.
        reconstruction: -log p(x | x_1).
    """

    prior: Tensor
    steps: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """-ELBO, at least -log p(x) on average over the noise."""
        return self.prior + self.steps.sum(0) + self.reconstruction


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    x: Float[Tensor, "n *event"],
    steps: int | None = None,
    *,
    variance: Variance = "full",
    generator: torch.Generator | None = None,
    label: Tensor | None = None,
) -> Bound:
    """The bound of the variational autoencoder whose encoder is the forward process.

    Args:
        denoiser: gives the mean of each reverse step, and its covariance for "full", "learned".
        x: data.
        steps: of the schedule's grid; None takes its T.
        variance: of the reverse steps, as in `Ancestral`; not "small", whose last step is a point.
        generator: source of the noise.
        label: classes.

    Raises:
        ValueError: "small", or a variance that needs a covariance which is not there; no data, NaN,
            and what the denoiser refuses.

    Source: Ho et al. (2020), equation 5.
    """
    if variance not in ("large", "learned", "full"):
        reject("variance", "'large', 'learned' or 'full'", repr(variance))
    _check(denoiser).check(x)
    floating("x", x)
    path = levels(denoiser.schedule, denoiser.schedule.grid(steps))
    size = math.prod(denoiser.event_shape)
    (_, first), terms = path[0], []
    spread = first.s**2 - 1 - 2 * math.log(first.s)
    prior = (first.a**2 * x.flatten(1).square().sum(1) + size * spread) / 2
    for (_, now), (_, then) in pairwise(path):
        y = now.a * x + now.s * normal_like(x, generator)
        found = denoiser.posterior(y, now, label)
        k, _, small = kernel(now, then)
        if variance == "large":
            cov = now.s**2 * torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        elif found.cov is None:
            reject("variance", "'large' for a denoiser without covariance", variance)
        else:
            cov = found.cov
            cov = torch.diag_embed(cov.diagonal(dim1=1, dim2=2)) if variance == "learned" else cov
        cov = cov.double() + small / k**2 * torch.eye(size, dtype=torch.float64, device=x.device)
        L = torch.linalg.cholesky(cov)  # in units of k
        off = (x - found.mean).flatten(1).double()[..., None]
        white = torch.linalg.solve_triangular(L, off, upper=False)[..., 0].square().sum(1)
        log_det = 2 * L.diagonal(dim1=1, dim2=2).log().sum(1)
        if then.s:
            inverse = torch.cholesky_inverse(L).diagonal(dim1=1, dim2=2).sum(1) * small / k**2
            log_small = size * math.log(small / k**2)
            terms.append((inverse + white - size + log_det - log_small).to(x) / 2)
        else:
            last = ((white + log_det + size * LOG_2PI) / 2).to(x)
    return Bound(prior, torch.stack(terms) if terms else x.new_zeros(0, len(x)), last)
