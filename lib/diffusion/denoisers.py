"""What x_0 was, given x_t: a denoiser returns the mean (and perhaps covariance) of p(x_0 | x_t).

All else follows from the mean. With x_t = alpha x_0 + sigma eps,

    E[eps | x_t] = (x_t - alpha mean) / sigma ,    grad log q(x_t) = (alpha mean - x_t) / sigma^2 .

The schedule of a denoiser can be exchanged: what it knows depends on the log-SNR alone, and x_t is
brought to alpha^2 + sigma^2 = 1 first, here written (y, a, s).
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lib.bijections.base import check_event
from lib.checks import number, reject, whole
from lib.diffusion.schedules import Schedule, Time, check_schedule
from lib.nets import wholes
from lib.noise import normal_like
from lib.training import History, fit

Predicts = Literal["eps", "x0", "v", "score", "velocity", "edm"]
Number = Tensor | float
FAR = 40.0  # log-SNR beyond which a network sees no difference


class Posterior(NamedTuple):
    """p(x_0 | x_t).

    Attributes:
        mean: shape of x_t.
        cov: ``(n, D, D)`` over flattened events, or None where it is not known.
    """

    mean: Tensor
    cov: Tensor | None = None


class Level(NamedTuple):
    """A noise level in variance-preserving form: y = x / scale = a x_0 + s eps, a^2 + s^2 = 1."""

    a: Number
    s: Number
    log_snr: Number
    scale: Number


class Denoiser(nn.Module):
    """p(x_0 | x_t) at any time of a schedule. A subclass writes `_posterior`.

    Attributes:
        schedule: what t means.
        event_shape: sizes of one data point.
    """

    schedule: Schedule
    event_shape: tuple[int, ...]

    def forward(
        self, x: Float[Tensor, "n *event"], t: Time, label: Tensor | None = None
    ) -> Posterior:
        """Mean, and covariance where it is known, of x_0 given x_t.

        Args:
            x: x_t, of the kind that the schedule says.
            t: one time in [0, 1], or one for each row; integers are steps.
            label: classes, ``(n,)``, -1 for none, where the denoiser knows classes.

        Raises:
            ValueError: events of another shape or precision, times of another length or out of
                range, labels that are no classes of this denoiser.
        """
        self.check(x)
        level = self._rows(x, t)
        found = self.posterior(x / level.scale, level, label)
        end = torch.as_tensor(level.log_snr == math.inf, device=x.device)
        if not bool(end.any()):
            return found
        mean = torch.where(end, x, found.mean)
        cov = found.cov
        return Posterior(mean, cov if cov is None else torch.where(end.view(-1, 1, 1), 0.0, cov))

    def posterior(self, y: Tensor, level: Level, label: Tensor | None = None) -> Posterior:
        """The same at a noise level, for y = x / scale; what the samplers call."""
        if label is not None:
            self.check_label(label, len(y))
        return self._posterior(y, level, label)

    def check(self, x: Tensor) -> None:
        """Whether x is a batch of events in the precision of the network."""
        check_event("x", x, self.event_shape)
        if x.ndim != 1 + len(self.event_shape):
            reject("x", f"shape (n, {', '.join(map(str, self.event_shape))})", tuple(x.shape))
        weight = next(self.parameters(), x)
        if weight.dtype != x.dtype:
            reject("x", f"the precision of the network, {weight.dtype}", x.dtype)

    def check_label(self, label: Tensor, n: int) -> None:
        """Whether labels are n classes of this denoiser, or -1."""
        if not self.classes:
            reject("label", "None, as this denoiser knows no classes", "labels")
        check_label(label, n, self.classes)

    @property
    def classes(self) -> int:
        """Number of classes, 0 where labels mean nothing."""
        return 0

    def noise(self, x: Tensor, t: Time, label: Tensor | None = None) -> Tensor:
        """E[eps | x_t], for t > 0."""
        self.check(x)
        self._noisy(t)
        alpha, sigma = (self.schedule.like(v, x) for v in self.schedule.alpha_sigma(t))
        return (x - alpha * self(x, t, label).mean) / sigma

    def score(self, x: Tensor, t: Time, label: Tensor | None = None) -> Tensor:
        """grad log q(x_t), by Tweedie's formula, for t > 0."""
        return -self.noise(x, t, label) / self.schedule.like(self.schedule.sigma(t), x)

    def on(self, schedule: Schedule) -> Denoiser:
        """The same denoiser, with shared parameters, on another schedule."""
        other = copy.copy(self)
        other.schedule = check_schedule(schedule)
        return other

    def _noisy(self, t: Time) -> None:
        if not torch.compiler.is_compiling() and not bool((self.schedule.time(t) > 0).all()):
            reject("t", "times above 0, where there is noise", 0)

    def _rows(self, x: Tensor, t: Time) -> Level:
        """The level of each row, in the dtype of x."""
        u = self.schedule.time(t).double()
        alpha, sigma = self.schedule.alpha_sigma(u)
        scale = (alpha.square() + sigma.square()).sqrt()
        parts = (alpha / scale, sigma / scale, self.schedule.log_snr(u), scale)
        return Level(*(self.schedule.like(part, x) for part in parts))

    def _posterior(self, y: Tensor, level: Level, label: Tensor | None) -> Posterior:
        raise NotImplementedError


