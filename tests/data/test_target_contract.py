"""What every target promises: types, seeds, edges, errors, divergences."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from lib.data import targets
from lib.data.targets import (
    TARGETS,
    Banana,
    Beta,
    Checkerboard,
    CopulaBeta,
    Funnel,
    GaussianGrid,
    ManyWell,
    PiecewiseUniform,
    Rings,
    Spirals,
    TwoMoons,
    VonMises,
)
from lib.data.targets.base import CHUNK, Target
from tests.data.catalogue import (
    ALL,
    COMPACT,
    DOUBLE,
    UNBOUNDED,
    build,
    each,
    ends,
    seeded,
)


@each(ALL)
def test_a_seed_gives_the_same_samples_and_leaves_the_global_state(case, dtype, device):
    target = case[0](**case[1], dtype=dtype, device=device)
    before = torch.get_rng_state()
    first, second = target.sample(50, seeded(3)), target.sample(50, seeded(3))
    assert torch.equal(first, second)
    assert not torch.equal(first, target.sample(50, seeded(4)))
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.shape, first.dtype) == ((50, target.features), dtype)
    assert first.device.type == device.type
    log_p = target.log_prob(first)
    assert (log_p.shape, log_p.dtype, log_p.device) == ((50,), dtype, first.device)
    assert bool(log_p.isfinite().all())


@each(ALL)
def test_float32_differs_from_float64_by_rounding(case):
    target = build(case, torch.float32)
    x = target.sample(500, seeded()).view(10, 50, -1)
    assert bool(target.support.check(x).all())
    torch.testing.assert_close(target.log_prob(x), target.log_prob(x.double()).float())


@each(ALL)
def test_gradient_is_that_of_finite_differences(case):
    target = build(case)
    x = target.sample(20, seeded(5)).requires_grad_()
    torch.autograd.gradcheck(target.log_prob, x, eps=1e-7, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cls", UNBOUNDED)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4, 1e15, 1e30, 1e38])
def test_extreme_points_have_a_value_and_a_gradient(cls, size, dtype):
    target = cls()
    signs = torch.where(torch.rand(20, target.features, generator=seeded()) < 0.5, -1.0, 1.0)
    x = (signs.to(dtype) * size).requires_grad_()
    log_p = target.log_prob(x)
    assert not bool(log_p.isnan().any())
    assert bool((log_p < 50).all())
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("cls", UNBOUNDED)
def test_infinite_points_have_no_density(cls, dtype):
    x = torch.zeros(3, cls().features, dtype=dtype)
    x[0], x[1, 0], x[2, 1] = math.inf, -math.inf, torch.finfo(dtype).max
    log_p = cls().log_prob(x.requires_grad_())
    assert log_p.tolist() == [-math.inf] * 3
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    assert bool((gradient == 0).all())


@pytest.mark.parametrize("cls", COMPACT)
@pytest.mark.parametrize("where", [-100.0, -math.inf, math.inf, 1e38, "below", "above"])
def test_outside_of_the_support_there_is_no_density_and_no_gradient(cls, where, dtype):
    target = cls(dtype=dtype)
    if isinstance(where, str):  # the next number after an end
        low, high = torch.tensor(ends(target), dtype=dtype)
        step = torch.tensor(-math.inf if where == "below" else math.inf, dtype=dtype)
        where = float(torch.nextafter(low if where == "below" else high, step))
    x = target.sample(target.features, seeded())
    x.fill_diagonal_(where).requires_grad_()
    log_p = target.log_prob(x)
    assert log_p.tolist() == [-math.inf] * target.features
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    assert bool((gradient == 0).all())


def test_ends_of_the_interval(dtype):
    x = torch.tensor([[0.0], [1.0]], dtype=dtype, requires_grad=True)
    inf = math.inf
    for a, b, limits in [
        (2.0, 5.0, [-inf, -inf]),
        (0.5, 0.5, [inf, inf]),
        (1.0, 0.5, [math.log(0.5), inf]),
        (1.0, 1.0, [0.0, 0.0]),
    ]:
        log_p = Beta(a, b).log_prob(x)
        assert log_p.tolist() == pytest.approx(limits, rel=1e-6)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
        assert bool(gradient.isfinite().all())
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.5], [0.5, 1.0]])
    corners = corners.to(dtype).requires_grad_()
    log_p = CopulaBeta().log_prob(corners)
    assert log_p.tolist() == [-inf] * 5
    (gradient,) = torch.autograd.grad(log_p.sum(), corners)
    assert not bool(gradient.isnan().any())


def test_ends_of_the_histogram_and_of_the_circle(dtype):
    x = torch.tensor([[1.0], [2.5]], dtype=dtype)
    densities = torch.tensor([0.4 / 0.4, 0.15 / 0.3], dtype=dtype)
    torch.testing.assert_close(PiecewiseUniform().log_prob(x).exp(), densities)
    seam = torch.tensor([[-math.pi], [math.pi]], dtype=dtype)
    first, last = VonMises().log_prob(seam).tolist()
    assert first == pytest.approx(-4 - math.log(2 * math.pi * np.i0(4.0)), rel=1e-6)
    assert last == -math.inf


def test_cells_of_the_checkerboard_have_their_edges():
    inside = [
        [-4, -4],
        [-2, -2],
        [4, 4],
        [0, 0],
        [0, 1],
        [1, 0],
        [-2, 3.9],
        [4, 2],
        [1, 1],
        [0, -1],
        [-1, 0],
    ]
    outside = [[-1, -3], [-4, -1], [4, 1], [1, -1], [4.1, 4.1], [-4.1, -4]]
    log_p = Checkerboard().log_prob(torch.tensor(inside + outside))
    dark = [-math.log(32)] * len(inside) + [-math.inf] * len(outside)
    assert log_p.tolist() == pytest.approx(dark)


class Rounded(Target):
    """A sampler that always lands where float32 rounds to the end."""

    def _sample(self, n, generator):
        return torch.full((n, 1), self.value, dtype=DOUBLE)


@pytest.mark.parametrize(
    ("cls", "options", "value"),
    [
        (VonMises, {}, math.pi - 1e-12),
        (VonMises, {}, -math.pi),
        (Beta, {"a": 0.5, "b": 0.5}, 1 - 1e-12),
        (Beta, {"a": 0.5, "b": 0.5}, 1e-50),
    ],
)
def test_samples_that_round_to_an_end_keep_a_finite_density(cls, options, value):
    target = type("Edge", (cls,), {"_sample": Rounded._sample, "value": value})(**options)
    assert bool(target.log_prob(target.sample(1)).isfinite().all())


@each(ALL)
def test_nan_is_refused(case):
    target = build(case)
    x = target.sample(3, seeded())
    x[1, -1] = math.nan
    with pytest.raises(ValueError, match="x: expected numbers, got NaN at 1"):
        target.log_prob(x)


def test_bad_arguments_are_refused(unchecked):
    for call, name in [
        (lambda: TwoMoons().log_prob(torch.zeros(3)), "x"),
        (lambda: TwoMoons().log_prob(torch.zeros(3, 2).long()), "x"),
        (lambda: PiecewiseUniform().cdf(torch.zeros(3, 2)), "x"),
        (lambda: TwoMoons().sample(0), "n"),
        (lambda: TwoMoons().sample(3, generator=3), "generator"),
        (lambda: TwoMoons(dtype=torch.int64), "dtype"),
        (lambda: TwoMoons(radius=-1.0), "radius"),
        (lambda: TwoMoons(sigma=1.0), "sigma"),
        (lambda: TwoMoons(sharpness=0.0), "sharpness"),
        (lambda: Rings((1.0, -1.0)), "radii"),
        (lambda: Rings(2.0), "radii"),
        (lambda: Rings(sigma=0.0), "sigma"),
        (lambda: Spirals(mean=-1.0), "mean"),
        (lambda: Spirals(twist=math.nan), "twist"),
        (lambda: GaussianGrid(side=0), "side"),
        (lambda: Banana(1), "features"),
        (lambda: Funnel(1), "features"),
        (lambda: ManyWell(3), "features"),
        (lambda: Beta(0.0, 1.0), "a"),
        (lambda: VonMises(math.inf), "kappa"),
        (lambda: CopulaBeta(1.0), "rho"),
        (lambda: CopulaBeta(0.1, 1, 2), "a"),
        (lambda: CopulaBeta(0.1, 2, 2.5), "b"),
        (lambda: PiecewiseUniform((0.0, 0.0, 1.0), (1.0, 1.0)), "edges"),
        (lambda: PiecewiseUniform((0.0, 1.0), (0.5, 0.5)), "weights"),
        (lambda: PiecewiseUniform((0.0, 1.0), (0.0,)), "weights"),
        (lambda: TwoMoons().kl(TwoMoons().log_prob, 1), "n"),
        (lambda: TwoMoons().kl(lambda x: x, 10), "log_q"),
        (lambda: TwoMoons().kl(lambda x: x[:, :1], 10), "log_q"),
        (lambda: TwoMoons().kl(lambda x: 1.0, 10), "log_q"),
        (lambda: TwoMoons().kl(lambda x: math.nan * x[:, 0], 10), "log_q"),
        (lambda: TwoMoons().kl(lambda x: 0 * x[:, 0] + math.inf, 10), "log_q"),
    ]:
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            call()


@each(ALL)
def test_divergence_from_itself_is_zero(case):
    target = build(case, torch.float32)
    measured = target.kl(target.log_prob, 1000, seeded())
    assert (measured.value, measured.stderr, measured.floor) == (0, 0, 0)


def test_divergence_from_a_shifted_banana(dtype):
    """Both are one map of Gaussians, so KL = |shift|^2 / 2 width^2 in the straight coordinates."""
    target, shift = Banana(3, dtype=dtype), 0.2
    sizes = []

    def log_q(x):
        sizes.append(len(x))
        assert not torch.is_grad_enabled()
        moved = x.clone()
        moved[:, 1:] -= shift
        return target.log_prob(moved)

    measured = target.kl(log_q, CHUNK + 1000, seeded())
    exact = 2 * shift**2 / (2 * target.width**2)
    assert abs(measured.value - exact) < 4 * measured.stderr
    # The ratio is Gaussian with variance 2 KL: what the control variate leaves.
    assert measured.stderr == pytest.approx(math.sqrt(2 * exact / sum(sizes)), rel=0.05)
    assert sizes == [CHUNK, 1000]


def test_divergence_is_infinite_where_the_model_has_no_mass():
    uniform = PiecewiseUniform((1.0, 2.0), (1.0,))
    assert PiecewiseUniform().kl(uniform.log_prob, 1000, seeded()).value == math.inf


def test_divergence_of_a_histogram_from_the_uniform_law():
    """KL(p || uniform) = log(width) - H(p)."""
    target, uniform = PiecewiseUniform(), PiecewiseUniform((1.0, 2.5), (1.0,))
    measured = target.kl(uniform.log_prob, 50_000, seeded())
    assert abs(measured.value - (math.log(1.5) - target.entropy())) < 4 * measured.stderr


def test_targets_of_the_plane_by_name():
    for name, cls in TARGETS.items():
        target = cls()
        assert (target.name, target.features, target.support.event_dim) == (name, 2, 1)
    assert set(targets.__all__) >= {cls.__name__ for cls in TARGETS.values()}
    assert len({cls.name for cls, _ in ALL}) == len({cls for cls, _ in ALL})


@each(ALL)
def test_a_target_can_be_stored_and_does_not_change_its_input(case):
    target = build(case)
    again = pickle.loads(pickle.dumps(target))
    x = target.sample(10, seeded())
    before = copy.deepcopy(x)
    assert torch.equal(target.log_prob(x), again.log_prob(x))
    assert torch.equal(x, before)
