"""A number is worth little without its floor: what two fresh samples of the truth would have given.

Every metric of this package returns a `Measured`: the value, the floor, and the standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence as closed_form

from lib.checks import reject, whole


@dataclass(frozen=True)
class Measured:
    """A measured number, printed as ``0.0448 ± 0.0006 (floor 0)``.

    Attributes:
        value: what was measured.
        floor: what a perfect answer would have measured; ``-inf`` where no floor is known.
        stderr: the standard error of `value`; zero for a closed form.

    Raises:
        ValueError: a field that is no number, or NaN, or a negative `stderr`.
    """

    value: float
    floor: float = 0.0
    stderr: float = 0.0

    def __post_init__(self) -> None:
        for name in ("value", "floor", "stderr"):
            given = getattr(self, name)
            try:
                number = float(given)
            except (TypeError, ValueError, RuntimeError):
                reject(name, "one number", repr(given))
            if math.isnan(number):
                reject(name, "a number", number)
            object.__setattr__(self, name, number)
        if self.stderr < 0:
            reject("stderr", "a non-negative number", self.stderr)

    @property
    def excess(self) -> float:
        """How far the value lies above its floor, in the units of the value."""
        return self.value if self.value == self.floor == math.inf else self.value - self.floor

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        """Format as ``value ± stderr (floor ...)``; ``spec`` is applied to each of the numbers.

        Without a ``spec`` the standard error shows one digit, and the value as many decimals.
        """
        uncertain = 0 < self.stderr < math.inf
        if spec:
            show = lambda number: format(number, spec)  # noqa: E731
        elif uncertain and math.isfinite(self.value):
            # Rounding first: 0.00096 is 0.001, which has one decimal fewer.
            decimals = max(0, -math.floor(math.log10(float(f"{self.stderr:.0e}"))))
            show = lambda number: f"{number:.{decimals}f}" if number else "0"  # noqa: E731
        else:
            show = lambda number: f"{number:.4g}"  # noqa: E731
        error = f" ± {show(self.stderr)}" if self.stderr else ""
        floor = f" (floor {show(self.floor)})" if self.floor > -math.inf else ""
        return f"{show(self.value)}{error}{floor}"

    def __str__(self) -> str:
        return format(self, "")


def kl_divergence(
    p: Distribution,
    q: Distribution,
    *,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Measured:
    """Kullback-Leibler divergence KL(p || q) = E_p[log p(x) - log q(x)], in nats.

    The closed form where PyTorch knows one (standard error zero), else the mean over `samples`
    draws of p. A batch of distributions counts as one joint law: the divergences are added up. The
    value is infinite where p puts mass outside the support of q. A Monte Carlo value may fall a few
    standard errors below zero, which the truth never does.

    Args:
        p: where the expectation is taken, batch shape ``(*batch)``.
        q: a law over the same event, whose batch shape broadcasts with p's.
        samples: number of draws; None takes the closed form, or 10,000 draws where there is none.
            A number asks for Monte Carlo even where the closed form is known.
        generator: source of randomness (its state advances); None takes PyTorch's global state as
            it is. The global state is left as it was in both cases, so None repeats itself.

    Returns:
        The divergence with its standard error and floor 0, the divergence of p from itself.

    Raises:
        ValueError: not distributions, events of different shapes, fewer than two samples, or a
            log density that is NaN.

    Source: Kullback and Leibler (1951), equation 2.4.
    """
    for name, law in (("p", p), ("q", q)):
        if not isinstance(law, Distribution):
            reject(name, "a torch.distributions.Distribution", type(law).__name__)
    if p.event_shape != q.event_shape:
        reject("q", f"the event shape of p, {tuple(p.event_shape)}", tuple(q.event_shape))
    if samples is None:
        try:
            exact = closed_form(p, q)
        except NotImplementedError:
            samples = 10_000
        else:
            return Measured(float(_not_nan(exact.detach().double().sum(), "a closed form")))
    samples = whole("samples", samples, low=2)
    x = _draw(p, samples, generator)
    ratio = (p.log_prob(x).detach() - _log_prob(q, x)).double()
    ratio = ratio.reshape(samples, -1).sum(1)
    mean = _not_nan(ratio.mean(), "log p(x) - log q(x) that is a number for every sample")
    if mean.isinf():
        return Measured(float(mean))
    return Measured(float(mean), stderr=float(ratio.std() / math.sqrt(samples)))


def _draw(p: Distribution, n: int, generator: torch.Generator | None) -> Tensor:
    """``n`` samples of a torch distribution, which takes no generator: fork, seed, draw."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        if generator is not None:
            seed = torch.randint(2**62, (), generator=generator, device=generator.device)
            torch.manual_seed(int(seed))
        return p.sample((n,))


def _log_prob(q: Distribution, x: Tensor) -> Tensor:
    """log q(x), minus infinity outside of the support, where PyTorch would raise or extrapolate."""
    x = x.expand(torch.broadcast_shapes(x.shape, x.shape[:1] + q.batch_shape + q.event_shape))
    inside = q.support.check(x)
    if bool(inside.all()):
        return q.log_prob(x).detach()
    if inside.ndim > 1 + len(q.batch_shape):  # one verdict for each event
        inside = inside.flatten(1 + len(q.batch_shape)).all(-1)
    gate = inside.reshape(inside.shape + (1,) * len(q.event_shape))
    feasible = _draw(q, 1, None).expand_as(x)  # any point of the support will do
    return q.log_prob(torch.where(gate, x, feasible)).detach().masked_fill(~inside, -math.inf)


def _not_nan(value: Tensor, expected: str) -> Tensor:
    if bool(value.isnan()):
        reject("p, q", expected, "NaN")
    return value
