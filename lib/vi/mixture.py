"""A mixture of Gaussians with unknown weights, means and covariances (Bishop 2006, section 10.2).

    pi ~ Dirichlet(alpha0),   Lambda_k ~ Wishart(W0, nu0),   mu_k ~ N(m0, (beta0 Lambda_k)^-1)
    z_n ~ pi,   x_n | z_n = k ~ N(mu_k, Lambda_k^-1)

The factors are q(z) = prod_n r_{n z_n}, q(pi) = Dirichlet(alpha) and q(mu_k, Lambda_k),
Normal-Wishart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Dirichlet, MixtureSameFamily, MultivariateNormal
from torch.distributions.kl import kl_divergence

from lib.checks import floating, number, positive, reject, whole
from lib.vi.ascent import Ascent, coordinate_ascent
from lib.vi.factors import NormalWishartFactor

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class MixtureState:
    """The mean-field posterior q(z) q(pi) prod_k q(mu_k, Lambda_k).

    Attributes:
        responsibilities: r, rows sum to one, shape ``(n, K)``.
        concentration: alpha of q(pi), shape ``(K,)``.
        components: the K Normal-Wishart factors.
    """

    responsibilities: Float[Tensor, "n K"]
    concentration: Float[Tensor, " K"]
    components: NormalWishartFactor

    @property
    def weights(self) -> Float[Tensor, " K"]:
        """E[pi] = alpha / sum(alpha)."""
        return self.concentration / self.concentration.sum()

    @property
    def means(self) -> Float[Tensor, "K D"]:
        """E[mu_k] = m_k."""
        return self.components.mean

    @property
    def covariances(self) -> Float[Tensor, "K D D"]:
        """E[Lambda_k]^-1 = W_k^-1 / nu_k."""
        root = self.components.root
        return root @ root.mT / self.components.dof[:, None, None]

    def mixture(self) -> MixtureSameFamily:
        """The mixture at these weights, means and covariances, with `log_prob` and `sample`."""
        root = self.components.root / self.components.dof.sqrt()[:, None, None]
        return MixtureSameFamily(
            Categorical(self.weights), MultivariateNormal(self.means, scale_tril=root)
        )


@dataclass(frozen=True)
class MixturePrior:
    """alpha0 (shape ``(K,)``) and one Normal-Wishart (K = 1) that all components share."""

    concentration: Float[Tensor, " K"]
    component: NormalWishartFactor


def log_joint(state: MixtureState, x: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
    """E log pi_k + E log N(x_n; mu_k, Lambda_k^-1), log of r up to a constant (equation 10.46)."""
    alpha, q = state.concentration, state.components
    log_pi = torch.digamma(alpha) - torch.digamma(alpha.sum())
    return log_pi + 0.5 * (q.mean_log_det() - x.shape[1] * LOG_2PI - q.mahalanobis(x))


def mixture_elbo(
    state: MixtureState, x: Float[Tensor, "n D"], prior: MixturePrior
) -> Float[Tensor, ""]:
    """E_q log p(x, z | theta) + H(q(z)) - KL(q(theta) || p(theta)), all constants, in nats."""
    r = state.responsibilities
    data = (r * log_joint(state, x)).sum() - torch.xlogy(r, r).sum()
    weights = kl_divergence(Dirichlet(state.concentration), Dirichlet(prior.concentration))
    return data - weights - state.components.kl(prior.component).sum()


def best_components(
    r: Float[Tensor, "n K"], x: Float[Tensor, "n D"], prior: NormalWishartFactor
) -> NormalWishartFactor:
    """Optimal q(mu_k, Lambda_k) given responsibilities (equations 10.60 to 10.63).

    W_k^-1 = W0^-1 + sum_n r_nk (x_n - m_k)(x_n - m_k)^T + beta0 (m_k - m0)(m_k - m0)^T: written
    around m_k nothing is divided by N_k, so that a component without data is just the prior.
    """
    N, beta0, m0 = r.sum(0), prior.precision, prior.mean
    beta = beta0 + N
    m = m0 + r.T @ (x - m0) / beta[:, None]
    away, shift = x - m[:, None], m - m0  # (K, n, D), (K, D)
    scatter = (r.T[:, :, None] * away).mT @ away
    pull = beta0[:, None, None] * shift[:, :, None] * shift[:, None, :]
    root = torch.linalg.cholesky(prior.root @ prior.root.mT + scatter + pull)
    return NormalWishartFactor(m, beta, prior.dof + N, root)


def fit_mixture(
    x: Tensor,
    components: int,
    *,
    start: Tensor | torch.Generator,
    concentration: float | None = None,
    mean_prior: Tensor | None = None,
    mean_precision: float = 1.0,
    dof: float | None = None,
    covariance_prior: Tensor | None = None,
    tol: float = 1e-10,
    max_sweeps: int = 1000,
    record: Callable[[int, str, MixtureState, float], object] | None = None,
) -> Ascent[MixtureState]:
    """Mean-field posterior of a Gaussian mixture by coordinate ascent.

    The defaults are those of scikit-learn's BayesianGaussianMixture with a Dirichlet prior. The
    bound has many maxima, K! of them by relabelling; where the ascent ends depends on `start`.
    Equal responsibilities are a saddle point that it never leaves.

    Args:
        x: the data, shape ``(n, D)``, n at least 2; float64 is recommended.
        components: K.
        start: responsibilities, shape ``(n, K)``, from which the other factors are computed first;
            or a generator that draws K seeds by k-means++ and assigns each point to the nearest.
        concentration: alpha0 of each weight; None is 1/K.
        mean_prior: m0, shape ``(D,)``; None is the mean of the data.
        mean_precision: beta0.
        dof: nu0, more than D - 1; None is D.
        covariance_prior: W0^-1, shape ``(D, D)``; None is the covariance of the data.
        tol: stop when a sweep changes no responsibility by more, and the bound relatively.
        max_sweeps: upper bound on the number of sweeps.
        record: see `coordinate_ascent`; factors ``"responsibilities"``, ``"weights"``,
            ``"components"``.

    Returns:
        The factors, in the dtype and on the device of `x`, with their bound in nats.

    Raises:
        ValueError: data or arguments of the wrong shape, range or precision (float16), or data
            without full rank.
    """
    x, K = floating("x", x, ndim=2), whole("components", components)
    if x.dtype not in (torch.float32, torch.float64):
        reject("x", "float32 or float64", str(x.dtype))
    centre = x.mean(0)  # around it no digit is lost to the offset of the data
    x = x - centre
    prior = _prior(x, K, concentration, centre, mean_prior, mean_precision, dof, covariance_prior)
    if isinstance(start, torch.Generator):
        r = _seeded(x, K, prior.component.root[0], start)
    else:
        r = positive("start", floating("start", start, ndim=2).to(x), zero=True)
        if r.shape != (len(x), K):
            reject("start", f"shape {(len(x), K)}", f"shape {tuple(r.shape)}")
        total = r.sum(1, keepdim=True)
        if (off := float((total - 1).abs().max())) > 1e-5:  # the rounding of float32
            reject("start", "rows that sum to one", f"sums that are off by {off:.3g}")
        r = r / total

    def responsibilities(state: MixtureState) -> MixtureState:
        return replace(state, responsibilities=log_joint(state, x).softmax(1))

    def weights(state: MixtureState) -> MixtureState:
        return replace(state, concentration=prior.concentration + state.responsibilities.sum(0))

    def parameters(state: MixtureState) -> MixtureState:
        best = best_components(state.responsibilities, x, prior.component)
        return replace(state, components=best)

    def back(state: MixtureState) -> MixtureState:
        q = state.components
        return replace(state, components=replace(q, mean=q.mean + centre))

    def keep(sweep: int, factor: str, state: MixtureState, bound: float) -> None:
        record(sweep, factor, back(state), bound)

    state = MixtureState(r, prior.concentration + r.sum(0), best_components(r, x, prior.component))
    ascent = coordinate_ascent(
        state,
        {"responsibilities": responsibilities, "weights": weights, "components": parameters},
        lambda state: mixture_elbo(state, x, prior),
        tol=tol,
        max_sweeps=max_sweeps,
        record=None if record is None else keep,
        change=lambda a, b: (a.responsibilities - b.responsibilities).abs().max(),
        scale=lambda state: _size(state, x, prior),
    )
    return replace(ascent, state=back(ascent.state))


def _size(state: MixtureState, x: Tensor, prior: MixturePrior) -> float:
    """Size of the terms of the bound and, divided by eps, of the digits that they have lost."""
    q, alpha = state.components, state.concentration.sum()
    dof = q.dof + prior.component.dof
    logs = 1 + dof.log() + q.mean_log_det().abs() + q.log_det_scale().abs()
    # W^-1 is a sum of squares: Cholesky's pivots are known to eps times the entry they are left of.
    length = torch.linalg.vector_norm(q.root, dim=2) / q.root.diagonal(dim1=1, dim2=2)
    terms = (dof * (x.shape[1] * logs + length.square().sum(1))).sum()
    return float(terms + alpha * (1 + alpha.log().abs()) + x.numel() * (1 + math.log(len(x))))


def _prior(
    x: Tensor,
    K: int,
    concentration: float | None,
    centre: Tensor,
    mean_prior: Tensor | None,
    mean_precision: float,
    dof: float | None,
    covariance_prior: Tensor | None,
) -> MixturePrior:
    """The prior of centred data as tensors like `x`, its arguments checked and None replaced."""
    n, D = x.shape
    if n < 2:
        reject("x", "at least two points", f"shape {(n, D)}")
    alpha0 = number("concentration", 1 / K if concentration is None else concentration)
    beta0 = number("mean_precision", mean_precision)
    nu0 = number("dof", D if dof is None else dof)
    if nu0 <= D - 1:
        reject("dof", f"more than D - 1 = {D - 1}", nu0)
    m0 = centre if mean_prior is None else floating("mean_prior", mean_prior, ndim=1).to(x)
    if m0.shape != (D,):
        reject("mean_prior", f"shape {(D,)}", f"shape {tuple(m0.shape)}")
    m0 = x.mean(0) if mean_prior is None else m0 - centre
    name = "x (its covariance)" if covariance_prior is None else "covariance_prior"
    V = x.T.cov().reshape(D, D) if covariance_prior is None else covariance_prior
    V = floating(name, V, ndim=2).to(x)
    if V.shape != (D, D):
        reject(name, f"shape {(D, D)}", f"shape {tuple(V.shape)}")
    eps = torch.finfo(x.dtype).eps
    unit = V.diagonal().clamp(min=torch.finfo(x.dtype).tiny).rsqrt()
    correlation = unit[:, None] * V * unit  # rank has nothing to do with the units of the columns
    root, failed = torch.linalg.cholesky_ex(V)
    lowest = float(torch.linalg.eigvalsh(correlation).min())
    if int(failed) or lowest < 8 * D * eps or not torch.allclose(correlation, correlation.T):
        reject(name, "a symmetric positive definite matrix", V.tolist())
    component = NormalWishartFactor(
        m0[None], x.new_tensor([beta0]), x.new_tensor([nu0]), root[None]
    )
    return MixturePrior(x.new_full((K,), alpha0), component)


def _seeded(x: Tensor, K: int, root: Tensor, generator: torch.Generator) -> Tensor:
    """Hard assignment to K seeds, each drawn with probability ~ squared distance to those before.

    k-means++ (Arthur and Vassilvitskii 2007), in the metric of W0, so that units do not matter.
    """
    z = torch.linalg.solve_triangular(root, x.T, upper=False).T
    nearest = torch.ones_like(z[:, 0])  # the first seed is uniform
    seeds: list[Tensor] = []
    for _ in range(K):
        odds = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        seed = torch.multinomial(odds.to(generator.device), 1, generator=generator).to(x.device)
        distance = (z - z[seed]).square().sum(1)
        nearest = torch.minimum(nearest, distance) if seeds else distance
        seeds.append(z[seed])
    exact = "donot_use_mm_for_euclid_dist"  # the other way cancels
    labels = torch.cdist(z, torch.cat(seeds), compute_mode=exact).argmin(1)
    return torch.nn.functional.one_hot(labels, K).to(x)
