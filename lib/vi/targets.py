"""Models for variational inference, each with the exact answer that a fit is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import constraints
from scipy.special import logsumexp
from torch import Tensor

from lib.checks import floating, positive, reject, whole


@dataclass(frozen=True)
class Example:
    """A Pyro model without arguments, and what is exactly known of its posterior.

    Attributes:
        model: the model; its data are bound.
        mean: exact posterior mean of each latent site.
        sd: exact posterior standard deviation of each latent site.
        log_evidence: log p(data) in nats; None where it is not known in closed form.
    """

    model: Callable[[], None]
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]
    log_evidence: float | None = None

    def __post_init__(self) -> None:
        for what, moments in (("mean", self.mean), ("sd", self.sd)):
            for site, value in moments.items():
                floating(f"exact {what} of {site}", value)
        if self.log_evidence is not None:
            floating("exact log evidence", self.log_evidence)


def normal_normal(
    x: Float[Tensor, "n"], prior_mean: float, prior_sd: float, noise_sd: float
) -> Example:
    """mu ~ N(m, s^2), x_i ~ N(mu, noise^2): the posterior of mu is Gaussian.

    Precision 1/s^2 + n/noise^2, mean (m/s^2 + sum x/noise^2) / precision; with r = x - m,

        log p(x) = -n/2 log 2 pi noise^2 - 1/2 log(1 + n s^2/noise^2)
                   - (sum r^2 - s^2 (sum r)^2 / (noise^2 + n s^2)) / (2 noise^2)

    Args:
        x: the data, ``(n,)``; everything follows their dtype and device.
        prior_mean: m.
        prior_sd: s, positive.
        noise_sd: standard deviation of the noise, positive.

    Returns:
        The model with the latent ``mu`` and its exact posterior.

    Raises:
        ValueError: data that are no vector of finite numbers, a scale that is not positive, or
            numbers whose squares or exact moments are out of range.

    Source: Gelman et al., Bayesian Data Analysis (2013), equations 2.11-2.12.
    """
    x = floating("x", x, ndim=1)
    m, s, noise = (
        float(floating("prior_mean", prior_mean, ndim=0)),
        float(positive("prior_sd", prior_sd)),
        float(positive("noise_sd", noise_sd)),
    )
    for name, scale in (("prior_sd", s), ("noise_sd", noise)):
        if not 1e-100 < scale < 1e100:
            reject(name, "a number between 1e-100 and 1e100", scale)
    n, r = len(x), (x.double() - m).cpu()
    precision = 1 / s**2 + n / noise**2
    square = float((r**2).sum() - s**2 * r.sum() ** 2 / (noise**2 + n * s**2)) / noise**2
    evidence = -0.5 * (
        n * math.log(2 * math.pi * noise**2) + math.log1p(n * s**2 / noise**2) + square
    )

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(m), x.new_tensor(s)))
        with pyro.plate("data", n):
            pyro.sample("x", dist.Normal(mu, noise), obs=x)

    mean = m + float(r.sum()) / noise**2 / precision
    return Example(
        model, {"mu": x.new_tensor(mean)}, {"mu": x.new_tensor(precision**-0.5)}, evidence
    )


def correlated_normal(correlation: float | Tensor) -> Example:
    """z ~ N(0, [[1, rho], [rho, 1]]): what a mean-field guide cannot represent.

    The best mean-field guide has variances 1 - rho^2 and lies -1/2 log(1 - rho^2) nats away.

    Args:
        correlation: rho with |rho| < 1; a floating-point tensor sets dtype and device.

    Returns:
        The model with the latent ``z``, ``(2,)``; log evidence 0.

    Raises:
        ValueError: |rho| is not below 1.
    """
    is_tensor = isinstance(correlation, Tensor)
    rho = floating("correlation", correlation, ndim=0)
    if not abs(float(rho)) < 1:
        reject("correlation", "a number between -1 and 1", float(rho))
    if not is_tensor:
        rho = rho.to(torch.get_default_dtype())
    one, zero = torch.ones_like(rho), torch.zeros_like(rho)
    scale_tril = torch.stack([one, zero, rho, (1 - rho**2).sqrt()]).view(2, 2)

    def model() -> None:
        pyro.sample("z", dist.MultivariateNormal(scale_tril.new_zeros(2), scale_tril=scale_tril))

    return Example(model, {"z": scale_tril.new_zeros(2)}, {"z": scale_tril.new_ones(2)}, 0.0)


def funnel(dim: int = 9, centred: bool = True) -> Example:
    """Neal's funnel: v ~ N(0, 3^2), x_i ~ N(0, e^v), i = 1..dim; no data, so log evidence is 0.

    Marginally E x_i = 0 and Var x_i = E e^v = e^{9/2}. Not centred, x_i = e^{v/2} z_i with
    z_i ~ N(0, 1): a Gaussian in (v, z), hence exact for a Gaussian guide, and ``x`` is no latent.

    Args:
        dim: number of x_i, at least 1.
        centred: whether x itself is sampled.

    Returns:
        The model with latents ``v`` and ``x`` (centred) or ``z`` (not centred), ``(dim,)``.

    Raises:
        ValueError: a dimension below one.

    Source: Neal, Slice sampling (2003), section 8; Papaspiliopoulos, Roberts and Skoeld (2007).
    """
    dim = whole("dim", dim)

    def model() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        with pyro.plate("coordinates", dim):
            if centred:
                pyro.sample("x", dist.Normal(torch.zeros_like(v), (v / 2).exp()))
            else:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.deterministic("x", (v / 2).exp() * z)

    name, sd = ("x", math.exp(9 / 4)) if centred else ("z", 1.0)
    means = {"v": torch.tensor(0.0), name: torch.zeros(dim)}
    return Example(model, means, {"v": torch.tensor(3.0), name: torch.full((dim,), sd)}, 0.0)


class RealMixture(dist.MixtureSameFamily):
    """A mixture on the real line that says so: autoguides ask for the support by name."""

    support = constraints.real


def two_modes(separation: float = 4.0, sd: float = 1.0, weight: float = 0.5) -> Example:
    """A mixture of two Gaussians at -a/2 and a/2: w N(-a/2, sd^2) + (1 - w) N(a/2, sd^2).

    Mean (1/2 - w) a, variance sd^2 + w (1 - w) a^2, log evidence 0.

    Args:
        separation: a, the distance of the modes; not negative.
        sd: of each mode, positive.
        weight: w of the left mode, between 0 and 1.

    Returns:
        The model with the latent ``z``.

    Raises:
        ValueError: an argument out of range, a length above 1e30.
    """
    a, s, w = (
        float(positive("separation", separation, zero=True)),
        float(positive("sd", sd)),
        float(floating("weight", weight, ndim=0)),
    )
    for name, size in (("separation", a), ("sd", s)):
        if size > 1e30:  # float32 holds it and its square root; the square is taken in float64
            reject(name, "a number of at most 1e30", size)
    if not 0 < w < 1:
        reject("weight", "a number between 0 and 1", w)
    law = RealMixture(
        dist.Categorical(torch.tensor([w, 1 - w])),
        dist.Normal(torch.tensor([-a / 2, a / 2]), torch.tensor([s, s])),
    )

    def model() -> None:
        pyro.sample("z", law)

    variance = s**2 + w * (1 - w) * a**2
    return Example(
        model, {"z": torch.tensor((0.5 - w) * a)}, {"z": torch.tensor(variance**0.5)}, 0.0
    )


# Rubin (1981), table 1: effects of coaching on a test score in eight schools, with standard errors.
SCHOOLS = (
    (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0),
    (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0),
)

# Mean and sd of the 10,000 reference draws of eight_schools_noncentered in posteriordb (Magnusson
# et al. 2024): ten chains, thinned until nearly independent. theta is counted from 1.
REFERENCE = MappingProxyType(
    {
        "mu": (4.411, 3.309),
        "tau": (3.602, 3.199),
        "theta1": (6.151, 5.616),
        "theta3": (3.906, 5.281),
        "theta7": (6.317, 5.003),
    }
)


def eight_schools(centred: bool = True) -> Example:
    """mu ~ N(0, 5^2), tau ~ half-Cauchy(5), theta_i ~ N(mu, tau^2), y_i ~ N(theta_i, sigma_i^2).

    Centred, theta is a latent and its scale depends on tau, as in a funnel. Not centred,
    theta_i = mu + tau xi_i with xi_i ~ N(0, 1), which is nearly Gaussian.

    Args:
        centred: whether theta itself is sampled.

    Returns:
        The model with latents ``mu``, ``tau`` and ``theta`` or ``xi``, ``(8,)``; the exact moments
        are those of mu, tau and theta (a deterministic site where it is no latent).

    Source: Rubin (1981); Gelman et al., Bayesian Data Analysis (2013), section 5.5.
    """
    y, sigma = torch.tensor(SCHOOLS)

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                xi = pyro.sample("xi", dist.Normal(0.0, 1.0))
                theta = pyro.deterministic("theta", mu + tau * xi)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    exact = eight_schools_exact()
    cast = lambda moments: {name: torch.tensor(value).float() for name, value in moments.items()}  # noqa: E731
    return Example(model, cast(exact.mean), cast(exact.sd), exact.log_evidence)


@dataclass(frozen=True)
class Moments:
    """Exact posterior means and standard deviations of the eight schools, and log p(y) in nats."""

    mean: dict[str, float | list[float]]
    sd: dict[str, float | list[float]]
    log_evidence: float


def eight_schools_exact(points: int = 4001) -> Moments:
    """Exact posterior moments of the eight schools, by quadrature in one dimension.

    Given tau everything is Gaussian: y_i ~ N(mu, s_i^2 + tau^2), so mu | tau, y has precision
    1/25 + sum 1/(s_i^2 + tau^2), and theta_i | mu, tau, y is a shrunken y_i. What is left is an
    integral over log tau, where the trapezoidal rule converges faster than any power of the step
    (the integrand is analytic and decays exponentially at both ends).

    Args:
        points: nodes of the rule on -30 <= log tau <= 30.

    Returns:
        Moments of ``mu``, ``tau`` and ``theta`` (a list of eight), and the log evidence. The
        posterior of tau has finite mean and variance: its density falls like tau^-10.

    Raises:
        ValueError: fewer than 101 points, which give the moments to 3e-5.

    Source: Gelman et al., Bayesian Data Analysis (2013), equations 5.17-5.21.
    """
    t, step = np.linspace(-30.0, 30.0, whole("points", points, low=101), retstep=True)
    tau = np.exp(t)[:, None]  # (points, 1)
    y, sigma = np.array(SCHOOLS)  # (8,)
    variance = sigma**2 + tau**2
    precision = 1 / 25 + (1 / variance).sum(1, keepdims=True)
    m, v = (y / variance).sum(1, keepdims=True) / precision, 1 / precision  # of mu | tau, y
    # log p(y | tau) = log p(y, mu | tau) - log p(mu | y, tau), at mu = m.
    log_p = -0.5 * (np.log(2 * np.pi * variance) + (y - m) ** 2 / variance).sum(1)
    log_p += -0.5 * (np.log(25) + m**2 / 25 - np.log(v))[:, 0]
    log_p += (
        np.log(2 / (5 * np.pi)) - np.log1p((tau[:, 0] / 5) ** 2) + t
    )  # prior and d tau = tau dt
    log_evidence = float(logsumexp(log_p)) + math.log(step)
    w = np.exp(log_p + math.log(step) - log_evidence)[:, None]
    keep = tau**2 / variance  # theta_i | mu, tau, y ~ N(keep y_i + (1 - keep) mu, keep sigma_i^2)
    theta, spread = keep * y + (1 - keep) * m, keep * sigma**2 + (1 - keep) ** 2 * v

    def moments(mean: np.ndarray, variance: np.ndarray) -> tuple:
        first = (w * mean).sum(0)
        return first.squeeze().tolist(), np.sqrt(
            (w * (variance + (mean - first) ** 2)).sum(0)
        ).squeeze().tolist()

    found = {"mu": moments(m, v), "tau": moments(tau, 0 * tau), "theta": moments(theta, spread)}
    return Moments(
        {name: mean for name, (mean, _) in found.items()},
        {name: sd for name, (_, sd) in found.items()},
        log_evidence,
    )
