"""Maps of single numbers: references with more digits, both ends, and what lies beyond."""

import math
import pickle

import numpy as np
import pytest
import scipy.special
import torch
from torch.autograd import grad
from torch.distributions import Normal

from lib.bijections.base import Compose, Inverse
from lib.bijections.elementwise import Affine, Logit, NormalCDF, Sigmoid, Softplus, Tanh

FIXED = {"sigmoid": Sigmoid, "normal": NormalCDF, "softplus": Softplus, "tanh": Tanh}
EVERY = {
    **FIXED,
    "logit": Logit,
    "affine": lambda: Affine(-0.5, 3.0),
    "affine vector": lambda: Affine([1.0, -2.0, 0.0], [0.1, 1.0, 10.0]),
    "affine learnable": lambda: Affine(0.3, 2.0, learnable=True),
}


@pytest.fixture(params=EVERY)
def bijection(request):
    return EVERY[request.param]()


def points(bijection, generator, n=50):
    """Data of three features, inside of the domain."""
    share = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    return share if isinstance(bijection, Logit) else 12 * (share - 0.5)


def shares(dtype):
    """Numbers in (0, 1), from the smallest normal float up to the last float before 1."""
    info = torch.finfo(dtype)
    below = torch.logspace(math.log10(info.tiny) + 0.01, -0.31, 999, dtype=torch.float64)
    above = 1 - torch.logspace(math.log10(info.eps / 2), -0.31, 999, dtype=torch.float64)
    return torch.cat([below, above]).to(dtype).clamp(max=1 - info.eps / 2)


def eps(dtype, ulps=4):
    return ulps * torch.finfo(dtype).eps


def close(found, reference, dtype, ulps=4):
    """Equal up to a few roundings of the larger of the value and 1."""
    np.testing.assert_allclose(
        found.detach().cpu().double(), np.float64(reference), rtol=eps(dtype, ulps),
        atol=eps(dtype, ulps),
    )  # fmt: skip


# --- both directions


def test_inverse_undoes_forward(bijection, generator, dtype, device):
    x = points(bijection, generator).to(device, dtype)
    z, log_det = bijection.to(device, dtype)(x)
    back, minus = bijection.inverse(z)
    assert z.dtype == log_det.dtype == back.dtype == dtype
    # The slope of the map says how much of the precision of z reaches x.
    loss = eps(dtype, 64) * (1 + (-log_det.detach()).exp().max())
    torch.testing.assert_close(back, x, rtol=0, atol=float(loss))
    torch.testing.assert_close(minus, -log_det, rtol=1e-3, atol=float(loss))


def test_log_det_is_the_log_slope_of_both_directions(bijection, generator):
    bijection = bijection.double()
    x = points(bijection, generator).requires_grad_()
    z, log_det = bijection(x)
    (slope,) = grad(z.sum(), x)
    expected = slope.log().sum(-1) if bijection.event_dim else slope.log()
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)
    z = z.detach().requires_grad_()
    back, log_det = bijection.inverse(z)
    (slope,) = grad(back.sum(), z)
    expected = slope.log().sum(-1) if bijection.event_dim else slope.log()
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)


def test_log_det_has_the_shape_of_the_batch(bijection):
    for batch in [(), (0,), (4,), (2, 5)]:
        x = torch.full((*batch, 3), 0.25)
        z, log_det = bijection(x)
        assert z.shape == x.shape
        assert log_det.shape == (batch if bijection.event_dim else x.shape)


def test_one_graph(bijection, generator, unchecked):
    x = points(bijection, generator).float()
    z, log_det = bijection(x)
    torch.compiler.reset()
    compiled = torch.compile(bijection, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), (z, log_det))
    inverse = torch.compile(bijection.inverse, backend="eager", fullgraph=True)
    torch.testing.assert_close(inverse(z), bijection.inverse(z))


def test_pickle_and_state(bijection, generator):
    x = points(bijection, generator).float()
    copy = pickle.loads(pickle.dumps(bijection))
    copy.load_state_dict(bijection.state_dict())
    torch.testing.assert_close(copy(x), bijection(x), rtol=0, atol=0)


# --- digits


def test_logit_has_its_digits_at_both_ends(dtype):
    p = shares(dtype)
    exact = p.numpy().astype(np.longdouble)
    z, log_det = Logit()(p)
    close(z, np.log(exact) - np.log1p(-exact), dtype)
    close(log_det, -np.log(exact) - np.log1p(-exact), dtype)


def test_normal_quantile_has_its_digits_at_both_ends(dtype):
    p = shares(dtype)
    exact = p.double().numpy()
    z, log_det = Inverse(NormalCDF())(p)
    quantile = np.where(exact < 0.5, 1, -1) * scipy.special.ndtri(np.minimum(exact, 1 - exact))
    close(z, quantile, dtype, 8)
    close(log_det, (quantile**2 + math.log(2 * math.pi)) / 2, dtype, 8)


