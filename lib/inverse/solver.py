"""What every solver of an inverse problem offers: fit to simulations, sample given an observation.

A problem draws (x, y): hidden parameters and what one observes of them. A solver is trained on such
pairs alone, and then answers any y with samples of p(x | y), without simulating again.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.bijections.base import check_event
from lib.checks import number, reject, whole
from lib.training import History, fit


class Solver(nn.Module):
    """A model of p(x | y), trained on simulations.

    A subclass writes `loss`, `_sample` and, where it has a density, `_log_prob`; all of them see
    observations that are standardised.

    Args:
        features: D, length of the hidden x.
        observed: d, length of the observation y.

    Attributes:
        dropped: rows that the last `fit` left out, as they held NaN or infinity.

    Raises:
        ValueError: sizes below one.
    """

    has_density = False

    def __init__(self, features: int, observed: int) -> None:
        super().__init__()
        self.features, self.observed = whole("features", features), whole("observed", observed)
        self.dropped = 0
        self.register_buffer("y_mean", torch.zeros(self.observed))
        self.register_buffer("y_sd", torch.ones(self.observed))

    def loss(
        self, x: Tensor, y: Tensor, generator: torch.Generator, done: float = 1.0
    ) -> Tensor | dict[str, Tensor]:
        """What is minimised over a batch; `done` is the share of the training that is over."""
        raise NotImplementedError

    def prepare(self, x: Tensor, y: Tensor) -> None:
        """Set what depends on the data before training: standardisation."""

    def fit(
        self,
        x: Float[Tensor, "n features"],
        y: Float[Tensor, "n observed"],
        *,
        steps: int = 2000,
        batch_size: int = 512,
        lr: float = 1e-3,
        validation: float = 0.0,
        patience: int = 10,
        schedule: str | None = "cosine",
        seed: int = 0,
        **options: Any,
    ) -> History:
        """Train on pairs; rows with NaN or infinity are left out with a warning that counts them.

        Args:
            x: hidden parameters.
            y: their observations.
            steps: at most so many steps of the optimiser.
            batch_size: pairs in each, at most all of them.
            lr: learning rate of Adam.
            validation: share of the pairs held out; the weights that do best there are kept. Zero
                trains for all steps on all pairs.
            patience: looks at the held-out pairs without progress before training ends; there is
                one look each hundredth of the steps.
            schedule: ``"cosine"`` or None.
            seed: of split, batches and noise.
            **options: of `lib.training.fit`.

        Returns:
            The history; ``history.terms["validation"]`` holds the loss on the held-out pairs.

        Raises:
            ValueError: other shapes or dtypes, no finite row, a validation share beyond one half.
        """
        x, y = self._clean(x, y)
        if not 0 <= number("validation", validation, zero=True) <= 0.5:
            reject("validation", "a share between 0 and 0.5", validation)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        held = order[: round(validation * len(x))]
        rest = order[len(held) :]
        x, y, x_held, y_held = x[rest], y[rest], x[held], y[held]
        self.y_mean.copy_(y.mean(0))
        self.y_sd.copy_(spread(y))
        self.prepare(x, self._standard(y))
        judge = _Judge(x_held, y_held, whole("patience", patience), whole("steps", steps, low=0))
        made = [0]

        def loss(model: Solver, batch: tuple, generator: torch.Generator) -> Any:
            done = made[0] / steps
            made[0] += 1
            return model.loss(batch[0], model._standard(batch[1]), generator, done)

        history = fit(
            self,
            loss,
            (x, y),
            steps=steps,
            batch_size=min(batch_size, len(x)),
            lr=lr,
            schedule=schedule,
            seed=seed,
            stop=judge if len(held) else None,
            **options,
        )
        judge.restore(self, history)
        return history

    @torch.no_grad()
    def sample(
        self,
        y: Float[Tensor, "*batch observed"],
        n: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *batch features"]:
        """Draws from the model's p(x | y), ``n`` for each observation.

        Raises:
            ValueError: observations of another shape, NaN or infinite, or `n` below one.
        """
        n, y = whole("n", n), self._observation(y)
        rows = self._standard(y).reshape(1, -1, self.observed).expand(n, -1, -1)
        x = self._sample(rows.reshape(-1, self.observed), generator)
        return x.reshape(n, *y.shape[:-1], self.features)

    def log_prob(
        self, x: Float[Tensor, "*batch features"], y: Float[Tensor, "*batch2 observed"]
    ) -> Float[Tensor, "*batch"]:
        """log p(x | y) of the model in nats; y has the batch of x, or one that expands to it.

        Raises:
            ValueError: a model without a density, other shapes, NaN.
        """
        if not self.has_density:
            reject("model", "one that has a density", type(self).__name__)
        check_event("x", x, (self.features,))
        y = self._observation(y)
        batch = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        x = x.expand(*batch, -1).reshape(-1, self.features)
        y = self._standard(y.expand(*batch, -1).reshape(-1, self.observed))
        return self._log_prob(x, y).reshape(batch)

    def _sample(self, y: Tensor, generator: torch.Generator | None) -> Tensor:
        """One draw for each row of y."""
        raise NotImplementedError

    def _log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _standard(self, y: Tensor) -> Tensor:
        return (y - self.y_mean) / self.y_sd

    def _observation(self, y: Tensor) -> Tensor:
        check_event("y", y, (self.observed,))
        if bad := int((~y.isfinite()).any(-1).sum()):
            reject("y", "finite observations", f"{bad} with NaN or infinity")
        return y.to(self.y_mean)

    def _clean(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Finite pairs in the dtype of the model."""
        for name, value, size in (("x", x, self.features), ("y", y, self.observed)):
            check_event(name, value, (size,))
            if value.ndim != 2 or len(value) != len(x):
                reject(name, f"shape ({len(x)}, {size})", tuple(value.shape))
        keep = x.isfinite().all(1) & y.isfinite().all(1)
        self.dropped = int((~keep).sum())
        if self.dropped == len(x):
            reject("x, y", "at least one pair without NaN or infinity", f"none of {len(x)}")
        if self.dropped:
            said = f"{self.dropped} of {len(x)} simulations hold NaN or infinity and are left out"
            warnings.warn(said, stacklevel=3)
            x, y = x[keep], y[keep]
        return x.to(self.y_mean), y.to(self.y_mean)


