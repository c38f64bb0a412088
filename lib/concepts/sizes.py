"""How many dimensions does a concept have in a representation? Two rules; one can say 0."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lib.checks import number, reject, whole

Sides = tuple[Tensor, Tensor]


def canonical_correlations(a: Float[Tensor, "n p"], b: Float[Tensor, "n q"]) -> Float[Tensor, " m"]:
    """Correlations of the best matched linear functions of both sides, in falling order.

    The singular values of Qa^T Qb, where Qa and Qb are orthonormal bases of the centred columns
    (Hotelling, 1936; Bjoerck and Golub, 1973). Columns that are constant, or a combination of
    others, are left out.

    Raises:
        ValueError: other lengths, no more rows than columns.
    """
    if len(a) != len(b):
        reject("b", f"{len(a)} rows", len(b))
    if len(a) <= a.shape[1] + b.shape[1]:
        reject("a", f"more than {a.shape[1] + b.shape[1]} rows", len(a))
    return torch.linalg.svdvals(_basis(a).T @ _basis(b)).clamp(max=1)


def noise_level(
    a: Float[Tensor, "n p"],
    b: Float[Tensor, "n q"],
    generator: torch.Generator | None = None,
    *,
    draws: int = 100,
    level: float = 0.01,
) -> float:
    """The largest canonical correlation that pairs with nothing in common reach by chance.

    The rows of one side are permuted, which is exact: each permutation is as likely as any other
    if the sides are independent.

    Args:
        a: one side.
        b: the other.
        generator: source of the permutations, on the CPU.
        draws: number of them.
        level: probability that a permutation exceeds what is returned.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not number("level", level) < 1:
        reject("level", "a probability", level)
    qa, qb = _basis(a), _basis(b)
    largest = [
        torch.linalg.matrix_norm(qa.T @ qb[torch.randperm(len(b), generator=generator)], ord=2)
        for _ in range(whole("draws", draws))
    ]
    return float(torch.stack(largest).quantile(1 - level))


def canonical_size(
    a: Float[Tensor, "n p"],
    b: Float[Tensor, "n q"],
    generator: torch.Generator | None = None,
    *,
    draws: int = 100,
    level: float = 0.01,
) -> int:
    """Number of canonical correlations above `noise_level`: 0 if nothing linear is shared.

    Args:
        a: representations of the first images of pairs that share one concept.
        b: of the second.
        generator: of the permutations.
        draws: see `noise_level`.
        level: probability to find something where there is nothing.
    """
    found = canonical_correlations(a, b)
    return int((found > noise_level(a, b, generator, draws=draws, level=level)).sum())


def softmax_sizes(pairs: Mapping[str, Sides], features: int) -> dict[str, int]:
    """The rule of the published code, for comparison: a softmax over shares of covariance.

    With the score of a concept

        c_F = sum_i Cov(a_i, b_i) / sum_i Var(a_i)

    over pairs that share F, and 1 for the rest, block F gets floor(N softmax(c)_F) dimensions, and
    the rest what is left. As 0 <= c <= 1, no concept gets less than 1 / e of another.

    Args:
        pairs: both sides of pairs that share a concept, by its name.
        features: N.

    Raises:
        ValueError: no concept.

    Source: Esser, Rombach and Ommer (2020), and the code that came with it.
    """
    if not pairs:
        reject("pairs", "at least one concept", dict(pairs))
    scores = [_share(a, b) for a, b in pairs.values()] + [torch.tensor(1.0)]
    shares = torch.stack([score.double().cpu() for score in scores]).softmax(0)
    sizes = {
        name: int(whole("features", features) * share)
        for name, share in zip(pairs, shares[:-1], strict=True)
    }
    return {"rest": features - sum(sizes.values()), **sizes}


def _share(a: Tensor, b: Tensor) -> Tensor:
    """Covariance of both sides over the variance, each summed over the dimensions."""
    both = torch.cat([a, b])
    a, b = a - both.mean(0), b - both.mean(0)
    return (a * b).sum() / ((a.square() + b.square()).sum() / 2)


def _basis(x: Tensor) -> Tensor:
    """Orthonormal columns that span the centred ones."""
    centred = x - x.mean(0)
    u, values, _ = torch.linalg.svd(centred, full_matrices=False)
    tiny = torch.finfo(x.dtype).eps * max(x.shape) * values.max().clamp(min=1e-300)
    return u[:, values > tiny]
