"""What every inverse problem offers: a prior, a simulator, and exact draws of the posterior.

Hidden parameters x, observation y:

    p(x | y) = p(x) p(y | x) / p(y) .

The posterior is known exactly, not up to a tolerance in y: a learned one is judged against the
truth, and what remains is its own error.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lib.bijections.base import check_event
from lib.checks import reject, whole
from lib.metrics import Measured


class InverseProblem:
    """A prior and a simulator whose posterior is known.

    A subclass writes `_sample_prior`, `_simulate`, `_sample_posterior`, `_log_prior`,
    `_log_evidence` and, where there is one, `_log_likelihood`. They work in float64, whatever the
    dtype of the samples: the reference should not be what rounds.

    Args:
        features: D, length of x.
        observed: d, length of y.
        dtype: of the samples.
        device: of the samples.

    Attributes:
        name: key in tables.
        features: D, length of x.
        observed: d, length of y.
        low: lower ends of the box that is the support of the prior, float64 of shape ``(D,)``;
            None where the support is not a bounded box.
        high: upper ends of that box.
        has_density: whether the posterior has a density in R^D. Where the simulator is
            deterministic it has none: it lies on the surface of those x that give this y.

    Raises:
        ValueError: a `dtype` that is not floating-point.
    """

    name: str
    has_density: bool = True
    low: Tensor | None = None
    high: Tensor | None = None

    def __init__(
        self, features: int, observed: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            reject("dtype", "a floating-point dtype", dtype)
        self.features, self.observed = features, observed
        self.dtype, self.device = dtype, torch.device(device)

    def sample_prior(
        self, n: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n features"]:
        """Independent draws of x.

        Args:
            n: how many.
            generator: source of randomness; None takes PyTorch's global one of the CPU. Numbers
                are drawn on its device, then moved: a seed gives the same points on each machine.

        Returns:
            Points of shape ``(n, D)``, in the problem's dtype and on its device.

        Raises:
            ValueError: `n` below one, or a `generator` that is none.
        """
        n, _ = whole("n", n), _checked(generator)
        return self._out(self._sample_prior(n, generator))

    def simulate(
        self, x: Float[Tensor, "*batch features"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch observed"]:
        """An observation for each x, from ``(*batch, D)`` to ``(*batch, d)``, dtype of `x`.

        Args:
            x: hidden parameters of any floating-point dtype.
            generator: source of randomness; not touched where the simulator is deterministic.

        Raises:
            ValueError: another shape, integers, NaN, or a `generator` that is none.
        """
        _checked(generator)
        return self._simulate(self._wide("x", x, self.features), generator).to(x)

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n features"], Float[Tensor, "n observed"]]:
        """Independent draws of (x, y) from the joint law: prior, then simulator.

        Raises:
            ValueError: as `sample_prior`.
        """
        n, _ = whole("n", n), _checked(generator)
        x, y = self._sample(n, generator)
        return self._out(x), self._out(y)

    def sample_posterior(
        self,
        y: Float[Tensor, "observed"],
        n: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n features"]:
        """Independent draws of x given y, with no tolerance in y.

        Args:
            y: one observation, of shape ``(d,)``; its own digits count, so an observation in
                float32 is that number exactly.
            n: how many.
            generator: source of randomness, as in `sample_prior`.

        Returns:
            Points of shape ``(n, D)``, in the problem's dtype and on its device.

        Raises:
            ValueError: `y` of another shape, not finite, or one that the problem cannot produce;
                more draws than can be had for so rare an observation; otherwise as `sample_prior`.
        """
        y, n, _ = self._observation(y), whole("n", n), _checked(generator)
        return self._out(self._sample_posterior(y.to(_home(generator)), n, generator))

    def log_prior(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """log p(x) in nats, minus infinity outside of the support; ``(*batch)``, dtype of `x`.

        Raises:
            ValueError: another shape, integers or NaN.
        """
        return self._log_prior(self._wide("x", x, self.features)).to(x)

    def log_likelihood(
        self, y: Float[Tensor, "*label observed"], x: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "..."]:
        """log p(y | x) in nats, normalised over y.

        Args:
            y: observations, ``(d,)`` or a batch ``(*batch, d)`` that broadcasts with that of `x`.
            x: hidden parameters, ``(*batch, D)``.

        Returns:
            One number for each pair, ``(*batch)``, dtype of `x`.

        Raises:
            ValueError: a deterministic simulator, which has no such density; shapes that do not
                fit, integers or NaN.
        """
        self._need_density()
        wide_y, wide_x = self._pair(y, x)
        return self._log_likelihood(wide_y, wide_x).to(x)

    def log_posterior(
        self, x: Float[Tensor, "*batch features"], y: Float[Tensor, "*label observed"]
    ) -> Float[Tensor, "..."]:
        """log p(x | y) in nats, normalised over x; shapes and errors as in `log_likelihood`.

        Raises:
            ValueError: also a `y` that the problem cannot produce.
        """
        self._need_density()
        wide_y, wide_x = self._pair(y, x)
        rows = wide_y.reshape(-1, self.observed)
        log_evidence, _ = self._log_evidence(rows)
        if bool(log_evidence.isneginf().any()):
            unreachable(rows[log_evidence.isneginf()][0])
        log_evidence = log_evidence.view(wide_y.shape[:-1])
        return self._log_posterior(wide_x, wide_y, log_evidence).to(x)

    def log_evidence(self, y: Float[Tensor, "observed"]) -> Measured:
        """log p(y) in nats: how probable the observation is before anything is known of x.

        Closed forms have the standard error zero. Estimates draw from a seed of their own, so the
        same y always gives the same number.

        Args:
            y: one observation, of shape ``(d,)``.

        Returns:
            The value, minus infinity where y cannot be produced, with its standard error.

        Raises:
            ValueError: `y` of another shape or not finite.
        """
        value, stderr = self._log_evidence(self._observation(y)[None])
        return Measured(float(value[0]), floor=-math.inf, stderr=float(stderr[0]))

    def _need_density(self) -> None:
        if not self.has_density:
            reject(
                "problem",
                "one whose posterior has a density",
                f"{self.name}, whose simulator is deterministic: its posterior lies on a surface",
            )

    def _observation(self, y: Tensor) -> Tensor:
        """One checked observation in float64."""
        wide = self._wide("y", y, self.observed)
        if y.ndim != 1:
            reject("y", f"one observation of shape ({self.observed},)", tuple(y.shape))
        if not bool(wide.isfinite().all()):
            reject("y", "finite numbers", wide.tolist())
        return wide

    def _pair(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Observations and hidden parameters, checked, in float64, on one device."""
        wide_x = self._wide("x", x, self.features)
        wide_y = self._wide("y", y, self.observed).to(wide_x)
        try:
            torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        except RuntimeError:
            reject("y", f"a batch that broadcasts with {tuple(x.shape[:-1])}", tuple(y.shape[:-1]))
        return wide_y, wide_x

    def _wide(self, argument: str, value: Tensor, length: int) -> Tensor:
        """Checked vectors in float64, on the CPU where the device has none."""
        check_event(argument, value, (length,))
        if bool(value.isnan().any()):
            reject(argument, "numbers", f"NaN at {int(value.isnan().any(-1).sum())} points")
        return value.to("cpu" if value.device.type == "mps" else value.device, torch.float64)

    def _out(self, value: Tensor) -> Tensor:
        return value.to(self.dtype).to(self.device)

    def _sample(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        x = self._sample_prior(n, generator)
        return x, self._simulate(x, generator)

    def _log_posterior(self, x: Tensor, y: Tensor, log_evidence: Tensor) -> Tensor:
        return self._log_prior(x) + self._log_likelihood(y, x) - log_evidence

    def _sample_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _log_prior(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Value and standard error for each row of ``(m, d)``."""
        raise NotImplementedError


class BoxPrior(InverseProblem):
    """A prior that is uniform on a box: of the same ends in each dimension.

    Args:
        features: D, length of x.
        observed: d, length of y.
        half: the box is [-half, half]^D.
        dtype: of the samples.
        device: of the samples.
    """

    def __init__(
        self,
        features: int,
        observed: int,
        half: float,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(features, observed, dtype, device)
        self.half = half
        self.high = torch.full((features,), half, dtype=torch.float64)
        self.low = -self.high

    def _sample_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.half * (2 * uniform(generator, n, self.features) - 1)

    def _log_prior(self, x: Tensor) -> Tensor:
        inside = (x.abs() <= self.half).all(-1)
        height = -self.features * math.log(2 * self.half)
        return torch.where(inside, height, -math.inf).to(x)


def unreachable(y: Tensor, why: str = "which has probability zero") -> None:
    """Refuse an observation that the problem cannot produce.

    Raises:
        ValueError: always.
    """
    shown = [float(f"{value:.6g}") for value in y.tolist()]
    reject("y", "an observation that the problem can produce", f"{shown} ({why})")


def standard_error_zero(log_evidence: Tensor) -> tuple[Tensor, Tensor]:
    """A closed form, as `_log_evidence` returns it."""
    return log_evidence, torch.zeros_like(log_evidence)


def uniform(generator: torch.Generator | None, *shape: int) -> Tensor:
    """Draws from the open interval (0, 1) in float64."""
    u = torch.rand(shape, generator=generator, device=_home(generator), dtype=torch.float64)
    return u.clamp(min=2.0**-54)  # zero comes once in 2^53 draws


def _home(generator: torch.Generator | None) -> torch.device:
    """Where random numbers come from."""
    return torch.device("cpu") if generator is None else generator.device


def _checked(generator: torch.Generator | None) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        reject("generator", "a torch.Generator or None", type(generator).__name__)
