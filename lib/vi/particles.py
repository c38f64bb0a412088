"""Running a Pyro model and its guide on many samples at once: the estimator of the ELBO.

ELBO(q) = E_q[log p(x, z) - log q(z)] = log p(x) - KL(q || p(. | x))   in nats
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)
from torch.func import functional_call

from lib.checks import reject, whole

GAUSSIANS = (Normal, MultivariateNormal, LowRankMultivariateNormal)


class Runner:
    """Runs guide and model on many samples at once, without Pyro's global parameter store.

    The samples ("particles") fill one more plate, to the left of all batch dimensions of the model.
    """

    def __init__(self, model: Callable, guide: nn.Module, args: tuple, kwargs: dict | None) -> None:
        if not callable(model):
            reject("model", "a callable", type(model).__name__)
        if not isinstance(guide, nn.Module):
            reject("guide", "an nn.Module (a PyroModule, an autoguide)", type(guide).__name__)
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs or {}
        self.nesting = 0
        for program in (model, guide):
            for part in program.modules() if isinstance(program, nn.Module) else ():
                context = getattr(part, "_pyro_context", None)
                if context is not None and not hasattr(context, "param_state"):
                    # Built while Pyro's store was in charge: give it the local store it lacks.
                    context.param_state = {"params": {}, "constraints": {}}
        with local_parameters(), fork(), torch.no_grad():
            try:
                q = self._trace(guide)
            except (TypeError, NotImplementedError, RuntimeError) as error:
                if isinstance(guide, PyroModule):
                    raise
                reject("guide", "a Pyro guide with the arguments of the model", error)
            p = self._trace(poutine.replay(model, trace=q))
        for name, site in _sites(q).items():
            if not site["fn"].has_rsample:
                reject("guide", "sample sites with rsample", f"{name!r}, which has none")
        sites = _sites(p)
        self.shapes = {n: s["value"].shape for n, s in sites.items() if not s["is_observed"]}
        guided = {n: s for n, s in _sites(q).items() if not s["is_observed"]}
        own = {n for n, s in guided.items() if not s["infer"].get("is_auxiliary")}
        if (missing := self.shapes.keys() - guided) or (surplus := own - self.shapes.keys()):
            got = f"none for {sorted(missing)}" if missing else f"also {sorted(surplus)}"
            reject("guide", f"sample sites for the latents {sorted(self.shapes)}", got)
        batches = [len(s["fn"].batch_shape) for s in [*sites.values(), *_sites(q).values()]]
        self.nesting = max(batches, default=0)

    def _trace(self, program: Callable, particles: int | None = None) -> poutine.Trace:
        if particles is not None:
            program = pyro.plate("_particles", particles, dim=-1 - self.nesting)(program)
        trace = poutine.trace(program).get_trace(*self.args, **self.kwargs)
        trace.compute_log_prob()
        return trace

    def _at(self, parameters: dict[str, Tensor]) -> Callable:
        return lambda *args, **kwargs: functional_call(self.guide, parameters, args, kwargs)

    def terms(
        self, particles: int, *, stick_the_landing: bool = False, mirrored: bool = False
    ) -> dict[str, Tensor]:
        """log p of each site of the model, and -log q, each of shape ``(particles,)``, in nats."""
        with local_parameters():
            with Mirror() if mirrored else nullcontext():
                q = self._trace(self.guide, particles)
            p = self._trace(poutine.replay(self.model, trace=q), particles)
            if stick_the_landing:  # log q of the same sample, at parameters that are constants
                frozen = {name: w.detach() for name, w in self.guide.named_parameters()}
                q = self._trace(poutine.replay(self._at(frozen), trace=q), particles)
        terms = {f"log p({name})": log_p for name, log_p in _log_probs(p, particles).items()}
        return {**terms, "-log q": -sum(_log_probs(q, particles).values())}

    def draw(self, particles: int) -> tuple[dict[str, Tensor], Tensor]:
        """Samples of the latents in the shapes of the model, and their log p - log q."""
        with local_parameters(), torch.no_grad():
            q = self._trace(self.guide, particles)
            p = self._trace(poutine.replay(self.model, trace=q), particles)
        values = {
            name: p.nodes[name]["value"].reshape(particles, *shape)
            for name, shape in self.shapes.items()
        }
        log_p, log_q = (sum(_log_probs(trace, particles).values()) for trace in (p, q))
        return values, log_p - log_q

    def check_broadcasting(self) -> None:
        """Refuse a model that mixes up its particles, as ``w.sum()`` would without a dimension."""
        with local_parameters(), torch.no_grad():
            q = self._trace(self.guide, 2)
            p = self._trace(poutine.replay(self.model, trace=q), 2)
            if any(
                site_is_subsample(site) and len(site["value"]) < site["fn"].size
                for site in p.nodes.values()
                if site["type"] == "sample"
            ):
                return  # minibatches differ from run to run
            together = sum(_log_probs(p, 2).values())
            for i, log_p in enumerate(together.tolist()):
                one = {n: p.nodes[n]["value"][i].reshape(shape) for n, shape in self.shapes.items()}
                alone = float(self._trace(poutine.condition(self.model, data=one)).log_prob_sum())
                if not (
                    math.isnan(alone) or math.isclose(log_p, alone, rel_tol=1e-3, abs_tol=1e-2)
                ):
                    reject(
                        "model",
                        "operations that broadcast over one more dimension to the left",
                        f"log p = {log_p:.6g} in a batch, {alone:.6g} alone",
                    )

    def distance(self, a: dict[str, Tensor], b: dict[str, Tensor], particles: int = 256) -> float:
        """How far the guide moves between two states: sqrt(KL(a || b) + KL(b || a)).

        For two Gaussians of one covariance it is their shift in standard deviations. Each KL is a
        mean of r - 1 - log r with r = b(z) / a(z), which is never negative (Schulman 2020).
        """
        total = 0.0
        with local_parameters(), torch.no_grad():
            for first, second in ((a, b), (b, a)):
                q = self._trace(self._at(first), particles)
                other = self._trace(poutine.replay(self._at(second), trace=q), particles)
                log_q, log_other = (sum(_log_probs(t, particles).values()) for t in (q, other))
                log_r = log_other - log_q
                total += float((log_r.expm1() - log_r).mean())
        return math.sqrt(max(total, 0.0))


class Mirror(Messenger):
    """Antithetic samples: the second half of the particles of a Gaussian mirrors the first half.

    The mean stays unbiased, and noise that is odd in z - E[z] cancels: the gradient of the location
    has none where log p is quadratic (Geweke 1988).
    """

    def _pyro_post_sample(self, msg: dict) -> None:
        law, value = msg["fn"], msg["value"]
        while isinstance(law, Independent):
            law = law.base_dist
        if isinstance(law, GAUSSIANS) and not msg["is_observed"] and len(value) > 1:
            first = value[: (len(value) + 1) // 2]
            mean = msg["fn"].mean[len(first) :]
            msg["value"] = torch.cat([first, 2 * mean - first[: len(mean)]])


def _sites(trace: poutine.Trace) -> dict[str, dict]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def _log_probs(trace: poutine.Trace, particles: int) -> dict[str, Tensor]:
    return {
        name: site["log_prob"].reshape(particles, -1).sum(-1)
        for name, site in _sites(trace).items()
    }


@contextmanager
def local_parameters() -> Iterator[None]:
    """Keep parameters in their modules: in Pyro's store, guides of the same class would collide."""
    with pyro.settings.context(module_local_params=True), pyro.get_param_store().scope():
        yield


