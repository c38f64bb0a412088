"""The invertible network of the lecture: x with padding <-> [y, z], trained in both directions.

    forward    f(x, padding) = [y, z, rest]      predicts the observation, and stores in z the rest
    backward   f^-1([y, z ~ N(0, I), rest]) = x  draws from the posterior

Where y alone does not determine x, z has to say which x it was. If z is standard normal and
independent of y, then x = f^-1(y, z) at a fixed y is a sample of p(x | y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lib.bijections import Compose, Coupling, LULinear, Permutation
from lib.checks import number, reject, whole
from lib.inverse.conditional import scalar_of
from lib.inverse.solver import Standardised
from lib.metrics import inverse_multiquadratic, mmd_loss
from lib.metrics.two_sample import Kernel
from lib.noise import normal_like

WEIGHTS = {"fit": 3.0, "latent": 300.0, "input": 400.0, "reconstruction": 3.0}
OBJECTIVES = ("mmd", "likelihood")


def ramp(done: float) -> float:
    """The weight of the loss on x as training goes on: 0.004 at the start, one in the last tenth.

    From the start at full weight it can hold a model at a poor solution.
    """
    return min(1.0, 2.0 * 0.002 ** (1.0 - done))


class InvertibleSolver(Standardised):
    """An invertible network between x and [y, z], both padded to one size.

    Objective ``"mmd"`` adds up four terms, each with its weight; a weight of zero leaves its term
    out, and the history of `fit` shows each of them.

    - ``fit``: |y' - y|^2 + |rest|^2, where f(x) = [y', z', rest].
    - ``latent``: MMD of [y', z'] against [y, N(0, I)], jointly, with no gradient through y'. That
      z' alone looks normal would not do: it must not depend on y.
    - ``input``: MMD of f^-1(y, z, 0) against x, times `ramp`.
    - ``reconstruction``: |f^-1(f(x) + noise) - x|^2: what lies next to a used point must map back.

    Objective ``"likelihood"`` maximises, on the same layout, the density of x (with noise for
    padding) under y' ~ N(y, noise^2), z' ~ N(0, I), rest ~ N(0, noise^2):

        loss = (|y' - y|^2 + |rest|^2) / 2 noise^2 + |z'|^2 / 2 - log |det Df| .

    Args:
        features: D, length of x.
        observed: d, length of y.
        latent: length of z.
        total: size of both sides; both are padded to it.
        objective: ``"mmd"`` or ``"likelihood"``.
        weights: of the four terms; what is not named keeps its weight.
        kernel: of both discrepancies, from squared distances.
        joint: False takes the marginal of z alone in ``latent`` (a mistake, to be looked at).
        biased: True keeps the diagonal in both discrepancies (likewise).
        ramped: False gives ``input`` its full weight from the start (likewise).
        noise: standard deviation of what is added to y and to the padding, in units of the
            standardised x and y.
        kind: ``"affine"`` or ``"spline"`` couplings.
        layers: number of couplings.
        hidden: widths of their networks.
        bins: of the splines.

    Raises:
        ValueError: padding too small, another objective, weights of other names or negative.

    Source: Ardizzone et al. (2019), sections 3.2 to 3.4; likelihood: Kruse et al. (2021).
    """

    def __init__(
        self,
        features: int,
        observed: int,
        *,
        latent: int,
        total: int | None = None,
        objective: str = "mmd",
        weights: Mapping[str, float] | None = None,
        kernel: Kernel = inverse_multiquadratic,
        joint: bool = True,
        biased: bool = False,
        ramped: bool = True,
        noise: float = 0.05,
        kind: str = "affine",
        layers: int = 6,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
    ) -> None:
        super().__init__(features, observed)
        self.latent = whole("latent", latent)
        need = max(self.features, self.observed + self.latent)
        self.total = need if total is None else whole("total", total)
        if self.total < need:
            wanted = f"at least {need}, to hold x ({features}) and [y, z] ({observed} + {latent})"
            reject("total", wanted, total)
        if objective not in OBJECTIVES:
            reject("objective", " or ".join(map(repr, OBJECTIVES)), repr(objective))
        unknown = set(weights or {}) - set(WEIGHTS)
        if unknown:
            reject("weights", f"some of {', '.join(WEIGHTS)}", ", ".join(sorted(unknown)))
        self.weights = {
            name: number(f"weights[{name!r}]", value, zero=True)
            for name, value in {**WEIGHTS, **(weights or {})}.items()
        }
        self.objective, self.kernel, self.noise = objective, kernel, number("noise", noise)
        self.joint, self.biased, self.ramped = joint, biased, ramped
        scalar = scalar_of(kind, bins, 5.0)
        # Dealt into two hands before each coupling: neighbours (the entries of x) come apart.
        deal = [*range(0, self.total, 2), *range(1, self.total, 2)]
        parts = []
        for k in range(whole("layers", layers)):
            parts += [LULinear(self.total), Permutation(deal)]
            parts.append(Coupling(self.total, scalar, hidden=hidden, swap=k % 2 == 1))
        self.bijection = Compose([*parts, LULinear(self.total)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[y', z', rest] of standardised x with zero padding."""
        return self._cut(self.bijection(self._pad(self._shrink(x)))[0])

    def loss(
        self, x: Tensor, y: Tensor, generator: torch.Generator, done: float = 1.0
    ) -> dict[str, Tensor]:
        x = self._shrink(x)

        def blur(like: Tensor) -> Tensor:
            return self.noise * normal_like(like, generator)

        if self.objective == "likelihood":
            return self._likelihood(x, y, generator)
        weights = dict(self.weights)
        if self.ramped:
            weights["input"] *= ramp(done)
        out = self.bijection(self._pad(x, generator))[0]
        y_hat, z_hat, rest = self._cut(out)
        z = normal_like(z_hat, generator)
        terms: dict[str, Tensor] = {}
        if weights["fit"]:
            terms["fit"] = (y_hat - y).square().sum(1).mean() + rest.square().sum(1).mean()
        if weights["latent"]:
            ours = torch.cat([y_hat.detach(), z_hat], 1) if self.joint else z_hat
            wanted = torch.cat([y, z], 1) if self.joint else z
            terms["latent"] = mmd_loss(ours, wanted, self.kernel, biased=self.biased)
        if weights["input"]:
            back = self._back(y + blur(y), z, generator)
            terms["input"] = mmd_loss(back, x, self.kernel, biased=self.biased)
        if weights["reconstruction"]:
            near = torch.cat([y_hat + blur(y), z_hat + blur(z), blur(rest)], 1)
            again = self.bijection.inverse(near)[0][:, : self.features]
            terms["reconstruction"] = (again - x).square().sum(1).mean()
        return {name: weights[name] * term for name, term in terms.items()}

    def _likelihood(self, x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        out, log_det = self.bijection(self._pad(x, generator))
        y_hat, z, rest = self._cut(out)
        known = (y_hat - y).square().sum(1) + rest.square().sum(1)
        return {
            "fit": known.mean() / (2 * self.noise**2) / self.total,
            "latent": z.square().sum(1).mean() / 2 / self.total,
            "volume": -log_det.mean() / self.total,
        }

    def _sample(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        z = normal_like(y.new_empty(len(y), self.latent), generator)
        y = y + self.noise * normal_like(y, generator)  # as in training
        return self._grow(self._back(y, z, generator))

    def _back(self, y: Tensor, z: Tensor, generator: torch.Generator | None) -> Tensor:
        rest = y.new_empty(len(y), self.total - self.observed - self.latent)
        full = torch.cat([y, z, self.noise * normal_like(rest, generator)], 1)
        return self.bijection.inverse(full)[0][:, : self.features]

    def _pad(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        pad = x.new_zeros(len(x), self.total - self.features)
        if generator is not None:
            pad = self.noise * normal_like(pad, generator)
        return torch.cat([x, pad], 1)

    def _cut(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d, m = self.observed, self.observed + self.latent
        return out[:, :d], out[:, d:m], out[:, m:]
