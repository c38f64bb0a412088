"""From noise to data in a few steps: each sampler is one formula for x_s given x_t, s < t.

With (a, s) of both times in variance-preserving form, m the mean of x_0 given x_t, and
r = (a_t s_s) / (a_s s_t), the square root of the ratio of signal-to-noise ratios:

    ancestral   x_s ~ N(a_s (1 - r^2) m + (s_s / s_t) r x_t, V)                 Ho et al. (2020)
    DDIM        x_s = a_s m + s_s (sqrt(1 - eta tau) e + sqrt(eta tau) z) ,
                tau = 1 - r^2 ,  e = (x_t - a_t m) / s_t                        Song et al. (2021)
    Heun        the trapezoidal rule for d(x/a) / d(s/a) = (x/a - m) / (s/a)    Karras et al. (2022)
    multistep   x_s = (s_s / s_t) x_t + a_s (1 - r) m' ,
                m' = m + (m - m_before) h / 2 h_before ,  h = -log r            Lu et al. (2022)
    Euler-Maruyama  x_s = x_t + B (x_t / 2 + grad log q(x_t)) + sqrt(B) z ,
                B = log(a_s^2 / a_t^2)                                          Song et al. (2021)

All are written so that a_t = 0 (no signal at the start) and s_s = 0 (no noise at the end) need no
special case, but for Heun and multistep, whose first or last step is then of first order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.checks import number, reject, whole
from lib.diffusion.denoisers import Denoiser, Level, Posterior
from lib.diffusion.schedules import Schedule, Time
from lib.noise import normal_like

Variance = Literal["small", "large", "learned", "full"]


class State(NamedTuple):
    """Where a sampler is.

    Attributes:
        x: x_t, of the kind of the schedule.
        t: the time.
        mean: the mean of x_0 that led here; None at the start.
    """

    x: Tensor
    t: float
    mean: Tensor | None


class Move(NamedTuple):
    """All that a step may use, besides y.

    Attributes:
        now: the noise level of y.
        then: the lower one to reach.
        found: p(x_0 | y).
        before: the move before this one, if any.
        generator: source of noise.
        label: classes.
    """

    now: Level
    then: Level
    found: Posterior
    before: Move | None
    generator: torch.Generator | None
    label: Tensor | None

    @property
    def ratio(self) -> float:
        """r = (a_t s_s) / (a_s s_t), between 0 and 1."""
        return (self.now.a * self.then.s) / (self.then.a * self.now.s)

    @property
    def size(self) -> float:
        """h = -log r: half of what the log-SNR gains; infinite where signal or noise is absent."""
        return (self.then.log_snr - self.now.log_snr) / 2


class Sampler:
    """Steps of a denoiser from t to s. A subclass writes `_step`.

    Args:
        denoiser: what is sampled.

    Attributes:
        order: of convergence in the number of steps: of the path where the sampler draws no noise,
            else of the law.
        calls: of the denoiser in one step.
    """

    order = 1
    calls = 1

    def __init__(self, denoiser: Denoiser) -> None:
        if not isinstance(denoiser, Denoiser):
            reject("denoiser", "a Denoiser", type(denoiser).__name__)
        self.denoiser = denoiser

    def step(
        self,
        x: Float[Tensor, "n *event"],
        t: Time,
        s: Time,
        *,
        generator: torch.Generator | None = None,
        label: Tensor | None = None,
    ) -> Float[Tensor, "n *event"]:
        """One step, from time t to an earlier time s.

        Raises:
            ValueError: times out of range, or s not before t.
        """
        self.denoiser.check(x)
        times = [self.denoiser.schedule.time(u).double() for u in (t, s)]
        if any(u.ndim for u in times):
            reject("t, s", "one time each", [tuple(u.shape) for u in times])
        *_, end = self._walk(x, self._levels(torch.stack(times)), generator, label)
        return end.x

    def walk(
        self,
        x: Float[Tensor, "n *event"],
        grid: Float[Tensor, "_"] | Int[Tensor, "_"] | Sequence[float],
        *,
        generator: torch.Generator | None = None,
        label: Tensor | None = None,
    ) -> Iterator[State]:
        """All steps along a falling grid of times; yields the start and the state after each.

        Args:
            x: the start, at time ``grid[0]``.
            grid: for example ``schedule.grid(10)``; if all are integers, they are steps.
            generator: source of noise, on the device of x.
            label: classes, for a denoiser that knows them.

        Raises:
            ValueError: a grid that does not fall, or leaves [0, 1]; fewer than two times; points of
                another shape or precision.
        """
        self.denoiser.check(x)
        return self._walk(x, self._levels(grid), generator, label)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int | None = None,
        *,
        generator: torch.Generator | None = None,
        label: Tensor | None = None,
    ) -> Float[Tensor, "n *event"]:
        """Draws, from pure noise down to t = 0.

        Args:
            n: how many.
            steps: of the schedule's grid; None takes its T.
            generator: source of randomness; its device is that of the computation.
            label: classes, ``(n,)``, for a denoiser that knows them.
        """
        if not isinstance(generator, torch.Generator | None):
            reject("generator", "a torch.Generator or None", type(generator).__name__)
        weight = next(self.denoiser.parameters(), None)
        dtype = torch.float32 if weight is None else weight.dtype
        if generator is not None:
            device = generator.device
        else:
            device = torch.device("cpu") if weight is None else weight.device
        shape = (whole("n", n), *self.denoiser.event_shape)
        x = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        levels = self._levels(self.denoiser.schedule.grid(steps))
        for state in self._walk(x * levels[0][1].scale, levels, generator, label):
            end = state.x
        return end

    def _levels(self, grid: Tensor | Sequence[float]) -> list[tuple[float, Level]]:
        """Each time with its level in floats: all of the schedule that the loop needs."""
        schedule = self.denoiser.schedule
        times = schedule.time(grid).double()
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
            reject("grid", "at least two times that fall", times.flatten().tolist()[:8])
        return levels(schedule, times)

    def _walk(
        self,
        x: Tensor,
        levels: list[tuple[float, Level]],
        generator: torch.Generator | None,
        label: Tensor | None,
    ) -> Iterator[State]:
        (t, now), move = levels[0], None
        yield State(x, t, None)
        y = x / now.scale
        for t, then in levels[1:]:
            found = self.denoiser.posterior(y, now, label)
            before = None if move is None else move._replace(before=None)
            move = Move(now, then, found, before, generator, label)
            y = self._step(y, move)
            yield State(y if then.scale == 1 else y * then.scale, t, found.mean)
            now = then

    def _step(self, y: Tensor, move: Move) -> Tensor:
        raise NotImplementedError


class Ancestral(Sampler):
    """Draws x_s from a Gaussian with the mean of q(x_s | x_t), and one of four variances V.

    q(x_s | x_t, x_0) is Gaussian with variance small = s_s^2 (1 - r^2); not knowing x_0 adds
    k^2 Cov(x_0 | x_t), k = a_s (1 - r^2):

        small     x_0 known: right for data in one point
        large     small + k^2 s_t^2 I, beta_t: right for data from N(0, I)
        learned   the diagonal of small + k^2 Cov(x_0 | x_t)
        full      all of it: mean and covariance of q(x_s | x_t) are exact

    The first two draw no noise in the step to t = 0; of the others it is the last step that draws
    from p(x_0 | x_t).

    Args:
        denoiser: what is sampled; "learned" and "full" need its covariance.
        variance: which of them.

    Raises:
        ValueError: an unknown variance; when it samples, a denoiser without covariance.

    Source: Ho et al. (2020), section 3.2; optimal covariances: Bao et al. (2022), Estimating the
    optimal covariance with imperfect mean in diffusion probabilistic models, theorem 1.
    """

    def __init__(self, denoiser: Denoiser, variance: Variance = "small") -> None:
        super().__init__(denoiser)
        if variance not in ("small", "large", "learned", "full"):
            reject("variance", "'small', 'large', 'learned' or 'full'", repr(variance))
        self.variance = variance

    def _step(self, y: Tensor, move: Move) -> Tensor:
        now, then, found = move.now, move.then, move.found
        k_mean, k_y, small = kernel(now, then)
        mean = (k_mean * found.mean).add_(y, alpha=k_y)
        if self.variance in ("small", "large"):
            if not then.s:  # by custom, the last step draws no noise
                return mean
            variance = small + (k_mean * now.s) ** 2 * (self.variance == "large")
            return mean.add_(normal_like(y, move.generator), alpha=math.sqrt(variance))
        if found.cov is None:
            reject("variance", "'small' or 'large', without a covariance", repr(self.variance))
        z, cov = normal_like(y, move.generator), k_mean**2 * found.cov
        if self.variance == "learned":
            sd = (small + cov.diagonal(dim1=-2, dim2=-1)).clamp(min=0).sqrt()
            return mean + sd.view_as(z) * z
        return mean + (root(cov, small) @ z.flatten(1)[..., None]).view_as(z)


class DDIM(Sampler):
    """Denoising diffusion implicit models: eta = 0 draws no noise, eta = 1 is ancestral (small).

    Raises:
        ValueError: eta outside [0, 1].

    Source: Song, Meng and Ermon (2021), equation 12.
    """

    def __init__(self, denoiser: Denoiser, eta: float = 0.0) -> None:
        super().__init__(denoiser)
        self.eta = number("eta", eta, zero=True)
        if self.eta > 1:
            reject("eta", "a number in [0, 1]", eta)

    def _step(self, y: Tensor, move: Move) -> Tensor:
        now, then, found = move.now, move.then, move.found
        tau = self.eta * (1 - move.ratio**2)
        eps = (y - now.a * found.mean) / now.s
        new = then.a * found.mean + then.s * math.sqrt(1 - tau) * eps
        if tau and then.s:
            new = new + then.s * math.sqrt(tau) * normal_like(y, move.generator)
        return new


class Heun(Sampler):
    """Second order by a second call at the end of each step; the step to t = 0 is Euler's.

    So T steps call the denoiser 2 T - 1 times. From a start without signal the first step is one
    of DDIM.

    Source: Karras et al. (2022), algorithm 1.
    """

    order = 2
    calls = 2

    def _step(self, y: Tensor, move: Move) -> Tensor:
        now, then, found = move.now, move.then, move.found
        eps = (y - now.a * found.mean) / now.s
        new = then.a * found.mean + then.s * eps
        if not then.s or not now.a:
            return new
        mean = self.denoiser.posterior(new, then, move.label).mean
        slope = (eps + (new - then.a * mean) / then.s) / 2  # of x / a, in s / a
        return then.a * (y / now.a + (then.s / then.a - now.s / now.a) * slope)


class Multistep(Sampler):
    """DPM-Solver++(2M): second order from one call a step, by what the step before has seen.

    Source: Lu et al. (2022), DPM-Solver++, algorithm 2, in the log-SNR of uneven steps.
    """

    order = 2

    def _step(self, y: Tensor, move: Move) -> Tensor:
        mean, before = move.found.mean, move.before
        if before is not None and math.isfinite(move.size) and math.isfinite(before.size):
            mean = mean + (mean - before.found.mean) * (move.size / (2 * before.size))
        return (move.then.s / move.now.s) * y + move.then.a * (1 - move.ratio) * mean


class EulerMaruyama(Sampler):
    """The reverse stochastic equation by Euler's rule; the step to t = 0 returns the mean.

    With B = log(a_s^2 / a_t^2), the time in which the variance-preserving process has rate one,

        x_s = x_t + B (x_t / 2 + grad log q(x_t)) + sqrt(B) z .

    A step from no signal at all is ancestral: B is infinite.

    Source: Song et al. (2021), equations 6 and 11.
    """

    def _step(self, y: Tensor, move: Move) -> Tensor:
        now, then, found = move.now, move.then, move.found
        if not then.s:
            return found.mean
        z = normal_like(y, move.generator)
        if not now.a:
            k_mean, k_y, small = kernel(now, then)
            return k_mean * found.mean + k_y * y + math.sqrt(small) * z
        B = 2 * math.log(then.a / now.a)
        score = (now.a * found.mean - y) / now.s**2
        return y + B * (y / 2 + score) + math.sqrt(B) * z


def levels(schedule: Schedule, times: Float[Tensor, "_"]) -> list[tuple[float, Level]]:
    """Each time with its noise level in variance-preserving form, in Python's floats."""
    alpha, sigma = schedule.alpha_sigma(times)
    scale = (alpha.square() + sigma.square()).sqrt()
    columns = (alpha / scale, sigma / scale, schedule.log_snr(times), scale)
    rows = zip(times.tolist(), *(column.tolist() for column in columns), strict=True)
    return [(t, Level(*row)) for t, *row in rows]


