"""What a network does not tell apart: a conditional flow over everything that its layer dropped.

With x an image, zbar a code from which x can be decoded, and z = phi(x) a representation under
study, the flow

    v = t^-1(zbar | z) ,   zbar = t(v | z) ,   v ~ N(0, I)

holds in v what zbar knows and z does not. All x with one z are a fibre of phi.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lib.checks import number, reject, whole
from lib.inverse.conditional import ConditionalFlow
from lib.inverse.solver import spread
from lib.nets import MLP
from lib.noise import normal_like
from lib.training import History, fit


class Invariances(nn.Module):
    """One conditional flow for several representations of the same images.

    Each representation has a small network that embeds it; the flow sees the embedding. So layers,
    or checkpoints, share what they have in common, and their results can be compared.

    Args:
        features: length of zbar.
        sizes: length of z for each representation, by name.
        width: length of the embedding.
        embedding: widths of the hidden layers of the networks that embed.
        noise: standard deviation of what is added to the standardised z in training. z is a
            function of zbar, so the law of zbar given z has no density; noise gives it one.
        **options: of `ConditionalFlow`: `kind`, `layers`, `hidden`, `low`, `high` and so on.

    Raises:
        ValueError: no representation, sizes below one.

    Source: Rombach, Esser and Ommer (2020), Making sense of CNNs: interpreting deep representations
    and their invariances with INNs, equations 3 to 7. One flow for all layers is ours.
    """

    def __init__(
        self,
        features: int,
        sizes: Mapping[str, int],
        *,
        width: int = 24,
        embedding: Sequence[int] = (128, 64),
        noise: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(sizes, Mapping) or not sizes:
            reject("sizes", "the length of each representation, by name", repr(sizes))
        self.sizes = {name: whole("sizes", size) for name, size in sizes.items()}
        self.noise, width = number("noise", noise, zero=True), whole("width", width)
        self.solver = ConditionalFlow(features, width, **options)
        self.embeddings = nn.ModuleList(
            MLP(size, width, embedding, activation="silu") for size in self.sizes.values()
        )
        for k, size in enumerate(self.sizes.values()):
            self.register_buffer(f"mean_{k}", torch.zeros(size))
            self.register_buffer(f"sd_{k}", torch.ones(size))

    def fit(
        self,
        zbar: Float[Tensor, "n features"],
        z: Mapping[str, Float[Tensor, "n _"]],
        *,
        steps: int = 2000,
        batch_size: int = 512,
        lr: float = 2e-3,
        summary: Float[Tensor, "n _"] | None = None,
        warm_up: int = 500,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> History:
        """Maximise the likelihood of zbar given z, each batch in parts, one for each name.

        First the embeddings learn to predict a summary by least squares, which is quick: the flow
        then starts with a context that says most of what z knows (Fearnhead and Prangle, 2012, for
        approximate Bayesian computation).

        Args:
            zbar: codes of images.
            z: their representations, by name, in the order of `zbar`.
            steps: of the optimiser.
            summary: what the embeddings predict at first; None takes zbar itself.
            warm_up: steps of least squares.
            weights: share of the batch by name, up to a factor; names left out have one, and None
                is equal parts.
            batch_size: codes in each.
            lr: learning rate of Adam, which falls to zero along a cosine.
            seed: of batches and noise.
            **options: of `lib.training.fit`.

        Raises:
            ValueError: other names or lengths than those of `sizes`, weights that are not positive.
        """
        if not isinstance(z, Mapping) or list(z) != list(self.sizes):
            reject("z", f"representations {list(self.sizes)}", getattr(z, "keys", lambda: z)())
        rows = [self._check(name, z[name]).detach() for name in self.sizes]
        if any(len(row) != len(zbar) for row in rows):
            reject("z", f"{len(zbar)} rows each", [len(row) for row in rows])
        for k, row in enumerate(rows):
            self.get_buffer(f"mean_{k}").copy_(row.mean(0))
            self.get_buffer(f"sd_{k}").copy_(spread(row))
        self._regress(zbar if summary is None else summary, rows, warm_up, seed)
        self._initialise(zbar, rows, seed)

        batch_size = min(whole("batch_size", batch_size, low=len(rows)), len(zbar))
        given = dict.fromkeys(self.sizes, 1.0) | dict(weights or {})
        if list(given) != list(self.sizes):
            reject("weights", f"some of {', '.join(self.sizes)}", list(weights))
        share = torch.tensor([number("weights", weight) for weight in given.values()])
        ends = (batch_size * share.cumsum(0) / share.sum()).round().long().tolist()

        def loss(model: Invariances, batch: tuple, generator: torch.Generator) -> Tensor:
            parts = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
            pairs = enumerate(zip(batch[1:], parts, strict=True))
            context = [model._embed(k, z[part], generator) for k, (z, part) in pairs]
            return -model.solver.flow.log_prob(batch[0], torch.cat(context)).mean()

        common = {"schedule": "cosine", "seed": seed, "clip": 10.0} | options
        return fit(self, loss, (zbar, *rows), steps=steps, lr=lr, batch_size=batch_size, **common)

    @torch.no_grad()
    def _initialise(self, zbar: Tensor, rows: list[Tensor], seed: int) -> None:
        """Regression of zbar on the embeddings, with the noise of the training."""
        generator = torch.Generator(zbar.device).manual_seed(seed)
        some = torch.randperm(len(zbar), generator=generator, device=zbar.device)[:20_000]
        parts = some.chunk(len(rows))
        pairs = enumerate(zip(rows, parts, strict=True))
        context = [self._embed(k, z[part], generator) for k, (z, part) in pairs]
        self.solver.flow.initialise(zbar[torch.cat(parts)], torch.cat(context))

    def _regress(self, summary: Tensor, rows: list[Tensor], steps: int, seed: int) -> None:
        """Least squares of the summary on the embeddings; what the heads learn is dropped."""
        wanted = (summary - summary.mean(0)) / spread(summary)
        rows = [self._standard(k, z) for k, z in enumerate(rows)]
        heads = nn.ModuleList(
            nn.Linear(e.last.out_features, wanted.shape[1]) for e in self.embeddings
        )
        both = nn.ModuleList([self.embeddings, heads]).to(wanted)

        def loss(both: nn.ModuleList, batch: tuple, generator: torch.Generator) -> Tensor:
            errors = [
                head(embedding(self._blur(z, generator))) - batch[0]
                for embedding, head, z in zip(*both, batch[1:], strict=True)
            ]
            return sum(error.square().mean() for error in errors)

        options = {"lr": 3e-3, "schedule": "cosine", "batch_size": min(256, len(wanted))}
        fit(both, loss, (wanted, *rows), steps=steps, seed=seed, **options)

    @torch.no_grad()
    def sample(
        self,
        name: str,
        z: Float[Tensor, "*batch _"],
        n: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *batch features"]:
        """Codes of images that share z, n for each."""
        return self.solver.sample(self._context(name, z), n, generator)

    @torch.no_grad()
    def encode(
        self, name: str, zbar: Float[Tensor, "*batch features"], z: Float[Tensor, "*batch _"]
    ) -> Float[Tensor, "*batch features"]:
        """v = t^-1(zbar | z): what z does not say."""
        return self.solver.encode(zbar, self._context(name, z))

    @torch.no_grad()
    def decode(
        self, name: str, v: Float[Tensor, "*batch features"], z: Float[Tensor, "*batch _"]
    ) -> Float[Tensor, "*batch features"]:
        """zbar = t(v | z). With the v of one image and the z of another: the first, seen so."""
        return self.solver.decode(v, self._context(name, z))

    @torch.no_grad()
    def refine(
        self,
        name: str,
        draws: Float[Tensor, "n *batch features"],
        z: Float[Tensor, "*batch _"],
        phi: Callable[[Tensor], Tensor],
        *,
        log_prior: Callable[[Tensor], Tensor] | None = None,
        tolerance: float = 0.05,
        steps: int = 40,
        step: float = 0.3,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n *batch features"]:
        """Move draws along the fibre by Metropolis steps in the latent v, where the law is simple.

        The target is p(zbar) exp(-|phi - z|^2 / 2 eps^2) with eps = `tolerance` times the rms
        spread of z; eps starts at three tenths of it and falls geometrically. A proposal

            v' = sqrt(1 - step^2) v + step xi ,   xi ~ N(0, I)

        leaves N(0, I) as it is. Given `log_prior`, the flow only shapes the steps, and the limit
        does not depend on how well it was trained; without, p(zbar) is the flow's own law given z.

        Args:
            name: of the representation.
            draws: where the chains begin, as `sample` gives them.
            z: what phi should be.
            phi: from codes ``(rows, features)`` to representations ``(rows, _)``.
            log_prior: log p(zbar) up to a constant; None takes the law of the flow given z.
            tolerance: the final eps, as a part of the rms spread of z in training.
            steps: of each chain.
            step: size of the proposals, between 0 and 1.
            generator: source of randomness.

        Raises:
            ValueError: shapes that do not fit, a tolerance or step that is not positive, a step
                above one, steps below one.

        Source: proposals: Cotter, Roberts, Stuart and White (2013), MCMC methods for functions.
        """
        tolerance, step = number("tolerance", tolerance), number("step", step)
        steps = whole("steps", steps)
        if step > 1:
            reject("step", "at most 1", step)
        if draws.shape[1:] != (*z.shape[:-1], self.solver.features):
            expected = f"shape (n, {', '.join(map(str, z.shape[:-1]))}, {self.solver.features})"
            reject("draws", expected, tuple(draws.shape))
        wanted = self._check(name, z).expand(*draws.shape[:-1], -1).flatten(0, -2)
        k = list(self.sizes).index(name)
        context, scale = self._embed(k, wanted), self.get_buffer(f"sd_{k}").square().sum()
        flow = self.solver.flow.bijection

        def judge(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            code, log_det = flow.inverse(v, context)
            gap = (phi(code) - wanted).square().sum(-1) / scale
            log_weight = torch.zeros_like(gap)
            if log_prior is not None:
                log_weight = log_prior(code) + v.square().sum(-1) / 2 + log_det
            return code, torch.where(gap.isfinite(), gap, torch.inf), log_weight

        v = flow(draws.flatten(0, -2), context)[0]
        code, gap, log_weight = judge(v)
        # From the end, so that a single step has the tolerance that was asked for.
        widths = torch.logspace(math.log10(tolerance), math.log10(max(0.3, tolerance)), steps)
        for eps in widths.flip(0).tolist():
            proposal = math.sqrt(1 - step**2) * v + step * normal_like(v, generator)
            other, other_gap, other_weight = judge(proposal)
            now = log_weight - gap / (2 * eps**2)
            then = other_weight - other_gap / (2 * eps**2)
            # A chain that starts outside of the support takes the first step into it.
            entered = now.isinf() & (then > -torch.inf)
            u = torch.rand(gap.shape, generator=generator, dtype=gap.dtype, device=gap.device)
            accept = entered | (u.log() < then - now)
            v = torch.where(accept[:, None], proposal, v)
            code = torch.where(accept[:, None], other, code)
            gap, log_weight = (
                torch.where(accept, new, old)
                for new, old in ((other_gap, gap), (other_weight, log_weight))
            )
        return code.view_as(draws)

    def _context(self, name: str, z: Tensor) -> Tensor:
        z = self._check(name, z)
        return self._embed(list(self.sizes).index(name), z)

    def _check(self, name: str, z: Tensor) -> Tensor:
        if name not in self.sizes:
            reject("name", f"one of {', '.join(self.sizes)}", repr(name))
        if z.shape[-1:] != (self.sizes[name],):
            reject("z", f"a last dimension of {self.sizes[name]} for {name}", tuple(z.shape))
        if not bool(torch.isfinite(z).all()):
            reject("z", "finite numbers", "NaN or infinity")
        return z

    def _embed(self, k: int, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The embedding of z; with a generator, of z with the noise of the training."""
        z = self._standard(k, z)
        return self.embeddings[k](z if generator is None else self._blur(z, generator))

    def _standard(self, k: int, z: Tensor) -> Tensor:
        return (z - self.get_buffer(f"mean_{k}")) / self.get_buffer(f"sd_{k}")

    def _blur(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return z + self.noise * normal_like(z, generator)
