"""Are two samples from one law? Maximum mean discrepancy, and a classifier that tries to tell."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lib.checks import floating, reject, whole
from lib.metrics.measured import Measured

Kernel = Callable[[Tensor], Tensor]
SCALES = (0.05, 0.2, 0.9)
CHUNK = 2**22  # entries of a kernel matrix that are held at once


def inverse_multiquadratic(d2: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """k = sum_h h^2 / (h^2 + d^2) of squared distances; heavy tails, so it sees far apart points.

    Source: Tolstikhin et al. (2018), section 4; the three scales: Kruse et al. (2021).
    """
    return sum(h * h / (h * h + d2) for h in scales)


def gaussian(d2: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """k = sum_h exp(-d^2 / 2 h^2) of squared distances."""
    return sum((d2 / (-2 * h * h)).exp() for h in scales)


def mmd_loss(
    x: Float[Tensor, "n features"],
    y: Float[Tensor, "m features"],
    kernel: Kernel = inverse_multiquadratic,
    *,
    biased: bool = False,
) -> Float[Tensor, ""]:
    """The squared maximum mean discrepancy of two samples, differentiable in both.

        E k(x, x') + E k(y, y') - 2 E k(x, y)

    The unbiased estimate leaves out the pairs of a point with itself; it may be negative. The
    biased one keeps them, which adds about (k(0) - E k) (1/n + 1/m).

    Args:
        x: one sample.
        y: the other.
        kernel: from squared distances to the kernel.
        biased: keep the pairs of a point with itself.

    Raises:
        ValueError: samples of different widths, or fewer than two points.

    Source: Gretton, Borgwardt, Rasch, Schoelkopf and Smola (2012), lemma 6.
    """
    check_samples(x=x, y=y)
    n, m = len(x), len(y)
    k_xx, k_yy, k_xy = (kernel(_products(*pair)) for pair in ((x, x), (y, y), (x, y)))
    if biased:
        return k_xx.mean() + k_yy.mean() - 2 * k_xy.mean()
    own = k_xx.diagonal().sum() / (n * (n - 1)) + k_yy.diagonal().sum() / (m * (m - 1))
    return k_xx.sum() / (n * (n - 1)) + k_yy.sum() / (m * (m - 1)) - own - 2 * k_xy.mean()


@torch.no_grad()
def mmd(
    x: Float[Tensor, "n features"],
    y: Float[Tensor, "m features"],
    kernel: Kernel = inverse_multiquadratic,
) -> Measured:
    """The unbiased squared maximum mean discrepancy, in chunks, with its standard error.

    Its floor is zero: two samples of one law give zero on average, and values on both sides of it.
    The standard error is that of the linear part, mean over the points of what each adds. For two
    samples of one law, where that part vanishes, it is too large by up to a factor of two.

    Args:
        x: one sample.
        y: the other.
        kernel: from squared distances to the kernel, for which k(0) is its largest value.

    Raises:
        ValueError: samples of different widths, fewer than two points, NaN.

    Source: Gretton et al. (2012), lemma 6; the error: Sutherland et al. (2017), equation 5.
    """
    check_samples(x=x, y=y)
    x, y = floating("x", x).double(), floating("y", y).double()
    n, m = len(x), len(y)
    top = float(kernel(x.new_zeros(1)))
    from_x, across_x = (_rows(x, x, kernel) - top) / (n - 1), _rows(x, y, kernel) / m
    from_y, across_y = (_rows(y, y, kernel) - top) / (m - 1), _rows(y, x, kernel) / n
    value = from_x.mean() + from_y.mean() - 2 * across_x.mean()
    parts = (from_x - across_x).var() / n + (from_y - across_y).var() / m
    return Measured(float(value), stderr=float(2 * parts.sqrt()))


def c2st(
    x: Float[Tensor, "n features"],
    reference: Float[Tensor, "m features"],
    *,
    folds: int = 5,
    seed: int = 1,
    early_stopping: bool = False,
) -> Measured:
    """Classifier two-sample test: the accuracy of a network that tells `x` from `reference`.

    One half means that it cannot; one, that it always can. The protocol is that of the benchmark of
    simulation-based inference, so that numbers compare: scaled by mean and standard deviation of
    the reference, two hidden layers of ten times the features, shuffled cross-validation. The floor
    is one half, and the standard error that of a fair coin, sqrt(1 / 4(n + m)): what two samples of
    one law spread by.

    Args:
        x: what is judged.
        reference: samples of the truth, as many as there are of x.
        folds: of the cross-validation.
        seed: of the shuffle and of the networks.
        early_stopping: end the training on a tenth of each training fold held out; faster, and not
            the protocol.

    Raises:
        ValueError: samples of different sizes or widths, NaN, fewer than two points for each fold.

    Source: Lopez-Paz and Oquab (2017); the protocol: Lueckmann et al. (2021), appendix A.
    """
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    check_samples(x=x, reference=reference)
    folds = whole("folds", folds, low=2)
    if len(x) != len(reference):
        reject("x", f"as many points as the reference, {len(reference)}", len(x))
    if len(x) < 2 * folds:
        reject("x", f"at least {2 * folds} points", len(x))
    x, reference = (floating(*pair).detach().cpu() for pair in (("x", x), ("reference", reference)))
    sd = reference.std(0)
    scale = torch.where(sd > 0, sd, 1.0)
    both = torch.cat([(part - reference.mean(0)) / scale for part in (x, reference)]).numpy()
    label = np.repeat([0, 1], len(x))
    widths = (10 * x.shape[1],) * 2
    network = MLPClassifier(
        widths, max_iter=10_000, random_state=seed, early_stopping=early_stopping
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        shuffled = KFold(folds, shuffle=True, random_state=seed)
        scores = cross_val_score(network, both, label, cv=shuffled, scoring="accuracy")
    return Measured(float(scores.mean()), floor=0.5, stderr=math.sqrt(0.25 / len(both)))


def _rows(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Sums of the kernel over y, one for each x, in chunks."""
    size = max(1, CHUNK // len(y))
    return torch.cat([kernel(_d2(part, y)).sum(1) for part in x.split(size)])


def _d2(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances with their digits: of near points, |x|^2 + |y|^2 - 2 xy would lose them."""
    return (x[:, None] - y).square().sum(-1)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """The same by |x|^2 + |y|^2 - 2 xy: one matrix product, good enough for a gradient."""
    xx, yy = x.square().sum(1), y.square().sum(1)
    return torch.addmm(xx[:, None] + yy, x, y.mT, alpha=-2).clamp(min=0)


def check_samples(**samples: Tensor) -> None:
    """Refuse what is no sample of shape ``(n, features)``, or not as wide as the first one."""
    first, *_ = samples
    for name, value in samples.items():
        if not isinstance(value, Tensor) or value.ndim != 2 or len(value) < 2:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            reject(name, "a sample of shape (n, features), n at least 2", got)
        width = samples[first].shape[1]
        if value.shape[1] != width:
            reject(name, f"{width} features, as {first}", value.shape[1])