def kernel(now: Level, then: Level) -> tuple[float, float, float]:
    """Of q(x_s | x_t, x_0): the factors of x_0 and of x_t in its mean, and its variance."""
    r = (now.a * then.s) / (then.a * now.s)
    share = -math.expm1(now.log_snr - then.log_snr)  # 1 - r^2, with its digits
    return then.a * share, then.s / now.s * r, then.s**2 * share


def root(cov: Float[Tensor, "n d d"], ridge: float) -> Float[Tensor, "n d d"]:
    """A symmetric square root of cov + ridge I, for covariances that may be singular."""
    if cov.shape[-1] == 2:  # in closed form: (A + sqrt(det A) I) / sqrt(tr A + 2 sqrt(det A))
        a = cov[:, 0, 0].clamp(min=0) + ridge
        d = cov[:, 1, 1].clamp(min=0) + ridge
        b = (cov[:, 0, 1] + cov[:, 1, 0]) / 2
        det = (a * d - b * b).clamp(min=0).sqrt()
        size = (a + d + 2 * det).clamp(min=1e-30).sqrt()
        rows = torch.stack([a + det, b, b, d + det], -1) / size[:, None]
        return rows.view(-1, 2, 2)
    values, axes = torch.linalg.eigh((cov + cov.mT) / 2)
    return axes * (values + ridge).clamp(min=0).sqrt()[:, None] @ axes.mT
