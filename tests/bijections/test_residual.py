"""Planar, radial and Sylvester flows: both directions, their determinants and their gradients."""

import math
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian
from torch.func import functional_call

from lib.bijections import Compose
from lib.bijections.planar import Planar, constrain, log_slope, solve_tanh
from lib.bijections.radial import Radial
from lib.bijections.sylvester import Sylvester

MAKE = {
    "planar": lambda: Planar(3),
    "planar, one feature": lambda: Planar(1),
    "planar, context": lambda: Planar(3, context_features=2),
    "radial": lambda: Radial(3),
    "radial, one feature": lambda: Radial(1),
    "radial, context": lambda: Radial(3, context_features=2),
    "sylvester": lambda: Sylvester(3),
    "sylvester, narrow": lambda: Sylvester(4, hidden=2),
    "sylvester, one feature": lambda: Sylvester(1),
}
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def drawn(make, scale=0.5, seed=0, dtype=torch.float64, device="cpu"):
    """A map with normal parameters of a standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    module = make().to(torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module.to(dtype=dtype, device=device)


def data(module, n, seed=1, dtype=torch.float64, device="cpu"):
    """Points, and a context where the map takes one."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(n, *module.event_shape, generator=generator, dtype=torch.float64)
    context = torch.randn(n, module.context_features, generator=generator, dtype=torch.float64)
    context = context.to(x) if module.context_features else None
    return x.to(device, dtype), None if context is None else context.to(device, dtype)


@every
def test_each_direction_undoes_the_other(make, dtype, device):
    module = drawn(make, dtype=dtype, device=device)
    x, context = data(module, 200, dtype=dtype, device=device)
    tol = {torch.float32: 3e-5, torch.float64: 1e-12}[dtype]
    z, log_det = module(x, context)
    back, log_det_back = module.inverse(z, context)
    assert z.dtype == log_det.dtype == back.dtype == dtype
    torch.testing.assert_close(back, x, atol=tol, rtol=tol)
    torch.testing.assert_close(log_det_back, -log_det, atol=tol, rtol=tol)
    latent, log_det = module.inverse(x, context)
    torch.testing.assert_close(module(latent, context)[0], x, atol=tol, rtol=tol)
    torch.testing.assert_close(module(latent, context)[1], -log_det, atol=tol, rtol=tol)


@every
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_log_det_is_that_of_the_jacobian(make, direction):
    module = drawn(make, scale=1.0)
    points, contexts = data(module, 8)
    run = getattr(module, direction)
    for i, x in enumerate(points):
        context = None if contexts is None else contexts[i]
        sign, expected = torch.linalg.slogdet(jacobian(lambda x, c=context: run(x, c)[0], x))
        assert sign == 1
        torch.testing.assert_close(run(x, context)[1], expected, atol=1e-9, rtol=1e-9)


@every
def test_a_batch_is_a_loop(make):
    module = drawn(make)
    x, context = data(module, 6)
    shape = lambda v: None if v is None else v.reshape(2, 3, -1)  # noqa: E731
    for run in (module.forward, module.inverse):
        whole = run(shape(x), shape(context))
        each = [run(x[i], None if context is None else context[i]) for i in range(6)]
        for a, b in zip(whole, zip(*each, strict=True), strict=True):
            torch.testing.assert_close(a.flatten(0, 1), torch.stack(b))


@every
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_in_everything(make, direction):
    """Against finite differences: points, context, and each parameter, through both outputs."""
    module = drawn(make, scale=0.7)
    x, context = data(module, 3)
    names, values = zip(*module.named_parameters(), strict=True)
    values = [v.detach().requires_grad_() for v in values]
    inputs = [x.requires_grad_()] + ([] if context is None else [context.requires_grad_()])
    if direction == "inverse":
        module.forward = module.inverse

    def run(*args):
        params = dict(zip(names, args[len(inputs) :], strict=True))
        return functional_call(module, params, args[: len(inputs)])

    assert gradcheck(run, (*inputs, *values), atol=1e-6, rtol=1e-5)


