"""Gaussian noise on all of the parameters: the one problem that has a formula for everything."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lib.checks import reject
from lib.data.targets.base import log_normal, normal
from lib.inverse.problems import truncated
from lib.inverse.problems.base import InverseProblem, standard_error_zero, uniform

VARIANCE = 0.1
SD = math.sqrt(VARIANCE)


class GaussianLinear(InverseProblem):
    """y ~ N(x, I / 10) in ten dimensions: 0.1 is the variance, not the standard deviation.

    With the prior N(0, I / 10), x | y ~ N(y / 2, I / 20) and y ~ N(0, I / 5). With the uniform
    prior on [-1, 1]^10, x | y ~ N(y, I / 10) cut to the box, and p(y) = prod_i P(|y_i + e| < 1) / 2
    with e ~ N(0, 1/10): coordinates are independent, so a draw is ten quantiles.

    Args:
        prior: "normal" or "uniform".
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: another `prior`.

    Source: Lueckmann et al. (2021), T.1 and T.2, the covariance as in the text.
    """

    name = "gaussian_linear"

    def __init__(
        self,
        prior: Literal["normal", "uniform"] = "normal",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(10, 10, dtype, device)
        if prior not in ("normal", "uniform"):
            reject("prior", "'normal' or 'uniform'", repr(prior))
        self.prior = prior
        if prior == "uniform":
            self.high = torch.ones(self.features, dtype=torch.float64)
            self.low = -self.high

    def _sample_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        if self.prior == "uniform":
            return 2 * uniform(generator, n, self.features) - 1
        return SD * normal(generator, n, self.features)

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x + SD * normal(generator, *x.shape).to(x)

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        if self.prior == "normal":
            return y / 2 + SD / math.sqrt(2) * normal(generator, n, self.features)
        low, high = _ends(y)
        x = y + SD * truncated.quantile(uniform(generator, n, self.features), low, high)
        return x.clamp(-1, 1)

    def _log_prior(self, x: Tensor) -> Tensor:
        if self.prior == "normal":
            return log_normal(x, 0.0, SD).sum(-1)
        inside = (x.abs() <= 1).all(-1)
        return torch.where(inside, -self.features * math.log(2), -math.inf).to(x)

    def _log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        return log_normal(y, x, SD).sum(-1)

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.prior == "normal":
            each = log_normal(y, 0.0, math.sqrt(2) * SD)
        else:
            each = truncated.log_mass(*_ends(y)) - math.log(2)
        return standard_error_zero(each.sum(-1))


def _ends(y: Tensor) -> tuple[Tensor, Tensor]:
    """The box seen from y, in standard deviations."""
    return (-1 - y) / SD, (1 - y) / SD
