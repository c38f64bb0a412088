"""Is the fit any good? Pareto k-hat, importance weights, calibration, the exact mean-field gap.

All of it rests on the log ratios log p(x, z) - log q(z) at samples z of the guide q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from lib.checks import floating, positive, reject, whole

LOWEST = -700.0  # log of a weight, relative to the largest, that float64 still holds


@dataclass(frozen=True)
class Khat:
    """The tail index of the importance ratios, estimated from `draws` of them.

    Attributes:
        k: the ratios have finite moments of order below 1/k. Below 1/2 the variance is finite;
            ``-inf`` where the largest ratio is shared: an exact guide, or a flat bounded ratio;
            ``inf`` where it is so far above the tail's start that the start has no weight at all.
        threshold: min(1 - 1/log10(draws), 0.7), above which weighted means are not to be trusted.
        draws: how many ratios.
    """

    k: float
    threshold: float
    draws: int

    @property
    def reliable(self) -> bool:
        """Whether k lies below the threshold."""
        return self.k < self.threshold


@dataclass(frozen=True)
class Weighted:
    """Moments under the posterior, from weighted samples of the guide.

    Attributes:
        mean: ``(*event)``.
        sd: ``(*event)``.
        khat: whether to trust them.
        effective: effective number of samples 1 / sum w^2.
    """

    mean: Tensor
    sd: Tensor
    khat: Khat
    effective: float


def pareto_khat(log_ratios: Float[Tensor, "draws"]) -> Khat:
    """How heavy the tail of p(z)/q(z) is under q: a generalised Pareto fit to the largest ratios.

    Args:
        log_ratios: log p - log q at samples of q, ``(draws,)``, up to a constant; ``-inf`` where
            the posterior is zero. The standard error of k is roughly (1 + k) / draws^(1/4) /
            sqrt(3).

    Returns:
        The estimate with its threshold.

    Raises:
        ValueError: fewer than 25 draws, NaN or ``+inf``, less than a quarter of them finite, half
            precision, or numbers so large that their dtype cannot resolve 0.1 nats.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), section 3; Yao et al. (2018).
    """
    return _smooth(log_ratios)[1]


def psis_moments(
    values: Float[Tensor, "draws *event"], log_ratios: Float[Tensor, "draws"]
) -> Weighted:
    """Posterior mean and standard deviation from samples of the guide, with smoothed weights.

    mean = sum_s w_s z_s and sd^2 = sum_s w_s (z_s - mean)^2, where the w_s are the ratios with
    their tail replaced by the quantiles of its Pareto fit, normalised to one.

    Args:
        values: z_s, or any function of it, ``(draws, *event)``.
        log_ratios: log p - log q at the same samples, ``(draws,)``.

    Returns:
        The moments, k-hat and the effective number of samples.

    Raises:
        ValueError: as for `pareto_khat`; NaN; numbers of draws that differ.

    Source: Vehtari et al. (2024), section 2; Yao et al. (2018), section 3.
    """
    values = floating("values", values)
    log_weights, khat = _smooth(log_ratios)
    if values.ndim == 0 or len(values) != len(log_weights):
        reject("values", f"as many draws as log_ratios, {len(log_weights)}", tuple(values.shape))
    weights = log_weights.double().softmax(0)
    w = weights.to(values.device).view(-1, *[1] * (values.ndim - 1))
    size = values.double().abs().amax(0)  # in these units no square overflows
    size = torch.where(size > 0, size, 1.0)
    scaled = values.double() / size
    mean = (w * scaled).sum(0)
    sd = (w * (scaled - mean) ** 2).sum(0).sqrt()
    effective = 1 / float((weights**2).sum())
    return Weighted((mean * size).to(values), (sd * size).to(values), khat, effective)


def _smooth(log_ratios: Tensor) -> tuple[Tensor, Khat]:
    """Pareto-smoothed log weights on the device of the ratios, and k-hat."""
    try:
        ratios = torch.as_tensor(log_ratios).detach()
    except (TypeError, ValueError, RuntimeError):
        reject("log_ratios", "a tensor of real numbers", type(log_ratios).__name__)
    if ratios.dtype not in (torch.float32, torch.float64):
        reject("log_ratios", "float32 or float64", str(ratios.dtype))
    if ratios.ndim != 1:
        reject("log_ratios", "1 dimension", f"shape {tuple(ratios.shape)}")
    if (draws := len(ratios)) < 25:
        reject("log_ratios", "at least 25 draws to see a tail (better 1,000)", draws)
    if bool(ratios.isnan().any()) or bool((ratios == math.inf).any()):
        reject("log_ratios", "numbers or -inf", "NaN or +inf: does the guide leave the support?")
    finite = int(ratios.isfinite().sum())
    if finite < draws / 4:
        reject(
            "log_ratios", "a guide most of whose samples the model allows", f"{finite} of {draws}"
        )
    threshold = min(1 - 1 / math.log10(draws), 0.7)
    top = float(ratios.max())
    eps = torch.finfo(ratios.dtype).eps
    if eps * abs(top) > 0.1:
        reject("log_ratios", f"numbers that {ratios.dtype} resolves to 0.1 nats", f"{top:g}")
    # A generalised Pareto law needs a tail that rises above its start. It does not where the guide
    # is exact (all ratios equal within rounding), or where many ratios share the largest value.
    ordered = ratios.double().sort().values - top
    size = int(3 * draws**0.5) if draws > 225 else draws // 5
    start, quarter = (float(ordered[i - size]) for i in (-1, int(size / 4 + 0.5) - 1))
    k = None
    if -float(ordered[0]) <= 8 * eps * max(1.0, abs(top)) or start == 0:
        k = -math.inf
    elif start < LOWEST:
        k = math.inf
    elif math.exp(quarter) <= math.exp(start):  # nothing to fit: the exponent of max = draws^k
        k = -start / math.log(size)
    if k is not None:
        return ratios - top, Khat(k, threshold, draws)
    from arviz_stats.base import array_stats  # slow to import, so only when it is needed

    # Weights of zero: no weight at all, however the tail above them is smoothed.
    numbers = np.maximum(ratios.double().cpu().numpy(), top + LOWEST)
    log_weights, k = array_stats.psislw(-numbers)
    log_weights = torch.as_tensor(log_weights).to(ratios)
    return log_weights.masked_fill(ratios == -math.inf, -math.inf), Khat(float(k), threshold, draws)


def exact_khat_gaussian(covariance: Float[Tensor, "d d"]) -> float:
    """The true k of the best mean-field guide of a Gaussian: 1 - lambda_min(R).

    R = D^(-1/2) Lambda D^(-1/2) is the precision Lambda scaled to unit diagonal D. In the units of
    the guide q = N(0, I), so log p/q = 1/2 u'(I - R)u + const. Its tail is that of 1/2 a w^2 with
    w ~ N(0, 1) and a = 1 - lambda_min the largest eigenvalue of I - R: P(p/q > t) ~ t^(-1/a), that
    is, k = a. With two dimensions k = |rho|. (a >= 0, as the trace of R is d.)

    Args:
        covariance: of the Gaussian target, ``(d, d)``.

    Returns:
        k, between 0 (independent, where the ratio is constant) and 1.

    Raises:
        ValueError: not a covariance matrix.
    """
    return max(0.0, 1 - float(torch.linalg.eigvalsh(_scaled_precision(covariance)[0])[0]))


def exact_khat_scale(scale: float) -> float:
    """The true k of the guide N(0, s^2) for the target N(0, 1): 1 - s^2 for s <= 1, else -2.

    log p/q = log s + 1/2 w^2 (1 - s^2) with w ~ N(0, 1). For s < 1 it has the tail of 1/2 a w^2
    with a = 1 - s^2 = k (see `exact_khat_gaussian`). For s > 1 the ratio is bounded by r_0 =
    p(0)/q(0), and P(p/q > r_0 - e) ~ e^(1/2), the end of a generalised Pareto law with -1/k = 1/2.

    Raises:
        ValueError: a scale that is not positive.
    """
    s = float(positive("scale", scale))
    return 1 - s**2 if s <= 1 else -2.0


def mean_field_variances(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d"]:
    """Variances of the best mean-field guide of a Gaussian: 1 / Lambda_ii, Lambda its precision.

    Never larger than the true ones; with two dimensions 1 - rho^2 of them.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 10.1.2.
    """
    return _scaled_precision(covariance)[1]


def mean_field_gap(covariance: Float[Tensor, "d d"]) -> float:
    """KL(q || p) of the best mean-field guide of a Gaussian, in nats: -1/2 log det R.

    KL = 1/2 (tr(Lambda V) - d - log det(Lambda V)), V = diag(1/Lambda_ii): the trace is d, and the
    determinant that of R, the precision scaled to unit diagonal.

    Raises:
        ValueError: not a covariance matrix.
    """
    return max(0.0, -0.5 * float(torch.linalg.slogdet(_scaled_precision(covariance)[0])[1]))


def _scaled_precision(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The precision matrix scaled to unit diagonal, and one over its diagonal."""
    covariance = floating("covariance", covariance, ndim=2)
    if covariance.shape[0] != covariance.shape[1]:
        reject("covariance", "a square matrix", f"shape {tuple(covariance.shape)}")
    variances = covariance.diagonal()
    if bool((variances <= 0).any()):
        reject("covariance", "a positive-definite matrix", "a variance that is not positive")
    sd = variances.sqrt()
    unit = covariance / sd[:, None] / sd
    if not torch.allclose(unit, unit.mT, rtol=1e-4, atol=1e-6):
        reject("covariance", "a symmetric matrix", "one that is not")
    factor, failed = torch.linalg.cholesky_ex((unit + unit.mT) / 2)
    if bool(failed):
        reject("covariance", "a positive-definite matrix", "one that is not")
    precision = torch.cholesky_inverse(factor)
    diagonal = precision.diagonal()
    scale = diagonal.rsqrt()
    scaled = scale[:, None] * precision * scale
    if not bool(torch.isfinite(scaled).all()):
        reject("covariance", "a matrix whose inverse is finite", "one that is singular")
    return scaled, variances / diagonal