@every
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    exponent=st.floats(-3, 2),
    size=st.sampled_from([0.0, 1e-6, 1.0, 1e3, 1e12]),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_extreme_parameters_and_points(make, exponent, size, seed, dtype):
    """Both directions are finite, with finite gradients."""
    module = drawn(make, 10.0**exponent, seed, dtype)
    x, context = data(module, 20, seed, dtype)
    for run in (module.forward, module.inverse):
        x = (size * x).detach().requires_grad_()
        value, log_det = run(x, context)
        assert value.isfinite().all()
        assert log_det.isfinite().all()
        grads = torch.autograd.grad(value.sum() + log_det.sum(), [x, *module.parameters()])
        assert all(g.isfinite().all() for g in grads)


@every
@settings(max_examples=25, deadline=None, derandomize=True)
@given(exponent=st.floats(-3, 2), seed=st.integers(0, 10**6))
def test_round_trip_at_extreme_parameters(make, exponent, seed):
    """The inverse solves f(x) = z, but for the rounding of z, of x, and of the parameters."""
    module = drawn(make, 10.0**exponent, seed)
    z, context = data(module, 5, seed)
    with torch.no_grad():
        x, _ = module.inverse(z, context)
        again, _ = module(x, context)
    rows = [None] * 5 if context is None else context
    slope = [
        jacobian(lambda x, c=c: module(x, c)[0], p).norm() for p, c in zip(x, rows, strict=True)
    ]
    size = 1 + max(float(p.detach().abs().max()) for p in module.parameters())
    bound = 1e-14 * size**3 + 1e-14 * torch.stack(slope) * (size + x.norm(dim=-1))
    assert ((again - z).norm(dim=-1) < bound).all()


@every
def test_identity_at_first(make):
    module = make().double()
    x, context = data(module, 10)
    for value, log_det in (module(x, context), module.inverse(x, context)):
        torch.testing.assert_close(value, x, atol=1e-13, rtol=0)
        torch.testing.assert_close(log_det, torch.zeros_like(log_det), atol=1e-13, rtol=0)


@every
def test_state_and_pickle(make):
    module, other = drawn(make), make().double()
    other.load_state_dict(module.state_dict())
    x, context = data(module, 4)
    for copy in (other, pickle.loads(pickle.dumps(module))):
        assert all(map(torch.equal, copy(x, context), module(x, context)))


