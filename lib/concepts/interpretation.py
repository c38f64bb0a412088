"""Concepts in a latent space: an invertible network whose blocks are told apart by pairs.

With z a representation, for example the code of an autoencoder,

    T(z) = (z_0, z_1, ..., z_K) ,   z_0 the rest, z_k the block of concept k .

A pair (a, b) says which concepts its two images share, and nothing else. The model of a pair is a
normal law: z^a ~ N(0, I); a block that is not shared is drawn anew, one that is shared is
N(s z_k^a, (1 - s^2) I). Seen through T it is a density of (a, b), and training maximises it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.bijections.base import Bijection, Compose
from lib.bijections.scalar import Elementwise
from lib.bijections.spline import RationalQuadratic
from lib.checks import number, reject, whole
from lib.flows.flow import Flow
from lib.flows.recipes import coupling_flow
from lib.noise import normal_like
from lib.training import History, fit

REST = "rest"


class FactorLoss(nn.Module):
    """Negative log-density of a pair of codes, in nats, given what the pair shares.

    For each pair and each block k, shared or not,

        z_k^a ~ N(0, I) ,   z_k^b | z_k^a ~ N(s_k z_k^a, (1 - s_k^2) I)  or  N(0, I) .

    Block 0 is the rest. The labels of pairs are those of the paper: k > 0 shares block k alone,
    -k shares all blocks but k (the rest too), and 0 shares nothing.

    Args:
        sizes: dimensions of each block, the rest first.
        correlation: s. With `learned` it is where s starts.
        learned: one s for each dimension, learned with everything else; both sides of the density
            are normalised, so that the likelihood has its own opinion of s.

    Raises:
        ValueError: no concept, negative sizes, a correlation outside [0, 1).

    Source: Esser, Rombach and Ommer (2020), A disentangling invertible interpretation network for
    explaining latent representations. The learned s is ours.
    """

    def __init__(
        self, sizes: Sequence[int], correlation: float = 0.9, *, learned: bool = False
    ) -> None:
        super().__init__()
        self.sizes = [whole("sizes", size, low=0) for size in sizes]
        if len(self.sizes) < 2 or not sum(self.sizes):
            reject("sizes", "the rest and at least one concept", self.sizes)
        if not number("correlation", correlation, zero=True) < 1:
            reject("correlation", "a number in [0, 1)", correlation)
        start = torch.full((sum(self.sizes),), math.atanh(correlation))
        self.raw = nn.Parameter(start, requires_grad=learned)
        blocks = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        self.register_buffer("blocks", blocks)

    @property
    def correlation(self) -> Float[Tensor, " features"]:
        """s, for each dimension of the code."""
        return self.raw.tanh()

    def shared(self, labels: Int[Tensor, " n"]) -> Bool[Tensor, "n blocks"]:
        """Which blocks a pair shares, by its label.

        Raises:
            ValueError: labels of more concepts than there are.
        """
        if len(labels) and int(labels.abs().max()) >= len(self.sizes):
            reject("labels", f"integers within {len(self.sizes) - 1}", int(labels.abs().max()))
        block = torch.arange(len(self.sizes), device=labels.device)
        only = (block == labels[:, None]) & (block > 0)
        return torch.where(labels[:, None] < 0, block != -labels[:, None], only)

    def forward(
        self,
        a: Float[Tensor, "n features"],
        b: Float[Tensor, "n features"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Nats of each pair of codes; the log-determinants of T are the caller's.

        Raises:
            ValueError: codes of another length.
        """
        for name, code in (("a", a), ("b", b)):
            if code.shape[-1] != len(self.blocks):
                reject(name, f"codes of length {len(self.blocks)}", tuple(code.shape))
        s = self.correlation * self.shared(labels)[:, self.blocks]
        rest = 1 - s.square()
        square = a.square() + (b - s * a).square() / rest + rest.log()
        return square.sum(1) / 2 + len(self.blocks) * math.log(2 * math.pi)


