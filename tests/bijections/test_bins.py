"""One bin of a spline: derivatives written by hand are those of the formulas."""

import math
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lib.bijections import RationalQuadratic
from lib.bijections.bins import OnBin, Select, evaluate_bin, find, right_ends, rows, solve_bin

BOUND = math.log(50.0)
both_ways = pytest.mark.parametrize("backward", [False, True])


def drawn(generator, std=1.0, n=7, dtype=torch.float64, *, backward=False, beyond=True):
    """Points in bins drawn at a scale, with the bins beside; some points lie beyond."""
    w, h = (std * torch.randn(2, 3, n, generator=generator).to(dtype)).exp()
    raw = 2 * std * torch.randn(2, n, generator=generator).to(dtype)
    share = 0.02 + 0.96 * torch.rand(n, generator=generator).to(dtype)
    offset = share * (h if backward else w)[1]
    out = torch.randn(n, generator=generator).to(dtype).clamp(min=0) if beyond else None
    given = [offset, out, w, h, raw]
    return [t if t is None else t.requires_grad_() for t in given]


def plain(offset, beyond, w, h, raw, backward):
    """What `OnBin` computes, for autograd to differentiate."""
    run = w / h
    steep = (raw / (1 + raw.abs() / BOUND)).exp()
    d0 = 2 * steep[0] / (run[0] + run[1])
    d1 = 2 * steep[1] / (run[1] + run[2])
    curve = solve_bin if backward else evaluate_bin
    inner, log_slope = curve(offset, w[1], h[1], d0, d1)
    if beyond is not None:
        inner = inner + beyond * (run[1] if backward else 1 / run[1])
    return inner, log_slope


def written(*given, backward):
    return OnBin.apply(*given, BOUND, backward)


def gradients(function, given, backward):
    """Values, first and second derivatives of a mixture of both outputs."""
    given = [t for t in given if t is not None]
    filled = given if len(given) == 5 else [given[0], None, *given[1:]]
    inner, log_slope = function(*filled, backward=backward)
    mixed = (inner * torch.linspace(0.5, 2, len(inner)).to(inner)).sum() + log_slope.cos().sum()
    first = torch.autograd.grad(mixed, given, create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), given)
    return inner, log_slope, *first, *second


@both_ways
@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("std", [0.3, 1.5])
def test_derivatives_are_those_of_the_formulas(backward, beyond, std, generator):
    given = drawn(generator, std, 200, backward=backward, beyond=beyond)
    for ours, theirs in zip(
        gradients(written, given, backward), gradients(plain, given, backward), strict=True
    ):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-7, atol=1e-9 * float(theirs.detach().abs().max())
        )


@both_ways
def test_derivatives_are_those_of_differences(backward, generator):
    given = drawn(generator, 0.5, 4, backward=backward)
    call = lambda *given: written(*given, backward=backward)  # noqa: E731
    assert gradcheck(call, given)
    assert gradgradcheck(call, given)


@both_ways
def test_float32_is_as_exact_as_autograd(backward, generator):
    """On bins of sizes from e-8 to e8: the error of each gradient, in the norm of all points."""
    exact = drawn(generator, 2.0, 5000, backward=backward)
    rough = [t.detach().float().requires_grad_() for t in exact]

    def first(function, given):
        inner, log_slope = function(*given, backward=backward)
        return torch.autograd.grad(inner.log1p().sum() + log_slope.sum(), given)

    right, autograd, ours = first(plain, exact), first(plain, rough), first(written, rough)
    for r, a, o in zip(right, autograd, ours, strict=True):
        assert o.dtype == torch.float32
        error, other = (float((g.double() - r).norm() / r.norm()) for g in (o, a))
        assert error <= 3 * other + 1e-6


@both_ways
@pytest.mark.parametrize("share", [0.0, 1e-30, 1.0])
def test_gradients_at_the_corners_are_finite(backward, share, generator):
    given = drawn(generator, 2.0, 500, torch.float32, backward=backward)
    size = given[3 if backward else 2][1]
    given[0] = (share * size).detach().requires_grad_()
    inner, log_slope = written(*given, backward=backward)
    for grad in torch.autograd.grad(inner.sum() + log_slope.sum(), given):
        assert grad.isfinite().all()


# --- the choice of a bin


@pytest.mark.parametrize("shape", [(5, 2, 40), (5, 2, 1)])
def test_selection_and_its_derivatives(shape, generator):
    """Of a table with a column for each point, or one for all."""
    floor, n = 0.01, 40
    logits = torch.randn(shape, generator=generator).double().requires_grad_()
    k = torch.randint(5, (1, 2, n), generator=generator)
    index = torch.cat([k - 1, k, k + 1]).clamp(0, 4)

    def plain(logits):
        sizes = (floor + (1 - 5 * floor) * logits.softmax(0)).expand(-1, -1, n)
        start = torch.cat([torch.zeros(1, 2, n), sizes.cumsum(0)]).gather(0, k)[0]
        return start, sizes.gather(0, index)

    def written(logits):
        share = logits.softmax(0)
        return Select.apply(share, right_ends(share, floor), index, k.double(), floor)

    torch.testing.assert_close(written(logits), plain(logits))
    small = logits[..., :n].detach().requires_grad_()
    assert gradcheck(written, small, fast_mode=True)
    assert gradgradcheck(written, small, fast_mode=True)
    loss = [sum((t * t).sum() for t in call(logits)) for call in (written, plain)]
    first = [torch.autograd.grad(t, logits)[0] for t in loss]
    torch.testing.assert_close(*first)


def test_a_point_is_found_in_its_bin(generator, dtype):
    ends = right_ends(torch.randn(6, 50, generator=generator).to(dtype).softmax(0), 0.02)
    torch.testing.assert_close(ends[-1], torch.ones_like(ends[-1]))
    point = torch.rand(50, generator=generator).to(dtype)
    k = find(ends, point)
    assert k.dtype == dtype
    assert torch.equal(k, (point > ends[:-1]).sum(0, keepdim=True).to(dtype))
    assert torch.equal(find(ends, torch.zeros_like(point)), torch.zeros_like(k))
    assert torch.equal(find(ends, torch.ones_like(point)), torch.full_like(k, 5))
    assert torch.equal(rows(2, 5, ends), torch.arange(2, 5, dtype=dtype)[:, None])


def test_numbers_that_are_none_stay_so(generator):
    scalar = RationalQuadratic(4, ends=("linear", "free", "circular"))
    params = torch.randn(scalar.size, 2, 3, generator=generator)
    x = torch.tensor([[math.nan] * 3, [1.0] * 3])
    for call in (scalar.forward, scalar.inverse):
        z, log_slope = call(x, params)
        assert z[0].isnan().all()
        assert z[1].isfinite().all()
        assert log_slope[1].isfinite().all()


def test_vmap_runs_without_a_loop_over_the_batch(generator):
    """functorch warns where it has to fall back to one."""
    scalar = RationalQuadratic(4)
    params = torch.randn(scalar.size, 1, 2, generator=generator)
    x = torch.randn(6, 1, 2, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (scalar.forward, scalar.inverse):
            total = lambda p, x, call=call: sum(t.sum() for t in call(x, p))  # noqa: E731
            each = torch.func.vmap(torch.func.grad(total), (None, 0))(params, x)
            for grad, point in zip(each, x, strict=True):
                torch.testing.assert_close(grad, torch.func.grad(total)(params, point))
