"""A blurred, noisy digit of which a part is hidden: what was the image?"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.checks import number, reject
from lib.data.digits import digits
from lib.data.targets.base import LOG_2PI, choose, normal
from lib.inverse.problems.base import InverseProblem, standard_error_zero

SIDE = 8
PIXELS = SIDE**2


class DigitImages(InverseProblem):
    """x is an 8 x 8 digit, y its blurred and noisy visible part.

    The prior is a mixture of Gaussians N(mu_k, s^2 I) around the training images mu_k of
    `lib.data.digits`, in units of grey 0..1: a kernel density. With the kernel (1, 2, 1) / 4 in
    both directions, black beyond the edge,

        y = A x + e ,   e ~ N(0, noise^2 I) ,   A = (visible rows of) the blur .

    **Exact posterior.** For each component x and y are jointly Gaussian, so with one covariance
    for all, S = (I / s^2 + A^T A / noise^2)^{-1},

        p(x | y) = sum_k w_k N(mu_k + S A^T (y - A mu_k) / noise^2, S) ,
        w_k ~ N(y; A mu_k, s^2 A A^T + noise^2 I) .

    Args:
        hidden: which pixels are hidden, boolean of shape ``(8, 8)``; by default the last three
            columns.
        sd: s, standard deviation of the prior around a training image, positive.
        noise: standard deviation of the noise, positive.
        dtype: of the samples.
        device: of the samples.

    Attributes:
        images: the mu_k, float64 of shape ``(K, 64)``.
        labels: the digit that each shows, ``(K,)``.
        hidden: the hidden pixels, ``(8, 8)``.
        operator: A, float64 of shape ``(d, 64)``.

    Raises:
        ValueError: `hidden` of another shape or dtype, or with nothing visible; a scale that is
            not positive.
    """

    name = "digit_images"

    def __init__(
        self,
        hidden: Bool[Tensor, "8 8"] | None = None,
        *,
        sd: float = 0.05,
        noise: float = 0.1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sd, self.noise = number("sd", sd), number("noise", noise)
        self.hidden = _mask(hidden)
        visible = ~self.hidden.flatten()
        super().__init__(PIXELS, int(visible.sum()), dtype, device)
        train = digits().train
        self.images, self.labels = train.images.flatten(1).double() / 16, train.labels
        self.operator = _blur()[visible]
        A, eye = self.operator, torch.eye(PIXELS, dtype=torch.float64)
        precision = eye / self.sd**2 + A.T @ A / self.noise**2
        root = torch.linalg.cholesky(precision)
        # With precision = L L^T, L^{-T} z has the covariance S.
        self._spread = torch.linalg.solve_triangular(root.T, eye, upper=True)
        self._gain = self._spread @ self._spread.T @ A.T / self.noise**2
        covariance = self.sd**2 * A @ A.T + self.noise**2 * torch.eye(len(A), dtype=torch.float64)
        root = torch.linalg.cholesky(covariance)
        self._whiten = torch.linalg.inv(root).T
        self._log_root = float(root.diagonal().log().sum())
        self._white_images = self.images @ A.T @ self._whiten

    def posterior_moments(
        self, y: Float[Tensor, "observed"]
    ) -> tuple[Float[Tensor, "64"], Float[Tensor, "64"]]:
        """Mean and standard deviation of each pixel given y, in closed form.

        Raises:
            ValueError: `y` of another shape or not finite.
        """
        wide = self._observation(y)
        share = self._log_shares(wide).softmax(-1)
        centres = self._centres(wide)
        mean = share @ centres
        variance = share @ (centres - mean).square() + self._spread.to(wide).square().sum(1)
        return self._out(mean), self._out(variance.sqrt())

    def _sample_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        mode = choose(generator, torch.ones(len(self.images)), n)
        z = normal(generator, n, PIXELS)
        return self.images.to(z)[mode] + self.sd * z

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        seen = x @ self.operator.T.to(x)
        return seen + self.noise * normal(generator, *seen.shape).to(x)

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        mode = choose(generator, self._log_shares(y).softmax(-1), n)
        z = normal(generator, n, PIXELS)
        return self._centres(y)[mode] + z @ self._spread.T.to(z)

    def _centres(self, y: Tensor) -> Tensor:
        """The mean of each component of the posterior, ``(K, 64)``."""
        images = self.images.to(y)
        return images + (y - images @ self.operator.T.to(y)) @ self._gain.T.to(y)

    def _log_shares(self, y: Tensor) -> Tensor:
        """log N(y; A mu_k, s^2 A A^T + noise^2 I) for each k, ``(*batch, K)``."""
        square = _square_distances(y @ self._whiten.to(y), self._white_images.to(y))
        return -square / 2 - self._log_root - self.observed / 2 * LOG_2PI

    def _log_prior(self, x: Tensor) -> Tensor:
        square = _square_distances(x, self.images.to(x)) / self.sd**2
        log_each = -square / 2 - PIXELS * (math.log(self.sd) + LOG_2PI / 2)
        return log_each.logsumexp(-1) - math.log(len(self.images))

    def _log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        gap = (y - x @ self.operator.T.to(x)) / self.noise
        return -gap.square().sum(-1) / 2 - self.observed * (math.log(self.noise) + LOG_2PI / 2)

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_evidence = self._log_shares(y).logsumexp(-1) - math.log(len(self.images))
        return standard_error_zero(log_evidence)


def _mask(hidden: Tensor | None) -> Tensor:
    if hidden is None:
        return torch.arange(SIDE).expand(SIDE, SIDE) >= SIDE - 3
    if not isinstance(hidden, Tensor) or hidden.dtype != torch.bool:
        got = str(hidden.dtype) if isinstance(hidden, Tensor) else type(hidden).__name__
        reject("hidden", "a boolean tensor", got)
    if hidden.shape != (SIDE, SIDE):
        reject("hidden", f"shape ({SIDE}, {SIDE})", tuple(hidden.shape))
    if bool(hidden.all()):
        reject("hidden", "at least one visible pixel", "none")
    return hidden.cpu().clone()


def _blur() -> Tensor:
    """The blur of a flattened image as a matrix, ``(64, 64)``."""
    line = torch.eye(SIDE, dtype=torch.float64) / 2
    beside = torch.full((SIDE - 1,), 0.25, dtype=torch.float64)
    line = line + beside.diag(1) + beside.diag(-1)
    return torch.kron(line, line)


def _square_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 for all pairs, ``(*batch, K)``, without forming the differences."""
    square = a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * a @ b.T
    return square.clamp(min=0)
