"""How much signal and how much noise there is at a time: x_t = alpha(t) x_0 + sigma(t) eps.

One function is the source of truth, the log signal-to-noise ratio

    log_snr(t) = log alpha(t)^2 / sigma(t)^2 ,   t in [0, 1],   infinite at t = 0 ,

which falls with t. A `kind` says how large x_t is for it; one can be turned into the other by a
factor, so the choice changes no law:

    variance preserving   alpha^2 + sigma^2 = 1
    variance exploding    alpha = 1
    flow                  alpha + sigma = 1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from lib.bijections.base import check_event
from lib.checks import floating, number, reject, whole
from lib.noise import normal_like

Kind = Literal["preserving", "exploding", "flow"]
KINDS = ("preserving", "exploding", "flow")
Time = Tensor | float | int | Sequence[float]


class Schedule:
    """Signal and noise as functions of t in [0, 1]; an integer k in 0..T stands for t = k / T.

    Args:
        log_snr: a function from float64 times in (0, 1] to log-SNR, falling; minus infinity is
            legal at t = 1, where no signal is left. At t = 0 it is plus infinity by definition.
        steps: T, the number of steps that integers count.
        kind: how large x_t is: "preserving", "exploding" or "flow".

    Attributes:
        steps: T.
        kind: see above.

    Raises:
        ValueError: T below one; an unknown kind; log-SNR that rises, or is NaN, at one of the T
            times; no signal at all in a schedule whose variance explodes.

    Source: Kingma, Salimans, Poole and Ho (2021), Variational diffusion models, section 3.
    """

    def __init__(
        self, log_snr: Callable[[Tensor], Tensor], steps: int = 1000, kind: Kind = "preserving"
    ) -> None:
        self.steps = whole("steps", steps)
        if kind not in KINDS:
            reject("kind", f"one of {', '.join(KINDS)}", repr(kind))
        self.kind: Kind = kind
        self._log_snr = _function("log_snr", log_snr)
        values = log_snr(self.grid()[:-1].flip(0))
        if not isinstance(values, Tensor) or values.shape != (self.steps,):
            reject("log_snr", "a tensor with one number for each time", values)
        if bool(values.isnan().any()) or bool((values == math.inf).any()):
            reject("log_snr", "numbers, or minus infinity at the last time", values)
        if not bool((values.diff() < 0).all()):
            reject("log_snr", "values that fall with t", f"a rise among {self.steps} steps")
        if kind == "exploding" and float(values[-1]) == -math.inf:
            reject("log_snr", "finite values where alpha = 1", "no signal at t = 1")

    def log_snr(self, t: Time) -> Tensor:
        """log alpha^2 / sigma^2 in nats, shape of t; plus infinity at t = 0.

        Raises:
            ValueError: times outside [0, 1], integers outside 0..T, NaN.
        """
        u = self.time(t)
        inside = self._log_snr(u.double().clamp(min=1e-300))
        return torch.where(u == 0, math.inf, inside).to(u)

    def alpha(self, t: Time) -> Tensor:
        """The factor of x_0, shape of t; 1 at t = 0."""
        return self.alpha_sigma(t)[0]

    def sigma(self, t: Time) -> Tensor:
        """The standard deviation of the noise, shape of t; 0 at t = 0."""
        return self.alpha_sigma(t)[1]

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """Both factors, from one evaluation in float64."""
        u = self.time(t)
        half = self.log_snr(u.double()) / 2
        if self.kind == "preserving":
            alpha, sigma = (logsigmoid(2 * half) / 2).exp(), (logsigmoid(-2 * half) / 2).exp()
        elif self.kind == "exploding":
            alpha, sigma = torch.ones_like(half), (-half).exp()
        else:
            alpha, sigma = half.sigmoid(), (-half).sigmoid()
        return alpha.to(u), sigma.to(u)

    def alpha_bar(self, t: Time) -> Tensor:
        """The share of signal in the variance, alpha^2 / (alpha^2 + sigma^2), for any kind."""
        u = self.time(t)
        return self.log_snr(u.double()).sigmoid().to(u)

    def time(self, t: Time) -> Tensor:
        """t as numbers in [0, 1], or a ``ValueError``; integers are divided by T."""
        try:  # numpy reads numbers of Python in float64
            u = t if isinstance(t, Tensor) else torch.as_tensor(np.asarray(t))
        except (TypeError, ValueError, RuntimeError):
            reject("t", "times in [0, 1], or integers", repr(t))
        if u.dtype == torch.bool or u.is_complex():
            reject("t", "times in [0, 1], or integers", str(u.dtype))
        whole_steps = not u.is_floating_point()
        top = self.steps if whole_steps else 1
        if not torch.compiler.is_compiling() and not bool(((u >= 0) & (u <= top)).all()):
            expected = f"integers in 0..{top}" if whole_steps else "times in [0, 1]"
            reject("t", expected, f"{float(u.min()):g} to {float(u.max()):g}")
        if whole_steps:
            return u.to(torch.float64) / self.steps
        return u if isinstance(t, Tensor) else u.double()

    def grid(self, steps: int | None = None) -> Float[Tensor, "_"]:
        """The times 1 = t_T > ... > t_1 > t_0 = 0 of a sampler with `steps` steps, float64."""
        steps = self.steps if steps is None else whole("steps", steps)
        return torch.arange(steps, -1, -1, dtype=torch.float64) / steps

    def as_kind(self, kind: Kind) -> Schedule:
        """The same log-SNR for another size of x_t."""
        return Schedule(self._log_snr, self.steps, kind)

    def shifted(self, by: float) -> Schedule:
        """log-SNR plus a constant. Data scaled by c have the one shifted by 2 log c."""
        by = float(floating("by", by, ndim=0))
        return Schedule(partial(_shifted, self._log_snr, by), self.steps, self.kind)

    def noise(
        self,
        x: Float[Tensor, "n *event"],
        t: Time,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
        """The forward process in one shot: a draw of x_t given x_0, and the noise in it.

        Args:
            x: data.
            t: one time, or one for each row.
            generator: source of noise, on the device of `x`.

        Raises:
            ValueError: t of another length or out of range, data that are not floating-point.
        """
        check_event("x", x, ())
        alpha, sigma = (self.like(part, x) for part in self.alpha_sigma(t))
        eps = normal_like(x, generator)
        return alpha * x + sigma * eps, eps

    def walk(
        self, x: Float[Tensor, "n *event"], generator: torch.Generator | None = None
    ) -> list[Float[Tensor, "n *event"]]:
        """The forward process step by step: x_0, x_1, ..., x_T, each from the one before.

        x_t | x_s ~ N((alpha_t / alpha_s) x_s, sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)
        """
        check_event("x", x, ())
        alpha, sigma = self.alpha_sigma(torch.arange(self.steps + 1))
        path = [x]
        for k in range(1, self.steps + 1):
            keep = alpha[k] / alpha[k - 1]
            sd = (sigma[k] ** 2 - (keep * sigma[k - 1]) ** 2).clamp(min=0).sqrt()
            path.append(keep.to(x) * path[-1] + sd.to(x) * normal_like(x, generator))
        return path

    def like(self, value: Tensor, x: Tensor) -> Tensor:
        """One number, or one for each row of x, shaped to multiply x."""
        value = value.to(x)
        if value.ndim == 0:
            return value
        if value.shape != x.shape[:1]:
            reject("t", f"one time or {len(x)} times, one for each row", tuple(value.shape))
        return value.view(-1, *(1,) * (x.ndim - 1))

    @property
    def betas(self) -> Float[Tensor, "_"]:
        """beta_1..beta_T with alpha_bar_k = prod_{i <= k} (1 - beta_i)."""
        a = self.alpha_bar(torch.arange(self.steps + 1))
        return 1 - a[1:] / a[:-1]


def from_alpha_bar(alpha_bar: Callable[[Tensor], Tensor], steps: int = 1000) -> Schedule:
    """A variance-preserving schedule from the share of signal alpha_bar(t)."""
    return Schedule(partial(_from_alpha_bar, _function("alpha_bar", alpha_bar)), steps)


def from_betas(betas: Sequence[float] | Float[Tensor, "_"]) -> Schedule:
    """A schedule from the variances of its steps: alpha_bar_k = prod_{i <= k} (1 - beta_i).

    Between the steps, log alpha_bar is linear. beta_T = 1 is legal: no signal is left at T. (A
    network that predicts the noise cannot start from there; see `NetworkDenoiser`.)

    Raises:
        ValueError: no betas; betas outside (0, 1), but for the last, which may be 1.
    """
    b = floating("betas", betas, ndim=1).double().cpu()
    if float(b.min()) <= 0 or float(b.max()) > 1 or bool((b[:-1] == 1).any()):
        reject("betas", "numbers in (0, 1), the last one possibly 1", b.tolist()[:8])
    log_keep = torch.cat([b.new_zeros(1), torch.log1p(-b).cumsum(0)])
    return Schedule(partial(_from_betas, log_keep), len(b))


def linear(steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> Schedule:
    """Betas that rise linearly from `low` to `high` (Ho, Jain and Abbeel, 2020, section 4)."""
    return from_betas(_between(steps, low, high))


def scaled_linear(steps: int = 1000) -> Schedule:
    """The same with betas times 1000 / T, so that the end does not depend on T; cut at 0.999."""
    scale = 1000 / whole("steps", steps)
    return from_betas((_between(steps, 1e-4, 0.02) * scale).clamp(max=0.999))


def polynomial(steps: int = 1000, power: float = 3.0, last: float = 0.95) -> Schedule:
    """Betas last (k/T)^power: tiny near the data, which lets few steps do (Elflein, 2022)."""
    last = number("last", last)
    k = torch.arange(1, whole("steps", steps) + 1, dtype=torch.float64)
    return from_betas(last * (k / steps) ** number("power", power))


def cosine(steps: int = 1000, offset: float = 0.008) -> Schedule:
    """alpha_bar = cos^2, with betas cut at 0.999 (Nichol and Dhariwal, 2021, equation 17)."""
    offset = number("offset", offset, zero=True)
    u = torch.arange(whole("steps", steps) + 1, dtype=torch.float64) / steps
    bar = ((u + offset) / (1 + offset) * math.pi / 2).cos().square()
    return from_betas((1 - bar[1:] / bar[:-1]).clamp(max=0.999))


def sigmoid(steps: int = 1000, low: float = -3.0, high: float = 3.0) -> Schedule:
    """alpha_bar a sigmoid of -t over [low, high], scaled to go from 1 to 0.

    Source: Jabri, Fleet and Chen (2023), appendix B.
    """
    low, high = float(floating("low", low, ndim=0)), float(floating("high", high, ndim=0))
    if not low < high:
        reject("low, high", "low < high", (low, high))
    return from_alpha_bar(partial(_sigmoid, low, high), steps)


def log_linear(
    steps: int = 1000, low: float = 0.03, high: float = 10.0, kind: Kind = "preserving"
) -> Schedule:
    """sigma / alpha rises by a constant factor per step, from `low` at t = 1/T to `high` at 1."""
    return edm(steps, low, high, rho=math.inf, kind=kind)


def edm(
    steps: int = 1000,
    low: float = 0.002,
    high: float = 80.0,
    rho: float = 7.0,
    kind: Kind = "preserving",
) -> Schedule:
    """(sigma / alpha)^(1/rho) is linear in t, from `low` at t = 1/T to `high` at t = 1.

    Below t = 1/T sigma / alpha falls linearly to 0. An infinite rho is log-linear.

    Source: Karras, Aittala, Aila and Laine (2022), equation 5.
    """
    steps, low, high = whole("steps", steps), number("low", low), number("high", high)
    if low >= high:
        reject("low, high", "low < high", (low, high))
    rho = rho if rho == math.inf else number("rho", rho)
    return Schedule(partial(_edm, 1 / steps, low, high, rho), steps, kind)


def straight(steps: int = 1000) -> Schedule:
    """x_t = (1 - t) x_0 + t eps, the path of flow matching."""
    return Schedule(_straight, steps, "flow")


def _between(steps: int, low: float, high: float) -> Tensor:
    low, high = number("low", low), number("high", high)
    return torch.linspace(low, high, whole("steps", steps), dtype=torch.float64)


# The functions of the schedules, where `pickle` finds them.


def _shifted(log_snr: Callable[[Tensor], Tensor], by: float, u: Tensor) -> Tensor:
    return log_snr(u) + by


def _from_alpha_bar(alpha_bar: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    return torch.logit(alpha_bar(u))


def _from_betas(log_keep: Tensor, u: Tensor) -> Tensor:
    steps, keep = len(log_keep) - 1, log_keep.to(u.device)
    place = (u * steps).clamp(max=steps)
    below = place.floor().long().clamp(max=steps - 1)
    share = place - below
    start, end = keep[below], keep[below + 1]
    # lerp would give NaN for a share of zero of minus infinity
    log_a = torch.where(share == 0, start, start + share * (end - start).clamp(min=-1e9))
    log_a = torch.where(share == 1, end, log_a)
    return log_a - torch.log(-torch.expm1(log_a))


def _sigmoid(low: float, high: float, u: Tensor) -> Tensor:
    start, end = 1 / (1 + math.exp(low)), 1 / (1 + math.exp(high))
    bar = ((-(low + u * (high - low))).sigmoid() - end) / (start - end)
    return bar.clamp(0, 1 - 1e-16)


def _edm(first: float, low: float, high: float, rho: float, u: Tensor) -> Tensor:
    share = ((u - first) / (1 - first)).clamp(min=0) if first < 1 else torch.ones_like(u)
    if rho == math.inf:
        log_s = math.log(low) + share * math.log(high / low)
    else:
        a, b = low ** (1 / rho), high ** (1 / rho)
        log_s = rho * (a + share * (b - a)).log()
    return -2 * (log_s + (u / first).clamp(max=1).log())


def _straight(u: Tensor) -> Tensor:
    return 2 * (torch.log1p(-u) - u.log())


def _function(argument: str, value: Any) -> Callable[[Tensor], Tensor]:
    if not callable(value):
        reject(argument, "a function of times", type(value).__name__)
    return value


def check_schedule(schedule: Any) -> Schedule:
    """The schedule, or a ``ValueError``."""
    if not isinstance(schedule, Schedule):
        reject("schedule", "a Schedule", type(schedule).__name__)
    return schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled linear": scaled_linear,
    "polynomial": polynomial,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "log-linear": log_linear,
    "EDM": edm,
    "straight": straight,
}
