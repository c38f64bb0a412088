"""Steering a denoiser towards a class: with its own two answers, or with a classifier."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from lib.checks import floating, reject
from lib.diffusion.denoisers import Denoiser, Level, Posterior, with_signal
from lib.diffusion.schedules import Schedule


class Guided(Denoiser):
    """Classifier-free guidance: mean(no label) + weight (mean(label) - mean(no label)).

    Weight 0 ignores the label, 1 is the conditional denoiser as it is, more exaggerates: the score
    is then that of q(x_t) p(y | x_t)^weight at each t. This is not the noised law of
    p(x) p(y | x)^weight, so that law is not what comes out.

    Args:
        denoiser: one that knows classes, and -1 for none.
        weight: see above; any real number.

    Raises:
        ValueError: a denoiser without classes.

    Source: Ho and Salimans (2021), equation 6, where w is this weight minus one.
    """

    def __init__(self, denoiser: Denoiser, weight: float) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser) or not denoiser.classes:
            reject("denoiser", "a Denoiser that knows classes", type(denoiser).__name__)
        self.denoiser, self.weight = denoiser, float(floating("weight", weight, ndim=0))
        self.schedule, self.event_shape = denoiser.schedule, denoiser.event_shape

    @property
    def classes(self) -> int:
        return self.denoiser.classes

    def on(self, schedule: Schedule) -> Denoiser:
        return super().on(self.denoiser.on(schedule).schedule)

    def _posterior(self, y: Tensor, level: Level, label: Tensor | None) -> Posterior:
        if label is None:
            reject("label", "classes, which guidance is about", "None")
        none = torch.full_like(label, -1)
        twice = Level(*(torch.cat([v, v]) if _per_row(v) else v for v in level))
        both = self.denoiser.posterior(torch.cat([y, y]), twice, torch.cat([label, none]))
        with_label, without = both.mean.chunk(2)
        return Posterior(without + self.weight * (with_label - without))


class ClassifierGuided(Denoiser):
    """Guidance by the gradient of a classifier of noisy data.

    Bayes' rule adds grad log p(y | x_t) to the score, and so s^2 / a times it to the mean.

    Args:
        denoiser: of all classes.
        log_prob: ``log_prob(x, level, label) -> (n,)``, log p(label | x_t), differentiable in x,
            with a `Level` whose parts are numbers, or columns ``(n, 1)`` of one for each row.
        weight: factor of the gradient; 1 is Bayes' rule.

    Raises:
        ValueError: no denoiser, no function; a schedule without signal at t = 1, where a classifier
            has nothing to tell.

    Source: Dhariwal and Nichol (2021), algorithm 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_prob: Callable[[Tensor, Level, Tensor], Tensor],
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            reject("denoiser", "a Denoiser", type(denoiser).__name__)
        if not callable(log_prob):
            reject("log_prob", "a function of x, level and label", type(log_prob).__name__)
        self.denoiser, self.log_prob = denoiser, log_prob
        self.weight = float(floating("weight", weight, ndim=0))
        self.schedule = with_signal(denoiser.schedule, "for a classifier")
        self.event_shape = denoiser.event_shape

    @property
    def classes(self) -> int:
        return sys.maxsize  # whatever the classifier knows

    def on(self, schedule: Schedule) -> Denoiser:
        return super().on(with_signal(self.denoiser.on(schedule).schedule, "for a classifier"))

    def _posterior(self, y: Tensor, level: Level, label: Tensor | None) -> Posterior:
        if label is None:
            reject("label", "classes, which guidance is about", "None")
        mean = self.denoiser.posterior(y, level).mean
        with torch.enable_grad():
            x = (y * level.scale).detach().requires_grad_()
            log_p = self.log_prob(x, level, label)
            if not isinstance(log_p, Tensor) or not log_p.requires_grad:
                reject("log_prob", "a function that is differentiable in x", "no gradient")
            (slope,) = torch.autograd.grad(log_p.sum(), x)
        return Posterior(mean + self.weight * (level.s**2 / level.a) * level.scale * slope)


def _per_row(value: Tensor | float) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
