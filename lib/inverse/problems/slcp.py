"""Simple likelihood, complex posterior: four draws of a Gaussian whose scales are squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lib.data.targets.base import LOG_2PI, normal
from lib.inverse.problems import truncated
from lib.inverse.problems.base import BoxPrior
from lib.inverse.problems.sampler import CubeSampler

JITTER = 1e-6
NEAR = 0.01  # scales are explored on a logarithmic axis down to here, below on a linear one


class SLCP(BoxPrior):
    """x ~ U[-3, 3]^5; y holds four draws of N(m, S) in the plane, one after the other, with

        m = (x_1, x_2) ,  s_1 = x_3^2 ,  s_2 = x_4^2 ,  rho = tanh x_5 ,
        S = [[s_1^2, rho s_1 s_2], [rho s_1 s_2, s_2^2]] + 1e-6 I .

    The signs of x_3 and x_4 do not matter: four equal modes.

    **Exact posterior.** With ybar the mean of the four and C = sum (y_i - ybar)(y_i - ybar)^T,

        p(y | x) = N(m; ybar, S / 4) |S|^{-3/2} exp(-tr(S^{-1} C) / 2) / (4 (2 pi)^3) ,

    so m drops out by integration over its box (two truncated normal laws, one after the other),
    three dimensions are left for `CubeSampler`, and m is drawn at the end. The evidence is an
    estimate, and with it `log_posterior`: up to its standard error, 0.01 nats or less.

    Args:
        dtype: of the samples.
        device: of the samples.

    Source: Papamakarios, Sterratt and Murray (2019), appendix A.1; Lueckmann et al. (2021), T.3.
    """

    name = "slcp"

    def __init__(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(5, 8, 3.0, dtype, device)

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        z = normal(generator, *x.shape[:-1], 4, 2).to(x)
        a, b, c = (entry[..., None] for entry in _covariance(x[..., 2:]))
        # The Cholesky factor of S, written out.
        first = a.sqrt()
        below, last = b / first, _rest(a, b, c).sqrt()
        noise = torch.stack([first * z[..., 0], below * z[..., 0] + last * z[..., 1]], -1)
        return (x[..., None, :2] + noise).flatten(-2)

    def _log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        gap = y.unflatten(-1, (4, 2)) - x[..., None, :2]
        a, b, c = (entry[..., None] for entry in _covariance(x[..., 2:]))
        rest = _rest(a, b, c)
        u, v = gap.unbind(-1)
        square = u.square() / a + (v - b / a * u).square() / rest
        return (-square / 2 - (a.log() + rest.log()) / 2 - LOG_2PI).sum(-1)

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        return self._sampler(y, generator).sample(n)

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        rows, which = y.cpu().unique(dim=0, return_inverse=True)
        seeds = (torch.Generator().manual_seed(0) for _ in rows)
        values = [self._sampler(r, g).log_mean() for r, g in zip(rows, seeds, strict=True)]
        value, stderr = y.new_tensor(values)[which.to(y.device)].unbind(1)
        return value, stderr

    def _sampler(self, y: Tensor, generator: torch.Generator | None) -> CubeSampler:
        draws = y.view(4, 2)
        centre = draws.mean(0)
        scatter = (draws - centre).T @ (draws - centre)
        cells = (32, 32, 32, 1, 1, 1, 1)
        return CubeSampler(lambda u: self._collapsed(u, centre, scatter), cells, y, generator)

    def _collapsed(self, u: Tensor, centre: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """x from (x_3, x_4, x_5, m_1, m_2, two signs) in the cube, and its log weight."""
        size, log_stretch = _scales(u[:, :2], scatter.diagonal(), self.half)
        x5 = self.half * (2 * u[:, 2] - 1)
        a, b, c = _covariance(torch.cat([size, x5[:, None]], 1))
        rest, slope = _rest(a, b, c), b / a
        trace = scatter[0, 0] / a
        across = scatter[1, 1] - 2 * slope * scatter[0, 1] + slope.square() * scatter[0, 0]
        trace = trace + across.clamp(min=0) / rest
        m1, log_inside_1 = _inside(u[:, 3], centre[0], a.sqrt() / 2, self.half)
        mean = centre[1] + slope * (m1 - centre[0])
        m2, log_inside_2 = _inside(u[:, 4], mean, rest.sqrt() / 2, self.half)
        log_weight = -1.5 * (a.log() + rest.log()) - trace / 2 - math.log(4) - 3 * LOG_2PI
        # Prior density of |x_3|, |x_4| and m; that of x_5 is uniform in u.
        log_weight = log_weight + log_inside_1 + log_inside_2 + log_stretch.sum(1)
        log_weight = log_weight - 2 * math.log(self.half) - 2 * math.log(2 * self.half)
        signs = 2 * (u[:, 5:] > 0.5).to(u) - 1
        return torch.cat([m1[:, None], m2[:, None], signs * size, x5[:, None]], 1), log_weight


def _covariance(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S_11, S_12 and S_22 from (x_3, x_4, x_5)."""
    s1, s2 = t[..., 0].square(), t[..., 1].square()
    return s1.square() + JITTER, t[..., 2].tanh() * s1 * s2, s2.square() + JITTER


def _rest(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The variance of the second coordinate that the first leaves open, |S| / S_11."""
    return c - b.square() / a


def _scales(u: Tensor, scatter: Tensor, high: float) -> tuple[Tensor, Tensor]:
    """|x_3| and |x_4| from uniform numbers, and the log of their derivatives.

    Scales so small that exp(-C / 2 S) is below 1e-17 of its largest value are left out.
    """
    low = (1 / (80 / scatter.clamp(min=1e-300) + high**-4) - JITTER).clamp(min=0) ** 0.25
    span = ((high + NEAR) / (low + NEAR)).log()
    moved = (low + NEAR) * (span * u).exp()
    size = torch.maximum(moved - NEAR, low).clamp(max=high)  # but for rounding, nothing changes
    return size, moved.log() + span.log()


def _inside(u: Tensor, mean: Tensor, sd: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """A normal draw cut to (-half, half) by its quantile, and the log mass of that interval."""
    low, high = (-half - mean) / sd, (half - mean) / sd
    m = mean + sd * truncated.quantile(u, low, high)
    return m.clamp(-half, half), truncated.log_mass(low, high)
