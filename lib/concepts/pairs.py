"""Pairs of images of which one knows what they share, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lib.checks import number, reject, whole
from lib.data.shapes import Shapes


class Pairs(NamedTuple):
    """Pairs and their labels.

    Attributes:
        a: what describes the first images: factors, or indices.
        b: the second.
        labels: k > 0 shares the k-th concept alone, -k all but the k-th, 0 nothing.
    """

    a: Tensor
    b: Tensor
    labels: Int[Tensor, " n"]


def shape_pairs(
    world: Shapes,
    n: int,
    generator: torch.Generator | None = None,
    *,
    concepts: Mapping[str, Sequence[int]] | None = None,
    labels: Int[Tensor, " n"] | None = None,
    all_but: float = 0.5,
    weights: Sequence[float] | None = None,
) -> Pairs:
    """Factors of pairs: one concept shared and the rest drawn anew, or the other way round.

    Args:
        world: whose factors are drawn.
        n: how many pairs.
        generator: source of randomness, on the device of the world.
        concepts: columns of the factors that belong to each concept; None takes those of the world.
        labels: of the pairs; None draws them.
        all_but: probability that all but the concept is shared, where labels are drawn.
        weights: how often each concept is drawn, up to a factor; None is equally often.

    Raises:
        ValueError: columns that do not exist, a probability outside [0, 1], weights that are not
            one positive number for each concept, labels of another length or of concepts that
            there are not.
    """
    concepts = world.concepts if concepts is None else concepts
    flat = [column for columns in concepts.values() for column in columns]
    if not concepts or not all(0 <= column < world.features for column in flat):
        reject("concepts", f"columns below {world.features}, by name", dict(concepts))
    options = {"all_but": all_but, "device": world.device, "labels": labels, "weights": weights}
    labels = draw_labels(n, len(concepts), generator, **options)
    a, b = world.sample(n, generator), world.sample(n, generator)
    own = torch.zeros(len(concepts) + 1, world.features, dtype=torch.bool, device=world.device)
    for k, columns in enumerate(concepts.values(), 1):
        own[k, list(columns)] = True
    shared = own[labels.abs()] ^ (labels < 0)[:, None]
    return Pairs(a, torch.where(shared, a, b), labels)


def class_pairs(
    classes: Int[Tensor, " m"],
    labels: Int[Tensor, " n"],
    generator: torch.Generator | None = None,
) -> Pairs:
    """Indices of pairs in a data set whose first concept is a class.

    Label 1 pairs two members of a class, in each of which the others may differ; -2 pairs an image
    with itself, for a second concept that is drawn anew by the caller; any other label pairs two
    images at random.

    Args:
        classes: of each image.
        labels: of the pairs.
        generator: source of randomness, on the CPU.

    Raises:
        ValueError: no image.
    """
    if not len(classes):
        reject("classes", "at least one image", 0)
    n, m = len(labels), len(classes)
    a = torch.randint(m, (n,), generator=generator)
    b = torch.randint(m, (n,), generator=generator)
    order = classes.argsort(stable=True)
    counts = torch.bincount(classes)
    first = counts.cumsum(0) - counts
    u = torch.rand(n, generator=generator)
    own = classes[a]
    mate = order[first[own] + (u * counts[own]).long().clamp(max=counts[own] - 1)]
    b = torch.where(labels == 1, mate, torch.where(labels == -2, a, b))
    return Pairs(a, b, labels)


def draw_labels(
    n: int,
    concepts: int,
    generator: torch.Generator | None = None,
    *,
    all_but: float = 0.5,
    weights: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    labels: Int[Tensor, " n"] | None = None,
) -> Int[Tensor, " n"]:
    """Labels of pairs: concepts by their weights, negative with probability `all_but`.

    Given labels are only checked.

    Raises:
        ValueError: as for `shape_pairs`.
    """
    n, concepts = whole("n", n), whole("concepts", concepts)
    if number("all_but", all_but, zero=True) > 1:
        reject("all_but", "a probability", all_but)
    weights = [1.0] * concepts if weights is None else [number("weights", w) for w in weights]
    if len(weights) != concepts:
        reject("weights", f"{concepts} numbers", len(weights))
    if labels is None:
        share = torch.tensor(weights, device=device)
        k = torch.multinomial(share, n, replacement=True, generator=generator) + 1
        flip = torch.rand(n, generator=generator, device=device) < all_but
        return torch.where(flip, -k, k)
    if len(labels) != n:
        reject("labels", f"{n} labels", len(labels))
    if int(labels.abs().max()) > concepts:
        reject("labels", f"integers within {concepts}", int(labels.abs().max()))
    return labels
