"""Other solvers of the same problems, to be measured beside the invertible networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lib.checks import whole
from lib.inverse.solver import Solver, Standardised
from lib.nets import MLP
from lib.noise import normal_like

LOG_2PI = math.log(2 * math.pi)


class PriorOnly(Solver):
    """The answer that does not look: training points drawn with replacement, whatever y is."""

    def __init__(self, features: int, observed: int) -> None:
        super().__init__(features, observed)
        self.register_buffer("bank", torch.zeros(1, self.features))

    def fit(self, x: Tensor, y: Tensor, **options: object) -> None:
        """Keep the training points; there is nothing to train."""
        self.bank = self._clean(x, y)[0]

    def _sample(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        picked = torch.randint(len(self.bank), (len(y),), generator=generator, device=y.device)
        return self.bank[picked]


class MixtureDensityNetwork(Standardised):
    """p(x | y) = sum_k w_k(y) N(x; m_k(y), S_k(y)), with full covariances, by maximum likelihood.

    Args:
        features: D, length of x.
        observed: d, length of y.
        components: number of normal laws.
        hidden: widths of the network.

    Source: Bishop (1994).
    """

    has_density = True

    def __init__(
        self,
        features: int,
        observed: int,
        *,
        components: int = 8,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__(features, observed)
        D, self.components = self.features, whole("components", components)
        self.rows, self.columns = torch.tril_indices(D, D, -1).unbind()
        self.sizes = [1, D, D, len(self.rows)]  # weight, mean, log-diagonal, lower part
        width = sum(self.sizes) * self.components
        self.network = MLP(observed, width, hidden, activation="silu")

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-weights, means, and Cholesky factors of the *precisions* with their log-diagonals."""
        raw = self.network(y).unflatten(-1, (self.components, -1))
        logit, mean, log_diagonal, lower = raw.split(self.sizes, -1)
        log_diagonal = log_diagonal.clamp(-10, 10)
        factor = torch.diag_embed(log_diagonal.exp())
        factor[..., self.rows, self.columns] = lower
        return logit[..., 0].log_softmax(-1), mean, factor, log_diagonal

    def _log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        log_weight, mean, factor, log_diagonal = self._parts(y)
        rest = self._shrink(x)[:, None] - mean
        z = (factor.mT @ rest[..., None])[..., 0]  # precision = L L^T, so |z|^2 is Mahalanobis
        log_normal = log_diagonal.sum(-1) - 0.5 * (z.square() + LOG_2PI).sum(-1)
        return (log_weight + log_normal).logsumexp(-1) - self.x_sd.log().sum()

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator, done: float = 1.0) -> Tensor:
        return -self._log_prob(x, y).mean()

    def _sample(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        log_weight, mean, factor, _ = self._parts(y)
        k = torch.multinomial(log_weight.exp(), 1, generator=generator)[:, 0]
        row = torch.arange(len(y), device=y.device)
        z = torch.randn(mean[:, 0].shape, generator=generator, dtype=y.dtype, device=y.device)
        x = torch.linalg.solve_triangular(factor[row, k].mT, z[..., None], upper=True)[..., 0]
        return self._grow(mean[row, k] + x)


class ConditionalVAE(Standardised):
    """p(x | y) = E_z N(x; m(z, y), s(z, y)^2) with z ~ N(0, I), by the evidence lower bound.

    Args:
        features: D, length of x.
        observed: d, length of y.
        latent: length of z.
        hidden: widths of encoder and decoder.

    Source: Sohn, Lee and Yan (2015).
    """

    def __init__(
        self,
        features: int,
        observed: int,
        *,
        latent: int = 4,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__(features, observed)
        self.latent = whole("latent", latent)
        options = {"context_features": observed, "activation": "silu"}
        self.encoder = MLP(features, 2 * self.latent, hidden, **options)
        self.decoder = MLP(self.latent, 2 * features, hidden, **options)

    def loss(
        self, x: Tensor, y: Tensor, generator: torch.Generator, done: float = 1.0
    ) -> dict[str, Tensor]:
        x = self._shrink(x)
        mean, log_sd = self.encoder(x, y).chunk(2, -1)
        log_sd = log_sd.clamp(-7, 3)
        z = mean + log_sd.exp() * normal_like(mean, generator)
        centre, log_scale = self._decode(z, y)
        likelihood = -0.5 * ((x - centre) / log_scale.exp()).square() - log_scale - LOG_2PI / 2
        divergence = 0.5 * (mean.square() + (2 * log_sd).exp() - 1) - log_sd
        return {"reconstruction": -likelihood.sum(-1).mean(), "KL": divergence.sum(-1).mean()}

    def _decode(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        centre, log_scale = self.decoder(z, y).chunk(2, -1)
        return centre, log_scale.clamp(-7, 3)

    def _sample(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        z = torch.randn(len(y), self.latent, generator=generator, dtype=y.dtype, device=y.device)
        centre, log_scale = self._decode(z, y)
        return self._grow(centre + log_scale.exp() * normal_like(centre, generator))


class FlowMatching(Standardised):
    """A velocity v(x, t, y) that carries N(0, I) at t = 0 to p(x | y) at t = 1 along lines.

    Trained on |v(x_t, t, y) - (x_1 - x_0)|^2 at x_t = (1 - t) x_0 + t x_1 with x_0 ~ N(0, I);
    sampled by the midpoint rule.

    Args:
        features: D, length of x.
        observed: d, length of y.
        hidden: widths of the network.
        steps: of the midpoint rule; each calls the network twice.

    Source: Lipman et al. (2023), section 4.1; for posteriors: Wildberger et al. (2023).
    """

    def __init__(
        self,
        features: int,
        observed: int,
        *,
        hidden: Sequence[int] = (128, 128, 128),
        steps: int = 16,
    ) -> None:
        super().__init__(features, observed)
        self.steps = whole("steps", steps)
        self.frequencies = 3
        inputs = features + 1 + 2 * self.frequencies
        self.network = MLP(inputs, features, hidden, context_features=observed, activation="silu")

    def velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """v at points (rows, D), times (rows, 1) and standardised observations (rows, d)."""
        turns = torch.pi * t * 2.0 ** torch.arange(self.frequencies, device=t.device)
        return self.network(torch.cat([x, t, turns.cos(), turns.sin()], -1), y)

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator, done: float = 1.0) -> Tensor:
        x = self._shrink(x)
        start = normal_like(x, generator)
        t = torch.rand(len(x), 1, generator=generator, dtype=x.dtype, device=x.device)
        error = self.velocity((1 - t) * start + t * x, t, y) - (x - start)
        return error.square().sum(-1).mean()

    def _sample(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = (len(y), self.features)
        x = torch.randn(shape, generator=generator, dtype=y.dtype, device=y.device)
        h = 1 / self.steps
        for k in range(self.steps):
            t = x.new_full((len(y), 1), k * h)
            half = x + h / 2 * self.velocity(x, t, y)
            x = x + h * self.velocity(half, t + h / 2, y)
        return self._grow(x)