class NetworkDenoiser(Denoiser):
    """A network that predicts noise, data, or a mixture of them; the mean is worked out from it.

    With y = a x_0 + s eps and F = network(c_in y, c_noise), the mean of x_0 is

        eps         (y - s F) / a                      Ho et al. (2020)
        x0          F
        v           a y - s F                          Salimans and Ho (2022)
        score       (y + s^2 F) / a                    Song et al. (2021)
        velocity    x - sigma F , x = alpha x_0 + sigma eps with alpha + sigma = 1: flow matching
        edm         c_skip y + c_out F                 Karras et al. (2022), table 1
                    c_skip = a sd^2 / d^2 ,  c_out = s sd / d ,  d^2 = a^2 sd^2 + s^2

    c_in = 1 / d keeps the input at unit variance; c_noise = -log_snr / 8 is the log(sigma) / 4 of
    Karras et al.

    Args:
        network: ``network(y, c_noise, label=None)`` of shapes ``(n, *event)`` and ``(n,)``
            or ``(1,)``.
        schedule: what t means.
        event_shape: sizes of one data point.
        predicts: what the network says.
        sd: standard deviation of the data; 1 leaves c_in = 1.
        spread: a network of the same signature for the covariance, with D (D + 1) / 2 outputs: a
            lower triangle L with the logarithm of its diagonal, cov = c_out^2 L L'. Of Gaussian
            data with standard deviation `sd`, the covariance is c_out^2 I.

    Raises:
        ValueError: an unknown `predicts`; "eps" or "score" on a schedule without signal at t = 1,
            where they say nothing of x_0; when called, outputs of another shape.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        predicts: Predicts = "edm",
        sd: float = 1.0,
        spread: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if predicts not in ("eps", "x0", "v", "score", "velocity", "edm"):
            reject("predicts", "'eps', 'x0', 'v', 'score', 'velocity' or 'edm'", repr(predicts))
        for name, part in (("network", network), ("spread", spread)):
            if not isinstance(part, nn.Module) and (part is not None or name == "network"):
                reject(name, "a Module", type(part).__name__)
        self.network, self.spread = network, spread
        self.event_shape = tuple(wholes("event_shape", event_shape, low=1))
        self.predicts = predicts
        self.sd = number("sd", sd)
        self.schedule = self._with_signal(schedule)

    @property
    def classes(self) -> int:
        return getattr(self.network, "classes", 0)

    def on(self, schedule: Schedule) -> Denoiser:
        return super().on(self._with_signal(schedule))

    def _with_signal(self, schedule: Schedule) -> Schedule:
        if self.predicts not in ("eps", "score"):
            return check_schedule(schedule)
        what = f"for a network that predicts {self.predicts} (predict x0, v or edm to start"
        return with_signal(schedule, f"{what} from pure noise)")

    def slope(self, level: Level) -> Number:
        """d mean / d F, by which an error of the network becomes one of the mean."""
        a, s = level.a, level.s
        if self.predicts == "velocity":
            return s / (a + s)
        if self.predicts == "edm":
            return s * self.sd / self._size(level)
        return {"eps": s / a, "x0": s**0, "v": s, "score": s * s / a}[self.predicts]

    def _size(self, level: Level) -> Number:
        """The standard deviation of y, for data with standard deviation `sd`."""
        return ((level.a * self.sd) ** 2 + level.s**2) ** 0.5

    def _posterior(self, y: Tensor, level: Level, label: Tensor | None) -> Posterior:
        a, s, size = level.a, level.s, self._size(level)
        c_noise = torch.as_tensor(level.log_snr, dtype=y.dtype, device=y.device)
        c_noise = c_noise.clamp(-FAR, FAR).reshape(-1) / -8
        inputs = (y / size, c_noise) if label is None else (y / size, c_noise, label)
        F = self.network(*inputs)
        if F.shape != y.shape:  # which broadcasting would hide
            reject("network", f"an output of shape {tuple(y.shape)}", tuple(F.shape))
        if self.predicts == "x0":
            mean = F
        elif self.predicts == "v":
            mean = a * y - s * F
        elif self.predicts == "velocity":
            mean = (y - s * F) / (a + s)
        elif self.predicts == "edm":
            mean = a * (self.sd / size) ** 2 * y + (s * self.sd / size) * F
        else:
            mean = (y - s * F) / a if self.predicts == "eps" else (y + s * s * F) / a
        if self.spread is None:
            return Posterior(mean)
        L = triangle(self.spread(*inputs), math.prod(self.event_shape))
        out = s * self.sd / size
        out = out.reshape(-1, 1, 1) if isinstance(out, Tensor) else out
        L = out * L
        return Posterior(mean, L @ L.mT)

    def loss(
        self,
        x: Float[Tensor, "n *event"],
        t: Time,
        generator: torch.Generator | None = None,
        *,
        weight: Literal["network", "simple", "min-snr"] = "network",
        label: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mean over the batch of w(t) |x_0 - mean|^2 / D, and the likelihood of the covariance.

        Args:
            x: data.
            t: a time for each row (see `stratified_times`), or one for all.
            generator: source of the noise.
            weight: "network" is the plain error of what the network predicts; "simple" is the error
                of the noise, w = SNR; "min-snr" is w = min(SNR, 5), which lets easy low noise not
                dominate.
            label: classes.

        Returns:
            ``{"mean": ...}``, and where there is a covariance ``"spread"``: the negative Gaussian
            log-likelihood of x_0 - mean per dimension, which leaves the mean alone.

        Raises:
            ValueError: another weight, no data, t = 0, and what `forward` refuses.

        Source: Ho et al. (2020), equation 14; min-SNR: Hang et al. (2023), equation 8.
        """
        self.check(x)
        self._noisy(t)
        if not len(x):
            reject("x", "at least one point", "none")
        level = self._rows(x, t)
        y = level.a * x + level.s * normal_like(x, generator)
        found = self.posterior(y, level, label)
        snr = torch.as_tensor(level.a / level.s) ** 2
        if weight == "network":
            w = self.slope(level) ** -2
        elif weight in ("simple", "min-snr"):
            w = snr if weight == "simple" else snr.clamp(max=5.0)
        else:
            reject("weight", "'network', 'simple' or 'min-snr'", repr(weight))
        error = x - found.mean
        terms = {"mean": (w * error.square()).mean()}
        if found.cov is not None:
            r = error.detach().flatten(1)
            L = torch.linalg.cholesky(found.cov)
            white = torch.linalg.solve_triangular(L, r[..., None], upper=False)[..., 0]
            log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            terms["spread"] = (white.square().sum(-1) / 2 + log_det).mean() / r.shape[1]
        return terms

    def fit(
        self,
        x: Float[Tensor, "n *event"],
        label: Int[Tensor, "n"] | None = None,
        *,
        steps: int,
        hide: float = 0.1,
        **options: Any,
    ) -> History:
        """Minimise `loss` over data, at stratified times.

        Batches of 512, a learning rate of 0.005 that falls to zero along a cosine, and an average
        of the weights with a decay of 0.998, by default.

        Args:
            x: data.
            label: their classes.
            steps: of the optimiser.
            hide: share of the labels that are replaced by -1, so that the network also learns what
                to say without one.
            **options: of `lib.training.fit`.

        Raises:
            ValueError: `hide` outside [0, 1], and what `loss` refuses.
        """
        if not 0 <= number("hide", hide, zero=True) <= 1:
            reject("hide", "a number in [0, 1]", hide)

        def loss(
            made: NetworkDenoiser, batch: Any, generator: torch.Generator
        ) -> dict[str, Tensor]:
            x, label = (batch, None) if isinstance(batch, Tensor) else batch
            n, device = len(x), x.device
            if label is not None:
                u = torch.rand(n, generator=generator, device=device)
                label = torch.where(u < hide, -1, label)
            t = stratified_times(n, generator, device=device)
            return made.loss(x, t, generator, label=label)

        common = {"batch_size": min(512, len(x)), "lr": 5e-3, "schedule": "cosine", "ema": 0.998}
        data = x if label is None else (x, label)
        return fit(self, loss, data, steps=steps, **common | options)


