"""From where, how fast and how steeply was a ball thrown that came down here?"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from lib.checks import floating, reject
from lib.data.targets.base import log_normal, normal
from lib.inverse.problems.base import InverseProblem, uniform, unreachable
from lib.inverse.problems.sampler import CubeSampler

GRAVITY, DRAG, MASS = 9.81, 0.25, 0.2
DECAY = DRAG / MASS  # the horizontal speed falls as exp(-DECAY t)
FALL = GRAVITY / DECAY  # speed of a free fall at which drag holds the weight
ANGLE = (0.1 * math.pi / 2, 0.9 * math.pi / 2)
SPEED, SPEED_SD = 15.0, math.sqrt(15.0)
FASTEST = 48  # faster ones, of probability 1e-11, are left out of the posterior
FROM, UPTO = -10.0, 25.0  # beyond, landings are so rare that those speeds would count


class Ballistics(InverseProblem):
    """A throw with air drag; y is where the ball hits the ground.

    The thrower stands at x_1 ~ N(0, 1/4) (sd 1/2), lets go at height x_2 = max(h, 0) with
    h ~ N(3/2, 1/4), at an angle x_3 ~ U(0.05 pi, 0.45 pi), with speed x_4. With v = x_4 (cos x_3,
    sin x_3), c = k / m = 1.25 and the terminal speed w = g / c,

        X(t) = x_1 + v_1 (1 - e^{-ct}) / c ,   Y(t) = x_2 + (v_2 + w) (1 - e^{-ct}) / c - w t ,

    and y = X(t*) at the impact Y(t*) = 0 after the peak, found by bisection from the peak time
    log(1 + v_2 / w) / c on, with a Newton step at the end: it polishes, and makes dy/dx that of the
    implicit function. A height below the ground counts as zero.

    Two things are done on purpose. The height has an atom: with probability 0.00135 it is exactly
    zero, which is in the published code, not in the paper. And the paper's speed is an integer,
    Poisson(15); a density model cannot match it, so by default it is the normal law of the same
    mean and variance, N(15, 15), cut to positive speeds.

    **Exact posterior.** y = x_1 + R(x_2, x_3, x_4): given the last three, x_1 = y - R follows, with
    weight N(y - R; 0, 1/4). `CubeSampler` draws the three: quantiles of height and angle, and the
    speed with its prior in the weight, so that no cell has an endless tail.

    `log_prior` is a density with respect to lengths, in x_2 plus the atom (at x_2 = 0 it is the
    atom's log probability), and for the Poisson speed plus the counting measure in x_4.

    Args:
        speed: "normal", or "poisson" for the paper's.
        dtype: of the samples.
        device: of the samples.

    Raises:
        ValueError: another `speed`.

    Source: the problem, Kruse, Ardizzone, Rother and Koethe (2021), section 4.2.
    """

    name = "ballistics"
    has_density = False

    def __init__(
        self,
        speed: Literal["normal", "poisson"] = "normal",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(4, 1, dtype, device)
        if speed not in ("normal", "poisson"):
            reject("speed", "'normal' or 'poisson'", repr(speed))
        self.speed = speed

    def trajectory(
        self, x: Float[Tensor, "*batch 4"], times: Float[Tensor, "times"]
    ) -> Float[Tensor, "*batch times 2"]:
        """Where the ball would be at each time, did no ground stop it; for a drawing.

        Raises:
            ValueError: shapes that do not fit, integers or NaN.
        """
        wide = self._wide("x", x, self.features)
        times = floating("times", times, ndim=1).to(wide)
        path = _position(wide[..., None, :], times)
        return torch.stack(path, -1).to(x)

    def _sample_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        x1, u = normal(generator, n) / 2, uniform(generator, 3, n)
        return torch.stack([x1, _height(u[0]), _angle(u[1]), self._speed(u[2])], 1)

    def _speed(self, u: Tensor) -> Tensor:
        """Quantiles of the prior of the speed."""
        if self.speed == "poisson":
            upto = torch.as_tensor(stats.poisson.cdf(range(100), SPEED)).to(u)
            return torch.searchsorted(upto, u.contiguous()).to(u)
        negative = float(torch.special.ndtr(torch.tensor(-SPEED / SPEED_SD, dtype=torch.float64)))
        return SPEED + SPEED_SD * torch.special.ndtri(negative + (1 - negative) * u)

    def _log_speed(self, speed: Tensor) -> Tensor:
        """Log density of the prior of a possible speed, or log probability."""
        if self.speed == "poisson":
            return speed * math.log(SPEED) - SPEED - torch.lgamma(speed + 1)
        positive = torch.special.log_ndtr(speed.new_full((), SPEED / SPEED_SD))
        return log_normal(speed, SPEED, SPEED_SD) - positive

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        with torch.no_grad():
            start = _peak_time(x)
            # Without the exponential Y lies higher, so it comes down later.
            end = (x[..., 1].clamp(min=0) + (_rise(x) + FALL).clamp(min=0) / DECAY) / FALL
            end = torch.maximum(start, end)
            for _ in range(30):
                middle = (start + end) / 2
                flies = _position(x, middle)[1] > 0
                start, end = torch.where(flies, middle, start), torch.where(flies, end, middle)
            middle = (start + end) / 2
        slope = (_rise(x) + FALL) * (-DECAY * middle).exp() - FALL
        # At the peak itself, where a throw without speed from the ground ends, it is zero.
        impact = middle - _position(x, middle)[1] / slope.clamp(max=-1e-6)
        return _position(x, impact)[0][..., None]

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        return self._sampler(y, generator).sample(n)

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        seeds = (torch.Generator().manual_seed(0) for _ in y)
        values = [self._sampler(row, g).log_mean() for row, g in zip(y.cpu(), seeds, strict=True)]
        value, stderr = y.new_tensor(values).unbind(1)
        return value, stderr

    def _sampler(self, y: Tensor, generator: torch.Generator | None) -> CubeSampler:
        if not FROM <= float(y) <= UPTO:
            unreachable(y, f"beyond {FROM:g} and {UPTO:g} its density is below 1e-6")

        def propose(u: Tensor) -> tuple[Tensor, Tensor]:
            speed = FASTEST * u[:, 2]
            speed = speed.floor() if self.speed == "poisson" else speed
            x = torch.stack([torch.zeros_like(speed), _height(u[:, 0]), _angle(u[:, 1]), speed], 1)
            x[:, 0] = y - self._simulate(x, None)[:, 0]
            log_weight = log_normal(x[:, 0], 0.0, 0.5) + self._log_speed(speed)
            return x, log_weight + math.log(FASTEST)

        return CubeSampler(propose, (8, 32, FASTEST), y, generator)

    def _log_prior(self, x: Tensor) -> Tensor:
        x1, height, angle, speed = x.unbind(-1)
        atom = float(torch.special.log_ndtr(torch.tensor(-3.0, dtype=torch.float64)))
        log_height = torch.where(height == 0, atom, log_normal(height, 1.5, 0.5))
        log_p = log_normal(x1, 0.0, 0.5) + log_height - math.log(ANGLE[1] - ANGLE[0])
        possible = (height >= 0) & (angle >= ANGLE[0]) & (angle <= ANGLE[1])
        if self.speed == "poisson":
            possible &= (speed >= 0) & (speed == speed.round())
        else:
            possible &= speed > 0
        log_speed = self._log_speed(speed.clamp(min=0))
        return torch.where(possible, log_p + log_speed, -math.inf)


def _height(u: Tensor) -> Tensor:
    """Quantiles of the prior of the height."""
    return (1.5 + torch.special.ndtri(u) / 2).clamp(min=0)


def _angle(u: Tensor) -> Tensor:
    """Quantiles of the prior of the angle."""
    return ANGLE[0] + (ANGLE[1] - ANGLE[0]) * u


def _rise(x: Tensor) -> Tensor:
    """The vertical speed at the start."""
    return x[..., 3] * x[..., 2].sin()


def _peak_time(x: Tensor) -> Tensor:
    """When the ball is highest; zero for one that is thrown downwards."""
    return torch.log1p(_rise(x).clamp(min=0) / FALL) / DECAY


def _position(x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and height at a time."""
    x1, height, angle, speed = x.unbind(-1)
    covered = -torch.expm1(-DECAY * time) / DECAY
    across = x1 + speed * angle.cos() * covered
    return across, height.clamp(min=0) + (_rise(x) + FALL) * covered - FALL * time
