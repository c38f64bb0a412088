"""The definition of a bijection, as properties of everything in the catalogue."""

import copy
import math
import pickle
import subprocess
import sys
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from lib.bijections import Bijection, Compose
from tests.bijections.catalogue import CATALOGUE

NAMES = sorted(CATALOGUE)


def made(name, dtype=torch.float64, scale=None, seed=0):
    """The bijection with parameters drawn at a scale, points of its domain, and a context."""
    entry = CATALOGUE[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        f = entry.make()
    draw(f, entry.scale if scale is None else scale, generator)
    x = entry.points(6, generator).to(dtype)
    context = None
    if f.context_features:
        context = torch.randn(6, f.context_features, generator=generator).to(dtype)
    return f.to(dtype), x, context


def draw(f, scale, generator):
    with torch.no_grad():
        for weight in f.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)


def one(f, value, context, direction):
    """The map of one event, flattened on both sides, without its log-determinant."""
    call = f if direction == "forward" else f.inverse
    return lambda v: call(v.view_as(value), context)[0].reshape(-1)


@pytest.mark.parametrize("name", NAMES)
def test_both_directions_undo_each_other(name, dtype):
    f, x, context = made(name, dtype)
    with torch.no_grad():
        z, there = f(x, context)
        back, home = f.inverse(z, context)
        again, _ = f(back, context)
    tol = 2e-3 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(back, x, rtol=tol, atol=tol)
    torch.testing.assert_close(again, z, rtol=tol, atol=tol)
    torch.testing.assert_close(there, -home, rtol=tol, atol=5 * tol)
    assert z.dtype == x.dtype
    assert there.shape == x.shape[: x.ndim - f.event_dim]


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", [name for name in NAMES if CATALOGUE[name].jacobian])
def test_log_det_is_that_of_the_jacobian(name, direction):
    f, x, context = made(name)
    if direction == "inverse":
        with torch.no_grad():
            x, _ = f(x, context)
    for k in range(3):
        c = None if context is None else context[k]
        event = x[k]
        call = f if direction == "forward" else f.inverse
        J = jacobian(one(f, event, c, direction), event.reshape(-1))
        log_det = call(event, c)[1].sum()
        torch.testing.assert_close(torch.linalg.slogdet(J)[1], log_det, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_batch_is_a_loop(name):
    f, x, context = made(name)
    z, log_det = f(x, context)
    for k in range(len(x)):
        alone, own = f(x[k], None if context is None else context[k])
        torch.testing.assert_close(alone, z[k], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own, log_det[k], rtol=1e-9, atol=1e-9)
    stacked, own = f(
        x.unflatten(0, (2, 3)), None if context is None else context.unflatten(0, (2, 3))
    )
    torch.testing.assert_close(stacked.flatten(0, 1), z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own.flatten(0, 1), log_det, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_both_directions_are_right(name):
    """The derivative of x -> f(x) -> f^-1 is the identity, also with respect to the parameters."""
    f, x, context = made(name)
    x = x[:2].requires_grad_()
    context = None if context is None else context[:2]
    z, log_det = f(x, context)
    back, home = f.inverse(z, context)
    weights = list(f.parameters())
    probe = torch.randn(back.shape, generator=torch.Generator().manual_seed(1)).to(back)
    grads = torch.autograd.grad(
        (back * probe).sum(), [x, *weights], retain_graph=True, allow_unused=True
    )
    open_domain = CATALOGUE[name].jacobian
    if open_domain:
        torch.testing.assert_close(grads[0], probe, rtol=1e-5, atol=1e-5)
    for grad in grads[1:]:
        if grad is not None:
            torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-5)
    both = (log_det + home).sum()
    if not both.requires_grad or (not open_domain and not weights):
        return
    for grad in torch.autograd.grad(both, [x, *weights][not open_domain :], allow_unused=True):
        if grad is not None:
            torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_matters(name):
    f, x, context = made(name)
    if not list(f.parameters()):
        pytest.skip("no parameters")
    z, log_det = f(x, context)
    probe = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z)
    ((z * probe).sum() + log_det.sum()).backward()
    dead = [n for n, w in f.named_parameters() if w.grad is None or not bool((w.grad != 0).any())]
    assert set(dead) <= set(CATALOGUE[name].idle)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(power=st.floats(-3, 2), seed=st.integers(0, 2**16), double=st.booleans())