def with_signal(schedule: Schedule, what: str) -> Schedule:
    """The schedule, if float32 can tell its last alpha from 0."""
    if float(check_schedule(schedule).alpha_bar(1.0)) < torch.finfo(torch.float32).tiny:
        got = f"alpha(1) = {float(schedule.alpha(1.0)):.3g}"
        reject("schedule", f"some signal at t = 1 {what}", got)
    return schedule


def check_label(label: Tensor, n: int, classes: int, argument: str = "label") -> None:
    """Whether labels are n integers in -1..classes - 1."""
    if not isinstance(label, Tensor):
        reject(argument, f"{n} integers in a tensor", type(label).__name__)
    fits = label.shape == (n,) and label.dtype != torch.bool
    if not fits or label.is_floating_point() or label.is_complex():
        reject(argument, f"{n} integers", f"{label.dtype} of shape {tuple(label.shape)}")
    if not torch.compiler.is_compiling() and not bool(((label >= -1) & (label < classes)).all()):
        reject(argument, f"-1..{classes - 1}", f"{int(label.min())} to {int(label.max())}")


def triangle(flat: Float[Tensor, "n _"], size: int) -> Float[Tensor, "n d d"]:
    """A lower triangle from D (D + 1) / 2 numbers; the first D are logarithms of its diagonal."""
    if flat.shape[-1] != size * (size + 1) // 2:
        reject("spread", f"{size * (size + 1) // 2} outputs", flat.shape[-1])
    L = torch.diag_embed(flat[:, :size].clamp(-6, 3).exp())
    row, column = torch.tril_indices(size, size, -1, device=flat.device)
    L[:, row, column] = flat[:, size:]
    return L


def stratified_times(
    n: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n"]:
    """Times in (0, 1), one in each n-th, in order: uniform each, of low variance together.

    Source: Kingma et al. (2021), Variational diffusion models, appendix I.1.
    """
    n = whole("n", n)
    u = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    places = torch.arange(n, device=device, dtype=torch.float64)
    return ((u + places) / n).clamp(1e-7, 1).to(dtype)


def random_steps(
    n: int,
    steps: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Independent integers 1..T: the times at which a sampler with T steps calls its network."""
    n, steps = whole("n", n), whole("steps", steps)
    return torch.randint(1, steps + 1, (n,), generator=generator, device=device)
