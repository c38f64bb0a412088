"""A flow as a guide and as a site of a model: the same numbers as a Gaussian where it is one."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, autoguide
from pyro.nn import PyroModule
from scipy import stats

from lib.bijections import Affine, ScaleShift
from lib.flows import Flow, autoregressive_flow, bounded_flow, coupling_flow
from lib.vi.diagnostics import pareto_khat
from lib.vi.flow_guide import FlowGuide
from lib.vi.guides import fit_guide
from lib.vi.particles import Runner, elbo, local_parameters
from lib.vi.targets import correlated_normal, eight_schools, funnel, normal_normal


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_flow(d):
    """N(loc, scale^2) in each coordinate, as a flow."""
    return Flow(Affine(torch.full((d,), 0.3), torch.full((d,), 0.5), learnable=True))


def small(d):
    return coupling_flow(d, layers=4, hidden=(32,), bound=6.0)


def made(model, make_flow=gaussian_flow, **options):
    with local_parameters():
        guide = FlowGuide(model, make_flow, **options)
        guide()
    return guide


# --- a Gaussian flow is a Gaussian guide


@pytest.mark.parametrize("landing", [False, True])
@pytest.mark.parametrize("model", [eight_schools(False).model, correlated_normal(0.8).model])
def test_bound_and_gradient_are_those_of_the_gaussian_guide(model, landing):
    """Same draws, same parameters (loc, log scale): same numbers, sample by sample."""
    ours = made(model)
    with local_parameters():
        theirs = autoguide.AutoDiagonalNormal(model)
        theirs.scale_constraint = dist.constraints.positive
        theirs()
        with torch.no_grad():
            theirs.loc.fill_(0.3)
            theirs.scale = torch.full_like(theirs.loc, 0.5)
    bounds = []
    for guide in (ours, theirs):
        torch.manual_seed(3)
        bounds.append(elbo(model, guide, particles=20, stick_the_landing=landing))
        bounds[-1].backward()
    torch.testing.assert_close(*bounds, rtol=1e-5, atol=1e-5)
    affine = ours.flow.bijection
    torch.testing.assert_close(affine.loc.grad, theirs.loc.grad, rtol=1e-4, atol=1e-4)
    expected = theirs.scale_unconstrained.grad
    torch.testing.assert_close(affine.log_scale.grad, expected, rtol=1e-4, atol=1e-4)


def test_sticking_the_landing_has_no_noise_at_the_posterior(generator):
    """Zero for every sample. It needs log q at constant parameters, also through a kept law."""
    x = torch.randn(10, generator=generator, dtype=torch.float64)
    example = normal_normal(x, 0.0, 2.0, 1.0)
    mean, sd = example.mean["mu"], example.sd["mu"]
    guide = made(example.model, lambda d: Flow(Affine(mean[None], sd[None], learnable=True)))
    noise = []
    for landing in (True, False):
        guide.zero_grad()
        value = elbo(example.model, guide, stick_the_landing=landing)
        value.backward()
        assert value.item() == pytest.approx(example.log_evidence, rel=1e-6)
        noise.append(max(float(w.grad.abs().max()) for w in guide.parameters()))
    assert noise[0] < 1e-6  # the flow was made in float32
    assert noise[1] > 1e-2


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_stopping_rule_sees_two_states_of_a_flow(shift):
    """sqrt(KL + KL) of a shift is the shift in standard deviations."""
    model = correlated_normal(0.0).model
    guide = made(model)
    runner = Runner(model, guide, (), None)
    a = {name: w.detach().clone() for name, w in guide.named_parameters()}
    b = {name: w.clone() for name, w in a.items()}
    b["flow.bijection.loc"][0] += 0.5 * shift
    torch.manual_seed(0)
    assert runner.distance(a, a) < 1e-5
    assert runner.distance(a, b, 100_000) == pytest.approx(shift, rel=0.1)


def test_the_fit_lands_on_the_posterior():
    x = 8 + torch.linspace(-1, 1, 20, dtype=torch.float64)
    example = normal_normal(x, 0.0, 10.0, 1.0)
    fit = fit_guide(example.model, guide=FlowGuide(example.model, gaussian_flow))
    assert fit.reason == "converged"
    assert fit.elbo.value == pytest.approx(example.log_evidence, abs=1e-3)
    u = fit.posterior().sample((20_000,))
    assert u.dtype == torch.float64
    sd = float(example.sd["mu"])
    assert float(u.mean()) == pytest.approx(float(example.mean["mu"]), abs=0.05 * sd)
    assert float(u.std()) == pytest.approx(sd, rel=0.04)


# --- what a Gaussian cannot do


def test_the_funnel_is_an_affine_flow(dtype):
    """v = 3 z_0, x_i = exp(v / 2) z_i: log scales log 3 and 3/2 z_0; then KL(q || p) = 0."""

    def exact(d):
        scalar = ScaleShift("none")
        flow = autoregressive_flow(d, layers=1, hidden=(), inverse=True, scalar=scalar)
        last = flow.bijection[1].bijection.network.last
        with torch.no_grad():
            last.weight[1:d, 0] = 1.5
            last.bias[0] = math.log(3)
        return flow.to(dtype)

    model = funnel(9).model
    guide = made(model, exact)
    torch.manual_seed(0)
    _, log_ratio = Runner(model, guide, (), None).draw(1000)
    assert float(log_ratio.abs().max()) < 1e-3


def test_a_flow_learns_the_funnel_and_a_gaussian_does_not():
    model = funnel(4).model
    gaussian = fit_guide(model, max_steps=500, progress=False)
    flow = fit_guide(model, guide=FlowGuide(model, small), lr=1e-2, max_steps=500, progress=False)
    kl = [float(-fit.log_ratio(50_000, gen()).mean()) for fit in (gaussian, flow)]
    assert kl[0] > 0.8
    assert -0.05 < kl[1] < 0.3  # log Z = 0, so that the KL is -ELBO, and never negative
    k = [pareto_khat(fit.log_ratio(50_000, gen(1))).k for fit in (gaussian, flow)]
    assert k[1] < k[0]


def test_a_start_near_a_gaussian_fit(generator):
    model = normal_normal(torch.full((5,), 1000.0), 0.0, 1e4, 1.0).model
    start = fit_guide(model, max_steps=200).posterior().sample((2000,))
    flow = lambda d: autoregressive_flow(d, layers=1, hidden=(4,))  # noqa: E731
    u = made(model, flow, start=start).get_posterior().sample((2000,))
    assert float(u.detach().mean()) == pytest.approx(1000, abs=0.1)
    assert float(u.std()) == pytest.approx(5**-0.5, rel=0.2)


# --- the interface of a fit


def test_the_fit_has_the_interface_of_the_others(generator):
    model = eight_schools(False).model
    fit = fit_guide(model, guide=FlowGuide(model, small), lr=1e-2, max_steps=100, progress=False)
    draws = fit.sample(7, generator)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "mu": (7,),
        "tau": (7,),
        "xi": (7, 8),
    }
    assert bool((draws["tau"] > 0).all())
    law = fit.posterior()
    assert (law.event_shape, law.batch_shape) == ((10,), ())
    u = law.sample((5,))
    before = law.log_prob(u)
    assert not before.requires_grad
    with torch.no_grad():
        for weight in fit.guide.parameters():
            weight += 0.1
    torch.testing.assert_close(law.log_prob(u.clone()), before)  # a snapshot
    assert fit.log_ratio(7).shape == (7,)
    assert torch.equal(fit.sample(5)["tau"], fit.sample(5)["tau"])


@pytest.mark.parametrize("inverse", [False, True])
def test_log_ratio_is_log_p_minus_log_q_of_the_same_draw(inverse, generator):
    """In constrained space: with u = log rate, q(rate) = q(u) / rate."""

    def model():
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Poisson(rate), obs=torch.tensor(3.0).double())

    guide = FlowGuide(
        model, lambda d: autoregressive_flow(d, layers=2, hidden=(8,), inverse=inverse)
    )
    fit = fit_guide(model, guide=guide, lr=1e-2, max_steps=100, progress=False)
    draws, found = fit.draw(50, generator)
    rate = draws["rate"].numpy()
    log_q = fit.posterior().log_prob(draws["rate"].log()[:, None]) - draws["rate"].log()
    log_p = stats.gamma.logpdf(rate, 2.0) + stats.poisson.logpmf(3, rate)
    assert found.tolist() == pytest.approx((log_p - log_q.numpy()).tolist(), abs=1e-6)


def test_nothing_global_changes_and_the_seed_decides():
    model = eight_schools(False).model
    state, store = torch.get_rng_state(), list(pyro.get_param_store())
    fits = [
        fit_guide(model, guide=FlowGuide(model, small), max_steps=3, seed=seed, progress=False)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store()) == store
    assert fits[0].elbo == fits[1].elbo
    assert fits[0].elbo != fits[2].elbo


def test_device_and_dtype_follow_the_model(device, dtype):
    example = normal_normal(torch.ones(4, dtype=dtype, device=device), 0.0, 1.0, 1.0)
    u = made(example.model).get_posterior().sample()
    assert (u.dtype, u.device.type) == (dtype, device.type)


# --- in plain Pyro


@pytest.fixture
def store():
    with pyro.get_param_store().scope():
        yield


def kl_to_correlated(law, u):
    """KL from a law, at its samples, to the normal law of correlation 0.9."""
    target = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    return float((law.log_prob(u) - target.log_prob(u)).detach().mean())


@pytest.mark.parametrize("vectorised", [False, True])
def test_svi_of_pyro(store, vectorised):
    torch.manual_seed(0)
    model = correlated_normal(0.9).model
    guide = FlowGuide(model, lambda d: autoregressive_flow(d, layers=1, hidden=(8,), inverse=True))
    loss = Trace_ELBO(16, vectorize_particles=vectorised, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    first = svi.evaluate_loss()
    for _ in range(400 if vectorised else 60):
        svi.step()
    u = guide.get_posterior().sample((20_000,))
    assert svi.evaluate_loss() < first
    if vectorised:
        assert float(u.T.corrcoef()[0, 1]) == pytest.approx(0.9, abs=0.02)
        assert kl_to_correlated(guide.get_posterior(), u) < 0.1


class ByHand(PyroModule):
    """A guide without autoguide, whose flow is one of its modules."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self):
        return pyro.sample("z", self.flow())


