"""Permutation, activation normalisation, LU and orthogonal maps, of vectors and of images."""

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
from lib.bijections.linear import ActNorm, LULinear, Orthogonal, Permutation, householder

IMAGE = (3, 2, 4)
MAKE = {
    "permutation": lambda: Permutation([2, 0, 3, 1]),
    "permutation, image": lambda: Permutation([2, 0, 1], event_dim=3),
    "actnorm": lambda: ActNorm(4),
    "actnorm, image": lambda: ActNorm(3, event_dim=3),
    "lu": lambda: LULinear(4),
    "lu, one feature": lambda: LULinear(1),
    "lu, image": lambda: LULinear(3, event_dim=3),
    "lu, no bias": lambda: LULinear(4, bias=False),
    "orthogonal": lambda: Orthogonal(4, generator=torch.Generator().manual_seed(0)),
    "orthogonal, one feature": lambda: Orthogonal(1),
    "orthogonal, image": lambda: Orthogonal(3, event_dim=3),
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
    generator = torch.Generator().manual_seed(seed)
    event = module.event_shape if module.event_dim == 1 else IMAGE
    return 2 * torch.randn(n, *event, generator=generator, dtype=torch.float64).to(device, dtype)


@every
def test_each_direction_undoes_the_other(make, dtype, device):
    module = drawn(make, dtype=dtype, device=device)
    x = data(module, 50, dtype=dtype, device=device)
    tol = {torch.float32: 2e-5, torch.float64: 1e-13}[dtype]
    for there, back in ((module.forward, module.inverse), (module.inverse, module.forward)):
        z, log_det = there(x)
        again, log_det_back = back(z)
        assert z.dtype == log_det.dtype == dtype
        assert log_det.shape == (50,)
        torch.testing.assert_close(again, x, atol=tol, rtol=tol)
        assert torch.equal(log_det_back, -log_det)


@every
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_log_det_is_that_of_the_jacobian(make, direction):
    module = drawn(make, scale=1.0)
    x = data(module, 1)[0]
    run = getattr(module, direction)
    matrix = jacobian(lambda x: run(x)[0], x).reshape(x.numel(), x.numel())
    expected = torch.linalg.slogdet(matrix).logabsdet
    torch.testing.assert_close(run(x)[1], expected, atol=1e-12, rtol=1e-12)


@every
def test_a_batch_is_a_loop(make):
    module = drawn(make)
    x = data(module, 6)
    for run in (module.forward, module.inverse):
        whole = run(x.unflatten(0, (2, 3)))
        each = zip(*map(run, x), strict=True)
        for a, b in zip(whole, each, strict=True):
            torch.testing.assert_close(a.flatten(0, 1), torch.stack(b))
        empty, log_det = run(x[:0])
        assert empty.shape == x[:0].shape
        assert log_det.shape == (0,)


@every
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_in_everything(make, direction):
    """Against finite differences, through both outputs, in the points and in each parameter."""
    module = drawn(make)
    x = data(module, 2).requires_grad_()
    names = [n for n, _ in module.named_parameters()]
    values = [p.detach().requires_grad_() for p in module.parameters()]
    if direction == "inverse":
        module.forward = module.inverse

    def run(x, *values):
        return functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(run, (x, *values), atol=1e-7, rtol=1e-6)


@every
@settings(max_examples=20, deadline=None, derandomize=True)
@given(exponent=st.floats(-3, 2), seed=st.integers(0, 10**6))
def test_extreme_parameters(make, exponent, seed):
    """Finite values and gradients; log_det is exact, and minus that of the other direction."""
    module = drawn(make, 10.0**exponent, seed)
    with torch.no_grad():
        for name, p in module.named_parameters():  # exp(700) is the largest that float64 has
            if name.startswith("log_"):
                p.clamp_(-100, 100)
    x = data(module, 5, seed).requires_grad_()
    dets = []
    for run in (module.forward, module.inverse):
        value, log_det = run(x)
        dets.append(log_det)
        total = value.sum() + log_det.sum()
        grads = torch.autograd.grad(total, [x, *module.parameters()])
        assert all(v.isfinite().all() for v in (value, log_det, *grads))
    assert torch.equal(dets[0], -dets[1])


@every
def test_state_and_pickle(make):
    module, other = drawn(make), drawn(make, seed=5)
    other.load_state_dict(module.state_dict())
    x = data(module, 4)
    for copy in (other, pickle.loads(pickle.dumps(module))):
        assert all(map(torch.equal, copy(x), module(x)))
        assert all(map(torch.equal, copy.inverse(x), module.inverse(x)))


def test_compiles_to_one_graph():
    """In a process of its own, without the shape checks of the tests."""
    code = """
import torch
from lib.bijections.linear import ActNorm, LULinear, Orthogonal, Permutation
makes = [lambda n, d: Permutation.reverse(n, event_dim=d)]
makes += [lambda n, d, c=c: c(n, event_dim=d) for c in (ActNorm, LULinear, Orthogonal)]
for make in makes:
    for dim, event in ((1, (3,)), (3, (3, 2, 4))):
        f = make(3, dim)
        for run in (f.forward, f.inverse):
            x = torch.randn(5, *event)
            fast = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
            for a, b in zip(run(x), fast(x)):
                torch.testing.assert_close(a, b)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("make", [ActNorm, LULinear], ids=["actnorm", "lu"])
@pytest.mark.parametrize("event_dim", [1, 3])
def test_identity_at_first(make, event_dim):
    module = make(3, event_dim=event_dim)
    x = data(module, 4, dtype=torch.float32)
    for value, log_det in (module(x), module.inverse(x)):
        assert torch.equal(value, x)
        assert torch.equal(log_det, torch.zeros(4))


@pytest.mark.parametrize("make", [ActNorm, LULinear, Orthogonal], ids=["actnorm", "lu", "orth"])
def test_an_image_is_a_vector_at_each_place(make):
    """The 1x1 convolution: channels are mapped alike everywhere, log_det adds up over H W."""
    image = drawn(lambda: make(3, event_dim=3))
    vector = drawn(lambda: make(3))
    vector.load_state_dict(image.state_dict())
    x = data(image, 5)
    for a, b in ((image.forward, vector.forward), (image.inverse, vector.inverse)):
        (z, log_det), (rows, each) = a(x), b(x.movedim(1, -1))
        torch.testing.assert_close(z, rows.movedim(-1, 1))
        torch.testing.assert_close(log_det, each.sum((1, 2)))


# --- permutation


def test_permutation_moves_entries():
    x = torch.tensor([10.0, 11.0, 12.0, 13.0])
    z, log_det = Permutation([2, 0, 3, 1])(x)
    assert z.tolist() == [12, 10, 13, 11]
    assert log_det == 0
    assert Permutation.reverse(4)(x)[0].tolist() == [13, 12, 11, 10]


def test_random_permutation_follows_its_generator():
    first, again = (Permutation.random(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.order, again.order)
    assert sorted(first.order.tolist()) == list(range(50))
    assert not torch.equal(first.order, Permutation.reverse(50).order)


# --- activation normalisation


@pytest.mark.parametrize("event", [(3,), IMAGE])
def test_actnorm_standardises_the_batch_it_was_initialised_with(event, dtype, generator):
    module = ActNorm(3, event_dim=len(event)).to(dtype)
    spread = torch.tensor([1e-3, 1.0, 1e3], dtype=dtype).reshape(-1, *[1] * (len(event) - 1))
    x = spread * (5 + torch.randn(200, *event, generator=generator).to(dtype))
    before = x.clone()
    module.initialise(x)
    assert torch.equal(x, before)
    channels = module(x)[0].movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(channels.mean(0), torch.zeros(3, dtype=dtype), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        channels.std(0, correction=0), torch.ones(3, dtype=dtype), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, 1e-20])
def test_actnorm_survives_a_constant_feature(value, dtype):
    """Its scale is 1, and it is only moved to 0."""
    module = ActNorm(2).to(dtype)
    x = torch.full((1000, 2), value, dtype=dtype)
    x[:, 1] = torch.linspace(0, 1, 1000)
    module.initialise(x)
    assert module.log_scale[0] == 0
    torch.testing.assert_close(module.loc[0].detach(), x[0, 0])
    assert float(module.log_scale[1].detach()) == pytest.approx(-math.log(12) / 2, rel=1e-2)


def test_actnorm_from_a_single_event():
    module = ActNorm(2)
    for x in (torch.tensor([3.0, -1.0]), torch.tensor([[3.0, -1.0]])):
        module.initialise(x)
        assert torch.equal(module(x)[0], torch.zeros_like(x))


def test_actnorm_changes_only_when_told(generator):
    """A call, in training mode too, sets nothing; `Compose` passes the batch from map to map."""
    module = Compose([ActNorm(3), LULinear(3), ActNorm(3)]).train()
    with torch.no_grad():
        module[1].upper.normal_(generator=generator)
        module[1].log_diagonal.fill_(1.0)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    x = 3 + 2 * torch.randn(100, 3, generator=generator)
    module(x)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    module.initialise(x)
    z = module(x)[0]
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3))
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)


# --- LU and orthogonal


def test_lu_is_the_product_of_its_factors():
    module = drawn(lambda: LULinear(5))
    L, U = module.factors()
    assert torch.equal(L.diagonal(), torch.ones(5).double())
    assert torch.equal(L, L.tril())
    assert torch.equal(U, U.triu())
    assert (U.diagonal() > 0).all()
    x = data(module, 7)
    torch.testing.assert_close(module(x)[0], x @ (L @ U).T + module.bias)
    assert "bias" not in LULinear(5, bias=False).state_dict()


def test_lu_log_det_keeps_its_digits_where_the_determinant_underflows():
    module = LULinear(300)
    with torch.no_grad():
        module.log_diagonal.fill_(-1.0)
    assert module(torch.zeros(300))[1] == -300


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e2, 1e6])
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (60, 60), (60, 9)])
def test_householder_is_orthonormal_to_working_precision(scale, shape, dtype, generator):
    vectors = scale * torch.randn(shape, generator=generator).to(dtype)
    Q = householder(vectors)
    eye = torch.eye(shape[1], dtype=dtype)
    torch.testing.assert_close(Q.T @ Q, eye, atol=60 * torch.finfo(dtype).eps, rtol=0)


def test_householder_is_the_product_of_reflections(generator):
    vectors = torch.randn(5, 3, generator=generator).double()
    product = torch.eye(5).double()
    for k in range(3):
        v = torch.cat([torch.zeros(k), torch.ones(1), vectors[k + 1 :, k]]).double()
        product = product @ (torch.eye(5) - 2 * torch.outer(v, v) / v.dot(v))
    torch.testing.assert_close(householder(vectors), product[:, :3])


def test_orthogonal_keeps_lengths_and_its_inverse_is_the_transpose(dtype, generator):
    module = Orthogonal(20, generator=generator).to(dtype)
    Q = module.matrix()
    x = data(module, 10, dtype=dtype)
    torch.testing.assert_close(module(x)[0].norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(module(x)[0], x @ Q.T)
    torch.testing.assert_close(module.inverse(x)[0], x @ Q)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(Q.T @ Q, torch.eye(20, dtype=dtype), atol=30 * eps, rtol=0)


def test_orthogonal_starts_uniformly():
    """Entries have mean 0 and variance 1/n, the trace has mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([Orthogonal(3, generator=generator).matrix() for _ in range(2000)]).detach()
    error = 4 / math.sqrt(2000)
    assert (draws.mean(0).abs() < error * math.sqrt(1 / 3)).all()
    assert ((draws.square().mean(0) - 1 / 3).abs() < error * 0.3).all()
    trace = draws.diagonal(dim1=1, dim2=2).sum(-1)
    assert abs(trace.mean()) < error
    assert abs(trace.square().mean() - 1) < error * math.sqrt(2)
    first, again = (
        Orthogonal(6, generator=torch.Generator().manual_seed(1)).matrix() for _ in range(2)
    )
    assert torch.equal(first, again)


# --- refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Permutation([0, 2]), "order: expected each of 0, ..., features - 1 once"),
        (lambda: Permutation([]), "order: expected each of"),
        (lambda: Permutation([0, 0, 1]), "order: expected each of"),
        (lambda: Permutation([0.5, 1]), "order: expected an integer"),
        (lambda: Permutation(3), "order: expected a sequence of integers, got int"),
        (lambda: Permutation.reverse(0), "features: expected an integer of at least 1"),
        (lambda: ActNorm(0), "features: expected an integer of at least 1, got 0"),
        (lambda: ActNorm(3, event_dim=0), "event_dim: expected an integer of at least 1"),
        (lambda: LULinear(-1), "features: expected"),
        (lambda: Orthogonal(2.5), "features: expected"),
        (lambda: ActNorm(3).initialise(torch.zeros(0, 3)), "x: expected at least one event"),
        (lambda: ActNorm(3).initialise(torch.zeros(4, 2)), r"x: expected shape \(\*batch, 3\)"),
        (lambda: LULinear(3, event_dim=3)(torch.zeros(2, 4, 4)), r"shape \(\*batch, 3, any, any\)"),
        (lambda: LULinear(3).inverse(torch.zeros(3, dtype=torch.int64)), "z: expected a tensor of"),
        (lambda: Orthogonal(3)(torch.zeros(3), torch.zeros(1)), "context: expected None"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
