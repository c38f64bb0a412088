"""Mixtures of Gaussians in the plane: which mode was it?"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lib.checks import reject
from lib.data.targets.base import choose, log_normal, normal
from lib.inverse.problems import truncated
from lib.inverse.problems.base import (
    BoxPrior,
    InverseProblem,
    standard_error_zero,
    uniform,
    unreachable,
)

FAR = 2.4142  # 1 + sqrt 2 as published: neighbours on the octagon are 2 apart
CENTRES = (
    *((-FAR, 1.0), (-1.0, FAR), (1.0, FAR), (FAR, 1.0)),
    *((FAR, -1.0), (1.0, -FAR), (-1.0, -FAR), (-FAR, -1.0)),
)
LABELS = {"all": (0, 1, 2, 3, 4, 5, 6, 7), "some": (0, 0, 0, 0, 1, 1, 2, 3), "none": (0,) * 8}


class EightModes(InverseProblem):
    """x on one of eight equal Gaussians around a circle; y is a label that modes may share.

    The centres c_k are at radius 2.613 and angles 157.5, 112.5, ... degrees, clockwise; sd 0.2.
    The label of mode k is one-hot of length 8; given x alone it is drawn from p(k | x), the exact
    responsibilities. So p(x | y) is the mean of the Gaussians that carry the label, and p(y) their
    share.

    Args:
        labels: "all": one label for each mode; "some": modes 0-3 share one, so do 4 and 5; "none":
            all modes share one, and y says nothing.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: other `labels`.

    Source: Ardizzone et al. (2019), section 4.1.
    """

    name = "eight_modes"
    sd = 0.2

    def __init__(
        self,
        labels: Literal["all", "some", "none"] = "all",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(2, 8, dtype, device)
        if labels not in LABELS:
            reject("labels", "'all', 'some' or 'none'", repr(labels))
        self.labels = labels
        self.label_of_mode = torch.tensor(LABELS[labels])
        self.centres = torch.tensor(CENTRES, dtype=torch.float64)

    def _sample_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._around(choose(generator, torch.ones(8), n), generator)

    def _around(self, mode: Tensor, generator: torch.Generator | None) -> Tensor:
        z = normal(generator, len(mode), 2)
        return self.centres.to(z)[mode] + self.sd * z

    def _sample(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        mode = choose(generator, torch.ones(8), n)
        x = self._around(mode, generator)
        return x, self._one_hot(mode).to(x)

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        share = self._log_modes(x).softmax(-1).view(-1, 8)
        u = uniform(generator, len(share), 1).to(x)
        mode = (share.cumsum(-1) < u).sum(-1).clamp(max=7)
        return self._one_hot(mode).to(x).view(*x.shape[:-1], 8)

    def _one_hot(self, mode: Tensor) -> Tensor:
        label = self.label_of_mode.to(mode.device)[mode]
        return torch.nn.functional.one_hot(label, 8)

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        carries = self._carriers(y)
        if not bool(carries.any()):
            used = len(set(self.label_of_mode.tolist()))
            unreachable(y, f"no one-hot vector of the {used} labels in use, the first {used}")
        return self._around(choose(generator, carries.double(), n), generator)

    def _carriers(self, y: Tensor) -> Tensor:
        """Which modes carry the label, ``(*batch, 8)``; none where y is no label."""
        code = torch.eye(8).to(y)[self.label_of_mode.to(y.device)]
        return (y[..., None, :] == code).all(-1)

    def _log_modes(self, x: Tensor) -> Tensor:
        """log N(x; c_k, sd^2) for each mode."""
        return log_normal(x[..., None, :], self.centres.to(x), self.sd).sum(-1)

    def _log_prior(self, x: Tensor) -> Tensor:
        return self._log_modes(x).logsumexp(-1) - math.log(8)

    def _log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        share = self._log_modes(x).log_softmax(-1)
        return torch.where(self._carriers(y), share, -math.inf).logsumexp(-1)

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return standard_error_zero((self._carriers(y).sum(-1) / 8).to(y).log())


class GaussianMixture(BoxPrior):
    """x ~ U[-10, 10]^2, and y around x from a wide or from a narrow Gaussian, drawn for each y.

        y ~ N(x, I) / 2 + N(x, I / 100) / 2

    The posterior is the same mixture around y, cut to the box: each component keeps the share that
    lies inside, and its coordinates are independent quantiles.

    Args:
        dtype: of the samples.
        device: of the samples.

    Source: Sisson, Fan and Tanaka (2007); Lueckmann et al. (2021), T.7.
    """

    name = "gaussian_mixture"
    sd = (1.0, 0.1)

    def __init__(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(2, 2, 10.0, dtype, device)

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        batch = x.shape[:-1]
        sd = torch.where(uniform(generator, *batch, 1) < 0.5, *self.sd)
        return x + (sd * normal(generator, *x.shape)).to(x)

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        share = self._log_shares(y).softmax(-1)
        sd = y.new_tensor(self.sd)[choose(generator, share, n)][:, None]
        u = uniform(generator, n, 2)
        z = truncated.quantile(u, (-self.half - y) / sd, (self.half - y) / sd)
        return (y + sd * z).clamp(-self.half, self.half)

    def _log_shares(self, y: Tensor) -> Tensor:
        """log of the mass of each component inside the box, ``(*batch, 2)``."""
        sd, y = y.new_tensor(self.sd), y[..., None]
        each = truncated.log_mass((-self.half - y) / sd, (self.half - y) / sd)
        return each.sum(-2) - math.log(2)

    def _log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        wide, narrow = (log_normal(y, x, sd).sum(-1) for sd in self.sd)
        return torch.logaddexp(wide, narrow) - math.log(2)

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_box = 2 * math.log(2 * self.half)
        return standard_error_zero(self._log_shares(y).logsumexp(-1) - log_box)