@dataclass(frozen=True)
class Calibration:
    """Are ranks uniform, and if not, how do they deviate?

    Attributes:
        p_value: of the chi-square test of uniformity.
        direction: ``"calibrated"`` (p at least the level), ``"overconfident"`` (U-shaped:
            posteriors too narrow), ``"too wide"`` (n-shaped), ``"too low"`` or ``"too high"``
            (skewed: posteriors below or above the truth).
        counts: ranks per bin.
        expected: the same under uniformity.
    """

    p_value: float
    direction: str
    counts: tuple[int, ...]
    expected: tuple[float, ...]


def calibration_ranks(
    truth: Float[Tensor, "m"], draws: Float[Tensor, "m draws"]
) -> Int[Tensor, "m"]:
    """Ranks of true parameters among draws of their posteriors: how many draws lie below.

    With truth_j from the prior, data_j from the model given truth_j, and draws from the exact
    posterior given data_j, the ranks are uniform on 0..L.

    Args:
        truth: ``(m,)``, of one continuous parameter.
        draws: ``(m, L)``, independent draws for each of the m data sets.

    Returns:
        Ranks, ``(m,)``.

    Raises:
        ValueError: shapes that do not fit, NaN.

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman (2018), theorem 1.
    """
    truth, draws = floating("truth", truth, ndim=1), floating("draws", draws, ndim=2)
    if len(truth) != len(draws):
        reject("draws", f"one row for each of the {len(truth)} truths", tuple(draws.shape))
    return (draws < truth[:, None]).sum(1)


