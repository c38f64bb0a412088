"""The rational-quadratic spline: exact at extremes, bounded, smooth, right at its three ends."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from lib.bijections import Autoregressive, Coupling, Elementwise, RationalQuadratic
from lib.bijections.spline import ENDS, evaluate_bin, solve_bin

every_end = pytest.mark.parametrize("ends", ENDS)
BOX = {"low": [-1.0, 0.1, 2.0], "high": [1.0, 0.7, 2.5]}


def spline(bins=5, *, features=1, std=1.0, seed=0, dtype=torch.float64, **options):
    """A spline with parameters drawn at a scale."""
    f = Elementwise(features, RationalQuadratic(bins, **options)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        f.params.copy_(std * torch.randn(f.params.shape, generator=generator, dtype=torch.float64))
    return f


def knots(f):
    """The knots of a spline of one feature on both axes, in [low, high]; no phase."""
    s = f.scalar
    logits = f.params.detach()[: 2 * s.bins, 0].unflatten(0, (2, s.bins))
    sizes = s.min_bin + (1 - s.bins * s.min_bin) * logits.softmax(1)
    ends = torch.cat([torch.zeros(2, 1).to(sizes), sizes.cumsum(1)], 1)
    return (s.low + (s.high - s.low) * ends).unbind(0)


def slope(f, x):
    return f(x[:, None])[1].exp()


# --- one bin


def by_textbook(y, w, h, d0, d1):
    """xi and log dx/dz by the quadratic formula, in 60 digits."""
    y, w, h, d0, d1 = map(Decimal, (y, w, h, d0, d1))
    s, u = h / w, y / h
    bend = u * (d0 + d1 - 2 * s)
    a, b, c = s - d0 + bend, d0 - bend, -s * u
    xi = 2 * c / (-b - (b * b - 4 * a * c).sqrt())
    rest = 1 - xi
    top = d1 * xi * xi + 2 * s * xi * rest + d0 * rest * rest
    q = s * (xi * xi + rest * rest) + (d0 + d1) * xi * rest
    steep = s * s * top / (q * q)
    return float(xi), -float(steep.ln()), float(steep)


def bins_at_random(generator, std, n=20_000):
    sizes = (std * torch.randn(4, n, generator=generator)).exp()
    return torch.rand(n, generator=generator) * sizes[1], *sizes.unbind(0)


def exact(*args):
    with localcontext() as context:
        context.prec = 60
        rows = zip(*(a.tolist() for a in args), strict=True)
        return torch.tensor([by_textbook(*row) for row in rows], dtype=torch.float64).unbind(1)


def test_inverse_of_a_bin_is_exact_at_extremes(generator):
    """A few ulps of xi, times the condition number of the problem, at sizes from e-16 to e16.

    dxi / du = (h / w) / (dz / dx), and a relative error eps in each of u, s, d0 and d1 is that of a
    float32 number; the textbook formula in float32 makes hundreds of NaNs of these 20,000 points.
    """
    offset, w, h, d0, d1 = bins_at_random(generator, 4.0)
    xi, log_slope, steep = exact(offset, w, h, d0, d1)
    x, ours = solve_bin(offset, w, h, d0, d1)
    assert x.isfinite().all()
    assert ours.isfinite().all()
    error = (x.double() / w.double() - xi).abs()
    u = (offset.double() / h.double()).clamp(max=1.0)
    condition = u * (h.double() / w.double()) / steep
    eps = torch.finfo(torch.float32).eps
    assert bool((error <= 4 * eps * (xi + condition)).all())
    assert float(error.max()) < 2e-5
    assert float(error.median()) < eps / 2
    assert float((ours.double() - log_slope).abs().max()) < 2e-3
    assert float((ours.double() - log_slope).abs().median()) < 1e-6


def test_inverse_of_an_ordinary_bin_is_exact_to_a_few_ulps(generator):
    offset, w, h, d0, d1 = bins_at_random(generator, 0.5, 2000)
    xi, log_slope, _ = exact(offset, w, h, d0, d1)
    x, ours = solve_bin(offset, w, h, d0, d1)
    torch.testing.assert_close(x.double() / w.double(), xi, rtol=0, atol=4e-7)
    torch.testing.assert_close(ours.double(), log_slope, rtol=0, atol=3e-6)


def test_a_bin_ends_at_its_corners_with_the_slopes_it_was_given(generator, dtype):
    _, w, h, d0, d1 = (t.to(dtype) for t in bins_at_random(generator, 4.0, 1000))
    for offset, height, d in ((torch.zeros_like(w), torch.zeros_like(h), d0), (w, h, d1)):
        z, log_slope = evaluate_bin(offset, w, h, d0, d1)
        x, back = solve_bin(height, w, h, d0, d1)
        torch.testing.assert_close(z, height, rtol=1e-6, atol=0)
        torch.testing.assert_close(x, offset, rtol=1e-6, atol=0)
        torch.testing.assert_close(log_slope, d.log(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(back, -d.log(), rtol=1e-5, atol=1e-5)


# --- extremes


@every_end
@pytest.mark.parametrize("std", [20.0, 100.0])
def test_no_nan_at_extreme_logits(ends, std, generator):
    """Where other libraries return 22 (std 20) and 193 (std 100) NaNs of 20,000, or raise."""
    scalar = RationalQuadratic(8, ends=ends)
    points = 10 * torch.rand(20_000, 1, generator=generator) - 5
    for one_map_for_all in (False, True):
        rows = 1 if one_map_for_all else len(points)
        params = std * torch.randn(scalar.size, rows, 1, generator=generator)
        for call in (scalar, scalar.inverse):
            x, weights = points.clone().requires_grad_(), params.clone().requires_grad_()
            z, log_slope = call(x, weights)
            assert z.isfinite().all()
            assert log_slope.isfinite().all()
            assert bool(((z >= -5) & (z <= 5)).all())
            for grad in torch.autograd.grad(z.sum() + log_slope.sum(), (x, weights)):
                assert grad.isfinite().all()


def test_the_steepest_and_narrowest_that_are_allowed_survive_float32(generator):
    """Also at logits that push every bin to its least size."""
    scalar = RationalQuadratic(4, min_bin=1e-8, steepness=1e4)
    x = 10 * torch.rand(2000, 1, generator=generator) - 5
    params = 1e3 * torch.randn(scalar.size, 2000, 1, generator=generator)
    params.requires_grad_()
    for call in (scalar, scalar.inverse):
        z, log_slope = call(x, params)
        (grad,) = torch.autograd.grad(z.sum() + log_slope.sum(), params)
        assert z.isfinite().all()
        assert log_slope.isfinite().all()
        assert grad.isfinite().all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    power=st.floats(-2, 3),
    seed=st.integers(0, 2**16),
    ends=st.sampled_from(ENDS),
    bins=st.integers(2, 12),
    share=st.floats(1e-4, 0.9),
    steepness=st.floats(1.1, 1000.0),
)
def test_slopes_keep_their_bounds(power, seed, ends, bins, share, steepness):
    options = {"ends": ends, "min_bin": share / bins, "steepness": steepness}
    f = spline(bins, std=10**power, seed=seed, **options)
    if ends == "circular":
        with torch.no_grad():
            f.params[-1] = 0.0  # so that the knots are where they are thought to be
    corners = knots(f)[0]
    between = (corners[:-1] + torch.linspace(0, 1, 25).double()[:, None] * corners.diff()).flatten()
    x = torch.cat([corners, between, corners + 1e-9, corners - 1e-9]).clamp(-5, 5)
    low, high = f.scalar.slope_bounds
    with torch.no_grad():
        z, log_slope = f(x[:, None])
        _, log_back = f.inverse(z)
    for logs in (log_slope, -log_back):
        assert float(logs.min().exp()) >= low * (1 - 1e-6)
        assert float(logs.max().exp()) <= high * (1 + 1e-6)


@pytest.mark.parametrize(("steepness", "near"), [(3.0, 1.6), (50.0, 1.2), (1e3, 1.1)])
def test_slopes_reach_their_bounds(steepness, near):
    """Lowest: beside a flat end of a least chord. Highest: a steep end of a largest chord."""
    f = spline(4, ends="free", steepness=steepness)
    low, high = f.scalar.slope_bounds
    widths, heights, slopes = f.params.data[:, 0].split([4, 4, 5])
    widths[:] = torch.tensor([200.0, 0.0, 0.0, 0.0])
    heights[:] = torch.tensor([0.0, 0.0, 0.0, 200.0])
    slopes[:] = torch.tensor([-1e9, 1e9, 1e9, 1e9, 1e9])
    found = slope(f, torch.linspace(-5, 5, 200_001).double()).detach()
    assert low <= float(found.min()) < near * low
    assert 0.9 * high < float(found.max()) <= high * (1 + 1e-6)


def test_bounds_hold_where_a_floor_under_the_slopes_would_not():
    """Between knots with slopes d, a chord s << d leaves a slope of 2 s^2 / (s + d)."""
    s, d = torch.tensor(1e-3).double(), torch.tensor(1e3).double()
    one = torch.ones(()).double()
    _, middle = evaluate_bin(one / 2, one, s, d, d)
    torch.testing.assert_close(middle.exp(), 2 * s * s / (s + d))


# --- shape of the curve


@every_end
def test_identity_at_zero(ends, generator, dtype):
    f = spline(7, ends=ends, std=0.0, dtype=dtype, low=-2.0, high=3.0)
    x = (5 * torch.rand(100, 1, generator=generator) - 2).to(dtype)
    for z, log_det in (f(x), f.inverse(x)):
        torch.testing.assert_close(z, x, rtol=0, atol=20 * torch.finfo(dtype).eps)
        torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-5)


@every_end
@pytest.mark.parametrize("bins", [2, 6])
def test_knots_are_met_with_a_continuous_slope(ends, bins):
    f = spline(bins, ends=ends, std=1.5)
    if ends == "circular":
        with torch.no_grad():
            f.params[-1] = 0.0
    x, z = knots(f)
    inner, eps = x[1:-1], 1e-9
    torch.testing.assert_close(f(inner[:, None])[0][:, 0], z[1:-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope(f, inner - eps), slope(f, inner + eps), rtol=1e-4, atol=0)


@every_end
def test_slope_at_a_knot_is_a_factor_times_the_harmonic_mean_of_the_chords(ends):
    f = spline(6, ends=ends, std=1.5)
    with torch.no_grad():
        if ends == "circular":
            f.params[-1] = 0.0
    x, z = knots(f)
    chords = z.diff() / x.diff()
    mean = 2 / (1 / chords[:-1] + 1 / chords[1:])
    start = 12 + (ends != "linear")
    logit, bound = f.params.detach()[start : start + 5, 0], math.log(50.0)
    factor = (logit / (1 + logit.abs() / bound)).exp()
    torch.testing.assert_close(slope(f, x[1:-1]), factor * mean, rtol=1e-8, atol=0)


@every_end
def test_two_bins_and_tiny_widths(ends):
    f = spline(2, ends=ends, min_bin=1e-6)
    f.params.data[:2, 0] = torch.tensor([-300.0, 300.0])
    x = torch.linspace(-5, 5, 1001)[:, None].double()
    z, log_det = f(x)
    back, home = f.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(home, -log_det, rtol=1e-5, atol=1e-5)


# --- the three ends


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (-0.3, 1e-3), (1e4, 1e4 + 0.7), (-5, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_free_ends_belong_to_the_interval(low, high, seed, dtype):
    """Low goes to low and high to high, up to rounding; one ulp outside there is nothing."""
    f = spline(8, ends="free", low=low, high=high, std=3.0, seed=seed, dtype=dtype)
    edges = torch.tensor([[low], [high]], dtype=dtype)
    for call in (f, f.inverse):
        z, log_det = call(edges)
        assert log_det.isfinite().all()
        assert bool(((z >= edges[0]) & (z <= edges[1])).all())
        rounding = 4 * torch.finfo(dtype).eps * (high - low) * (1 + log_det.exp())
        ulp = torch.finfo(dtype).eps * edges.abs()[:, 0]
        assert bool(((z - edges).abs()[:, 0] <= rounding + ulp).all())
    far = torch.tensor([[-1e30], [1e30]], dtype=dtype)
    for outside in (torch.nextafter(edges, far), far):
        x = outside.clone().requires_grad_()
        for call, log_slope in ((f, -math.inf), (f.inverse, math.inf)):
            z, log_det = call(x)
            assert bool(((z >= edges[0]) & (z <= edges[1])).all())
            assert bool((log_det == log_slope).all())
            given = [x, f.params]
            for total, zero in ((z.sum() + log_det.sum(), False), (log_det.sum(), True)):
                for grad in torch.autograd.grad(
                    total, given, retain_graph=True, materialize_grads=True
                ):
                    assert grad.isfinite().all()
                    assert not (zero and grad.any())


def test_free_ends_have_slopes_of_their_own():
    f = spline(4, ends="free", std=0.0, low=0.0, high=1.0)
    f.params.data[8], f.params.data[12] = 1.0, -1.0
    factor = math.exp(1 / (1 + 1 / math.log(50)))
    ends = slope(f, torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(ends, torch.tensor([factor, 1 / factor]).double())


def test_linear_ends_continue_with_the_last_chord(dtype):
    f = spline(6, std=1.0, dtype=dtype, low=-1.0, high=2.0)
    x, z = (v.to(dtype) for v in knots(f))
    chords = z.diff() / x.diff()
    far = torch.tensor([-1e6, -3.0, -1.0, 2.0, 7.0, 1e6], dtype=dtype)
    chord = chords[[0, 0, 0, -1, -1, -1]]
    edge = torch.tensor([-1.0, -1.0, -1.0, 2.0, 2.0, 2.0], dtype=dtype)
    y, log_det = f(far[:, None])
    rtol = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(y[:, 0], edge + chord * (far - edge), rtol=rtol, atol=rtol)
    torch.testing.assert_close(log_det, chord.log(), rtol=rtol, atol=rtol)
    back, home = f.inverse(y)
    torch.testing.assert_close(back[:, 0], far, rtol=rtol, atol=rtol)
    torch.testing.assert_close(home, -log_det, rtol=rtol, atol=rtol)


def test_circle_has_no_seam():
    f = spline(5, ends="circular", std=1.5, low=-1.0, high=2.0)
    x = torch.linspace(-1, 2, 301).double()[:, None]
    z, log_det = f(x)
    for turns in (-2, 1, 5):
        again, same = f(x + 3 * turns)
        torch.testing.assert_close((again - z + 1.5) % 3, torch.full_like(z, 1.5))
        torch.testing.assert_close(same, log_det, rtol=1e-7, atol=1e-7)
        back, _ = f.inverse(z + 3 * turns)
        torch.testing.assert_close((back - x + 1.5) % 3, torch.full_like(x, 1.5))
    assert bool(((z >= -1) & (z <= 2)).all())
    eps = 1e-9
    left, right = slope(f, torch.tensor([2 - eps, -1 + eps]).double())
    torch.testing.assert_close(left, right, rtol=1e-6, atol=0)
    # It winds once: the slope has mean one over the circle.
    torch.testing.assert_close(
        log_det[:-1].exp().mean(), torch.ones(()).double(), rtol=0.02, atol=0
    )


def test_phase_turns_the_circle(generator):
    """With equal bins, phase t is x -> x + t (high - low) modulo the period."""
    f = spline(5, ends="circular", std=0.0, low=0.0, high=2.0)
    f.params.data[-1] = 0.3
    x = 2 * torch.rand(50, 1, generator=generator).double()
    torch.testing.assert_close(f(x)[0], (x + 0.6) % 2)
    torch.testing.assert_close(f.inverse(x)[0], (x - 0.6) % 2)


@pytest.mark.parametrize(
    "kinds", [("free", "linear", "circular"), ("linear",) * 3, ["circular"] * 3]
)
def test_each_feature_has_its_own_end_and_interval(kinds, generator):
    """The spline of three features is three splines of one."""
    together = spline(4, features=3, ends=kinds, **BOX)
    share = torch.rand(40, 3, generator=generator).double()
    low, high = (torch.tensor(BOX[side]).double() for side in ("low", "high"))
    x = low + (high - low) * (1.4 * share - 0.2)
    z, log_slope = together.scalar(x, together.params[:, None])
    back, _ = together.scalar.inverse(x, together.params[:, None])
    K = 4
    for k, kind in enumerate(kinds):
        alone = spline(K, ends=kind, low=BOX["low"][k], high=BOX["high"][k])
        column = together.params.data[:, k]
        if len(set(kinds)) > 1:  # parameters of all kinds: K + 1 slopes and a phase
            inner = {"free": slice(8, 13), "linear": slice(9, 12), "circular": slice(8, 12)}[kind]
            phase = column[13:] if kind == "circular" else column[:0]
            column = torch.cat([column[:8], column[inner], phase])
        alone.params.data.copy_(column[:, None])
        own, steep = alone(x[:, k : k + 1])
        torch.testing.assert_close(own[:, 0], z[:, k])
        torch.testing.assert_close(steep, log_slope[:, k])
        torch.testing.assert_close(alone.inverse(x[:, k : k + 1])[0][:, 0], back[:, k])


@pytest.mark.parametrize("swap", [False, True])
def test_halves_of_a_coupling_have_their_own_ends(swap, generator):
    """Also where a half is all of one kind."""
    ends = ("free", "circular", "circular", "linear", "linear")
    low, high = torch.tensor([0.0, -3, -2, 1, 0]), torch.tensor([1.0, 3, 2, 2, 5])
    scalar = RationalQuadratic(4, ends=ends, low=low, high=high)
    f = Coupling(5, scalar, hidden=(8,), swap=swap).double()
    with torch.no_grad():
        for w in f.parameters():
            w += torch.randn(w.shape, generator=generator)
    x = (low + (high - low) * torch.rand(20, 5, generator=generator)).double()
    z, log_det = f(x)
    back, home = f.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(home, -log_det)
    x[:, 0] = 1.1 if swap else x[:, 0]  # outside of the free end, if it is mapped
    assert bool((f(x)[1] == -math.inf).all()) is swap


# --- precision


def test_half_precision_is_computed_in_float32(generator):
    f = spline(8, std=3.0, dtype=torch.float32)
    x = (10 * torch.rand(500, 1, generator=generator) - 5).sort(0).values.bfloat16()
    for call in (f, f.inverse):
        z, log_det = call(x)
        assert z.dtype == torch.bfloat16
        assert log_det.dtype == torch.float32
        assert z.isfinite().all()
        assert bool((z.float().diff(dim=0) >= 0).all())
        full, exact_log_det = call(x.float())
        assert torch.equal(z, full.bfloat16())
        assert torch.equal(log_det, exact_log_det)


def test_autocast_changes_the_network_alone(generator):
    f = Coupling(4, RationalQuadratic(8), hidden=(16,))
    with torch.no_grad():
        f.network.last.weight.normal_(generator=generator)
    x = torch.randn(50, 4, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, log_det = f(x)
        back, _ = f.inverse(z)
    assert z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)


# --- derivatives


@every_end
def test_first_and_second_derivatives(ends, generator):
    """Those of `_Select` are written by hand, and differentiated twice here."""
    scalar = RationalQuadratic(3, ends=ends)
    x = (9 * torch.rand(3, 2, generator=generator) - 4.5).double().requires_grad_()
    for rows in (1, 3):
        params = torch.randn(scalar.size, rows, 2, generator=generator).double().requires_grad_()
        for call in (scalar.forward, scalar.inverse):
            assert gradcheck(call, (x, params))
            assert gradgradcheck(call, (x, params), fast_mode=rows > 1)


@every_end
def test_torch_func_agrees_with_autograd(ends, generator):
    f = spline(4, features=2, ends=ends)
    x = 9 * torch.rand(6, 2, generator=generator).double() - 4.5
    for call in (f, f.inverse):
        J = torch.func.vmap(torch.func.jacrev(lambda v, call=call: call(v)[0]))(x)
        torch.testing.assert_close(J, torch.diag_embed(J.diagonal(dim1=1, dim2=2)))
        torch.testing.assert_close(J.diagonal(dim1=1, dim2=2).log().sum(-1), call(x)[1])

    def total(params, x):
        z, log_det = torch.func.functional_call(f, {"params": params}, (x,))
        return z.sum() + log_det.sum()

    each = torch.func.vmap(torch.func.grad(total), (None, 0))(f.params.detach(), x)
    for k in range(len(x)):
        (grad,) = torch.autograd.grad(total(f.params, x[k]), f.params)
        torch.testing.assert_close(each[k], grad)


# --- a network sees circles as circles


def test_embedding_of_each_kind_of_end():
    scalar = RationalQuadratic(4, ends=("free", "linear", "circular"), **BOX)
    x = torch.tensor([[0.5, 0.3, 2.125]]).double()
    angle = math.pi * (2 * 0.25 - 1)
    expected = torch.tensor([[0.5, 0.3, math.cos(angle), math.sin(angle)]]).double()
    torch.testing.assert_close(scalar.embed(x), expected)
    assert scalar.columns(3) == [0, 1, 2, 2]
    image = torch.stack([x, x], -1)[..., None].expand(1, 3, 2, 3)
    torch.testing.assert_close(scalar.embed(image), expected[..., None, None].expand(1, 4, 2, 3))


# --- refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RationalQuadratic(1), "bins: expected an integer of at least 2, got 1"),
        (lambda: RationalQuadratic(2.5), "bins: expected an integer"),
        (lambda: RationalQuadratic(8, min_bin=0.125), "min_bin: expected less than 1 / bins"),
        (lambda: RationalQuadratic(8, min_bin=0.0), "min_bin: expected one positive number"),
        (lambda: RationalQuadratic(8, steepness=1.0), "steepness: expected a number greater"),
        (lambda: RationalQuadratic(8, steepness=math.inf), "steepness: expected one positive"),
        (lambda: RationalQuadratic(8, steepness=1e10), "steepness: expected at most"),
        (lambda: RationalQuadratic(8, min_bin=1e-300), "steepness: expected at most"),
        (lambda: RationalQuadratic(8, low=1.0, high=1.0), "low: expected numbers below high"),
        (lambda: RationalQuadratic(8, low=[0.0, 2.0], high=1.0), "low: expected numbers below"),
        (lambda: RationalQuadratic(8, low=math.nan), "low: expected finite numbers"),
        (lambda: RationalQuadratic(8, high=math.inf), "high: expected finite numbers"),
        (lambda: RationalQuadratic(8, low=-1e308, high=1e308), "low: .* a finite distance"),
        (lambda: RationalQuadratic(8, low="a"), "low: expected a tensor of numbers"),
        (lambda: RationalQuadratic(8, low=[0.0] * 2, high=[1.0] * 3), "low and high: expected"),
        (lambda: RationalQuadratic(8, low=torch.zeros(2, 2)), "low and high: expected"),
        (lambda: RationalQuadratic(8, ends="open"), "ends: expected one of free, linear, circular"),
        (lambda: RationalQuadratic(8, ends=["free", "open"]), "ends: expected one of"),
        (lambda: RationalQuadratic(8, ends=[]), "ends: expected one of"),
        (lambda: RationalQuadratic(8, ends=None), "ends: expected one of"),
        (lambda: RationalQuadratic(8, ends=[["free"], "free"]), "ends: expected one of"),
        (lambda: RationalQuadratic(8, ends=["free"] * 2, **BOX), "ends: .* each of 3 .* got 2"),
        *(
            (lambda make=make, options=options: make(RationalQuadratic(4, **options)), words)
            for words in ["scalar: expected a map of 4 features, got one of 3"]
            for options in (BOX, {"ends": ("free", "linear", "free")}, {"ends": ["circular"] * 3})
            for make in (
                lambda scalar: Elementwise(4, scalar),
                lambda scalar: Coupling(4, scalar, swap=True),
                lambda scalar: Autoregressive(4, scalar),
            )
        ),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
