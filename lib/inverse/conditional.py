"""Conditional invertible networks: z = f(x; y), so that p(x | y) has samples and a density."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from lib.bijections import (
    Bijection,
    Compose,
    Coupling,
    Elementwise,
    Interval,
    LULinear,
    RationalQuadratic,
    ScalarMap,
    ScaleShift,
)
from lib.checks import number, reject, whole
from lib.flows import Flow
from lib.inverse.solver import Solver, spread
from lib.nets import check_network
from lib.noise import normal_like

KINDS = ("affine", "spline")


def scalar_of(kind: str, bins: int, bound: float) -> ScalarMap:
    """The map of one number that a kind of coupling applies."""
    if kind not in KINDS:
        reject("kind", " or ".join(map(repr, KINDS)), repr(kind))
    return ScaleShift() if kind == "affine" else RationalQuadratic(bins, low=-bound, high=bound)


class LinearGaussian(Bijection):
    """z = L^-1 ((x - m) / s - W y - b): what a linear regression on y leaves of x, whitened.

    `initialise` sets mean m and scale s, which stay, and W, b and L by least squares, L being the
    Cholesky factor of the covariance of the residuals. A flow that begins with it starts at the
    best linear-Gaussian posterior, which is the answer where prior and noise are normal and the
    simulator is linear. W, b and L are then trained, free of the units of x.

    Args:
        features: length of x.
        context_features: length of y.

    Raises:
        ValueError: sizes below one.
    """

    def __init__(self, features: int, context_features: int) -> None:
        super().__init__()
        self.features = whole("features", features)
        self.event_shape = (self.features,)
        self.context_features = whole("context_features", context_features)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("log_scale", torch.zeros(features))
        self.weight = nn.Parameter(torch.zeros(features, context_features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.lower = nn.Parameter(torch.zeros(features, features))

    @property
    def factor(self) -> Float[Tensor, "features features"]:
        """L, lower triangular with a positive diagonal."""
        return self.lower.tril(-1) + self.log_diagonal.exp().diag()

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        rest = (x - self.mean) * (-self.log_scale).exp() - linear(context, self.weight, self.bias)
        flat = rest.reshape(-1, self.features).mT
        z = torch.linalg.solve_triangular(self.factor, flat, upper=False).mT
        return z.reshape(x.shape), -self._log_det.expand(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = linear(z, self.factor) + linear(context, self.weight, self.bias)
        return self.mean + self.log_scale.exp() * x, self._log_det.expand(z.shape[:-1])

    @property
    def _log_det(self) -> Tensor:
        return self.log_diagonal.sum() + self.log_scale.sum()

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> None:
        self.mean.copy_(x.mean(0))
        self.log_scale.copy_(spread(x).log())
        x = (x.double() - self.mean) * (-self.log_scale.double()).exp()
        context = context.double()
        design = torch.cat([context, torch.ones_like(context[:, :1])], 1)
        # A breath of ridge: columns of y may be constant, or add up to one.
        eye = torch.eye(design.shape[1], dtype=x.dtype, device=x.device)
        solution = torch.linalg.solve(design.mT @ design + 1e-8 * len(x) * eye, design.mT @ x)
        rest = x - design @ solution
        covariance = rest.mT @ rest / len(x)
        covariance.diagonal().add_(1e-10)  # an entry of x that y determines
        L = torch.linalg.cholesky(covariance)
        self.weight.copy_(solution[:-1].mT)
        self.bias.copy_(solution[-1])
        self.log_diagonal.copy_(L.diagonal().log())
        self.lower.copy_(L.tril(-1))


class ConditionalFlow(Solver):
    """p(x | y) as a flow: z = f(x; y), x = f^-1(z; y), z ~ N(0, I), by maximum likelihood.

    x goes through `Interval` where the prior lives in a box (no sample leaves it), then through
    `LinearGaussian`, which standardises it given y, then through couplings that see y, each
    followed by a learned linear map. All of it is part of the density.

    Args:
        features: D, length of x.
        observed: d, length of y.
        kind: ``"spline"`` or ``"affine"`` couplings.
        layers: number of couplings; of one feature, of conditional maps.
        hidden: widths of their networks.
        bins: of the splines.
        bound: the splines act on [-bound, bound], and are straight outside.
        activation: of the networks.
        embedding: a network h, trained along, so that f sees h(y) of the standardised y.
        embedded: length of h(y).
        low: lower ends of the box in which x lives, one number or one for each entry.
        high: upper ends.
        squash: the kind of `Interval` that opens the box: ``"soft"`` keeps shapes in the middle,
            ``"normal"`` and ``"logistic"`` suit densities that are largest at the ends.
        noise: standard deviation of what is added to the standardised y in training. Where the
            simulator is deterministic the posterior is a surface without density, and likelihood
            rewards nothing but thinness; a little noise gives it a width.

    Attributes:
        flow: the `lib.flows.Flow`, whose context is h(y).

    Raises:
        ValueError: another kind, one end of a box without the other, low >= high, sizes below one,
            an embedding without its length.

    Source: Ardizzone, Lueth, Kruse, Rother and Koethe (2019), Guided image generation with
    conditional invertible neural networks; for posteriors: Radev et al. (2022).
    """

    has_density = True

    def __init__(
        self,
        features: int,
        observed: int,
        *,
        kind: str = "spline",
        layers: int = 6,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        bound: float = 4.0,
        activation: str = "silu",
        embedding: nn.Module | None = None,
        embedded: int | None = None,
        low: float | Sequence[float] | Tensor | None = None,
        high: float | Sequence[float] | Tensor | None = None,
        squash: str = "soft",
        noise: float = 0.0,
    ) -> None:
        super().__init__(features, observed)
        if (low is None) != (high is None):
            reject("low, high", "both or neither", "one of them")
        if (embedding is None) != (embedded is None):
            reject("embedding, embedded", "a network and its length, or neither", "one of them")
        self.noise = number("noise", noise, zero=True)
        self.embedding = check_network(embedding) or nn.Identity()
        width = self.observed if embedded is None else whole("embedded", embedded)
        scalar = scalar_of(kind, bins, number("bound", bound))
        options = {"hidden": hidden, "activation": activation, "context_features": width}
        parts: list[Bijection] = [LinearGaussian(self.features, width)]
        if low is not None:
            ends = (torch.as_tensor(end, dtype=torch.float64) for end in (low, high))
            low, high = (end.expand(self.features).clone() for end in ends)
            parts.insert(0, Interval(low, high, squash))
        for k in range(whole("layers", layers)):
            if self.features == 1:
                parts.append(Elementwise(1, scalar, **options))
                continue
            parts.append(Coupling(self.features, scalar, swap=k % 2 == 1, **options))
            parts.append(LULinear(self.features))
        self.flow = Flow(Compose(parts))

    @torch.no_grad()
    def prepare(self, x: Tensor, y: Tensor) -> None:
        generator = torch.Generator(y.device).manual_seed(0)
        self.flow.initialise(x, self.embedding(self._blur(y, generator)))

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator, done: float = 1.0) -> Tensor:
        return -self._log_prob(x, self._blur(y, generator)).mean()

    def _blur(self, y: Tensor, generator: torch.Generator) -> Tensor:
        return y + self.noise * normal_like(y, generator) if self.noise else y

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "*batch features"], y: Float[Tensor, "*expands observed"]
    ) -> Float[Tensor, "*batch features"]:
        """The latents z = f(x; y): what of x is not in y."""
        context = self.embedding(self._standard(self._observation(y)))
        return self.flow.bijection(x, context)[0]

    @torch.no_grad()
    def decode(
        self, z: Float[Tensor, "*batch features"], y: Float[Tensor, "*expands observed"]
    ) -> Float[Tensor, "*batch features"]:
        """x = f^-1(z; y). With the z of one x and another y: the style of one, as the other."""
        context = self.embedding(self._standard(self._observation(y)))
        return self.flow.bijection.inverse(z, context)[0]

    def _sample(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.flow.sample((), self.embedding(y), generator)

    def _log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        return self.flow.log_prob(x, self.embedding(y))