class Standardised(Solver):
    """A solver that also sees x standardised, and turns its answers back."""

    def __init__(self, features: int, observed: int) -> None:
        super().__init__(features, observed)
        self.register_buffer("x_mean", torch.zeros(self.features))
        self.register_buffer("x_sd", torch.ones(self.features))

    def prepare(self, x: Tensor, y: Tensor) -> None:
        self.x_mean.copy_(x.mean(0))
        self.x_sd.copy_(spread(x))

    def _shrink(self, x: Tensor) -> Tensor:
        return (x - self.x_mean) / self.x_sd

    def _grow(self, x: Tensor) -> Tensor:
        return x * self.x_sd + self.x_mean


def spread(x: Tensor) -> Tensor:
    """Standard deviation of each column; one where it does not vary."""
    sd = x.std(0, correction=0)
    return torch.where(sd > 0, sd, 1.0)


class _Judge:
    """Stops a training when the held-out loss no longer falls, and keeps the best weights."""

    def __init__(self, x: Tensor, y: Tensor, patience: int, steps: int) -> None:
        self.x, self.y, self.patience = x, y, patience
        self.every = max(1, steps // 100)
        self.best, self.waited, self.state, self.seen = math.inf, 0, None, []

    def __call__(self, made: int, history: History, model: nn.Module) -> str | None:
        if made % self.every:
            return None
        was = model.training
        model.eval()
        with torch.no_grad():
            x, y = self.x.to(model.y_mean), self.y.to(model.y_mean)  # where the training runs
            generator = torch.Generator(x.device).manual_seed(0)
            parts = model.loss(x, model._standard(y), generator)
        model.train(was)
        value = float(sum(parts.values()) if isinstance(parts, dict) else parts)
        self.seen.append(value)
        if value < self.best:
            self.best, self.waited = value, 0
            self.state = copy.deepcopy(model.state_dict())
        else:
            self.waited += 1
        return "held-out loss" if self.waited >= self.patience else None

    def restore(self, model: nn.Module, history: History) -> None:
        """Load the best weights and note what was seen."""
        if self.state is not None:
            model.load_state_dict(self.state)
            history.terms["validation"] = self.seen