class Interpretation(nn.Module):
    """An invertible network T from a representation to blocks, one for each concept.

    T is a chain of affine couplings and linear maps, and a spline for each dimension at the end.
    A bijection within a block moves nothing from one block to another, so swaps do not depend on
    the splines; they make the marginals normal, also where a concept comes in lumps.

    Args:
        sizes: dimensions of the block of each concept, by name.
        features: length of the representation; what the concepts leave is the block `rest`.
        correlation: of a shared block, see `FactorLoss`; with `learned` it is where s starts, and
            a strong pull at the start finds concepts that a weak one misses.
        learned: whether s is learned.
        layers: couplings.
        hidden: widths of their networks.
        bins: of the splines.

    Attributes:
        sizes: of all blocks, `rest` first.

    Raises:
        ValueError: blocks that do not fit into the representation.

    Source: Esser, Rombach and Ommer (2020). The splines are ours.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        features: int,
        *,
        correlation: float = 0.97,
        learned: bool = True,
        layers: int = 6,
        hidden: Sequence[int] = (64, 64),
        bins: int = 16,
    ) -> None:
        super().__init__()
        if not isinstance(sizes, Mapping) or not sizes or REST in sizes:
            reject("sizes", f"dimensions by name, without {REST!r}", repr(sizes))
        own = {name: whole("sizes", size, low=0) for name, size in sizes.items()}
        left = whole("features", features, low=2) - sum(own.values())
        if left < 0:
            reject("sizes", f"at most {features} dimensions", sum(own.values()))
        self.sizes = {REST: left, **own}
        options = {"layers": layers, "hidden": hidden, "mixing": "lu", "activation": "silu"}
        chain = coupling_flow(features, **options).bijection
        splines = Elementwise(features, RationalQuadratic(bins, low=-4.0, high=4.0))
        self.flow = Flow(Compose([*chain, splines]))
        self.pairs = FactorLoss(list(self.sizes.values()), correlation, learned=learned)

    def label(self, name: str) -> int:
        """The label of pairs that share a concept, or with a minus before it all but that one.

        Raises:
            ValueError: no such concept.
        """
        plain = name.removeprefix("-")
        if plain == REST or plain not in self.sizes:
            reject("name", f"one of {', '.join(list(self.sizes)[1:])}", repr(name))
        return list(self.sizes).index(plain) * (-1 if name.startswith("-") else 1)

    def encode(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """T(z), all blocks in a row."""
        return self.flow.bijection(z)[0]

    def decode(self, code: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """The representation of a code."""
        return self.flow.bijection.inverse(code)[0]

    def columns(self, name: str) -> slice:
        """Where the block of a concept, or the rest, is in a code.

        Raises:
            ValueError: no such block.
        """
        if name not in self.sizes:
            reject("name", f"one of {', '.join(self.sizes)}", repr(name))
        names = list(self.sizes)
        start = sum(self.sizes[before] for before in names[: names.index(name)])
        return slice(start, start + self.sizes[name])

    @torch.no_grad()
    def swap(
        self,
        a: Float[Tensor, "*batch features"],
        b: Float[Tensor, "*batch features"],
        *names: str,
    ) -> Float[Tensor, "*batch features"]:
        """The representation a with the named blocks of b."""
        code, other = self.encode(a), self.encode(b)
        for name in names:
            code[..., self.columns(name)] = other[..., self.columns(name)]
        return self.decode(code)

    def loss(
        self,
        a: Float[Tensor, "n features"],
        b: Float[Tensor, "n features"],
        labels: Int[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """-log p(a, b | what is shared) in nats, for each pair of representations."""
        return self._pair_loss(self.flow.bijection, a, b, labels)

    def fit(
        self,
        a: Float[Tensor, "n features"],
        b: Float[Tensor, "n features"],
        labels: Int[Tensor, " n"],
        *,
        noise: tuple[Float[Tensor, "n features"], Float[Tensor, "n features"]] | None = None,
        steps: int = 3000,
        warm: float = 0.5,
        batch_size: int = 128,
        lr: float = 2e-3,
        seed: int = 0,
        **options: Any,
    ) -> History:
        """Train T on pairs of representations.

        First s stays where it is: a block that has not yet found its concept would else learn that
        there is none. Then s is learned too. Last come the splines, on the marginals of the codes
        so far: on pairs they would rather even out the noise around a shared number. s follows.

        Args:
            a: representations of the first images.
            b: of the second.
            labels: what each pair shares, see `FactorLoss`.
            noise: standard deviations around `a` and `b`. A variational autoencoder has them; each
                step then sees new samples of its codes.
            steps: of the optimiser, for couplings and linear maps.
            warm: share of them with s as it is.
            batch_size: pairs in each.
            lr: learning rate of Adam, which falls to zero along a cosine.
            seed: of batches and noise.
            **options: of `lib.training.fit`.

        Returns:
            The history, without that of the splines.

        Raises:
            ValueError: other lengths, a share outside [0, 1].
        """
        noise = tuple(torch.zeros_like(z) for z in (a, b)) if noise is None else noise
        data = (a, b, labels, *noise)
        if any(len(part) != len(a) for part in data):
            reject("b, labels, noise", f"{len(a)} rows each", [len(part) for part in data])
        if not number("warm", warm, zero=True) <= 1:
            reject("warm", "a share", warm)
        self.pairs.shared(labels)
        splines, chain = self.flow.bijection[-1], self.flow.bijection[:-1]
        raw, learned = self.pairs.raw, self.pairs.raw.requires_grad
        with torch.no_grad():
            chain.initialise(torch.cat([a[:4000], b[:4000]]))
        common = {"batch_size": min(batch_size, len(a))} | options
        first = round(warm * steps)

        def loss(_: nn.Module, batch: tuple, generator: torch.Generator) -> Tensor:
            return self._pair_loss(chain, *_draw(batch, generator)).mean()

        raw.requires_grad_(False)
        history = fit(self, loss, data, steps=first, lr=lr, seed=seed, **common)
        raw.requires_grad_(learned)
        late = {"lr": lr, "seed": seed + 1, "schedule": "cosine"} | common
        again = fit(self, loss, data, steps=steps - first, **late)
        history.losses += again.losses
        history.steps, history.seconds = steps, history.seconds + again.seconds

        with torch.no_grad():
            a, b, _ = _draw(data, torch.Generator(a.device).manual_seed(seed))
            codes = chain(a)[0], chain(b)[0], labels

        def marginal(_: nn.Module, batch: tuple, __: torch.Generator) -> dict[str, Tensor]:
            a, b, labels = batch
            code, log_det = splines(torch.cat([a, b]))
            pair = self.pairs(*code.detach().chunk(2), labels)
            return {
                "normal": (code.square().sum(1) / 2 - log_det).mean(),
                "s": pair.mean() if learned else 0 * code.sum(),
            }

        last = nn.ModuleList([splines, nn.ParameterList([raw])])
        late |= {"batch_size": min(1024, len(a)), "lr": 2e-2}
        fit(last, marginal, codes, steps=min(steps, 400), **late)
        return history

    def _pair_loss(self, part: Bijection, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        n = len(a)
        code, log_det = part(torch.cat([a, b]))
        return self.pairs(code[:n], code[n:], labels) - log_det[:n] - log_det[n:]


def _draw(batch: tuple, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Both codes of each pair, with noise, and the labels."""
    a, b, labels, *sd = batch
    a, b = (z + w * normal_like(z, generator) for z, w in zip((a, b), sd, strict=True))
    return a, b, labels