def test_normal_cdf_keeps_relative_precision_in_the_lower_tail(dtype):
    edge = 13 if dtype == torch.float32 else 37
    x = torch.linspace(-edge, edge, 999, dtype=dtype)
    exact = torch.from_numpy(scipy.special.ndtr(x.double().numpy()))
    ratio = NormalCDF()(x)[0].double() / exact
    # An error of one rounding in x changes Phi by |x| x eps, relatively.
    assert (ratio - 1).abs().max() < eps(dtype, edge**2)
    torch.testing.assert_close(NormalCDF()(x)[1], Normal(0.0, 1.0).log_prob(x))


def test_log_slopes_far_out(dtype):
    x = torch.tensor([-1e4, -100.0, -12.0, -9.0, 0.0, 1e-3, 9.0, 12.0, 100.0, 1e4], dtype=dtype)
    exact = x.numpy().astype(np.longdouble)
    softplus = np.logaddexp(0, -np.abs(exact)) + np.maximum(exact, 0)
    close(Softplus()(x)[0], softplus, dtype)
    close(Softplus()(x)[1], -(softplus - exact), dtype)
    close(Sigmoid()(x)[1], -softplus - (softplus - exact), dtype)
    tanh = 2 * (np.log(np.longdouble(2)) - np.abs(exact) - np.log1p(np.exp(-2 * np.abs(exact))))
    close(Tanh()(x)[1], tanh, dtype)


def test_tanh_where_one_minus_square_is_lost():
    # log(1 - tanh^2) in float32 is -inf at 12 and 0.67 off at 9.
    log_det = Tanh()(torch.tensor([9.0, 12.0]))[1]
    torch.testing.assert_close(log_det, torch.tensor([-16.613706, -22.613706]), rtol=1e-6, atol=0)


def test_softplus_inverse_small_and_large(dtype):
    z = torch.logspace(-37, 30, 500, dtype=torch.float64).to(dtype)
    exact = z.numpy().astype(np.longdouble)
    x, log_det = Softplus().inverse(z)
    close(x, exact + np.log(-np.expm1(-exact)), dtype)
    close(log_det, -np.log(-np.expm1(-exact)), dtype)


def test_softplus_sees_beyond_twenty():
    x = torch.tensor([21.0, 25.0, 30.0], dtype=torch.float64)
    exact = x + torch.log1p((-x).exp())
    torch.testing.assert_close(Softplus()(x)[0], exact, rtol=1e-16, atol=0)


# --- ends


@pytest.mark.parametrize("name", ["sigmoid", "normal", "tanh", "softplus"])
def test_ends_are_finite_and_equal_the_nearest_float_inside(name, dtype, device):
    inverse = Inverse(FIXED[name]())
    info = torch.finfo(dtype)
    low = {"tanh": -1.0}.get(name, 0.0)
    inner_low = {"tanh": -1 + info.eps / 2}.get(name, info.tiny)
    ends, inner = [low], [inner_low]
    if name != "softplus":
        ends, inner = [low, 1.0], [inner_low, 1 - info.eps / 2]
    on, inside = (torch.tensor(v, dtype=dtype, device=device) for v in (ends, inner))
    assert torch.isfinite(inverse(on)[0]).all()
    assert torch.isfinite(inverse(on)[1]).all()
    torch.testing.assert_close(inverse(on), inverse(inside), rtol=0, atol=0)


@pytest.mark.parametrize("name", FIXED)
def test_outside_is_minus_infinity_without_gradient(name, dtype, device):
    inverse = Inverse(FIXED[name]())
    low = -1.0 if name == "tanh" else 0.0
    outside = [np.nextafter(low, -9), low - 1e-3, low - 1, -1e30, -math.inf, math.inf]
    if name != "softplus":
        outside += [1 + float(torch.finfo(dtype).eps), 1.1, 1e30]
    outside[0] = -torch.finfo(dtype).tiny if low == 0 else low - float(torch.finfo(dtype).eps)
    y = torch.tensor(outside, dtype=dtype, device=device).requires_grad_()
    x, log_det = inverse(y)
    assert torch.isfinite(x).all()
    assert (log_det == -math.inf).all()
    for value in (x, log_det):
        (slope,) = grad(value.sum(), y, retain_graph=True)
        assert (slope == 0).all()


@pytest.mark.parametrize("name", FIXED)
def test_gradients_are_finite_at_every_float(name, dtype):
    inverse = Inverse(FIXED[name]())
    tiny = torch.finfo(dtype).tiny
    special = torch.tensor([0.0, 1.0, tiny, -tiny, tiny / 4, 5e-324, 0.5], dtype=dtype)
    for f, v in [(inverse, torch.cat([shares(dtype), special])), (FIXED[name](), special * 1e10)]:
        v = v.requires_grad_()
        z, log_det = f(v)
        for value in (z, log_det.clamp(min=-1e30)):
            (slope,) = grad(value.sum(), v, retain_graph=True)
            assert torch.isfinite(slope).all()