@contextmanager
def fork(seed: int | None = None) -> Iterator[None]:
    """Leave the global random state as it was; in between it may start from a seed."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def elbo(
    model: Callable,
    guide: nn.Module,
    args: tuple = (),
    kwargs: dict | None = None,
    *,
    particles: int = 1,
    stick_the_landing: bool = False,
) -> Float[Tensor, ""]:
    """Estimate the ELBO from `particles` samples of the guide, with gradients through the samples.

    Run the guide, replay the model on its sample, add log p, subtract log q. The randomness is
    PyTorch's global state, as everywhere in Pyro; the parameters live in the guide alone.

    Args:
        model: a Pyro model, called as ``model(*args, **kwargs)``.
        guide: a Pyro guide (an `nn.Module`), called likewise, all of whose samples have `rsample`.
        args: positional arguments of both.
        kwargs: named arguments of both.
        particles: number of samples, drawn at once.
        stick_the_landing: take log q at constant parameters. The value is the same, and so is the
            expected gradient; but its noise vanishes where the guide equals the posterior.

    Returns:
        The mean of log p(x, z) - log q(z) over the samples, in nats.

    Raises:
        ValueError: a guide that is no module, has no `rsample` or other latents than the model, or
            fewer than one particle.

    Source: Kingma and Welling (2014), equation 5; Roeder, Wu and Duvenaud (2017), section 3.
    """
    runner = Runner(model, guide, args, kwargs)
    terms = runner.terms(whole("particles", particles), stick_the_landing=stick_the_landing)
    return sum(terms.values()).mean()