def calibration_test(
    ranks: Int[Tensor, "m"], draws: int, *, bins: int | None = None, level: float = 0.01
) -> Calibration:
    """Test ranks on 0..L for uniformity, and name the way in which they fail.

    The chi-square test with `bins` bins decides; then, with u = (rank + 1/2)/(L + 1), the larger of
    two standardised deviations names the direction: of the mean of u (skew) or of the mean of
    (u - 1/2)^2 (U or n shape).

    Args:
        ranks: ``(m,)``, of `calibration_ranks`.
        draws: L, the number of draws per data set.
        bins: number of bins; None takes at most 20, with at least five ranks expected in each.
        level: p-value below which ranks count as not uniform.

    Returns:
        The p-value and the direction.

    Raises:
        ValueError: ranks that are no integers in 0..L, fewer than two bins, or more than L + 1.

    Source: Talts et al. (2018), section 4; Yao, Vehtari, Simpson and Gelman (2018), section 4.
    """
    draws, expected = whole("draws", draws), f"integers in 0..{draws}, one-dimensional"
    if not torch.is_tensor(ranks):
        reject("ranks", expected, type(ranks).__name__)
    integer = not (ranks.is_floating_point() or ranks.is_complex() or ranks.dtype == torch.bool)
    if not integer or ranks.ndim != 1 or not (m := len(ranks)):
        reject("ranks", expected, f"{ranks.dtype} of shape {tuple(ranks.shape)}")
    if int(ranks.min()) < 0 or int(ranks.max()) > draws:
        reject("ranks", expected, f"{int(ranks.min())}..{int(ranks.max())}")
    if not (isinstance(level, int | float) and 0 < level < 1):
        reject("level", "a number between 0 and 1", level)
    bins = whole("bins", min(20, draws + 1, max(2, m // 5)) if bins is None else bins, low=2)
    if bins > draws + 1:
        reject("bins", f"at most the {draws + 1} possible ranks", bins)
    places = np.arange(draws + 1)
    bin_of = places * bins // (draws + 1)  # bins differ by one rank where they do not divide L + 1
    rank = ranks.cpu().numpy()
    counts = np.bincount(bin_of[rank], minlength=bins)
    expected = m * np.bincount(bin_of, minlength=bins) / (draws + 1)
    p_value = float(stats.chisquare(counts, expected).pvalue)
    u = (places + 0.5) / (draws + 1) - 0.5

    def deviation(score: np.ndarray) -> float:
        return float((score[rank].mean() - score.mean()) / (score.std() / math.sqrt(m) or 1.0))

    skew, spread = deviation(u), deviation(u**2)
    if p_value >= level:
        direction = "calibrated"
    elif abs(spread) >= abs(skew):
        direction = "overconfident" if spread > 0 else "too wide"
    else:
        direction = "too low" if skew > 0 else "too high"
    return Calibration(p_value, direction, tuple(map(int, counts)), tuple(map(float, expected)))
