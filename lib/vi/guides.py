"""Black-box variational inference: any Pyro model, any guide, and a rule for when to stop.

Maximising the ELBO over the guide q minimises KL(q || p(. | x)); see `lib.vi.particles`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import constraints
from pyro.infer import autoguide
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lib.checks import reject, whole
from lib.metrics import Measured
from lib.training import fit
from lib.vi.particles import Runner, fork, local_parameters

__all__ = ["FAMILIES", "GuideFit", "fit_guide"]

FAMILIES = {
    "mean-field": autoguide.AutoDiagonalNormal,
    "full-rank": autoguide.AutoMultivariateNormal,
    "low-rank": autoguide.AutoLowRankMultivariateNormal,
}


class _Posterior(nn.Module):
    """`get_posterior` as a `forward`, so that it can be called at given parameters."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self) -> Distribution:
        return self.guide.get_posterior()


@dataclass(frozen=True)
class GuideFit:
    """A fitted guide, and what it takes to judge it.

    Attributes:
        guide: the guide, at the averaged iterate.
        elbo: mean and standard error over fresh samples, in nats.
        elbo_path: the estimate at each step.
        steps: steps that were made.
        reason: ``"converged"`` or ``"max_steps"``.
        seconds: wall time.
    """

    guide: nn.Module
    elbo: Measured
    elbo_path: list[float] = field(repr=False)
    steps: int
    reason: str
    seconds: float
    runner: Runner = field(repr=False)

    def posterior(self) -> Distribution:
        """The guide as a law over unconstrained space, event shape ``(dim,)``: a snapshot.

        Raises:
            ValueError: a guide of one's own that has no `get_posterior`.
        """
        if not hasattr(self.guide, "get_posterior"):
            reject("guide", "one with get_posterior (an AutoContinuous)", type(self.guide).__name__)
        constants = {f"guide.{n}": w.detach().clone() for n, w in self.guide.named_parameters()}
        with local_parameters():
            return functional_call(_Posterior(self.guide), constants, ())

    def sample(self, n: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw ``n`` samples of each latent, in the space of the model: shapes ``(n, *site)``."""
        return self.draw(n, generator)[0]

    def log_ratio(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n"]:
        """log p(x, z) - log q(z) at ``n`` fresh samples z of the guide, in nats."""
        return self.draw(n, generator)[1]

    def draw(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "n"]]:
        """Samples *and* their log ratios, as importance weighting needs them; see `psis_moments`.

        The global random state is left as it was; without a generator each call draws the same.
        """
        n, seed = whole("n", n), 0
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                reject("generator", "a torch.Generator or None", type(generator).__name__)
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with fork(seed):
            return self.runner.draw(n)


def fit_guide(
    model: Callable,
    *args: Any,
    guide: str | nn.Module = "mean-field",
    rank: int | None = None,
    particles: int = 256,
    lr: float = 0.05,
    stick_the_landing: bool = True,
    max_steps: int = 10_000,
    tol: float = 0.05,
    seed: int = 0,
    progress: bool | None = None,
) -> GuideFit:
    """Fit a guide by maximising the ELBO until it stands still, and return the averaged iterate.

    1. Start near: a mean-field Gaussian is fitted with *fixed* random numbers, so that L-BFGS can
       travel any distance (Giordano, Ingram and Broderick 2024). It sets the location and scales.
    2. Run Adam at a constant rate, its steps measured in the guide's standard deviations, until
       the second half of the iterates stands still: the means of its four quarters all lie within
       `tol` of the mean of the half, the estimate at this rate (Polyak and Juditsky 1992), and no
       parameter travels on in a straight line.
    3. Quarter the rate and repeat from the mean. Stop when the estimates of two successive rates
       lie within `tol` of each other (Welandawe, Andersen, Vehtari and Huggins 2022).

    "Within tol" is sqrt(KL(a || b) + KL(b || a)) < tol: for a shift, tol standard deviations.

    Args:
        model: a Pyro model whose latents are continuous, called as ``model(*args)``.
        *args: its arguments.
        guide: ``"mean-field"``, ``"full-rank"``, ``"low-rank"``: Gaussians in unconstrained space,
            on the device and in the dtype of the model; or a guide of one's own, trained in place.
        rank: of ``"low-rank"``; None takes the root of the dimension.
        particles: samples per step.
        lr: first learning rate, in standard deviations of the guide (or in the units of the
            parameters of a guide of one's own, for which step 1 is left out).
        stick_the_landing: see `elbo`.
        max_steps: bound on the steps.
        tol: accuracy that is asked for, in standard deviations of the guide.
        seed: of everything; global random state and parameter store stay as they were.
        progress: see `lib.training.fit`.

    Returns:
        The fit, with its reason to end.

    Raises:
        ValueError: an argument of the wrong kind or range; a model without continuous latents; a
            guide without parameters, or with other latents than the model.
        NonFiniteLoss: a NaN or infinity, naming the step and the site of the model.
    """
    started = time.perf_counter()
    max_steps, seed, particles = (
        whole("max_steps", max_steps),
        whole("seed", seed, low=0),
        whole("particles", particles),
    )
    if not (isinstance(tol, float | int) and 0 < tol < math.inf):
        reject("tol", "a positive number", tol)
    if isinstance(guide, str) and guide not in FAMILIES:
        reject("guide", f"one of {', '.join(FAMILIES)}, or a guide", repr(guide))
    if rank is not None and guide != "low-rank":
        reject("rank", "None, unless guide is 'low-rank'", rank)
    if not callable(model):
        reject("model", "a callable", type(model).__name__)
    standardised = isinstance(guide, str)
    if standardised:
        with fork(seed):
            guide = _start(model, args, guide, None if rank is None else whole("rank", rank), seed)
    with fork(seed):
        runner = Runner(model, guide, args, None)  # a lazy guide makes its parameters here
        if not any(w.requires_grad for w in guide.parameters()):
            reject("guide", "at least one parameter to train", "none")
        runner.check_broadcasting()
    rule = StandStill(runner, tol)

    def loss(_guide: nn.Module, _batch: None, _generator: torch.Generator) -> dict[str, Tensor]:
        terms = runner.terms(particles, stick_the_landing=stick_the_landing, mirrored=True)
        return {name: -term.mean() for name, term in terms.items()}

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        # A short memory, or the large gradients of the first steps would slow down the last.
        adam = StandardisedAdam if standardised else torch.optim.Adam
        rule.optimizer = adam(parameters, lr=lr, betas=(0.9, 0.99))
        if standardised:
            rule.optimizer.guide = guide
        return rule.optimizer

    with pyro.validation_enabled(False):  # so that a NaN reaches the check that names the step
        history = fit(
            guide,
            loss,
            steps=max_steps,
            lr=lr,
            optimizer=optimizer,
            seed=seed,
            devices=next(guide.parameters()).device,
            stop=rule,
            progress=progress,
        )
    rule.move_to_mean()
    with fork(seed + 1):
        ratio = runner.draw(1000)[1].double()
    return GuideFit(
        guide=guide,
        elbo=Measured(float(ratio.mean()), -math.inf, float(ratio.std() / math.sqrt(len(ratio)))),
        elbo_path=[-value for value in history.losses],
        steps=history.steps,
        reason="max_steps" if history.reason == "steps" else history.reason,
        seconds=time.perf_counter() - started,
        runner=runner,
    )


def _start(
    model: Callable, args: tuple, family: str, rank: int | None, seed: int
) -> autoguide.AutoContinuous:
    """A Gaussian guide near its optimum: step 1 of `fit_guide`."""

    def build(name: str) -> autoguide.AutoContinuous:
        options = {"rank": rank} if name == "low-rank" else {}
        with local_parameters():
            guide = FAMILIES[name](model, **options)
            guide.scale_constraint = constraints.positive  # exp: equal steps at every scale
            try:
                guide(*args)
            except (NotImplementedError, RuntimeError, ValueError) as error:
                if "no latent variables" in str(error) or "discrete" in str(error):
                    reject("model", "continuous latents", str(error))
                raise
        return guide

    guide, near = build(family), build("mean-field")
    runner, weights = Runner(model, near, args, None), list(near.parameters())
    best = [math.inf, parameters_to_vector(weights).detach()]

    def closure() -> Tensor:
        near.zero_grad()
        torch.manual_seed(seed)  # the same draws each time: a deterministic function
        value = -sum(runner.terms(32, mirrored=True).values()).mean()
        value.backward()
        if float(value.detach()) < best[0]:
            best[:] = float(value.detach()), parameters_to_vector(weights).detach()
        return value

    with pyro.validation_enabled(False):
        for _ in range(10):  # rounding can derail a line search far from the optimum: start afresh
            before = best[0]
            search = torch.optim.LBFGS(weights, max_iter=100, line_search_fn="strong_wolfe")
            with suppress(RuntimeError):  # an overflow of the step length
                search.step(closure)
            vector_to_parameters(best[1], weights)
            if best[0] > before - 0.01:
                break
    with local_parameters(), torch.no_grad():
        loc, sd = near._loc_scale()
        guide.loc.copy_(loc)
        guide.scale = guide.scale * sd / guide._loc_scale()[1]
    return guide


class StandardisedAdam(torch.optim.Adam):
    """Adam that sees the location of a Gaussian guide in units of the guide: loc = loc_0 + L u."""

    guide: autoguide.AutoContinuous

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        with local_parameters():
            loc, scale = self.guide._loc_scale()
            L = getattr(self.guide, "scale_tril", None)
        L = scale.diag() if L is None else self.guide.scale[:, None] * L
        before, loc.grad = loc.clone(), L.mT @ loc.grad
        loc.zero_()  # u = 0: a small step must not drown in the rounding of a large location
        super().step()
        loc.copy_(before + L @ loc)


class StandStill:
    """Steps 2 and 3 of `fit_guide`, as the callback `stop` of `lib.training.fit`."""

    optimizer: torch.optim.Optimizer
    block, drop = 25, 4.0

    def __init__(self, runner: Runner, tol: float) -> None:
        self.runner, self.tol = runner, tol
        named = [(name, w) for name, w in runner.guide.named_parameters() if w.requires_grad]
        self.names, self.weights = [name for name, _ in named], [w for _, w in named]
        self.here = parameters_to_vector(self.weights).detach()
        self.last: Tensor | None = None  # the estimate at the previous rate
        self.restart()

    def restart(self) -> None:
        # Of each block of iterates at this rate: mean, last iterate, length of the way.
        self.blocks: list[tuple[Tensor, Tensor, Tensor]] = []
        self.total, self.way = torch.zeros_like(self.here), torch.zeros_like(self.here)

    def __call__(self, step: int, history: Any, guide: nn.Module) -> str | None:
        before, self.here = self.here, parameters_to_vector(self.weights).detach()
        self.total = self.total + self.here
        self.way = self.way + (self.here - before).abs()
        if step % self.block:
            return None
        self.blocks.append((self.total / self.block, self.here, self.way))
        self.total, self.way = torch.zeros_like(self.here), torch.zeros_like(self.here)
        if len(self.blocks) % 8 or not self.stands_still():
            return None
        mean = self.mean()
        if self.last is not None and self.near(self.last, mean):
            return "converged"
        self.move_to_mean()
        self.last = mean
        self.restart()
        for group in self.optimizer.param_groups:
            group["lr"] /= self.drop
        return None

    def stands_still(self) -> bool:
        """Whether the second half of the iterates neither spreads by `tol` nor travels.

        At a small rate a long journey spreads little. It shows in a parameter that goes straight on
        (its displacement is nearly the length of its way) without slowing down.
        """
        half = self.blocks[len(self.blocks) // 2 :]
        start, middle, end = (self.blocks[-1 - k][1] for k in (len(half), len(half) // 2, 0))
        straight = (end - start).abs() > 0.9 * torch.stack([way for _, _, way in half]).sum(0)
        steady = (end - middle).abs() > 0.5 * (middle - start).abs()
        if bool((straight & steady).any()):
            return False
        quarters = torch.stack([mean for mean, _, _ in half]).unflatten(0, (4, -1)).mean(1)
        return all(self.near(quarter, self.mean()) for quarter in quarters)

    def mean(self) -> Tensor:
        return torch.stack([mean for mean, _, _ in self.blocks[len(self.blocks) // 2 :]]).mean(0)

    def near(self, a: Tensor, b: Tensor) -> bool:
        return self.runner.distance(self._state(a), self._state(b)) < self.tol

    def move_to_mean(self) -> None:
        """Set the guide to the mean of the second half of the iterates at this rate."""
        if self.blocks:
            self.here = self.mean()
            vector_to_parameters(self.here.clone(), self.weights)

    def _state(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([w.numel() for w in self.weights])
        named = zip(self.names, parts, self.weights, strict=True)
        return {name: part.view_as(w) for name, part, w in named}