def test_compiles_to_one_graph():
    """In a process of its own, without the shape checks of the tests."""
    code = """
import torch
from lib.bijections.planar import Planar
from lib.bijections.radial import Radial
from lib.bijections.sylvester import Sylvester
torch.manual_seed(0)
for f in (Planar(3, context_features=2), Radial(3), Sylvester(3, hidden=2)):
    c = torch.randn(5, 2) if f.context_features else None
    [p.data.normal_() for p in f.parameters()]
    for run in (f.forward, f.inverse):
        fast = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
        x, y = (torch.linspace(-1, 1, 15).reshape(5, 3).requires_grad_() for _ in range(2))
        for a, b in zip(run(x, c), fast(y, c)):
            torch.testing.assert_close(a, b)
        sum(v.sum() for v in run(x, c)).backward()
        sum(v.sum() for v in fast(y, c)).backward()
        torch.testing.assert_close(x.grad, y.grad)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# --- the scalar equation


def exact_root(kappa, c):
    """Bisection in float64 to the last digit, on t + kappa tanh t in digits that do not cancel."""

    def g(t):
        near = t.clamp(max=4)
        square, tail = near.square(), torch.zeros_like(t)
        for n in range(41, 1, -2):
            tail = square / (n + tail)
        small = (1 + kappa) * near - kappa * near * tail / (1 + tail)
        return torch.where(t < 4, small, t + kappa * t.tanh())

    low, high = torch.zeros_like(c), c + kappa.abs()
    for _ in range(120):
        middle = (low + high) / 2
        below = g(middle) < c
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize("sign", [-1, 1])
def test_solver_for_negative_kappa(dtype, sign, generator):
    """Relative accuracy of the root, down to kappa = -1 + 1e-6."""
    share, height = torch.rand(2, 4_000, generator=generator, dtype=torch.float64)
    kappa, c = (-1 + 10 ** (-6 * share)).to(dtype), (10 ** (12 * height - 8)).to(dtype)
    found = solve_tanh(kappa, sign * c).double()
    expected = sign * exact_root(kappa.double(), c.double())
    tol = {torch.float32: 1e-6, torch.float64: 4e-15}[dtype]
    torch.testing.assert_close(found, expected, rtol=tol, atol=0)


def test_solver_for_positive_kappa(dtype, generator):
    """Accuracy in terms of the conditioning: t moves with the last digit of c and of kappa."""
    kappa, c = 10 ** (10 * torch.rand(2, 4_000, generator=generator, dtype=torch.float64) - 5)
    c[2_000:] = kappa[2_000:] * (1 + 0.1 * torch.randn(2_000, generator=generator).double()).abs()
    kappa, c = kappa.to(dtype), c.to(dtype)
    expected = exact_root(kappa.double(), c.double())
    moved = (c + kappa * expected.tanh()).double() * (
        -log_slope(expected, 1 + kappa.double())
    ).exp()
    error = (solve_tanh(kappa, c).double() - expected).abs() / (expected + moved)
    assert error.max() < 2 * torch.finfo(dtype).eps


def test_solver_gives_the_implicit_gradient(generator):
    """dt/dc = 1 / (1 + kappa sech^2 t) and dt/dkappa = -tanh t dt/dc."""
    kappa = (-1 + 10 ** (3 * torch.randn(500, generator=generator).double())).clamp(-1 + 1e-9)
    c = 5 * torch.randn(500, generator=generator).double()
    kappa.requires_grad_()
    c.requires_grad_()
    t = solve_tanh(kappa, c)
    d_kappa, d_c = torch.autograd.grad(t.sum(), [kappa, c])
    expected = 1 / (t.tanh().square() + (1 + kappa) / t.clamp(-300, 300).cosh().square())
    torch.testing.assert_close(d_c, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(d_kappa, -t.tanh() * expected, rtol=1e-10, atol=1e-15)


def test_solver_at_zero_and_where_all_is_flat(dtype):
    """t(0) = 0, with gradient 1 / (1 + kappa); t(c) -> (3 c)^(1/3) as kappa -> -1."""
    eps = torch.finfo(dtype).eps
    kappa = torch.tensor([-1 + eps, -0.5, 0.0, 1e4], dtype=dtype)
    c = torch.zeros(4, dtype=dtype, requires_grad=True)
    t = solve_tanh(kappa, c)
    assert torch.equal(t, torch.zeros_like(t))
    torch.testing.assert_close(torch.autograd.grad(t.sum(), c)[0], 1 / (1 + kappa))
    small = torch.tensor(1e-5 if dtype == torch.float32 else 1e-8, dtype=dtype)
    root = (3 * small) ** (1 / 3)
    assert abs(solve_tanh(kappa[:1], small) / root - 1) < root**2


def test_log_slope_where_nothing_is_left(dtype):
    """At t = 0 it is log(1 + kappa), though kappa itself would round to -1."""
    slope = torch.tensor([1e-30, 1e-7, 1.0, 1e10], dtype=dtype)
    torch.testing.assert_close(log_slope(torch.zeros(4, dtype=dtype), slope), slope.log())
    far = torch.full((4,), 1e4, dtype=dtype, requires_grad=True)
    value = log_slope(far, slope)
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.autograd.grad(value.sum(), far)[0].isfinite().all()


# --- planar


@pytest.mark.parametrize("dot", [-900.0, -20.0, -1.0, 0.0, 1.0, 900.0])
def test_constraint_keeps_the_map_increasing(dot, dtype):
    """w.u_hat = m(w.u) > -1, u_hat - u is parallel to w, and large w.u stay as they are."""
    w = torch.tensor([3.0, 4.0, 0.0], dtype=dtype)
    u = dot * w / 25 + torch.tensor([0.0, 0.0, 2.0], dtype=dtype)
    u_hat, slope = constrain(w, u)
    assert slope >= torch.finfo(dtype).eps
    torch.testing.assert_close(
        (w * u_hat).sum(), slope - 1, atol=2e-4 / 1e3 * (1 + abs(dot)), rtol=0
    )
    assert u_hat[2] == 2
    expected = math.log1p((math.e - 1) * math.exp(dot)) if dot < 100 else dot + math.log(math.e - 1)
    assert float(slope) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_planar_with_w_zero_is_a_shift(dtype):
    module = drawn(lambda: Planar(3), dtype=dtype)
    with torch.no_grad():
        module.w.zero_()
    x, _ = data(module, 5, dtype=dtype)
    z, log_det = module(x)
    torch.testing.assert_close(z, x + module.u * module.b.tanh())
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), atol=1e-6, rtol=0)
    torch.testing.assert_close(module.inverse(z)[0], x)


@pytest.mark.parametrize("size", [1e-1, 1e-6, 1e-12, 1e-25])
def test_planar_stays_bounded_as_w_vanishes(size, dtype):
    """No direction of w makes the displacement larger than that of u."""
    w = torch.tensor([0.6, -0.8], dtype=dtype) * size
    u = torch.tensor([-1.0, 2.0], dtype=dtype)
    u_hat, _ = constrain(w, u)
    assert u_hat.norm() < 1.1 * u.norm()


def test_planar_close_to_singular():
    """w.u_hat = -1 + 1e-6, where f is nearly a cube: ten digits of x come back."""
    module = Planar(2).double()
    with torch.no_grad():
        module.w.copy_(torch.tensor([1.0, 0.0]))
        module.u.copy_(torch.tensor([-14.36, 0.5]))  # log(1 + (e - 1) e^a) = 1e-6
    x = torch.linspace(-1e-2, 1e-2, 101).double()[:, None] * torch.tensor([1.0, 1.0])
    z, log_det = module(x)
    torch.testing.assert_close(float(log_det[50].detach()), math.log(1e-6), atol=1e-2, rtol=0)
    torch.testing.assert_close(module.inverse(z)[0], x, atol=1e-10, rtol=0)


# --- radial


def test_radial_at_its_centre():
    """x = x0 stays, with Jacobian (1 + beta / alpha) I, in both directions."""
    for features in (1, 3):
        module = drawn(lambda n=features: Radial(n), scale=1.0)
        centre = module.centre.detach().clone().requires_grad_()
        slope = (
            torch.nn.functional.softplus(module.b) / torch.nn.functional.softplus(module.a)
        ).detach()
        for run, factor in ((module.forward, slope), (module.inverse, 1 / slope)):
            value, log_det = run(centre)
            torch.testing.assert_close(value, centre)
            torch.testing.assert_close(log_det, features * factor.log())
            torch.testing.assert_close(
                jacobian(lambda x, run=run: run(x)[0], centre),
                factor * torch.eye(features).double(),
            )
            grads = torch.autograd.grad(log_det, [centre, *module.parameters()])
            assert all(g.isfinite().all() for g in grads)


def test_radial_is_the_papers_formula():
    """z = x + beta (x - x0) / (alpha + r), its log-determinant term by term."""
    module = drawn(lambda: Radial(4), scale=1.0)
    x, _ = data(module, 50)
    alpha, s = (torch.nn.functional.softplus(p.detach()) for p in (module.a, module.b))
    beta, r = s - alpha, (x - module.centre).norm(dim=-1)
    h = 1 / (alpha + r)
    z, log_det = module(x)
    torch.testing.assert_close(z, x + (beta * h)[:, None] * (x - module.centre))
    expected = 3 * torch.log(1 + beta * h) + torch.log(1 + beta * h - beta * r * h**2)
    torch.testing.assert_close(log_det, expected)


@pytest.mark.parametrize("b", [-1e3, -30.0, 1e3])
def test_radial_close_to_singular(b, dtype):
    """Where beta is all but -alpha, z = r / (alpha + r) (x - x0), and it still inverts."""
    module = drawn(lambda: Radial(2), dtype=dtype)
    with torch.no_grad():
        module.b.fill_(b)
    x, _ = data(module, 100, dtype=dtype)
    z, log_det = module(x)
    back, log_det_back = module.inverse(z)
    tol = {torch.float32: 3e-4, torch.float64: 1e-11}[dtype]
    torch.testing.assert_close(back, x, atol=tol, rtol=tol)
    torch.testing.assert_close(log_det_back, -log_det, atol=tol, rtol=tol)


@pytest.mark.parametrize("length", [1e-30, 1e25])
def test_radial_at_lengths_whose_squares_leave_float32(length):
    module = drawn(lambda: Radial(2), dtype=torch.float32)
    with torch.no_grad():
        module.centre.zero_()
    x = length * torch.tensor([0.6, 0.8])
    z, log_det = module(x)
    torch.testing.assert_close(module.inverse(z)[0] / length, x / length)
    expected, _ = module.double()(x.double())
    torch.testing.assert_close(z.double() / length, expected / length, rtol=1e-6, atol=1e-6)
    assert log_det.isfinite()


def test_a_hundred_radial_maps_learn_a_density_on_the_line():
    """From the identity, by gradient alone: two modes at -2 and 2, in nats per point."""
    torch.manual_seed(0)
    flow = Compose([Radial(1) for _ in range(100)])
    x = 0.5 * torch.randn(128, 1) + 2 * torch.randn(128, 1).sign()

    def loss():
        z, log_det = flow(x)
        return (0.5 * z.square().sum(-1) + 0.5 * math.log(2 * math.pi) - log_det).mean()

    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    first = float(loss().detach())
    for _ in range(60):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25) + math.log(2)
    assert float(value.detach()) - entropy < 0.25 * (first - entropy)
    z, _ = flow(x)
    torch.testing.assert_close(flow.inverse(z)[0], x, atol=1e-3, rtol=0)


# --- Sylvester


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e2])
def test_sylvester_has_orthonormal_columns_and_triangles(scale, dtype):
    module = drawn(lambda: Sylvester(12, hidden=5), scale=scale, dtype=dtype)
    Q, R, inner, slope = module.matrices()
    eye = torch.eye(5, dtype=dtype)
    torch.testing.assert_close(Q.T @ Q, eye, atol=30 * torch.finfo(dtype).eps, rtol=0)
    assert torch.equal(R.triu(), R)
    assert torch.equal(inner.triu(), inner)
    expected = 1 + R.diagonal() * inner.diagonal()
    bound = 8 * torch.finfo(dtype).eps * (1 + (module.outer.diagonal() * inner.diagonal()).abs())
    assert ((slope - expected).abs() <= bound).all()
    assert (slope > 0).all()


def test_sylvester_with_one_unit_is_planar():
    """w = r~ q and u = r q, with the same constraint."""
    sylvester, planar = drawn(lambda: Sylvester(3, hidden=1), scale=1.0), Planar(3).double()
    Q, _, inner, _ = sylvester.matrices()
    with torch.no_grad():
        planar.w.copy_(Q[:, 0] * inner[0, 0])
        planar.u.copy_(Q[:, 0] * sylvester.outer[0, 0])
        planar.b.copy_(sylvester.bias[0])
    x, _ = data(planar, 20)
    for a, b in ((sylvester(x), planar(x)), (sylvester.inverse(x), planar.inverse(x))):
        torch.testing.assert_close(a, b)


def test_sylvester_leaves_the_complement_alone():
    module = drawn(lambda: Sylvester(6, hidden=2), scale=1.0)
    x, _ = data(module, 10)
    Q = module.matrices()[0]
    away = torch.eye(6).double() - Q @ Q.T
    torch.testing.assert_close(module(x)[0] @ away, x @ away)


# --- refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Planar(0), "features: expected an integer of at least 1, got 0"),
        (lambda: Planar(2, context_features=-1), "context_features: expected an integer"),
        (lambda: Radial(1.5), "features: expected an integer"),
        (lambda: Sylvester(3, hidden=4), "hidden: expected at most features = 3, got 4"),
        (lambda: Sylvester(3, hidden=0), "hidden: expected an integer of at least 1"),
        (lambda: Planar(2)(torch.zeros(5, 3)), r"x: expected shape \(\*batch, 2\)"),
        (lambda: Radial(2).inverse(torch.zeros(5, 3)), r"z: expected shape \(\*batch, 2\)"),
        (lambda: Radial(2, context_features=1)(torch.zeros(5, 2)), "context: expected a tensor"),
        (lambda: Sylvester(2)(torch.zeros(2), torch.zeros(1)), "context: expected None"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
