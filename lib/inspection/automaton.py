"""A recurrent network as a state machine: s(t) = f(s(t-1), x(t)), and the machine read off it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from lib.checks import reject, whole
from lib.training import History, fit


class Recognizer(nn.Module):
    """A recurrent network that says after each symbol which of some answers holds.

    Args:
        symbols: size of the alphabet.
        hidden: length of the state s.
        answers: number of classes.

    Raises:
        ValueError: sizes below one, fewer than two answers.
    """

    def __init__(self, symbols: int, hidden: int, answers: int = 2) -> None:
        super().__init__()
        self.symbols = whole("symbols", symbols)
        self.cell = nn.RNN(self.symbols, whole("hidden", hidden), batch_first=True)
        self.answer = nn.Linear(hidden, whole("answers", answers, low=2))

    def states(self, strings: Int[Tensor, "n t"]) -> Float[Tensor, "n t hidden"]:
        """The state after each symbol.

        Raises:
            ValueError: strings that are no integers of shape ``(n, t)`` within the alphabet.
        """
        check_strings(strings, self.symbols)
        return self.cell(one_hot(strings, self.symbols).to(self.answer.weight))[0]

    def forward(self, strings: Int[Tensor, "n t"]) -> Float[Tensor, "n t answers"]:
        """Scores of the answers after each symbol."""
        return self.answer(self.states(strings))

    def fit(
        self, strings: Int[Tensor, "n t"], answers: Int[Tensor, "n t"], *, steps: int, **options
    ) -> History:
        """Minimise the cross-entropy after each symbol; options are those of `lib.training.fit`."""

        def loss(net: Recognizer, batch: tuple, _: torch.Generator) -> Tensor:
            return cross_entropy(net(batch[0]).flatten(0, 1), batch[1].flatten())

        common = {"batch_size": min(256, len(strings)), "lr": 1e-2, "schedule": "cosine"}
        return fit(self, loss, (strings, answers), steps=steps, **common | options)


@dataclass(frozen=True)
class Automaton:
    """A deterministic state machine.

    Attributes:
        centres: where its states lie among those of the network, ``(states, hidden)``.
        transitions: next state for each state and symbol, ``(states, symbols)``.
        first: the state after the first symbol, ``(symbols,)``.
        answers: the answer of each state, ``(states,)``.
        agreement: share of the network's steps that go where the table says.
    """

    centres: Float[Tensor, "states hidden"]
    transitions: Int[Tensor, "states symbols"]
    first: Int[Tensor, "symbols"]
    answers: Int[Tensor, "states"]
    agreement: float

    def __call__(self, strings: Int[Tensor, "n t"]) -> Int[Tensor, "n t"]:
        """Its answers after each symbol.

        Raises:
            ValueError: as `Recognizer.states`.
        """
        check_strings(strings, len(self.first))
        state, found = self.first[strings[:, 0]], []
        for symbols in strings.T[1:]:
            found.append(state)
            state = self.transitions[state, symbols]
        return self.answers[torch.stack([*found, state], 1)]

    def equivalent(self) -> Int[Tensor, "states"]:
        """A number for each state, the same where all strings lead to the same answers.

        States are split by their answers, then by where their symbols lead, until nothing splits.

        Source: Moore (1956), Gedanken-experiments on sequential machines, section 3.
        """
        group, before = self.answers, 0
        while True:
            told = torch.cat([group[:, None], group[self.transitions]], 1)
            _, group = told.unique(dim=0, return_inverse=True)
            if before == (before := int(group.max()) + 1):
                return group


@torch.no_grad()
def extract(
    network: Recognizer, strings: Int[Tensor, "n t"], states: int, *, seed: int = 0
) -> Automaton:
    """The state machine that a recurrent network runs: its states in clusters, and a table.

    Args:
        network: a trained one.
        strings: that visit all its states.
        states: number of clusters.
        seed: of k-means.

    Raises:
        ValueError: fewer visited states than `states`; strings of one symbol; as
            `Recognizer.states`.

    Source: Giles et al. (1992), Learning and extracting finite state automata with second-order
        recurrent neural networks; clusters instead of a lattice of cells.
    """
    from sklearn.cluster import KMeans

    visited = network.states(strings)
    if strings.shape[1] < 2 or visited.flatten(0, 1).unique(dim=0).shape[0] < whole(
        "states", states
    ):
        reject("strings", f"strings of two symbols or more that visit {states} states", "fewer")
    means = KMeans(states, n_init=10, random_state=seed).fit(visited.flatten(0, 1).cpu().numpy())
    label = torch.from_numpy(means.labels_).long().view(strings.shape)
    said = network.answer(visited).argmax(-1).cpu()
    strings = strings.cpu()
    before, after = label[:, :-1].flatten(), label[:, 1:].flatten()
    table = _most(
        before * network.symbols + strings[:, 1:].flatten(), after, states * network.symbols, states
    ).view(states, network.symbols)
    kept = table[before, strings[:, 1:].flatten()] == after
    return Automaton(
        torch.from_numpy(means.cluster_centers_).to(visited),
        table,
        _most(strings[:, 0], label[:, 0], network.symbols, states),
        _most(label.flatten(), said.flatten(), states, network.answer.out_features),
        float(kept.double().mean()),
    )


def check_strings(strings: Tensor, symbols: int) -> None:
    """Refuse what is no batch of strings over an alphabet."""
    wrong = not isinstance(strings, Tensor) or strings.dtype.is_floating_point
    if wrong or strings.ndim != 2 or not strings.numel():
        got = tuple(strings.shape) if isinstance(strings, Tensor) else type(strings).__name__
        reject("strings", "integers of shape (n, t)", got)
    if strings.min() < 0 or strings.max() >= symbols:
        reject("strings", f"symbols 0 to {symbols - 1}", int(strings.max()))


def _most(key: Tensor, value: Tensor, keys: int, values: int) -> Tensor:
    """For each key the value that it has most often."""
    return (
        torch.bincount(key * values + value, minlength=keys * values).view(keys, values).argmax(1)
    )
