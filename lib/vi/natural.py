"""Natural gradients: one step of size one is one update of coordinate ascent.

A factor q(z) = h(z) exp(eta . T(z) - A(eta)) of an exponential family has the Fisher information
F(eta) = A''(eta). In a conjugate model the bound, as a function of this factor alone, has the
gradient F(eta) (eta* - eta), where eta* is the optimal factor. So (Sato 2001; Hoffman et al. 2013,
section 2.3)

    F(eta)^-1 grad bound(eta) = eta* - eta
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.functional import hessian

from lib.checks import floating, reject
from lib.vi.factors import GammaFactor, NormalFactor


def natural_gradient(
    bound: Callable[[Tensor], Tensor],
    eta: Float[Tensor, " p"],
    log_normalizer: Callable[[Tensor], Tensor],
) -> Float[Tensor, " p"]:
    """Direction of steepest ascent where distance is KL divergence: F(eta)^-1 grad bound(eta).

    Args:
        bound: scalar function of the natural parameters, in nats, that autograd can differentiate.
        eta: natural parameters, shape ``(p,)``.
        log_normalizer: A(eta), whose second derivative is the Fisher information.

    Returns:
        The natural gradient in the coordinates of `eta`, detached, shape ``(p,)``.

    Raises:
        ValueError: `eta` that is not a finite vector, or has no finite gradient or no positive
            definite Fisher information: it lies outside the family.
    """
    eta = floating("eta", eta, ndim=1).detach().clone().requires_grad_()
    _inside(eta, bool(torch.isfinite(log_normalizer(eta))), "finite A(eta)")
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(bound(eta), eta)
        fisher = hessian(log_normalizer, eta)
    chol, failed = torch.linalg.cholesky_ex(fisher)
    _inside(eta, not int(failed), "positive definite A''(eta)")
    _inside(eta, bool(torch.isfinite(gradient).all()), "a bound with a finite gradient")
    return torch.cholesky_solve(gradient[:, None], chol)[:, 0]


def normal_natural(factor: NormalFactor) -> Float[Tensor, "2"]:
    """eta = (m/v, -1/(2v)) of a single N(m, v), with T(mu) = (mu, mu^2)."""
    return torch.stack([factor.mean / factor.variance, -0.5 / factor.variance])


def normal_from_natural(eta: Float[Tensor, "2"]) -> NormalFactor:
    """N(m, v) with v = -1/(2 eta_2), m = eta_1 v; a ValueError unless eta_2 < 0."""
    eta = _pair(eta)
    _inside(eta, bool(eta[1] < 0), "eta_2 < 0")
    variance = -0.5 / eta[1]
    return NormalFactor(eta[0] * variance, variance)


def normal_log_normalizer(eta: Float[Tensor, "2"]) -> Float[Tensor, ""]:
    """A(eta) = -eta_1^2 / (4 eta_2) - 1/2 log(-2 eta_2)."""
    return -(eta[0] ** 2) / (4 * eta[1]) - 0.5 * torch.log(-2 * eta[1])


def gamma_natural(factor: GammaFactor) -> Float[Tensor, "2"]:
    """eta = (a - 1, -b) of a single Gamma(a, b), with T(lambda) = (log lambda, lambda)."""
    return torch.stack([factor.shape - 1, -factor.rate])


def gamma_from_natural(eta: Float[Tensor, "2"]) -> GammaFactor:
    """Gamma(eta_1 + 1, -eta_2); a ValueError unless eta_1 > -1 and eta_2 < 0."""
    eta = _pair(eta)
    _inside(eta, bool((eta[0] > -1) & (eta[1] < 0)), "eta_1 > -1 and eta_2 < 0")
    return GammaFactor(eta[0] + 1, -eta[1])


def gamma_log_normalizer(eta: Float[Tensor, "2"]) -> Float[Tensor, ""]:
    """A(eta) = ln Gamma(eta_1 + 1) - (eta_1 + 1) log(-eta_2)."""
    return torch.lgamma(eta[0] + 1) - (eta[0] + 1) * torch.log(-eta[1])


def _pair(eta: Tensor) -> Tensor:
    eta = floating("eta", eta, ndim=1)
    _inside(eta, len(eta) == 2, "two numbers")
    return eta


def _inside(eta: Tensor, inside: bool, expected: str) -> None:
    if not inside:
        reject("eta", expected, eta.tolist())