def test_a_guide_by_hand_with_pyro_module(store):
    torch.manual_seed(0)
    flow = autoregressive_flow(2, layers=1, hidden=(8,), inverse=True)

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow())

    loss = Trace_ELBO(16, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(correlated_normal(0.9).model, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    for _ in range(400):
        svi.step()
    assert kl_to_correlated(flow(), flow.sample(20_000)) < 0.1
    assert any("network" in name for name in pyro.get_param_store())


@pytest.mark.parametrize("landing", [False, True])
def test_a_guide_by_hand_in_fit_guide(landing):
    model = correlated_normal(0.9).model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = ByHand(autoregressive_flow(2, layers=1, hidden=(8,), inverse=True))
    fit = fit_guide(
        model, guide=guide, lr=0.03, stick_the_landing=landing, max_steps=3000, progress=False
    )
    assert fit.reason == "converged"
    assert fit.elbo.value == pytest.approx(0, abs=0.01)


def test_a_site_of_a_model_in_a_plate(store):
    """A flow as a prior: log p of the trace is its density, once for each member of the plate."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = coupling_flow(2, layers=2, hidden=(8,), context_features=1)
    context = torch.linspace(-1, 1, 5)[:, None]

    def model(x=None):
        pyro.module("flow", flow)
        with pyro.plate("n", 5):
            z = pyro.sample("z", flow(context))
            shared = pyro.sample("shared", flow(context[0]))
            return pyro.sample("x", dist.Normal(z + shared, 1.0).to_event(1), obs=x)

    trace = poutine.trace(model).get_trace(torch.zeros(5, 2))
    trace.compute_log_prob()
    for name, given in (("z", context), ("shared", context[0])):
        site = trace.nodes[name]
        assert site["value"].shape == (5, 2)
        assert site["log_prob"].shape == (5,)
        expected = flow.log_prob(site["value"], given)
        torch.testing.assert_close(site["log_prob"], expected, rtol=1e-4, atol=1e-4)
    data = poutine.condition(model, data={"z": torch.zeros(5, 2)})
    assert poutine.trace(data).get_trace().log_prob_sum().isfinite()


def test_a_flow_is_a_prior_and_a_flow_is_the_guide():
    """The posterior of a site without data is its prior."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = autoregressive_flow(2, layers=1, hidden=()).requires_grad_(False)
        prior.bijection[1].network.last.bias.fill_(0.7)

    def model():
        pyro.sample("z", prior())

    fit = fit_guide(
        model,
        guide=FlowGuide(model, lambda d: Flow(Affine(torch.zeros(d), 1.0, learnable=True))),
        progress=False,
    )
    assert fit.reason == "converged"
    assert fit.elbo.value == pytest.approx(0, abs=1e-3)


def test_a_flow_on_a_box_is_a_prior():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = bounded_flow([0.0, 2.0], [1.0, 5.0], hidden=(8,), layers=2).requires_grad_(False)

    def model():
        pyro.sample("z", prior())

    fit = fit_guide(model, max_steps=100, progress=False)
    z = fit.sample(1000)["z"]
    assert bool(prior.support.check(z).all())
    assert -0.2 < fit.elbo.value < 0.05  # near the uniform law, whose log-odds are logistic


# --- refusals


def test_bad_arguments(unchecked):
    model = correlated_normal(0.5).model
    with pytest.raises(ValueError, match=r"^make_flow: expected a callable, got int"):
        FlowGuide(model, 3)
    for make, message in (
        (lambda d: torch.nn.Linear(d, d), r"^make_flow: expected .* returns a Flow, got Linear"),
        (lambda d: coupling_flow(d + 1), r"^make_flow: expected a flow of events \(2,\) without"),
        (lambda d: coupling_flow(d, context_features=1), r"^make_flow: .* context of length 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_guide(model, guide=FlowGuide(model, make))
    with pytest.raises(ValueError, match=r"^start: expected shape \(\*batch, 2\), got \(5, 3\)"):
        fit_guide(model, guide=FlowGuide(model, start=torch.zeros(5, 3)))
    with pytest.raises(ValueError, match=r"^start: expected 2 dimensions"):
        FlowGuide(model, start=torch.zeros(5))
