"""Which joint angles bring the hand of a robot arm to a given place?"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lib.data.targets.base import log_normal, normal
from lib.inverse.problems.base import InverseProblem, unreachable
from lib.inverse.problems.sampler import CubeSampler


class Kinematics(InverseProblem):
    """An arm on a rail: its base at height x_1, and three segments that turn at x_2, x_3, x_4.

    With lengths l = (1/2, 1/2, 1) and the directions a = (x_2, x_2 + x_3, x_2 + x_3 + x_4),

        y_1 = sum_k l_k cos a_k ,   y_2 = x_1 + sum_k l_k sin a_k ,

    and the prior N(0, s^2) in each coordinate, s = (1/4, 1/2, 1/2, 1/2).

    **Exact posterior.** x_1 follows from y_2. As cos a = 1 - 2 sin^2(a / 2), the first equation is
    that of a sphere in the s_k = sqrt(2 l_k) sin(a_k / 2):

        s_1^2 + s_2^2 = P(a_3) = 1 - y_1 + cos a_3 .

    So a_3 is free, and (s_1, s_2) lies on a circle, at the angle psi; where P > 1, only on those
    arcs of it on which no sine exceeds one. Each point is met once, and the surface measure
    delta(y_1 - sum l_k cos a_k) da is

        2 da_3 dpsi / (cos(a_1 / 2) cos(a_2 / 2)) .

    Its poles are at the ends of the arcs, where psi = pi / 4 + h sin tau takes them away. To solve
    for one of the angles instead gives 1 / sin of it, which is infinite in the middle of the
    posterior: here the density is smooth, and between 0.2 and 0.8 of all proposals are kept.

    Angles are wrapped to (-pi, pi], which leaves out windings of prior probability 1e-9.

    Args:
        dtype: of the samples.
        device: of the samples.

    Source: the problem, Kruse, Ardizzone, Rother and Koethe (2021), section 4.1.
    """

    name = "kinematics"
    has_density = False
    lengths = (0.5, 0.5, 1.0)
    sd = (0.25, 0.5, 0.5, 0.5)

    def __init__(
        self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(4, 2, dtype, device)

    def joints(self, x: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4 2"]:
        """Where the base, the two joints and the hand are, for a drawing of the arm.

        Raises:
            ValueError: another shape, integers or NaN.
        """
        wide = self._wide("x", x, self.features)
        direction = wide[..., 1:].cumsum(-1)
        turn = torch.stack([direction.cos(), direction.sin()], -1)
        steps = turn * turn.new_tensor(self.lengths)[:, None]
        base = torch.stack([torch.zeros_like(wide[..., :1]), wide[..., :1]], -1)
        return (base + torch.cat([torch.zeros_like(base), steps.cumsum(-2)], -2)).to(x)

    def _sample_prior(self, n: int, generator: torch.Generator | None) -> Tensor:
        z = normal(generator, n, self.features)
        return z * z.new_tensor(self.sd)

    def _log_prior(self, x: Tensor) -> Tensor:
        sd = x.new_tensor(self.sd)
        return (log_normal(x / sd, 0.0, 1.0) - sd.log()).sum(-1)

    def _simulate(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        direction, lengths = x[..., 1:].cumsum(-1), x.new_tensor(self.lengths)
        y1 = (lengths * direction.cos()).sum(-1)
        return torch.stack([y1, x[..., 0] + (lengths * direction.sin()).sum(-1)], -1)

    def _sample_posterior(self, y: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        if not self._reaches(y):
            reach = sum(self.lengths)
            unreachable(y, f"the arm reaches |y_1| < {reach:g}")
        return self._sampler(y, generator).sample(n)

    def _log_evidence(self, y: Tensor) -> tuple[Tensor, Tensor]:
        values = []
        for row in y.cpu():
            seed = torch.Generator().manual_seed(0)
            inside = self._reaches(row)
            values.append(self._sampler(row, seed).log_mean() if inside else (-math.inf, 0.0))
        value, stderr = y.new_tensor(values).unbind(1)
        return value, stderr

    def _reaches(self, y: Tensor) -> bool:
        return abs(float(y[0])) < sum(self.lengths)

    def _sampler(self, y: Tensor, generator: torch.Generator | None) -> CubeSampler:
        return CubeSampler(lambda u: self._surface(u, y), (2, 2, 64, 16), y, generator, choices=2)

    def _surface(self, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The point of the surface at (sign of a_1, sign of a_2, a_3, tau), and its log weight."""
        y1, y2 = y.tolist()
        near, far = math.acos(min(y1 + 1, 1.0)), math.acos(max(y1 - 1, -1.0))
        v = 2 * u[:, 2] - 1
        a3 = v.sign() * near + v * (far - near)
        radius = (1 - y1 + a3.cos()).clamp(1e-300, 2).sqrt()
        cut = (1 / radius).clamp(max=1).acos()  # an arc goes from here to pi / 2 - here
        half, tau = (math.pi / 4 - cut).clamp(min=1e-12), math.pi * (u[:, 3] - 0.5)
        psi = math.pi / 4 + half * tau.sin()
        s = (radius[:, None] * torch.stack([psi.cos(), psi.sin()], 1)).clamp(max=1)
        cosines = (1 - s.square()).clamp(min=1e-24).sqrt()  # of a_1 / 2 and a_2 / 2
        side = 2 * (u[:, :2] > 0.5).to(u) - 1
        a = torch.cat([2 * side * s.asin(), a3[:, None]], 1)
        turns = a.diff(dim=1)
        turns = turns - 2 * math.pi * (turns / (2 * math.pi)).round()
        x1 = y2 - (a.sin() * a.new_tensor(self.lengths)).sum(1)
        x = torch.cat([x1[:, None], a[:, :1], turns], 1)
        # Four arcs, the range of a_3, and that of tau: the cube has volume one.
        volume = 4 * 2 * (far - near) * math.pi
        log_measure = (2 * volume * half * tau.cos()).log() - cosines.prod(1).log()
        return x, self._log_prior(x) + log_measure
