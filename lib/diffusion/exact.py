"""Denoisers that are exact: what a network would say that has learned all there is to learn.

For a mixture of Gaussians p(x_0) = sum_k w_k N(m_k, C_k), all is in closed form. Given x_t and the
component k, x_0 is Gaussian with

    gain G_k = a C_k (a^2 C_k + s^2 I)^-1 ,  mean m_k + G_k (y - a m_k) ,  cov C_k - a G_k C_k ,

and the components have weights proportional to w_k N(y; a m_k, a^2 C_k + s^2 I). A data set is the
case C_k = 0: its denoiser is the network that remembers everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.checks import floating, reject, whole
from lib.data.targets.base import LOG_2PI
from lib.diffusion.denoisers import Denoiser, Level, Posterior, check_label
from lib.diffusion.schedules import Schedule, Time, check_schedule
from lib.metrics import Measured

CHUNK = 2**21  # numbers in a table of points by components


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a Gaussian mixture, computed in float64.

    Args:
        weights: positive, scaled to add up to one, ``(K,)``.
        means: ``(K, D)``.
        covariances: ``(D, D)`` for all, ``(K, D, D)``, or None for points.
        schedule: what t means.
        labels: the class of each component, ``(K,)``: then the denoiser takes labels.

    Raises:
        ValueError: shapes that do not fit, weights that are not positive, covariances that are not
            symmetric and positive semi-definite.

    Source: Sohl-Dickstein et al. (2015), section 2; the formulas are Bayes' rule for Gaussians.
    """

    def __init__(
        self,
        weights: Float[Tensor, "k"],
        means: Float[Tensor, "k d"],
        covariances: Float[Tensor, "..."] | None,
        schedule: Schedule,
        labels: Int[Tensor, "k"] | None = None,
    ) -> None:
        super().__init__()
        means = floating("means", means, ndim=2).double()
        count, features = means.shape
        weights = floating("weights", weights, ndim=1).double().to(means.device)
        if len(weights) != count or float(weights.min()) <= 0:
            reject("weights", f"{count} positive numbers", weights.tolist()[:8])
        if covariances is None:
            covariances = means.new_zeros(1, features, features)
        cov = floating("covariances", covariances).double().to(means.device)
        cov = cov[None] if cov.ndim == 2 else cov
        if cov.ndim != 3 or cov.shape[1:] != (features, features) or len(cov) not in (1, count):
            reject("covariances", f"shape ({features}, {features}), or one for each", cov.shape)
        values, axes = torch.linalg.eigh(cov)
        if not torch.allclose(cov, cov.mT) or float(values.min()) < -1e-9 * float(values.max()):
            reject("covariances", "symmetric, positive semi-definite matrices", values)
        if labels is not None:
            check_label(labels, count, count, "labels")
            if labels.unique().tolist() != list(range(int(labels.max()) + 1)):
                reject("labels", "every class of 0, 1, ... at least once", labels.unique().tolist())
        self.schedule, self.event_shape = check_schedule(schedule), (features,)
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means)
        self.register_buffer("values", values.clamp(min=0))
        self.register_buffer("axes", axes)
        self.register_buffer("labels", labels)

    @classmethod
    def empirical(
        cls,
        data: Float[Tensor, "k d"],
        schedule: Schedule,
        labels: Int[Tensor, "k"] | None = None,
    ) -> MixtureDenoiser:
        """The denoiser of a data set: the best one for it, and the one that only repeats it."""
        return cls(torch.ones(len(data)), data, None, schedule, labels)

    @property
    def classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def log_prob(
        self, x: Float[Tensor, "n d"], t: Time, label: Tensor | None = None
    ) -> Float[Tensor, "n"]:
        """log q(x_t) in nats, of the dtype of x; at t = 0 the density of the data.

        Raises:
            ValueError: what `forward` refuses; t = 0 for data on points or planes.
        """
        self.check(x)
        if label is not None:
            self.check_label(label, len(x))
        level = self._rows(x, t)
        flat = bool((self.values <= 1e-12 * self.values.max()).any())
        if flat and not bool((torch.as_tensor(level.s) > 0).all()):
            reject("t", "times above 0, as points and planes have no density", 0)
        y = (x / level.scale).double()
        scale = torch.as_tensor(level.scale).double()
        log_jacobian = -x.shape[1] * scale.log().reshape(-1)
        rows = []
        for part in self._parts(len(y)):
            some, here = y[part], Level(*(_part(v, part) for v in level))
            log_p, _ = self._components(some, here, None if label is None else label[part])
            rows.append(log_p.logsumexp(-1))
        return (torch.cat(rows) + log_jacobian).to(x)

    def mismatch(self, n: int = 20_000, generator: torch.Generator | None = None) -> Measured:
        """KL(q(x_T) || N(0, I)) in nats: what starting from pure noise costs, by Monte Carlo.

        For a kind that does not preserve variance, x_T is first scaled to a^2 + s^2 = 1.
        """
        n = whole("n", n, low=2)
        y, level = self._noised(n, torch.tensor(1.0, dtype=torch.float64), generator)
        log_q = self.log_prob(y * level.scale, 1.0) + y.shape[1] * math.log(float(level.scale))
        gap = log_q + 0.5 * y.square().sum(-1) + 0.5 * y.shape[1] * LOG_2PI
        return Measured(float(gap.mean()), stderr=float(gap.std() / math.sqrt(n)))

    def sample(
        self, n: int, generator: torch.Generator | None = None, label: Tensor | None = None
    ) -> Float[Tensor, "n d"]:
        """Draws of the mixture itself, float64; of classes where labels ``(n,)`` are given."""
        n = whole("n", n)
        if label is not None:
            self.check_label(label, n)
        log_w = self.log_weights.expand(n, -1)
        log_w = log_w if label is None else log_w + self._allowed(label)
        device = "cpu" if generator is None else generator.device
        k = torch.multinomial(log_w.exp().to(device), 1, generator=generator)[:, 0]
        k = k.to(self.means.device)
        shape = (n, self.means.shape[1])
        z = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
        own = 0 * k if len(self.axes) == 1 else k
        spread = self.axes[own] * self.values[own].sqrt()[:, None]
        return self.means[k] + (spread @ z.to(k.device)[..., None])[..., 0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixtureDenoiser:
        """Follow `.to(device)`, but stay in float64."""
        return super()._apply(lambda value: value.to(fn(value).device), recurse)

    def _noised(self, n: int, t: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Level]:
        x = self.sample(n, generator)
        level = self._rows(x, t)
        device = "cpu" if generator is None else generator.device
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
        return level.a * x + level.s * z, level

    def _posterior(self, y: Tensor, level: Level, label: Tensor | None) -> Posterior:
        means, covs = [], []
        wide = y.double()
        for part in self._parts(len(y)):
            here = Level(*(_part(v, part) for v in level))
            own = None if label is None else label[part]
            mean, cov = self._moments(wide[part], here, own)
            means.append(mean)
            covs.append(cov)
        return Posterior(torch.cat(means).to(y), torch.cat(covs).to(y))

    def _components(
        self, y: Tensor, level: Level, label: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """log w_k N(y; a m_k, a^2 C_k + s^2 I), (n, K), and y - a m_k in the axes of C_k."""
        a, s = (_double(v, y) for v in (level.a, level.s))
        variance = a[..., None] ** 2 * self.values + s[..., None] ** 2  # (n | 1, K | 1, D)
        if len(self.axes) == 1:  # one set of axes: turn points and means once
            axes = self.axes[0]
            off = (y @ axes)[:, None] - a[..., None] * (self.means @ axes)
        else:
            off = torch.einsum("nkd,kde->nke", y[:, None] - a[..., None] * self.means, self.axes)
        log_p = -0.5 * (off.square() / variance + variance.log() + LOG_2PI).sum(-1)
        log_p = log_p + self.log_weights
        if label is not None:
            log_p = log_p + self._allowed(label)
        return log_p, (off, variance)

    def _moments(self, y: Tensor, level: Level, label: Tensor | None) -> tuple[Tensor, Tensor]:
        log_p, (off, variance) = self._components(y, level, label)
        share = log_p.softmax(-1)
        a = _double(level.a, y)[..., None]
        gain = a * self.values / variance
        within = self.values - a * gain * self.values  # variances along the axes
        if len(self.axes) == 1:
            # In the axes of the one covariance, where it is diagonal.
            axes = self.axes[0]
            each = self.means @ axes + gain * off
            mean = (share[..., None] * each).sum(1)
            second = torch.einsum("nk,nkd,nke->nde", share, each, each)
            cov = second - mean[:, :, None] * mean[:, None] + torch.diag_embed(within[:, 0])
            return mean @ axes.mT, axes @ cov @ axes.mT
        each = self.means + torch.einsum("kde,nke->nkd", self.axes, gain * off)
        mean = (share[..., None] * each).sum(1)
        inner = torch.einsum("kde,nke,kfe->nkdf", self.axes, within.expand_as(off), self.axes)
        centred = each - mean[:, None]
        cov = torch.einsum("nk,nkd,nke->nde", share, centred, centred)
        return mean, cov + (share[..., None, None] * inner).sum(1)

    def _allowed(self, label: Tensor) -> Tensor:
        """0 where a component has the label (or the label is -1), minus infinity elsewhere."""
        label = label.to(self.means.device)[:, None]
        fits = (label == self.labels) | (label < 0)
        return torch.where(fits, 0.0, -math.inf).double()

    def _parts(self, n: int) -> list[slice]:
        size = max(1, CHUNK // (len(self.means) * self.means.shape[1] ** 2))
        return [slice(start, start + size) for start in range(0, max(n, 1), size)]


def _part(value: Tensor | float, part: slice) -> Tensor | float:
    """Rows of a level, where there is one for each row."""
    return value[part] if isinstance(value, Tensor) and value.ndim else value


def _double(value: Tensor | float, like: Tensor) -> Tensor:
    """A level in float64, of shape (n, 1) or (1, 1)."""
    return torch.as_tensor(value, dtype=torch.float64, device=like.device).reshape(-1, 1)