def test_extreme_parameters_give_no_nan(name, power, seed, double):
    dtype = torch.float64 if double else torch.float32
    f, x, context = made(name, dtype, scale=10 ** min(power, CATALOGUE[name].extreme), seed=seed)
    x.requires_grad_()
    for call in (f, f.inverse):
        z, log_det = call(x, context)
        assert not z.isnan().any()
        assert not log_det.isnan().any()
        if not bool(z.isfinite().all() and log_det.isfinite().all()):
            continue  # exp(300) is beyond the floating-point numbers: a deep stack may leave them
        inputs = [x, *f.parameters()]
        for grad in torch.autograd.grad(z.sum() + log_det.sum(), inputs, allow_unused=True):
            assert grad is None or not grad.isnan().any()
        x = z.detach().requires_grad_()


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_and_pickle_keep_the_map(name):
    f, x, context = made(name)
    g, _, _ = made(name, seed=1)
    g.load_state_dict(f.state_dict())
    for twin in (g, pickle.loads(pickle.dumps(f)), copy.deepcopy(f)):
        for ours, theirs in zip(f(x, context), twin(x, context), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_input_and_global_state_stay_as_they_are(name):
    f, x, context = made(name)
    before, rng = x.clone(), torch.get_rng_state()
    z, _ = f(x, context)
    held = z.clone()
    f.inverse(z, context)
    assert torch.equal(x, before)
    assert torch.equal(z, held)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused_in_words(name, unchecked):
    f, x, context = made(name)
    with pytest.raises(ValueError, match=r"x: expected a tensor of floating-point numbers, got"):
        f(x.long(), context)
    if f.event_shape:
        with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, .*got"):
            f(x[(0,) * (x.ndim - f.event_dim + 1)], context)
    if f.event_shape and f.event_shape[0] is not None:
        wide = torch.cat([x, x], dim=x.ndim - f.event_dim)
        with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, .*got"):
            f(wide, context)
    if f.context_features:
        with pytest.raises(ValueError, match=r"context: expected a tensor .*got None"):
            f(x)
        with pytest.raises(ValueError, match=r"context: expected shape .*got"):
            f(x, context[:, :-1])
        with pytest.raises(ValueError, match=r"context: expected a batch .*got"):
            f(x, context[:4])
    else:
        with pytest.raises(ValueError, match=r"context: expected None"):
            f(x, torch.zeros(6, 1).to(x))


COMPILE = """
import sys, torch
from tests.bijections.catalogue import CATALOGUE
from tests.bijections.test_properties import made
failed = []
for name in sys.argv[1:]:
    f, x, context = made(name, torch.float32)
    for call in (f.forward, f.inverse):
        torch._dynamo.reset()
        count = 0
        def backend(graph, inputs):
            global count
            count += 1
            return graph.forward
        with torch.no_grad():
            plain = call(x, context)
            graph = torch.compile(call, fullgraph=True, backend=backend)
            made_by_graph = graph(x, context)
        for a, b in zip(plain, made_by_graph):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        if count != 1:
            failed.append((name, count))
        x = plain[0]
assert not failed, failed
"""


def test_each_compiles_to_one_graph():
    """In a process of its own: the shape checks of the tests would be part of the graph."""
    names = [name for name in NAMES if CATALOGUE[name].compiles]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_the_package_touches_no_global():
    script = """
import torch
from torch import distributions as td
def state():
    yield torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    yield torch.initial_seed(), td.Distribution._validate_args
    for kind in (td.Distribution, td.Transform, td.Normal, td.TransformedDistribution,
                 torch.nn.Module, torch.Tensor):
        yield {name: id(value) for name, value in vars(kind).items() if callable(value)}
before = list(state())
import lib, lib.bijections, lib.flows, lib.data.targets
assert list(state()) == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_compose_slices_like_a_list():
    f, x, _ = made("spline coupling, stacked")
    assert isinstance(f, Compose)
    assert isinstance(f[0], Bijection)
    z, first = f[:1](x)
    z, second = f[1:](z)
    whole, log_det = f(x)
    torch.testing.assert_close(z, whole)
    torch.testing.assert_close(first + second, log_det)
    assert len(f[1:]) == len(f) - 1
    assert math.isfinite(float(log_det.sum()))
