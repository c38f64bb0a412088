"""Flows of differential equations: closed forms, orders of convergence, traces, gradients."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call, jacrev, vmap

from lib.bijections import ODE
from lib.bijections.ode import SOLVERS
from lib.flows import Flow
from lib.nets import MLP

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
STAGES = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
every_solver = pytest.mark.parametrize("solver", SOLVERS)
every_trace = pytest.mark.parametrize("trace", ["exact", "hutchinson"])
A = torch.tensor([[0.3, -1.0], [0.7, -0.8]], dtype=torch.float64)


class Net(nn.Module):
    """A smooth velocity of a point and the time."""

    def __init__(self, features=2, hidden=(8,), seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = MLP(features + 1, features, hidden, activation="tanh")

    def forward(self, x, t):
        return self.network(torch.cat([x, t.expand(len(x), 1)], -1))


def linear(x, t):
    return x @ A.to(x).T


def cubic(x, t):
    """Its flow is x / sqrt(1 + 2 s x^2), s the integral of the cosine."""
    return -x.pow(3) * t.cos()


def grid(steps, start=0.0, end=1.0):
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def points(n, *event, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *event, generator=generator, dtype=torch.float64)


# --- against closed forms


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.5), (0.5, -1.0)])
def test_a_linear_equation_is_the_matrix_exponential(start, end, dtype, device):
    f = ODE(linear, (2,), times=grid(60, start, end))
    x = points(7, 2).to(device, dtype)
    tol = {torch.float32: 1e-5, torch.float64: 1e-7}[dtype]
    for call, length in ((f, end - start), (f.inverse, start - end)):
        z, log_det = call(x)
        exact = x @ torch.matrix_exp(length * A).to(x).T
        torch.testing.assert_close(z, exact, rtol=tol, atol=tol)
        trace = (length * A.trace()).to(x).expand(7)
        torch.testing.assert_close(log_det, trace, rtol=tol, atol=tol)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "inverse"])
@every_solver
def test_order_of_convergence(solver, reverse):
    start, end, x = 0.3, 1.4, points(20, 2).tanh()
    s = math.sin(end) - math.sin(start)
    exact = x / (1 + 2 * s * x.square()).sqrt(), -1.5 * (2 * s * x.square()).log1p().sum(-1)
    errors = []
    for steps in (16, 32, 64, 128):
        # The inverse of the flow that runs the other way is the same map.
        times = grid(steps, end, start) if reverse else grid(steps, start, end)
        f = ODE(cubic, (2,), times=times, solver=solver)
        found = f.inverse(x) if reverse else f(x)
        errors.append([float((a - b).abs().mean()) for a, b in zip(found, exact, strict=True)])
    first, *_, last = torch.tensor(errors).log2()
    assert ((first - last) / 3 - ORDERS[solver]).abs().max() < 0.2


def test_uneven_steps_end_at_the_same_place():
    x = points(5, 2)
    even = ODE(cubic, (2,), times=grid(200))
    uneven = ODE(cubic, (2,), times=grid(200).square())
    for a, b in zip(even(x), uneven(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_context_is_a_rate_and_batches_have_any_shape():
    f = ODE(lambda x, t, context: -context * x, (2,), times=grid(50), context_features=1)
    x, rate = points(6, 2).reshape(2, 3, 2), torch.tensor([[0.5], [1.0], [2.0]]).double()
    z, log_det = f(x, rate)
    torch.testing.assert_close(z, x * (-rate).exp(), rtol=1e-7, atol=0)
    torch.testing.assert_close(log_det, (-2 * rate[:, 0]).expand(2, 3))
    torch.testing.assert_close(f.transport(x, rate), z)


@pytest.mark.parametrize("event", [(), (3,), (1, 2, 2)])
@every_trace
def test_events_and_batches_of_all_shapes(event, trace):
    f = ODE(lambda x, t: 2 * t * x, event, times=grid(10), trace=trace)
    size = math.prod(event)
    for batch in ((), (4,), (2, 3), (0,)):
        x = torch.ones((*batch, *event), dtype=torch.float64)
        z, log_det = f(x)
        torch.testing.assert_close(z, math.e * x, rtol=1e-4, atol=0)
        torch.testing.assert_close(log_det, torch.full(batch, float(size)).double())


# --- the trace


@pytest.mark.parametrize("dims", [1, 3])
def test_log_det_is_that_of_the_jacobian_under_other_transforms(dims):
    f = ODE(Net(dims).double(), (dims,), times=grid(40))
    x = points(4, dims)
    J = vmap(jacrev(f.transport))(x)
    torch.testing.assert_close(f(x)[1], torch.linalg.slogdet(J)[1], rtol=1e-6, atol=1e-6)
    grad = vmap(jacrev(lambda x: f(x)[1]))(x)
    x.requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(f(x)[1].sum(), x)[0])


def test_signs_are_unbiased():
    """Each point of a batch has its own probes, so that copies of one point are a sample."""
    net, x = Net(seed=3).double(), points(1, 2)
    exact = ODE(net, (2,), times=grid(5))(x)[1]
    for probes, copies in ((1, 4000), (4, 1000)):
        f = ODE(net, (2,), times=grid(5), trace="hutchinson", probes=probes)
        with torch.no_grad():
            estimates = f(x.expand(copies, 2))[1]
        stderr = estimates.std() / copies**0.5
        assert stderr > 0
        assert (estimates.mean() - exact).abs() < 4 * stderr
    means = []
    for f.seed in range(200):
        with torch.no_grad():
            means.append(f(x)[1])
    means = torch.cat(means)
    assert (means.mean() - exact).abs() < 4 * means.std() / 200**0.5


def test_signs_are_exact_for_a_diagonal_matrix():
    rates = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    f = ODE(lambda x, t: rates * x, (3,), times=grid(10), trace="hutchinson", seed=5)
    torch.testing.assert_close(f(points(4, 3))[1], rates.sum().expand(4))


@every_trace
@every_solver
def test_directions_undo_each_other_with_the_same_probes(solver, trace):
    steps = {1: 500, 2: 100, 4: 20}[ORDERS[solver]]
    f = ODE(Net(seed=3).double(), (2,), times=grid(steps), solver=solver, trace=trace, probes=2)
    x = points(5, 2)
    with torch.no_grad():
        z, there = f(x)
        back, home = f.inverse(z)
    tol = {1: 2e-3, 2: 1e-7, 4: 1e-9}[ORDERS[solver]]
    torch.testing.assert_close(back, x, rtol=0, atol=tol)
    torch.testing.assert_close(there, -home, rtol=0, atol=tol)
    assert there.abs().min() > 10 * tol


def test_probes_belong_to_the_place_in_the_batch_and_to_the_seed():
    make = {"times": grid(5), "trace": "hutchinson", "probes": 3}
    f, x, state = ODE(Net().double(), (2,), **make), points(6, 2), torch.get_rng_state()
    torch.testing.assert_close(f(x)[1][:4], f(x[:4])[1])
    torch.testing.assert_close(f(x.reshape(2, 3, 2))[1].flatten(), f(x)[1])
    other = ODE(f.velocity, (2,), **make, seed=1)
    assert not torch.equal(other(x)[1], f(x)[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_velocity_that_ignores_the_point_has_no_divergence():
    f = ODE(lambda x, t: t.expand_as(x), (2,), times=grid(3), solver="midpoint")
    z, log_det = f(torch.zeros(4, 2))
    torch.testing.assert_close(z, torch.full((4, 2), 0.5))
    assert torch.equal(log_det, torch.zeros(4))


# --- gradients


@every_trace
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_agree_with_finite_differences(direction, trace):
    f = ODE(Net().double(), (2,), times=grid(4), trace=trace)
    names, weights = zip(*f.named_parameters(), strict=True)

    class Direction(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = f

        def forward(self, x):
            return getattr(self.f, direction)(x)

    def call(x, *weights):
        lent = {f"f.{name}": w for name, w in zip(names, weights, strict=True)}
        return functional_call(Direction(), lent, x)

    assert gradcheck(call, (points(3, 2).requires_grad_(), *weights))


@every_trace
def test_no_graph_is_left_where_none_is_asked_for(trace):
    f = ODE(Net().double(), (2,), times=grid(4), trace=trace)
    x = points(3, 2)
    asked = f(x)
    assert all(value.requires_grad for value in asked)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            plain = f(points(3, 2))
        assert not any(value.requires_grad for value in plain)
        for a, b in zip(plain, asked, strict=True):
            torch.testing.assert_close(a.clone(), b.detach())
    f.requires_grad_(False)
    assert not any(value.requires_grad for value in f(x))
    assert not x.requires_grad


# --- the path


@every_solver
def test_transport_and_path_end_where_the_map_ends(solver):
    times = grid(6, 1.0, -0.5)
    f, x = ODE(Net().double(), (2,), times=times, solver=solver), points(6, 2).reshape(2, 3, 2)
    for reverse, call in ((False, f), (True, f.inverse)):
        states = list(f.path(x, reverse=reverse))
        assert len(states) == len(times)
        assert torch.equal(states[0], x)
        torch.testing.assert_close(states[-1], call(x)[0])
        assert torch.equal(f.transport(x, reverse=reverse), states[-1])
        half = ODE(f.velocity, (2,), times=(times.flip(0) if reverse else times)[:4], solver=solver)
        torch.testing.assert_close(states[3], half(x)[0])


@every_solver
def test_one_call_of_the_velocity_for_each_stage(solver, dtype, device):
    seen = []

    def velocity(x, t):
        seen.append((t.dtype, t.device.type, t.ndim, x.shape))
        return -x * t

    f, x = ODE(velocity, (2,), times=[0, 0.5, 1], solver=solver), points(6, 2).to(device, dtype)
    for call in (f, f.inverse, f.transport):
        seen.clear()
        call(x.reshape(2, 3, 2))
        assert seen == [(dtype, device.type, 0, (6, 2))] * (2 * STAGES[solver])


# --- in a flow


def test_density_integrates_to_one():
    net = Net(hidden=(16,), seed=3).double()
    with torch.no_grad():
        net.network.last.weight *= 3
    flow = Flow(ODE(net, (2,), times=grid(16)))
    assert len(list(flow.parameters())) == len(list(net.parameters()))
    ticks = torch.linspace(-8, 8, 121).double()
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(ticks, ticks)).exp()
    assert density.max() > 0.2  # the standard normal has 0.159
    mass = density.sum() * (ticks[1] - ticks[0]).square()
    torch.testing.assert_close(mass, torch.ones(()).double(), rtol=0, atol=1e-4)


def test_samples_know_their_density():
    flow = Flow(ODE(Net().double(), (2,), times=grid(30)))
    z = points(5, 2)
    x = flow.bijection.transport(z, reverse=True)
    torch.testing.assert_close(flow.bijection.inverse(z)[0], x)
    expected = flow.base.log_prob(z) - flow.bijection.inverse(z)[1]
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-6, atol=1e-6)


# --- refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ODE(3, (2,), times=[0, 1]), "velocity: expected a function of x and t, got int"),
        (lambda: ODE(linear, 2, times=[0, 1]), "event_shape: expected a sequence of integers"),
        (lambda: ODE(linear, (0,), times=[0, 1]), "event_shape: expected an integer of at least 1"),
        (lambda: ODE(linear, (2,), times=[0, 1, 0.5]), "times: expected at least two, rising or"),
        (lambda: ODE(linear, (2,), times=[0, 1, 1]), "times: expected at least two, rising or"),
        (lambda: ODE(linear, (2,), times=[0.0]), "times: expected at least two, rising or falling"),
        (lambda: ODE(linear, (2,), times=[0, math.nan]), "times: expected finite numbers"),
        (lambda: ODE(linear, (2,), times=[[0, 1]]), "times: expected 1 dimension"),
        (lambda: ODE(linear, (2,), times=[0, 1], solver="rk5"), "solver: expected one of euler, "),
        (lambda: ODE(linear, (2,), times=[0, 1], trace=None), "trace: expected one of exact, hutc"),
        (lambda: ODE(linear, (2,), times=[0, 1], probes=0), "probes: expected an integer of at"),
        (lambda: ODE(linear, (2,), times=[0, 1], seed=0.5), "seed: expected an integer of at"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("velocity", "got"),
    [
        (lambda x, t: x[:, :1], r"torch.float32 of shape \(5, 1\)"),
        (lambda x, t: x.sum(), r"torch.float32 of shape \(\)"),
        (lambda x, t: x.double(), r"torch.float64 of shape \(5, 2\)"),
        (lambda x, t: None, "<class 'NoneType'>"),
    ],
)
def test_values_of_another_kind_are_refused(velocity, got):
    f = ODE(velocity, (2,), times=[0, 1])
    for call in (f, f.inverse, f.transport):
        with pytest.raises(ValueError, match=rf"velocity: expected values .*\(5, 2\), got {got}"):
            call(torch.zeros(5, 2))


def test_a_path_is_refused_where_it_is_asked_for(unchecked):
    f = ODE(linear, (2,), times=[0, 1])
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 2\)"):
        f.path(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"z: expected shape \(\*batch, 2\)"):
        f.path(torch.zeros(5, 3), reverse=True)
    with pytest.raises(ValueError, match="context: expected None"):
        f.path(torch.zeros(5, 2), torch.zeros(5, 1))