def test_ends_of_tanh_are_alike(dtype):
    y = torch.cat([shares(dtype), torch.tensor([1.0, 1.5], dtype=dtype)])
    (high, high_det), (low, low_det) = Tanh().inverse(y), Tanh().inverse(-y)
    torch.testing.assert_close(high, -low, rtol=0, atol=0)
    torch.testing.assert_close(high_det, low_det, rtol=0, atol=0)


def test_nan_stays_nan():
    assert Logit()(torch.tensor([math.nan]))[0].isnan().all()


# --- with a base


@pytest.mark.parametrize(("cdf", "base"), [(Sigmoid, "logistic"), (NormalCDF, "normal")])
def test_base_through_its_own_cdf_is_uniform(cdf, base, dtype):
    x = shares(dtype)
    z, log_det = Inverse(cdf())(x)
    if base == "normal":
        log_base = Normal(0.0, 1.0).log_prob(z)
    else:
        log_base = -2 * torch.logaddexp(z / 2, -z / 2)  # the logistic density
    close(log_base + log_det, np.zeros(len(x)), dtype, 400)


def test_logit_normal_density_has_mass_one():
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = torch.from_numpy((nodes + 1) / 2)
    z, log_det = Logit()(x)
    density = (Normal(0.5, 1.5).log_prob(z) + log_det).exp()
    assert abs(float(density @ torch.from_numpy(weights)) / 2 - 1) < 1e-6


def test_outside_one_feature_is_outside_of_the_box():
    flow = Compose([Logit(), Affine([0.0, 0.0], [1.0, 2.0])])
    x = torch.tensor([[0.5, 0.5], [0.5, 1.5], [1.0, 0.0]])
    log_prob = Normal(0.0, 1.0).log_prob(flow(x)[0]).sum(-1) + flow(x)[1]
    assert torch.isfinite(log_prob).tolist() == [True, False, True]
    assert log_prob[1] == -math.inf


# --- affine


def test_affine_is_standardising(dtype):
    f = Affine([1.0, -2.0], [0.5, 4.0]).to(dtype)
    x = torch.tensor([[1.0, -2.0], [1.5, 2.0]], dtype=dtype)
    z, log_det = f(x)
    torch.testing.assert_close(z, torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=dtype))
    torch.testing.assert_close(log_det, torch.full((2,), -math.log(2), dtype=dtype))


def test_fixed_affine_keeps_float64_numbers():
    x = torch.tensor([0.1], dtype=torch.float64)
    assert Affine(0.1, 0.3).double()(x)[0] == 0
    assert not list(Affine(0.1, 0.3).parameters())


def test_learnable_affine_fits_mean_and_deviation(generator):
    x = 3 + 0.2 * torch.randn(500, 1, generator=generator, dtype=torch.float64)
    f = Affine([0.0], [1.0], learnable=True).double()
    optimiser = torch.optim.LBFGS(f.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        z, log_det = f(x)
        value = -(Normal(0.0, 1.0).log_prob(z).sum(-1) + log_det).mean()
        value.backward()
        return value

    optimiser.step(loss)
    torch.testing.assert_close(f.loc.detach(), x.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        f.log_scale.exp().detach(), x.std(0, correction=0), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("value", [-1e3, -60.0, 60.0, 1e3])
def test_affine_with_extreme_parameters_stays_finite(value, dtype):
    f = Affine(0.0, 1.0, learnable=True).to(dtype)
    with torch.no_grad():
        f.log_scale.fill_(value)
    x = torch.tensor([0.0, 1.0, -1e6], dtype=dtype).requires_grad_()
    for direction in (f, f.inverse):
        y, log_det = direction(x)
        slopes = grad(y.sum() + log_det.sum(), [x, *f.parameters()])
        assert all(torch.isfinite(t).all() for t in (y, log_det, *slopes))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0.0, 0.0), "scale"),
        ((0.0, -1.0), "scale"),
        ((math.nan, 1.0), "loc"),
        ((0.0, math.inf), "scale"),
        (([[1.0]], 1.0), "loc"),
        (([1.0, 2.0], [1.0, 2.0, 3.0]), "loc and scale"),
    ],
)
def test_affine_refuses(arguments, named, unchecked):
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        Affine(*arguments)


def test_learnable_affine_refuses_a_scale_out_of_reach():
    with pytest.raises(ValueError, match=r"^scale: expected"):
        Affine(0.0, 1e30, learnable=True)


def test_refuses_integers_and_context(unchecked):
    with pytest.raises(ValueError, match=r"^x: expected a tensor of floating"):
        Sigmoid()(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"^context: expected None"):
        Logit()(torch.tensor([0.5]), torch.zeros(1, 2))
