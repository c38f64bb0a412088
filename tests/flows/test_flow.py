"""Flows as densities: closed forms, supports, samples, context, state."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from torch import distributions as td

from lib.bijections import ActNorm, Affine, Compose, HalfLine, Interval, Logit
from lib.flows import Flow, StandardLogistic, StandardNormal, Uniform, autoregressive_flow
from tests.flows.test_recipes import BOX, PLANE, made


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# --- closed forms


def test_an_affine_flow_is_a_normal_law(dtype):
    loc, scale = torch.tensor([1.0, -20.0]), torch.tensor([1e-3, 50.0])
    flow = Flow(Affine(loc, scale), StandardNormal(2)).to(dtype)
    law = td.Independent(td.Normal(loc.to(dtype), scale.to(dtype)), 1)
    x = law.sample((50,))
    torch.testing.assert_close(flow.log_prob(x), law.log_prob(x), rtol=1e-4, atol=1e-4)
    draws = flow.sample(40_000, generator=gen())
    torch.testing.assert_close((draws.mean(0) - loc) / scale, torch.zeros(2).to(dtype), **near(4))
    torch.testing.assert_close(draws.std(0) / scale, torch.ones(2).to(dtype), **near(4))


def near(errors, n=40_000):
    return {"rtol": 0, "atol": errors / math.sqrt(n)}


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.7), (-1000.0, 1e-3)])
@pytest.mark.parametrize("kind", ["logistic", "normal", "uniform"])
def test_the_quantile_function_over_its_own_law_is_uniform(low, high, kind, dtype):
    base = {"logistic": StandardLogistic, "normal": StandardNormal, "uniform": Uniform}[kind](3)
    flow = Flow(Interval(low, high, kind), base).to(dtype)
    share = torch.rand(200, 3, generator=gen(), dtype=torch.float64)
    ends = torch.tensor([[low, high, low], [high] * 3], dtype=torch.float64)
    x = torch.cat([low + (high - low) * share, ends]).to(dtype)
    expected = torch.full((202,), -3 * math.log(high - low), dtype=dtype)
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["logit", "softplus", "logit of a shift", "box"])
def test_against_the_transformed_laws_of_torch(name, dtype):
    half, whole = td.AffineTransform(0.5, 3.0), td.AffineTransform(-1.0, 4.0)
    bijection, transforms = {
        "logit": (Logit(), [td.SigmoidTransform()]),
        "softplus": (HalfLine(0.0), [td.SoftplusTransform()]),
        "logit of a shift": (Compose([Logit(), Affine(0.5, 3.0)]), [half, td.SigmoidTransform()]),
        "box": (
            Compose([Interval(-1.0, 3.0), Affine(0.5, 3.0)]),
            [half, td.SigmoidTransform(), whole],
        ),
    }[name]
    flow = Flow(bijection, StandardNormal(2)).to(dtype)
    zero = torch.zeros(2, dtype=dtype)
    law = td.Independent(td.TransformedDistribution(td.Normal(zero, 1.0), transforms), 1)
    x = flow.sample(100, generator=gen())
    # The logit of a float32 share s near 1 is known to eps / (1 - s).
    tol = 1e-2 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(flow.log_prob(x), law.log_prob(x), rtol=tol, atol=tol)


# --- supports


@pytest.mark.parametrize("bad", [(0,), (1,), (0, 1)])
def test_outside_the_density_is_zero_and_so_is_the_gradient(bad, dtype):
    low, high = BOX["bounded"]
    for value in (low - 1, high + 1e-3, 1e30, -1e30, math.inf, -math.inf):
        flow = made("bounded", 2, dtype)
        x = torch.full((2, 2), (low + high) / 2, dtype=dtype)
        x[0, list(bad)] = value
        check_outside(flow, x)


@pytest.mark.parametrize(
    "bijection",
    [Interval(0.0, 1.0), Interval([0.0, 0.0], [1.0, 1.0]), HalfLine(0.0), HalfLine([0.0, 0.0])],
    ids=["numbers", "box", "half-lines", "quadrant"],
)
@pytest.mark.parametrize("value", [-1e-6, -1.0, -math.inf, math.inf])
def test_one_coordinate_outside_is_enough(bijection, value, dtype):
    learnt = Affine(torch.zeros(2), 1.0, learnable=True)
    flow = Flow(Compose([copy.deepcopy(bijection), learnt])).to(dtype)
    check_outside(flow, torch.tensor([[0.5, value], [0.4, 0.6]], dtype=dtype))
    check_outside(flow, torch.tensor([[value, 0.5], [0.4, 0.6]], dtype=dtype))


def check_outside(flow, x):
    """The first event is outside and the second inside; the mean of both gives the gradient."""
    x.requires_grad_()
    log_prob = flow.log_prob(x)
    assert log_prob.isneginf().tolist() == [True, False]
    assert bool(log_prob[1].isfinite())
    weights = list(flow.parameters())
    both = torch.autograd.grad(log_prob.sum(), [x, *weights], allow_unused=True)
    assert not bool(both[0][0].any())
    alone = torch.autograd.grad(flow.log_prob(x[1:]).sum(), [x, *weights], allow_unused=True)
    for found, expected in zip(both[1:], alone[1:], strict=True):
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    nothing = torch.autograd.grad(flow.log_prob(x[:1]).sum(), [x, *weights], allow_unused=True)
    assert not any(bool(grad.any()) for grad in nothing if grad is not None)


@pytest.mark.parametrize("name", PLANE)
def test_infinity_has_no_density_and_nan_is_refused(name, dtype, unchecked):
    flow = made(name, 2, dtype)
    x = torch.full((3, 2), 0.5, dtype=dtype)
    x[0, 1], x[1, 0] = math.inf, -math.inf
    x.requires_grad_()
    log_prob = flow.log_prob(x)
    assert log_prob[:2].tolist() == [-math.inf, -math.inf]
    assert bool(log_prob[2].isfinite())
    grads = torch.autograd.grad(log_prob.sum(), [x, *flow.parameters()])
    assert not bool(grads[0][:2].any())
    assert all(bool(grad.isfinite().all()) for grad in grads)
    with torch.no_grad():
        x[2, 0] = math.nan
    with pytest.raises(ValueError, match=r"^x: expected numbers, got 1 of 6 NaN"):
        flow.log_prob(x)


# --- samples


@pytest.mark.parametrize("name", PLANE)
def test_the_generator_decides_and_nothing_global_changes(name):
    flow = made(name, 2)
    state = torch.get_rng_state()
    one, two, other = (flow.sample((3, 2), generator=gen(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == (3, 2, 2)
    assert not one.requires_grad
    assert flow.sample(generator=gen()).shape == (2,)
    assert flow.sample(4).shape == (4, 2)


def test_the_gradient_of_a_sample_is_that_of_the_inverse(dtype):
    """d/dtheta E f(x) with x = loc + scale z: dx/dloc = 1, dx/dlog_scale = scale z."""
    flow = Flow(Affine(torch.tensor([1.0]), 2.0, learnable=True)).to(dtype)
    x, _ = flow.sample_and_log_prob(6, generator=gen())
    x.sum().backward()
    assert float(flow.bijection.loc.grad) == pytest.approx(6)
    assert float(flow.bijection.log_scale.grad) == pytest.approx(
        float((x - 1).detach().sum()), rel=1e-5
    )


def test_a_saturated_sample_keeps_the_density_of_its_latent():
    """sigmoid(40) is 1 in float32, and no inverse could tell it from sigmoid(400)."""
    flow = Flow(Compose([Interval(0.0, 1.0), Affine(torch.tensor([40.0]), 1.0)]))
    x, kept = flow.sample_and_log_prob(100, generator=gen())
    assert bool((x == 1).all())
    z = 40 + StandardNormal(1).sample((100,), gen())
    exact = td.Normal(40.0, 1.0).log_prob(z) + z + 2 * torch.nn.functional.softplus(-z)
    torch.testing.assert_close(kept, exact[:, 0], rtol=1e-5, atol=1e-4)
    law = flow()
    x = law.rsample((100,))
    assert float((law.log_prob(x) - flow.log_prob(x)).abs().min()) > 1


# --- context and batches


@pytest.mark.parametrize("name", PLANE)
def test_context_and_batch_shapes(name):
    flow = made(name, 2, context_features=3)
    context = torch.randn(4, 3, generator=gen()).double()
    x = flow.sample((5,), context, gen())
    assert x.shape == (5, 4, 2)
    found = flow.log_prob(x, context)
    assert found.shape == (5, 4)
    loop = torch.stack([flow.log_prob(x[:, k], context[k]) for k in range(4)], 1)
    torch.testing.assert_close(found, loop, rtol=1e-6, atol=1e-6)
    law = flow(context)
    assert (law.batch_shape, law.event_shape) == ((4,), (2,))
    assert law.rsample((5,)).shape == (5, 4, 2)
    torch.testing.assert_close(law.log_prob(x), found)
    assert law.log_prob(x[0, 0]).shape == (4,)  # one event at each context


@pytest.mark.parametrize("name", PLANE)
def test_the_context_matters(name):
    flow = made(name, 2, context_features=3)
    x = flow.sample((), torch.zeros(3).double(), gen()).expand(8, 2)
    log_prob = flow.log_prob(x, torch.randn(8, 3, generator=gen()).double())
    assert float(log_prob.detach().std()) > 1e-2


def test_shapes_are_refused_in_words(unchecked):
    flow, given = made("coupling"), made("coupling", context_features=3)
    x, context = torch.zeros(5, 2).double(), torch.zeros(5, 3).double()
    for bad in (torch.zeros(5, 3).double(), torch.zeros(()).double(), torch.zeros(5, 1).double()):
        with pytest.raises(ValueError, match=r"^x: expected shape \(\*batch, 2\), got"):
            flow.log_prob(bad)
        with pytest.raises(ValueError, match=r"^value: expected shape \(\*batch, 2\), got"):
            flow().log_prob(bad)
    with pytest.raises(ValueError, match=r"^x: expected a tensor of floating-point numbers"):
        flow.log_prob(x.long())
    for call in (lambda c: flow.log_prob(x, c), lambda c: flow.sample(3, c), flow):
        with pytest.raises(ValueError, match=r"^context: expected None"):
            call(context)
    for call in (lambda c: given.log_prob(x, c), lambda c: given.sample(3, c), given):
        with pytest.raises(ValueError, match=r"^context: expected a tensor .* got None"):
            call(None)
        with pytest.raises(ValueError, match=r"^context: expected shape \(\*batch, 3\), got"):
            call(context[:, :2])
    with pytest.raises(ValueError, match=r"^context: expected a batch that expands to"):
        given.log_prob(x, context[:4])
    with pytest.raises(ValueError, match=r"^bijection: expected a Bijection"):
        Flow(td.SigmoidTransform())
    with pytest.raises(ValueError, match=r"^base: expected events of shape \(2,\), got \(3,\)"):
        Flow(ActNorm(2), StandardNormal(3))
    with pytest.raises(ValueError, match=r"^base: expected events of shape"):
        Flow(ActNorm(2), td.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"^base: expected a base law, as the bijection takes"):
        Flow(Logit())
    with pytest.raises(ValueError, match=r"^base: expected a Base, .* got str"):
        Flow(ActNorm(2), "normal")


# --- as a module


@pytest.mark.parametrize("name", PLANE)
def test_copies_are_the_same_flow(name):
    flow, other = made(name), made(name, seed=1)
    x = flow.sample(5, generator=gen())
    expected = flow.log_prob(x)
    other.load_state_dict(flow.state_dict())
    for twin in (other, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(twin.log_prob(x), expected)
        assert torch.equal(twin.sample(5, generator=gen()), x)


@pytest.mark.parametrize("name", PLANE)
def test_precision_and_device_follow_the_module(name, device):
    flow = made(name, 2, torch.float32).to(device)
    x = flow.sample(50, generator=torch.Generator(device).manual_seed(0))
    assert (x.dtype, x.device.type) == (torch.float32, device.type)
    single = flow.log_prob(x)
    double = flow.double().log_prob(x.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert flow.sample(2).dtype == flow().sample((2,)).dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", PLANE)
def test_autocast_is_finite(name):
    flow = made(name, 2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x = flow.sample(50, generator=gen()).float()
        x = x.clamp(*BOX[name]) if name in BOX else x
        log_prob = flow.log_prob(x)
        log_prob.float().mean().backward()
    assert bool(log_prob.isfinite().all())
    assert all(bool(w.grad.isfinite().all()) for w in flow.parameters())


def test_a_flow_is_fitted_by_maximum_likelihood():
    """KL(p || q) of the best Gaussian of a Gaussian is zero."""
    x = td.MultivariateNormal(torch.ones(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])).sample((4000,))
    flow = autoregressive_flow(2, layers=1, hidden=())
    flow.initialise(x)
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -flow.log_prob(x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    best = td.MultivariateNormal(x.mean(0), x.T.cov(correction=0)).log_prob(x).mean()
    assert float(flow.log_prob(x).mean()) == pytest.approx(float(best), abs=1e-3)


# --- in processes of their own: shape checks of the tests would be part of the graph


COMPILE = """
import math, sys, torch
from tests.flows.test_recipes import made
for name in sys.argv[1:]:
    for context_features in (0, 2):
        flow = made(name, 2, torch.float32, context_features)
        x = torch.full((8, 2), 0.5) + 0.01 * torch.arange(16).view(8, 2)
        x[0, 0], x[1, 1] = math.inf, -math.inf
        context = torch.ones(8, 2) if context_features else None
        torch._dynamo.reset()
        count = 0
        def backend(graph, inputs):
            global count
            count += 1
            return graph.forward
        with torch.no_grad():
            graph = torch.compile(flow.log_prob, fullgraph=True, backend=backend)
            found, expected = graph(x, context), flow.log_prob(x, context)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert bool(expected[2:].isfinite().all())
        assert count == 1, (name, count)
"""


def test_log_prob_compiles_to_one_graph():
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *PLANE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


PYRO = """
import sys, torch
import lib.flows
flow = lib.flows.coupling_flow(2)
assert "pyro" not in sys.modules
assert not hasattr(flow(), "to_event")
import pyro
law = flow()
assert isinstance(law, pyro.distributions.torch_distribution.TorchDistributionMixin)
assert isinstance(law, lib.flows.FlowDistribution)
assert law.expand((3,)).to_event(1).event_shape == (3, 2)
"""


def test_pyro_is_used_where_it_is_there_and_never_imported():
    done = subprocess.run([sys.executable, "-c", PYRO], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
