"""Measurements on fibres: does phi tell the samples apart, and what do they share?"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.checks import reject, whole
from lib.data.shapes import CONCEPTS, FACTORS

CHUNK = 64  # rows of the distance matrix at a time


def fibre_ratio(
    found: Float[Tensor, "n m features"], z: Float[Tensor, "m features"]
) -> Float[Tensor, ""]:
    """Root mean square of phi(sample) - z, over that of z - z' for random pairs.

        sqrt( E |phi(x_sample) - z|^2 / E |z - z'|^2 )

    0: the samples lie on the fibre. 1: they know nothing of z.

    Args:
        found: phi of n samples for each of m images.
        z: phi of the images themselves; all pairs of different rows make up the denominator.

    Raises:
        ValueError: shapes that do not fit, fewer than two rows, representations that are all equal.
    """
    if found.ndim != 3 or found.shape[1:] != z.shape or len(z) < 2:
        reject("found", "shape (n, m, features) for z of shape (m > 1, features)", found.shape)
    pairs = 2 * z.var(0, correction=1).sum()  # E |z - z'|^2 over pairs of different rows
    if not pairs > 0:
        reject("z", "representations that differ", "all equal")
    return ((found - z).square().sum(-1).mean() / pairs).sqrt()


def retained_share(
    factors: Float[Tensor, "n m 8"], everything: Float[Tensor, "k 8"]
) -> dict[str, float]:
    """R = 1 - E_z Var(f | z) / Var(f) for each concept of `Shapes`: what z says about f.

    Variances are added up over the factors of a concept. For the turn, which lives on a circle,
    Var is 1 - |E e^{2 pi i f}|^2; for the shape it is the entropy, so that R is the mutual
    information over the entropy. Both inner terms are corrected for the finite n: variances by
    n / (n - 1), the entropy by (classes seen - 1) / 2n (Miller, 1955).

    Args:
        factors: n draws of the factors given each of m values of z.
        everything: draws of the factors without condition.

    Returns:
        R by the name of the concept: 1 where z determines it, 0 where z says nothing.

    Raises:
        ValueError: fewer than two draws, other shapes.
    """
    if factors.ndim != 3 or factors.shape[-1] != len(FACTORS) or len(factors) < 2:
        reject("factors", "shape (n > 1, m, 8)", tuple(factors.shape))
    if everything.ndim != 2 or everything.shape[-1] != len(FACTORS) or len(everything) < 2:
        reject("everything", "shape (k > 1, 8)", tuple(everything.shape))
    within, total = _spreads(factors), _spreads(everything[:, None])
    return {name: float(1 - within[name] / total[name]) for name in CONCEPTS}


def _spreads(factors: Tensor) -> dict[str, Tensor]:
    """The spread of each concept over the first dimension, the mean over the second."""
    n, found = len(factors), {}
    for name, columns in CONCEPTS.items():
        values = factors[..., columns]
        if name == "shape":
            share = torch.stack([(values.floor() == k).float().mean(0) for k in range(3)])
            entropy = torch.special.entr(share).sum(0)
            spread = entropy + ((share > 0).sum(0) - 1) / (2 * n)
        elif name == "turn":
            angle = 2 * math.pi * values
            centre = angle.cos().mean(0).square() + angle.sin().mean(0).square()
            spread = (1 - centre) * n / (n - 1)
        else:
            spread = values.var(0, correction=1)
        found[name] = spread.sum(-1).mean()
    return found


def nearest(
    bank: Float[Tensor, "n features"], z: Float[Tensor, "m features"], k: int
) -> tuple[Int[Tensor, "k m"], Float[Tensor, "m"]]:
    """The k rows of the bank that are nearest to each z, and the distance of the k-th.

    A bank of renders with its phi is thus a sampler of p(factors | phi = z) that needs no network:
    exact as the radius goes to zero.

    Raises:
        ValueError: a bank of fewer than k rows.
    """
    if not whole("k", k) <= len(bank):
        reject("k", f"at most the {len(bank)} rows of the bank", k)
    found = [torch.cdist(rows, bank).topk(k, largest=False) for rows in z.split(CHUNK)]
    index = torch.cat([f.indices for f in found]).mT
    return index, torch.cat([f.values[:, -1] for f in found])
