"""What a swap does: blocks of B are put into A, and an oracle reads the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.checks import number, reject, whole
from lib.data.shapes import UPRIGHT

Values = Mapping[str, Tensor]


class SwapScores(NamedTuple):
    """A row for each block that was swapped, a column for each concept that was read.

    Attributes:
        blocks: names of the rows.
        concepts: names of the columns.
        takes: share of pairs whose hybrid is read nearer to B than to A.
        keeps: share that is read nearer to A than to B. For classes: that is read as the one of A.
        fit: accuracy of a class, R^2 of numbers, against what is wanted: B for the concept of the
            block, A for the others.
        counts: pairs that a column counts, those whose A and B differ enough.
    """

    blocks: list[str]
    concepts: list[str]
    takes: Float[Tensor, "blocks concepts"]
    keeps: Float[Tensor, "blocks concepts"]
    fit: Float[Tensor, "blocks concepts"]
    counts: Int[Tensor, " concepts"]

    @property
    def wanted(self) -> Float[Tensor, "blocks concepts"]:
        """`takes` where block and concept have one name, `keeps` elsewhere."""
        own = [[block == concept for concept in self.concepts] for block in self.blocks]
        return torch.where(torch.tensor(own), self.takes, self.keeps)

    def at(self, block: str, concept: str) -> float:
        """One entry of `wanted`."""
        return float(self.wanted[self.blocks.index(block), self.concepts.index(concept)])

    @property
    def diagonal(self) -> Float[Tensor, " concepts"]:
        """How often each concept follows its own block."""
        rows = [self.blocks.index(concept) for concept in self.concepts]
        return self.takes[rows, range(len(self.concepts))]

    @property
    def selectivity(self) -> Float[Tensor, " concepts"]:
        """`takes` of the own block less the mean over the other blocks of concepts.

        It is 1 if a concept follows its own block and no other. If labels of pairs mean nothing,
        and with them names of blocks, it is 0 on average over concepts, for blocks of one size.
        """
        rows = [self.blocks.index(concept) for concept in self.concepts]
        takes, count = self.takes[rows], len(rows)
        return takes.diagonal() - (takes.sum(0) - takes.diagonal()) / (count - 1)


def swap_scores(
    hybrids: Mapping[str, Values], a: Values, b: Values, margin: Mapping[str, float]
) -> SwapScores:
    """Read the hybrids.

    A pair counts for a concept if A and B differ in it by more than a margin, for otherwise to take
    and to keep are one. Distances are Euclidean; a class is at distance 0 of itself and 1 of the
    others, so that a third class counts neither as taken nor as kept.

    Args:
        hybrids: for each swapped block what is read from the hybrids, by concept: classes as
            integers ``(n,)``, or numbers ``(n, d)``.
        a: the true values of A, in the same form.
        b: those of B.
        margin: least distance of A and B, for the concepts that are numbers.

    Raises:
        ValueError: concepts or lengths that do not agree, a concept in which no pair differs.
    """
    concepts = list(a)
    for block, read in hybrids.items():
        if set(read) != set(concepts) or list(b) != concepts:
            reject(f"hybrids[{block!r}], b", f"readings of {concepts}", (list(read), list(b)))
        for name in concepts:
            if not read[name].shape == a[name].shape == b[name].shape:
                shapes = [tuple(v[name].shape) for v in (read, a, b)]
                reject(f"hybrids[{block!r}]", f"one shape for {name!r} in all", shapes)
    rows: dict[str, list[list[Tensor]]] = {"takes": [], "keeps": [], "fit": []}
    differ = {}
    for name in concepts:
        least = 0.5 if _is_class(a[name]) else number("margin", margin.get(name, 0.0), zero=True)
        differ[name] = _distance(a[name], b[name]) > least
        if not bool(differ[name].any()):
            reject("margin", f"pairs that differ in {name!r} by more", least)
    for block, read in hybrids.items():
        line: dict[str, list[Tensor]] = {name: [] for name in rows}
        for name in concepts:
            to_a, to_b = (_distance(read[name], v[name])[differ[name]] for v in (a, b))
            line["takes"].append((to_b < to_a).float().mean())
            line["keeps"].append((to_a < to_b).float().mean())
            line["fit"].append(explained(read[name], (b if block == name else a)[name]))
        for name in rows:
            rows[name].append(torch.stack(line[name]))
    counts = torch.stack([differ[name].sum() for name in concepts])
    stacked = {name: torch.stack(lines).cpu() for name, lines in rows.items()}
    return SwapScores(list(hybrids), concepts, **stacked, counts=counts.cpu())


def explained(read: Tensor, true: Tensor) -> Float[Tensor, ""]:
    """Accuracy of classes; of numbers R^2 = 1 - |read - true|^2 / |true - mean|^2, all columns."""
    if _is_class(true):
        return (read == true).float().mean()
    spread = (true - true.mean(0)).square().sum()
    return 1 - (read - true).square().sum() / spread


def shape_values(
    factors: Float[Tensor, "n 8"], concepts: Mapping[str, tuple[int, ...]] = UPRIGHT
) -> dict[str, Tensor]:
    """Factors of shapes, drawn or read, by concept: the shape as a class, the rest as numbers."""
    values: dict[str, Tensor] = {}
    for name, columns in concepts.items():
        part = factors[:, list(columns)]
        values[name] = part[:, 0].long() if name == "shape" else part
    return values


def known(
    block: Float[Tensor, "n d"],
    value: Tensor,
    *,
    neighbours: int = 30,
    train: float = 0.7,
) -> float:
    """What a reader that sees one block alone knows of a concept: nearest neighbours, held out.

    Accuracy of a class, R^2 of numbers. A block that knows nothing has the frequency of the most
    common class, and an R^2 of 0 less one over the number of neighbours; so has an empty block.

    Args:
        block: codes.
        value: of the concept: classes ``(n,)`` or numbers ``(n, d)``.
        neighbours: that are averaged.
        train: share of the rows that are neighbours; the others are read.

    Raises:
        ValueError: other lengths, too few rows.
    """
    n = round(train * len(block))
    if len(value) != len(block):
        reject("value", f"{len(block)} rows", len(value))
    if not whole("neighbours", neighbours) <= n < len(block):
        reject("neighbours", f"at most {n}, and rows left to read", neighbours)
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    x = block if block.shape[1] else block.new_zeros(len(block), 1)
    kind = KNeighborsClassifier if _is_class(value) else KNeighborsRegressor
    model = kind(neighbours).fit(x[:n].cpu().numpy(), value[:n].cpu().numpy())
    read = torch.as_tensor(model.predict(x[n:].cpu().numpy()))
    return float(explained(read, value[n:].cpu()))


def _is_class(value: Tensor) -> bool:
    return not value.is_floating_point()


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x != y).float() if _is_class(x) else (x - y).norm(dim=1)
