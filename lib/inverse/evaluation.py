"""How good is a posterior? Distances to the exact one, calibration, and what each number misses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.checks import number, reject, whole
from lib.inverse.conditional import ConditionalFlow
from lib.inverse.problems.base import InverseProblem
from lib.metrics import Measured, c2st, inverse_multiquadratic, mmd
from lib.metrics.two_sample import Kernel


@runtime_checkable
class Posterior(Protocol):
    """What is judged: anything that samples p(x | y). A `lib.inverse.Solver` does."""

    def sample(self, y: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor: ...


class Exact:
    """The exact posterior of a problem in the place of a model: the best that there is."""

    def __init__(self, problem: InverseProblem) -> None:
        self.problem = problem
        self.has_density = problem.has_density

    def sample(self, y: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """As `lib.inverse.Solver.sample`, one observation after the other."""
        rows = y.reshape(-1, y.shape[-1])
        drawn = [self.problem.sample_posterior(row, n, generator) for row in rows]
        return torch.stack(drawn, 1).reshape(n, *y.shape[:-1], -1)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y)."""
        return self.problem.log_posterior(x, y)


class Spoilt:
    """A conditional flow made wrong on purpose, to see whether a test notices.

    Args:
        model: the flow.
        temperature: of its latents: below one it is over-confident, above one it hesitates.
        shift: added to each entry of x.
    """

    has_density = True

    def __init__(
        self, model: ConditionalFlow, *, temperature: float = 1.0, shift: float = 0.0
    ) -> None:
        self.model, self.temperature = model, number("temperature", temperature)
        self.shift = shift

    def sample(self, y: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """As `lib.inverse.Solver.sample`."""
        shape = (n, *y.shape[:-1], self.model.features)
        z = self.temperature * torch.randn(shape, generator=generator, dtype=y.dtype).to(y)
        return self.model.decode(z, y) + self.shift

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log q(x | y) of the spoilt law: its latents are N(0, temperature^2 I)."""
        x, k = x - self.shift, self.temperature
        z = self.model.encode(x, y)
        change = (1 - k**-2) * z.square().sum(-1) / 2 - self.model.features * math.log(k)
        return self.model.log_prob(x, y) + change


@dataclass(frozen=True)
class Spread:
    """One number for each of several observations, and its summary.

    Attributes:
        values: the numbers, shape ``(observations,)``.
        floor: what the exact posterior gives, the mean over the same observations.
    """

    values: Float[Tensor, "observations"]
    floor: float = 0.0

    @property
    def mean(self) -> Measured:
        """The mean with its standard error over the observations."""
        n = len(self.values)
        stderr = float(self.values.std() / math.sqrt(n)) if n > 1 else 0.0
        return Measured(float(self.values.mean()), floor=self.floor, stderr=stderr)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile; a few rare observations cannot move them."""
        levels = torch.tensor([0.25, 0.5, 0.75], dtype=self.values.dtype)
        return tuple(self.values.quantile(levels).tolist())


def posterior_error(
    model: Posterior,
    problem: InverseProblem,
    y: Float[Tensor, "observations d"],
    *,
    draws: int = 1000,
    kernel: Kernel = inverse_multiquadratic,
    reference: Float[Tensor, "draws observations features"] | None = None,
    generator: torch.Generator | None = None,
) -> Spread:
    """Err_post: the unbiased squared MMD between model and exact posterior, for each observation.

    Its floor is zero: on average that is what two exact samples give. `reference` holds exact draws
    of the same observations, where they are at hand (``Exact(problem).sample(y, draws)``): several
    models are then compared on the same ones.

    Source: Kruse et al. (2021), equations 2 and 10, which leave kernel and estimator open.
    """
    y = _observations(y, problem)
    return Spread(
        torch.tensor(
            [
                mmd(a, b, kernel).value
                for a, b in _pairs(model, problem, y, draws, generator, reference)
            ]
        )
    )


def posterior_c2st(
    model: Posterior,
    problem: InverseProblem,
    y: Float[Tensor, "observations d"],
    *,
    draws: int = 10_000,
    early_stopping: bool = False,
    reference: Float[Tensor, "draws observations features"] | None = None,
    generator: torch.Generator | None = None,
) -> Spread:
    """Accuracy of a classifier between model and exact posterior, for each observation; floor 1/2.

    With ``draws=10_000`` and no early stopping it is the protocol of Lueckmann et al. (2021).
    """
    y = _observations(y, problem)
    values = [
        c2st(a, b, early_stopping=early_stopping).value
        for a, b in _pairs(model, problem, y, draws, generator, reference)
    ]
    return Spread(torch.tensor(values), floor=0.5)


def resimulation_error(
    model: Posterior,
    problem: InverseProblem,
    y: Float[Tensor, "observations d"],
    *,
    draws: int = 1000,
    reference: Float[Tensor, "draws observations features"] | None = None,
    generator: torch.Generator | None = None,
) -> Spread:
    """Err_resim = E |simulate(x) - y|^2 over draws of the model, for each observation.

    One good x, repeated, has an error of zero: read it only beside `posterior_error`. Its floor is
    what exact draws give, zero where the simulator is deterministic. Draws whose simulation fails
    (NaN) count as infinitely wrong.

    Source: Kruse et al. (2021), equation 11.
    """
    y = _observations(y, problem)
    ours, exact = [], []
    for row, (a, b) in zip(y, _pairs(model, problem, y, draws, generator, reference), strict=True):
        for draws_of, into in ((a, ours), (b, exact)):
            error = (problem.simulate(draws_of, generator) - row).double().square().sum(-1)
            into.append(float(error.nan_to_num(math.inf).mean()))
    return Spread(torch.tensor(ours), floor=sum(exact) / len(exact))


@torch.no_grad()
def negative_log_likelihood(
    model: Posterior,
    problem: InverseProblem,
    n: int = 10_000,
    generator: torch.Generator | None = None,
) -> Measured:
    """-E log q(x | y) over fresh pairs, in nats: the best cheap number to compare models by.

    Where the problem knows its posterior density the floor is -E log p(x | y) over the same pairs,
    so that the excess is E KL(p || q).
    """
    x, y = problem.sample(whole("n", n, low=2), generator)
    log_q = model.log_prob(x, y).double()
    if not problem.has_density:
        return Measured(float(-log_q.mean()), -math.inf, float(log_q.std() / math.sqrt(n)))
    log_p = problem.log_posterior(x, y).double()
    error = float((log_p - log_q).std() / math.sqrt(n))
    return Measured(float(-log_q.mean()), float(-log_p.mean()), error)


@torch.no_grad()
def ranks(
    model: Posterior,
    problem: InverseProblem,
    n: int = 500,
    *,
    draws: int = 100,
    density: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n columns"]:
    """Simulation-based calibration: where the truth lies among draws of the model, in (0, 1).

    Draw x* from the prior and y from x*. If the model is right, the rank of each entry of x* among
    `draws` samples given y is uniform. ``density=True`` ranks log q(x* | y) among those of the
    samples instead, one column: the share of draws that are less likely, so that highest-density
    regions are tested. Ranks r of 0..L become (r + U) / (L + 1) with U uniform, so that the law is
    uniform without steps. The prior passes the first test too: it is necessary, not sufficient.

    Args:
        model: what is tested.
        problem: where pairs come from.
        n: number of pairs.
        draws: L, samples for each pair.
        density: rank densities.
        generator: source of randomness.

    Source: Talts et al. (2018), algorithm 1; densities: Deistler, Goncalves and Macke (2022).
    """
    x, y = problem.sample(whole("n", n), generator)
    samples = model.sample(y, whole("draws", draws), generator)
    if density:
        truth, among = model.log_prob(x, y)[:, None], model.log_prob(samples, y)[..., None]
    else:
        truth, among = x, samples
    below, equal = (among < truth).sum(0), (among == truth).sum(0)
    u = torch.rand(truth.shape, generator=generator, dtype=torch.float64).to(truth.device)
    return (below + u * (equal + 1)) / (draws + 1)


@dataclass(frozen=True)
class Calibration:
    """Whether ranks are uniform, by the largest gap between their distribution and the diagonal.

    Attributes:
        gap: Kolmogorov-Smirnov distance, the largest over the columns.
        band: what it stays below with the given probability if all is well, all columns together.
    """

    gap: float
    band: float

    @property
    def calibrated(self) -> bool:
        """True when the gap lies inside of the band."""
        return self.gap <= self.band


def calibration(ranks: Float[Tensor, "n columns"], level: float = 0.99) -> Calibration:
    """The test of `ranks` against the uniform law, Bonferroni-corrected over its columns.

    Raises:
        ValueError: ranks outside of [0, 1], a level that is none.
    """
    from scipy.stats import kstwo

    level = number("level", level)
    if level >= 1:
        reject("level", "a probability below 1", level)
    if ranks.ndim != 2 or not bool(((ranks >= 0) & (ranks <= 1)).all()):
        reject("ranks", "numbers from 0 to 1 of shape (n, columns)", tuple(ranks.shape))
    n, columns = ranks.shape
    ordered = ranks.double().sort(0).values
    grid = torch.arange(1, n + 1, dtype=torch.float64, device=ranks.device)[:, None] / n
    gap = torch.maximum(grid - ordered, ordered - (grid - 1 / n)).max()
    return Calibration(float(gap), float(kstwo.ppf(1 - (1 - level) / columns, n)))


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found, printed as a table.

    Attributes:
        model: its name.
        problem: its name.
        rows: quantity, value, what a perfect model would give, and a verdict or remark.
    """

    model: str
    problem: str
    rows: list[tuple[str, str, str, str]]

    def __str__(self) -> str:
        lines = ["| quantity | value | perfect | remark |", "|---|---|---|---|"]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in self.rows)])

    def _repr_markdown_(self) -> str:
        return str(self)


def diagnose(
    model: Posterior,
    problem: InverseProblem,
    *,
    observations: int = 20,
    draws: int = 1000,
    pairs: int = 500,
    test: bool = True,
    generator: torch.Generator | None = None,
) -> Diagnosis:
    """Everything in one table: distance, classifier, re-simulation, likelihood, calibration.

    Args:
        model: what is judged.
        problem: what it was trained on.
        observations: drawn from the prior predictive, for the comparisons with the exact posterior.
        draws: samples for each of them.
        pairs: for likelihood and calibration.
        test: include the classifier, the slowest part.
        generator: source of randomness.
    """
    _, y = problem.sample(whole("observations", observations), generator)
    exact = Exact(problem).sample(y, draws, generator)
    options = {"draws": draws, "generator": generator}
    error = posterior_error(model, problem, y, reference=exact, **options)
    resim = resimulation_error(model, problem, y, reference=exact, **options)
    low, middle, high = error.quartiles
    rows = [
        ("Err_post, median (quartiles)", f"{middle:.2g} ({low:.2g} to {high:.2g})", "0", ""),
        ("Err_post, mean", f"{error.mean.value:.2g} ± {error.mean.stderr:.1g}", "0", ""),
        (
            "Err_resim, median",
            f"{resim.quartiles[1]:.2g}",
            f"{resim.floor:.2g}",
            "rewards collapse",
        ),
    ]
    if test:
        few = {"early_stopping": True, "reference": exact[:, :5], **options}
        tested = posterior_c2st(model, problem, y[:5], **few)
        null = math.sqrt(0.25 / (2 * draws))
        rows.append(("C2ST, mean", f"{tested.mean.value:.3f}", f"0.5 ± {null:.3f}", ""))
    has_density = getattr(model, "has_density", False)
    if has_density:
        nll = negative_log_likelihood(model, problem, 10 * pairs, generator)
        floor = f"{nll.floor:.3f}" if nll.floor > -math.inf else "not known"
        rows.append(("-log q(x given y)", f"{nll.value:.3f} ± {nll.stderr:.1g}", floor, "nats"))
    for name, density in (("SBC, largest gap", False), ("HPD coverage, gap", True)):
        if density and not has_density:
            continue
        found = calibration(ranks(model, problem, pairs, density=density, generator=generator))
        verdict = "calibrated" if found.calibrated else "NOT calibrated"
        rows.append((name, f"{found.gap:.3f}", f"below {found.band:.3f}", verdict))
    return Diagnosis(type(model).__name__, problem.name, rows)


def _pairs(
    model: Posterior,
    problem: InverseProblem,
    y: Tensor,
    draws: int,
    generator: torch.Generator | None,
    reference: Tensor | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples of the model and of the exact posterior, one observation after the other."""
    if reference is not None and reference.shape != (draws, len(y), problem.features):
        wanted = f"shape ({draws}, {len(y)}, {problem.features})"
        reject("reference", wanted, tuple(reference.shape))
    for k, row in enumerate(y):
        ours = model.sample(row, draws, generator)
        exact = (
            problem.sample_posterior(row, draws, generator)
            if reference is None
            else reference[:, k]
        )
        yield ours, exact.to(ours)


def _observations(y: Tensor, problem: InverseProblem) -> Tensor:
    if not isinstance(y, Tensor) or y.ndim != 2 or y.shape[1] != problem.observed:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        reject("y", f"shape (observations, {problem.observed})", got)
    return y
