"""Supports: ends, outside, mass one, and measures that are what the docstrings say."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch.autograd import grad
from torch.autograd.functional import jacobian
from torch.distributions import Dirichlet, Normal, biject_to

from lib.bijections.base import Inverse
from lib.bijections.elementwise import SoftUniform
from lib.bijections.support import Ball, HalfLine, Interval, Segments, Simplex

ROADS = torch.tensor(
    [
        [[0.0, 0.0], [2.0, 0.0]],
        [[2.0, 0.0], [2.0, 1.0]],
        [[2.0, 0.0], [5.0, 4.0]],
        [[-1.0, 3.0], [-4.0, 3.0]],
    ],
    dtype=torch.float64,
)  # lengths 2, 1, 5, 3; three of them meet in (2, 0)

EVERY = {
    "logistic": lambda: Interval(1.0, 2.5),
    "normal": lambda: Interval(-3.0, -1.0, "normal"),
    "soft": lambda: Interval([0.0, -1.0], 3.0, "soft"),
    "uniform": lambda: Interval(1.0, 2.5, "uniform"),
    "box": lambda: Interval([0.0, -1.0, 10.0], [1.0, 1.0, 10.5]),
    "normal box": lambda: Interval([0.0, -1.0, 10.0], 20.0, "normal"),
    "above": lambda: HalfLine(2.0),
    "below": lambda: HalfLine([1.0, 2.0, -3.0], -1),
    "simplex": lambda: Simplex(3),
    "ball": lambda: Ball(3, 2.0),
    "segments": lambda: Segments(ROADS),
}


@pytest.fixture(params=EVERY)
def bijection(request):
    return EVERY[request.param]()


def latents(bijection, generator, n=40):
    """Points of the latent space, so that `inverse` gives data of the support."""
    if isinstance(bijection, Segments):
        return 11 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    size = bijection.latent_shape or (3,)
    z = torch.randn(n, *size, generator=generator, dtype=torch.float64)
    return z.sigmoid() if getattr(bijection, "kind", "") == "uniform" else z


def eps(dtype, ulps=4):
    return ulps * torch.finfo(dtype).eps


def mass(weights, log_prob):
    return float(torch.as_tensor(weights) @ log_prob.exp())


def legendre(low, high, n):
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(low + (high - low) * (nodes + 1) / 2), weights * (high - low) / 2


def standard(z, dims=1):
    log_prob = Normal(0.0, 1.0).log_prob(z)
    return log_prob.flatten(-dims).sum(-1) if dims else log_prob


# --- both directions


def test_inverse_and_forward_undo_each_other(bijection, generator, dtype, device):
    z = latents(bijection, generator).to(device, dtype)
    x, minus = bijection.to(device).inverse(z)
    again, log_det = bijection(x)
    assert x.dtype == minus.dtype == again.dtype == log_det.dtype == dtype
    tolerance = {"rtol": eps(dtype, 2000), "atol": eps(dtype, 2000)}
    torch.testing.assert_close(again, z, **tolerance)
    torch.testing.assert_close(log_det, -minus, **tolerance)
    assert bijection.contains(x).all()


def test_log_det_is_that_of_the_jacobian(bijection, generator):
    if isinstance(bijection, Segments | Simplex):
        pytest.skip("not between spaces of one dimension: see below")
    bijection, z = bijection.double(), latents(bijection, generator, 6)
    for f, points in [(bijection.inverse, z), (bijection, bijection.inverse(z)[0])]:
        for point in points:
            J = jacobian(lambda v, f=f: f(v)[0], point)
            log_det = f(point)[1]
            torch.testing.assert_close(log_det.sum(), torch.linalg.slogdet(J)[1])


def test_log_det_has_the_shape_of_the_batch(bijection):
    for batch in [(), (0,), (4,), (2, 5)]:
        z = torch.full((*batch, *(bijection.latent_shape or (3,))), 0.25)
        x, log_det = bijection.inverse(z)
        assert x.shape == (*batch, *(bijection.event_shape or (3,)))
        assert log_det.shape == (batch if bijection.event_dim else x.shape)
        assert bijection(x)[0].shape == z.shape
        assert bijection(x)[1].shape == log_det.shape == bijection.contains(x).shape


def test_one_graph(bijection, generator, unchecked):
    z = latents(bijection, generator).float()
    x, log_det = bijection.inverse(z)
    torch.compiler.reset()
    inverse = torch.compile(bijection.inverse, backend="eager", fullgraph=True)
    torch.testing.assert_close(inverse(z), (x, log_det))
    forward = torch.compile(bijection, backend="eager", fullgraph=True)
    torch.testing.assert_close(forward(x), bijection(x))


def test_pickle_and_state(bijection, generator):
    x, _ = bijection.inverse(latents(bijection, generator).float())
    copy = pickle.loads(pickle.dumps(bijection))
    copy.load_state_dict(bijection.state_dict())
    torch.testing.assert_close(copy(x), bijection(x), rtol=0, atol=0)
    assert pickle.loads(pickle.dumps(bijection.support)).check(x).all()


# --- ends and outside


def far(bijection, dtype):
    """Events of which one entry is far outside, or infinite."""
    size = bijection.event_shape or (1,)
    x = bijection.inverse(latents(bijection, torch.Generator().manual_seed(1)))[0]
    x = x.reshape(-1, *size)[0].to(dtype)
    away = -1 if getattr(bijection, "sign", -1) == 1 else 1
    rows = []
    for value in (1e3, 1e30, math.inf, -math.inf if away < 0 else math.inf):
        row = x.clone()
        row[-1] = away * value
        rows.append(row)
    return torch.stack(rows).requires_grad_()


def test_outside_is_minus_infinity_without_gradient(bijection, dtype, device):
    x = far(bijection, dtype).detach().to(device).requires_grad_()
    z, log_det = bijection.to(device)(x)
    assert torch.isfinite(z).all()
    assert (log_det == -math.inf).all()
    for value in (z, log_det):
        if value.requires_grad:  # a constant log_det does not
            (slope,) = grad(value.sum(), x, retain_graph=True)
            assert (slope == 0).all()
    assert not bijection.support.check(x[:3]).any()  # torch counts inf as a positive number


@pytest.mark.parametrize("kind", ["logistic", "normal", "soft", "uniform"])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (1.0, 2.5), (-1.0, 1.0), (0.1, 0.7), (1e5, 1e6)]
)
def test_interval_ends_are_finite_and_what_lies_beyond_is_not(kind, low, high, dtype, device):
    f = Interval(low, high, kind).to(device)
    low, high = (torch.tensor(v, dtype=dtype, device=device) for v in (low, high))
    on, up = torch.stack([low, high]), high.new_tensor(math.inf)
    inside = torch.stack([torch.nextafter(low, up), torch.nextafter(high, -up)])
    outside = torch.stack([torch.nextafter(low, -up), torch.nextafter(high, up), -up, up])
    for x in (on, inside):
        z, log_det = f(x)
        assert torch.isfinite(z).all()
        assert torch.isfinite(log_det).all()
        assert z[0] < z[1]
    if kind != "uniform":
        torch.testing.assert_close(f(on), f(inside), rtol=0, atol=0)
    z, log_det = f(outside.requires_grad_())
    assert torch.isfinite(z).all()
    assert (log_det == -math.inf).all()
    assert (grad(z.sum(), outside)[0] == 0).all()
    assert f.support.check(on).all()
    assert not f.support.check(outside).any()


@pytest.mark.parametrize("kind", ["logistic", "normal", "soft"])
def test_both_ends_of_a_symmetric_interval_saturate_alike(kind, dtype):
    f = Interval(-1.0, 1.0, kind)
    x = 1 - torch.logspace(0, math.log10(eps(dtype, 0.5)), 200, dtype=torch.float64).to(dtype)
    (right, right_det), (left, left_det) = f(x), f(-x)
    torch.testing.assert_close(right, -left, rtol=0, atol=0)
    torch.testing.assert_close(right_det, left_det, rtol=0, atol=0)
    back = f.inverse(right)[0], f.inverse(-right)[0]
    torch.testing.assert_close(back[0], -back[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["logistic", "normal", "soft"])
def test_interval_has_its_digits_near_the_upper_end(kind):
    gap = 2.0 ** -torch.arange(1.0, 22.0)  # 2.5 - gap is exact in float32
    f = Interval(1.0, 2.5, kind)
    found, exact = f(2.5 - gap), f(2.5 - gap.double())
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-6, atol=1e-6)
    log_share = (gap.double() / 1.5).log()
    if kind == "logistic":
        torch.testing.assert_close(exact[0], torch.log1p(-gap.double() / 1.5) - log_share)


@pytest.mark.parametrize("dtype_range", [(torch.float32, 25.0), (torch.float64, 300.0)])
@pytest.mark.parametrize("kind", ["logistic", "normal", "soft"])
def test_samples_never_leave_the_interval(kind, dtype_range):
    dtype, reach = dtype_range
    z = torch.linspace(-reach, reach, 5001, dtype=dtype)
    for low, high in [(0.1, 0.7), (1.0, 2.5), (-7.3, 1e-3)]:
        f = Interval(low, high, kind)
        x, log_det = f.inverse(z)
        assert f.contains(x).all()
        assert (x.diff() >= 0).all()
        assert torch.isfinite(log_det).all()
        assert torch.isfinite(f(x)[0]).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("edge", [0.0, 2.0, -1e4])
def test_half_line_ends_at_its_edge(edge, sign, dtype):
    f = HalfLine(edge, sign)
    edge = torch.tensor(edge, dtype=dtype)
    far = edge.new_tensor(sign * math.inf)
    x = torch.stack([edge, torch.nextafter(edge, far), edge + sign, sign * edge.new_tensor(1e30)])
    z, log_det = f(x)
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_det).all()
    assert (sign * z[1:].diff() > 0).all()
    if edge != 0:  # next to 0 the nearest float is too small for its reciprocal
        torch.testing.assert_close(z[0], z[1], rtol=0, atol=0)
    out = torch.stack([torch.nextafter(edge, -far), far, -far])
    if edge == 0:
        out[0] = -sign * torch.finfo(dtype).tiny
    assert (f(out)[1] == -math.inf).all()
    assert f.support.check(x).all()
    assert not f.support.check(out[[0, 2]]).any()


def test_half_line_is_a_shift_far_from_its_edge():
    z, log_det = HalfLine(2.0)(torch.tensor([52.0, 1e6]))
    torch.testing.assert_close(z, torch.tensor([50.0, 1e6 - 2]), rtol=0, atol=0)
    torch.testing.assert_close(log_det, torch.zeros(2), rtol=0, atol=1e-20)


def test_gradients_are_finite_on_the_ends(dtype):
    cases = [
        (Interval(0.0, 1.0), [0.0, 1.0, 1e-45, 1e-38, 0.5]),
        (Interval(-1.0, 1.0, "normal"), [-1.0, 1.0, 0.0, 0.5, 1 - 1e-7]),
        (HalfLine(), [0.0, 1e-45, 1e-38, 1e30, 3e38]),
        (Simplex(2), [[0.0, 1.0], [1.0, 0.0], [1e-45, 1.0]]),
        (Ball(2), [[0.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, -1.0]]),
        (Segments(ROADS), [[0.0, 0.0], [2.0, 0.0], [5.0, 4.0], [1.0, 0.0]]),
    ]
    for f, values in cases:
        x = torch.tensor(values, dtype=dtype).requires_grad_()
        z, log_det = f(x)
        assert torch.isfinite(z).all()
        assert torch.isfinite(log_det).all()
        assert torch.isfinite(grad(z.sum() + log_det.sum(), x)[0]).all()


def test_inverse_is_finite_at_extreme_latents(dtype):
    reach = torch.tensor([-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30], dtype=dtype)
    for f in [Interval(0.1, 0.7), Interval(0.1, 0.7, "normal"), HalfLine(), Simplex(2), Ball(1)]:
        z = (reach[:, None] if f.event_dim else reach).clone().requires_grad_()
        x, log_det = f.inverse(z)
        assert f.contains(x).all()
        assert torch.isfinite(x).all()
        assert not log_det.isnan().any()
        slope = grad(x.sum() + log_det.clamp(min=-1e25).sum(), z)[0]
        assert torch.isfinite(slope).all()


# --- mass, and the density of the flow that does nothing


@pytest.mark.parametrize("kind", ["logistic", "normal", "soft", "uniform"])
def test_base_of_the_same_kind_makes_the_uniform_density(kind, dtype):
    x = torch.linspace(1.0, 2.5, 301, dtype=dtype)[1:-1]
    z, log_det = Interval(1.0, 2.5, kind)(x)
    log_base = {
        "logistic": -2 * torch.logaddexp(z / 2, -z / 2),
        "normal": standard(z, 0),
        "soft": SoftUniform()(z)[1],
        "uniform": torch.zeros_like(z),
    }[kind]
    uniform = torch.full_like(x, -math.log(1.5))
    torch.testing.assert_close(log_base + log_det, uniform, rtol=0, atol=eps(dtype, 64))


@pytest.mark.parametrize("kind", ["logistic", "normal", "soft"])
def test_interval_mass(kind):
    x, weights = legendre(1.0, 2.5, 300)
    z, log_det = Interval(1.0, 2.5, kind)(x)
    assert abs(mass(weights, Normal(0.3, 0.8).log_prob(z) + log_det) - 1) < 1e-6


def test_the_soft_interval_keeps_shapes_in_the_middle(dtype):
    """dz/dx is w / (high - low) there, to exp(-w / 4); the law is that of a sum, by its moments."""
    x = torch.linspace(1.5, 2.0, 50, dtype=dtype)
    z, log_det = Interval(1.0, 2.5, "soft")(x)
    constant = torch.full_like(x, math.log(64 / 1.5))
    torch.testing.assert_close(log_det, constant, rtol=0, atol=2e-7 + eps(dtype, 64))
    torch.testing.assert_close(
        z, 64 * (x - 1.75) / 1.5, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-6
    )
    t, weights = legendre(-90.0, 90.0, 400)
    density = SoftUniform()(t)[1]
    assert abs(mass(weights, density) - 1) < 1e-9
    variance = float(torch.as_tensor(weights) @ (t.square() * density.exp()))
    assert abs(variance - (64**2 / 12 + math.pi**2 / 3)) < 1e-6


def test_box_mass():
    u, w = legendre(0.0, 1.0, 60)
    x = torch.cartesian_prod(u, 4 * u - 1)
    z, log_det = Interval([0.0, -1.0], [1.0, 3.0])(x)
    assert abs(mass(np.kron(w, 4 * w), standard(z) + log_det) - 1) < 1e-6


@pytest.mark.parametrize("sign", [1, -1])
def test_half_line_mass(sign):
    distance, weights = legendre(0.0, 12.0, 600)
    z, log_det = HalfLine(2.0, sign)(2.0 + sign * distance)
    assert abs(mass(weights, standard(z, 0) + log_det) - 1) < 1e-6


def test_simplex_mass_relative_to_its_first_coordinates():
    u, w = legendre(0.0, 1.0, 200)
    a, b = torch.cartesian_prod(u, u).unbind(-1)  # x = (a, (1 - a) b, rest), dx = (1 - a) da db
    x = torch.stack([a, (1 - a) * b, (1 - a) * (1 - b)], -1)
    z, log_det = Simplex(3)(x)
    assert abs(mass(np.kron(w, w) * (1 - a).numpy(), standard(z) + log_det) - 1) < 1e-6


def test_disc_mass():
    r, w = legendre(0.0, 2.0, 400)
    angle = torch.arange(64, dtype=torch.float64) * 2 * math.pi / 64
    x = (r[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)).reshape(-1, 2)
    weights = np.repeat(w * r.numpy(), 64) * 2 * math.pi / 64
    z, log_det = Ball(2, 2.0)(x)
    shifted = Normal(torch.tensor([0.5, -0.2]), 1.0).log_prob(z).sum(-1)
    assert abs(mass(weights, shifted + log_det) - 1) < 1e-6


# --- simplex


def test_simplex_log_det_by_its_first_coordinates(generator):
    f, z = Simplex(4), torch.randn(3, generator=generator, dtype=torch.float64)
    x, log_det = f.inverse(z)
    J = jacobian(lambda v: f.inverse(v)[0][:-1], z)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(J)[1])
    complete = lambda v: f(torch.cat([v, 1 - v.sum(-1, keepdim=True)]))[0]  # noqa: E731
    torch.testing.assert_close(f(x)[1], torch.linalg.slogdet(jacobian(complete, x[:-1]))[1])


def test_simplex_log_det_has_the_measure_of_dirichlet(generator):
    # If x is Dirichlet(1, .., 1), the z of D = 2 is logistic: z sqrt 2 = log x_1 - log x_2.
    x = torch.rand(50, 1, generator=generator, dtype=torch.float64)
    x = torch.cat([x, 1 - x], -1)
    z, log_det = Simplex(2)(x)
    t = math.sqrt(2) * z.squeeze(-1)
    log_base = math.log(math.sqrt(2)) - 2 * torch.logaddexp(t / 2, -t / 2)
    torch.testing.assert_close(log_base + log_det, Dirichlet(torch.ones(2).double()).log_prob(x))


def test_simplex_centre_and_symmetry(dtype, generator):
    f = Simplex(5)
    centre = torch.full((5,), 0.2, dtype=dtype)
    torch.testing.assert_close(f(centre)[0], torch.zeros(4, dtype=dtype), rtol=0, atol=eps(dtype))
    x = torch.randn(5, generator=generator).to(dtype).softmax(-1)
    z, w = f(x)[0], f(x[torch.tensor([3, 0, 4, 1, 2])])[0]
    torch.testing.assert_close(z.norm(), w.norm())


def test_simplex_keeps_small_shares(dtype):
    x = torch.tensor([1e-30, 1e-20, 1.0], dtype=dtype)
    torch.testing.assert_close(Simplex(3).inverse(Simplex(3)(x)[0])[0], x, rtol=1e-4, atol=0)


def test_simplex_outside(dtype):
    x = torch.tensor([[0.5, 0.6, -0.1], [0.5, 0.5, 0.1], [0.2, 0.2, 0.2]], dtype=dtype)
    assert (Simplex(3)(x)[1] == -math.inf).all()
    corner = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=dtype)
    assert torch.isfinite(Simplex(3)(corner)[1]).all()


# --- ball


def test_ball_edge_and_beyond(dtype):
    f = Ball(2, 3.0)
    edge = torch.tensor([[3.0, 0.0], [0.0, -3.0], [1.8, 2.4]], dtype=dtype)
    z, log_det = f(edge)
    assert torch.isfinite(log_det).all()
    assert (z.norm(dim=-1) > 0.4 * eps(dtype, 1) ** -0.5).all()
    assert (f(edge * 1.001)[1] == -math.inf).all()


def test_ball_keeps_directions_and_latents_up_to_the_edge(dtype):
    z = torch.tensor([[3.0, 4.0], [30.0, -40.0], [0.0, 0.0]], dtype=dtype)
    x, _ = Ball(2).inverse(z)
    torch.testing.assert_close(x * (1 + z.square().sum(-1, keepdim=True)).sqrt(), z)
    torch.testing.assert_close(Ball(2)(x)[0], z, rtol=eps(dtype, 50 * 50), atol=0)


# --- segments


def test_arc_length_is_an_isometry(generator):
    f = Segments(ROADS)
    assert f.knots.tolist() == [0.0, 2.0, 3.0, 8.0, 11.0]
    s = 11 * torch.rand(30, 1, generator=generator, dtype=torch.float64)
    for point in s:
        J = jacobian(lambda v: f.inverse(v)[0], point)
        torch.testing.assert_close(J.norm(), torch.ones((), dtype=torch.float64))
        J = jacobian(lambda v: f(v)[0], f.inverse(point)[0])
        torch.testing.assert_close(J.norm(), torch.ones((), dtype=torch.float64))


def test_segments_by_hand():
    f = Segments(ROADS)
    x = torch.tensor([[0.5, 0.0], [2.0, 0.25], [3.5, 2.0], [-2.0, 3.0], [-4.0, 3.0]])
    s = torch.tensor([[0.5], [2.25], [5.5], [9.0], [11.0]])
    torch.testing.assert_close(f(x)[0], s)
    torch.testing.assert_close(f.inverse(s)[0], x)
    assert (f(x)[1] == 0).all()


def test_lower_index_wins_at_a_crossing(dtype):
    index, t, distance = Segments(ROADS).split(torch.tensor([2.0, 0.0], dtype=dtype))
    assert (index, t, distance) == (0, 1, 0)


def test_split_and_join(generator, dtype):
    f = Segments(ROADS)
    index = torch.randint(4, (5, 7), generator=generator)
    t = (0.01 + 0.98 * torch.rand(5, 7, generator=generator)).to(dtype)
    x = f.join(index, t)
    found, place, distance = f.split(x)
    assert torch.equal(found, index)
    torch.testing.assert_close(place, t, rtol=0, atol=eps(dtype, 32))
    assert (distance < eps(dtype, 32)).all()
    torch.testing.assert_close(
        f(x)[0].squeeze(-1), (f.knots[index] + t * f.lengths[index]).to(dtype)
    )
    assert torch.equal(f.join(torch.tensor(2), torch.ones((), dtype=dtype)), ROADS[2, 1].to(dtype))


def test_points_next_to_a_segment_are_projected_and_others_are_off_the_map(dtype):
    f = Segments(ROADS, tolerance=0.1)
    near = torch.tensor([[1.0, 0.09], [1.0, -0.09], [-0.09, 0.0], [-3.0, 3.05]], dtype=dtype)
    s, log_det = f(near)
    torch.testing.assert_close(s.squeeze(-1), torch.tensor([1.0, 1.0, 0.0, 10.0], dtype=dtype))
    assert (log_det == 0).all()
    off = torch.tensor([[1.0, 0.11], [-0.11, 0.0], [100.0, 100.0]], dtype=dtype)
    assert (f(off)[1] == -math.inf).all()
    _, _, distance = f.split(off)
    torch.testing.assert_close(distance[:2], torch.tensor([0.11, 0.11], dtype=dtype))


def test_a_density_on_each_segment_has_mass_one():
    # log p(x) = log P(i) + log p(t | i) - log length_i, the recipe of the docstring.
    f, P = Segments(ROADS), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    s, weights = torch.linspace(0, 11, 11001, dtype=torch.float64)[:-1] + 5e-4, np.full(11000, 1e-3)
    index, t, _ = f.split(f.inverse(s[:, None])[0])
    log_prob = P.log()[index] + (2 * t).log() - f.lengths.log()[index]
    assert abs(mass(weights, log_prob) - 1) < 1e-6


def test_one_segment_is_an_interval():
    f = Segments(torch.tensor([[[1.0, 1.0], [1.0, 4.0]]]))
    torch.testing.assert_close(f(torch.tensor([1.0, 2.0]))[0], torch.tensor([1.0]))
    torch.testing.assert_close(f.inverse(torch.tensor([3.0]))[0], torch.tensor([1.0, 4.0]))


# --- constraints and refusals


def test_support_is_understood_by_torch(generator):
    x = biject_to(Interval([0.0, 1.0], [1.0, 3.0]).support)(torch.zeros(2))
    torch.testing.assert_close(x, torch.tensor([0.5, 2.0]))
    assert biject_to(HalfLine([1.0, 2.0]).support)(torch.zeros(2)).shape == (2,)
    assert biject_to(Simplex(3).support)(torch.zeros(2)).shape == (3,)
    for make in EVERY.values():
        assert make().support.event_dim == make().event_dim


def test_bounds_stay_exact_in_float64():
    f = Interval([0.1, 0.2], 0.7).double()
    assert torch.isfinite(f(torch.tensor([0.1, 0.7], dtype=torch.float64))[1])
    assert torch.isfinite(f(torch.tensor([0.1, 0.7]))[1])  # float32 rounds both alike
    assert f.support.check(torch.tensor([0.1, 0.7]))


def test_gradient_is_zero_for_the_whole_event_outside():
    x = torch.tensor([[0.5, 2.0], [0.5, 0.5]], requires_grad=True)
    (slope,) = grad(Interval([0.0, 0.0], 1.0)(x)[0].sum(), x)
    assert (slope[0] == 0).all()
    assert (slope[1] != 0).all()


def test_inverse_of_a_support():
    f = Inverse(Simplex(3))
    assert (f.event_shape, f.latent_shape) == ((2,), (3,))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Interval(1.0, 1.0), "low and high"),
        (lambda: Interval(2.0, 1.0), "low and high"),
        (lambda: Interval([0.0, 3.0], [1.0, 2.0]), "low and high"),
        (lambda: Interval(-1.7e308, 1.7e308), "low and high"),
        (lambda: Interval([0.0, 1.0], [1.0, 2.0, 3.0]), "low and high"),
        (lambda: Interval(math.nan, 1.0), "low"),
        (lambda: Interval(0.0, math.inf), "high"),
        (lambda: Interval(0.0, 1.0, "sigmoid"), "kind"),
        (lambda: Interval([[0.0]], 1.0), "low"),
        (lambda: HalfLine(math.nan), "edge"),
        (lambda: HalfLine(0.0, 0), "sign"),
        (lambda: Simplex(1), "features"),
        (lambda: Ball(0), "features"),
        (lambda: Ball(2, -1.0), "radius"),
        (lambda: Segments(torch.zeros(3, 2)), "vertices"),
        (lambda: Segments(torch.zeros(3, 2, 3)), "vertices"),
        (lambda: Segments(torch.zeros(1, 2, 2)), "vertices"),
        (lambda: Segments(torch.full((1, 2, 2), math.nan)), "vertices"),
        (lambda: Segments(ROADS, -1.0), "tolerance"),
        (lambda: Segments(ROADS)(torch.zeros(3)), "x"),
        (lambda: Segments(ROADS).split(torch.zeros(3)), "x"),
        (lambda: Simplex(3)(torch.zeros(2)), "x"),
        (lambda: Simplex(3).inverse(torch.zeros(3)), "z"),
    ],
)
def test_refuses_in_words(make, named, unchecked):
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        make()
