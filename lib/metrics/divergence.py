"""Kullback-Leibler divergence between laws: the closed form, or Monte Carlo with its error."""

from __future__ import annotations

import math
from contextlib import suppress
from inspect import signature

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence as closed_form

from lib.checks import reject, whole
from lib.metrics.measured import Measured

# Laws whose arguments, all of them tensors, say everything: they can be rebuilt in float64.
SIMPLE = (
    *(td.Normal, td.LogNormal, td.HalfNormal, td.Laplace, td.Cauchy, td.Gumbel, td.Uniform),
    *(td.Gamma, td.Beta, td.Dirichlet, td.Exponential, td.Pareto, td.Poisson),
    *(td.Bernoulli, td.Categorical, td.OneHotCategorical, td.Geometric, td.MultivariateNormal),
)


def kl_divergence(
    p: Distribution,
    q: Distribution,
    *,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Measured:
    """Kullback-Leibler divergence KL(p || q) = E_p[log p(x) - log q(x)], in nats.

    The closed form where PyTorch knows one (standard error zero), in float64 for the common laws;
    where there is none, or rounding spoils it, the mean over `samples` draws of p. A batch of
    distributions counts as one joint law: the divergences are added up. The value is infinite where
    p puts mass outside the support of q. A Monte Carlo value may fall a few standard errors below
    zero, which the truth never does.

    Args:
        p: where the expectation is taken, batch shape ``(*batch)``.
        q: a law over the same event, whose batch shape broadcasts with p's.
        samples: number of draws; None takes the closed form, or 10,000 draws where there is none.
            A number asks for Monte Carlo even where the closed form is known.
        generator: source of randomness (its state advances); None takes PyTorch's global state as
            it is. The global state is left as it was in both cases, so None repeats itself.

    Returns:
        The divergence with its standard error and floor 0, the divergence of p from itself.

    Raises:
        ValueError: not distributions, events of different shapes, batches that do not broadcast, a
            discrete and a continuous law, fewer than two samples, a log density that is NaN, or a
            `generator` that is none.

    Source: Kullback and Leibler (1951), equation 2.4.
    """
    for name, law in (("p", p), ("q", q)):
        if not isinstance(law, Distribution):
            reject(name, "a torch.distributions.Distribution", type(law).__name__)
    if p.event_shape != q.event_shape:
        reject("q", f"the event shape of p, {tuple(p.event_shape)}", tuple(q.event_shape))
    discrete = _is_discrete(p)
    if discrete != _is_discrete(q):
        reject("q", "a discrete law like p" if discrete else "a continuous law like p", q)
    if generator is not None and not isinstance(generator, torch.Generator):
        reject("generator", "a torch.Generator or None", type(generator).__name__)
    try:
        batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError:
        reject("q", f"a batch that broadcasts with {tuple(p.batch_shape)}", tuple(q.batch_shape))
    p, q = (law if law.batch_shape == batch else law.expand(batch) for law in (p, q))
    if samples is None:
        samples, exactly = 10_000, (_double(p), _double(q))
        with suppress(NotImplementedError):
            exact = float(closed_form(*exactly).detach().double().sum())
            if exact > -1e-6:  # rounding; false for NaN
                return Measured(max(0.0, exact))
            p, q = exactly
    samples = whole("samples", samples, low=2)
    x = _draw(p, samples, generator)
    ratio = (p.log_prob(x).detach() - _log_prob(q, x)).double()
    ratio = ratio.reshape(samples, -1).sum(1)
    mean = _not_nan(ratio.mean(), "log p(x) - log q(x) that is a number for every sample")
    if mean.isinf():
        return Measured(float(mean))
    return Measured(float(mean), stderr=float(ratio.std() / math.sqrt(samples)))


def _draw(p: Distribution, n: int, generator: torch.Generator | None) -> Tensor:
    """``n`` samples of a torch distribution, which takes no generator: fork, seed, draw."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        if generator is not None:
            seed = torch.randint(2**62, (), generator=generator, device=generator.device)
            torch.manual_seed(int(seed))
        return p.sample((n,))


def _log_prob(q: Distribution, x: Tensor) -> Tensor:
    """log q(x), minus infinity outside of the support, where PyTorch would raise or extrapolate."""
    inside = q.support.check(x)
    if inside.ndim > 1 + len(q.batch_shape):  # one verdict for each event
        inside = inside.flatten(1 + len(q.batch_shape)).all(-1)
    if not bool(inside.all()):
        gate = inside.reshape(inside.shape + (1,) * len(q.event_shape))
        feasible = _draw(q, 1, None).expand_as(x)  # any point of the support will do
        x = torch.where(gate, x, feasible)
    return q.log_prob(x).detach().masked_fill(~inside | _impossible(q, x), -math.inf)


def _impossible(q: Distribution, x: Tensor) -> Tensor:
    """Where a probability is zero; PyTorch's log densities take it for a very small one."""
    if isinstance(q, td.Independent):
        verdict = _impossible(q.base_dist, x)
        return verdict.flatten(verdict.ndim - q.reinterpreted_batch_ndims).any(-1)
    if isinstance(q, td.OneHotCategorical):
        return _impossible(q._categorical, x.argmax(-1))
    if isinstance(q, td.Multinomial):
        return ((x > 0) & _never(q._categorical)).any(-1)
    if isinstance(q, td.Categorical):
        never = _never(q).expand(*x.shape, -1)
        return never.gather(-1, x.long()[..., None])[..., 0]
    if isinstance(q, td.Bernoulli | td.Binomial):
        always = (q.probs == 1) & (q._param is q.__dict__.get("probs"))
        return ((x > 0) & _never(q)) | ((x < getattr(q, "total_count", 1)) & always)
    if isinstance(q, td.Geometric):
        return (x > 0) & (q.probs == 1)
    return torch.zeros(x.shape[: x.ndim - len(q.event_shape)], dtype=torch.bool, device=x.device)


def _never(q: Distribution) -> Tensor:
    """Which of the given probabilities are zero; logits hold smaller ones than probabilities do."""
    return (q.probs == 0) & (q._param is q.__dict__.get("probs"))


def _is_discrete(law: Distribution) -> bool:
    if isinstance(law, td.MixtureSameFamily):
        return _is_discrete(law.component_distribution)
    if isinstance(law, td.Independent):
        return _is_discrete(law.base_dist)
    return bool(law.support.is_discrete)


def _double(law: Distribution) -> Distribution:
    """The same law in float64 where that is easy, else the law itself."""
    if isinstance(law, td.Independent):
        return td.Independent(_double(law.base_dist), law.reinterpreted_batch_ndims)
    kind = next((kind for kind in type(law).__mro__ if kind in SIMPLE), None)
    if kind is None or type(law).log_prob is not kind.log_prob:
        return law
    derived = {"validate_args", "covariance_matrix", "precision_matrix"}
    names = set(signature(kind).parameters) - derived
    if "probs" in names:
        param = getattr(law, "_param", None)
        names = {"probs" if param is None or param is law.__dict__.get("probs") else "logits"}
    parameters = {name: getattr(law, name).detach().double() for name in names}
    return kind(**parameters, validate_args=False)


def _not_nan(value: Tensor, expected: str) -> Tensor:
    if bool(value.isnan()):
        reject("p, q", expected, "NaN")
    return value
