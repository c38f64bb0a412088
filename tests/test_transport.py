"""Distances of transport: closed forms, the axioms of a metric, floors, refusals."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import wasserstein_distance

from lib.metrics import sliced_wasserstein, wasserstein
from lib.metrics.transport import assign

DOUBLE = torch.float64
X = torch.zeros(5, 2)
both = pytest.mark.parametrize("distance", [wasserstein, sliced_wasserstein])


def normal(n, d, generator, shift=0.0):
    return torch.randn(n, d, generator=generator, dtype=DOUBLE) + shift


def clouds(count):
    """Samples of a few points, repeated ones among them."""
    cloud = arrays(np.float64, (5, 2), elements=st.floats(-9, 9, width=16))
    return st.tuples(*[cloud.map(torch.from_numpy)] * count)


@pytest.mark.parametrize("p", [1, 1.5, 2, 4])
def test_on_the_line_the_best_match_is_the_sorted_one(p, dtype, generator):
    x, y = (normal(50, 1, generator, shift).to(dtype) for shift in (0.0, 0.7))
    gap = (x.double().sort(0).values - y.double().sort(0).values).abs()
    exact = float(gap.pow(p).mean() ** (1 / p))
    assert wasserstein(x, y, p=p).value == pytest.approx(exact, rel=1e-12)


def test_the_first_power_on_the_line_against_scipy(generator):
    x, y = normal(80, 1, generator), 2 * normal(80, 1, generator, 0.5)
    exact = wasserstein_distance(x[:, 0], y[:, 0])
    assert wasserstein(x, y, p=1).value == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_no_permutation_does_better(p, generator):
    x, y = normal(6, 3, generator), normal(6, 3, generator)
    costs = [(x - y[list(s)]).norm(dim=1).pow(p).mean() for s in permutations(range(6))]
    assert wasserstein(x, y, p=p).value == pytest.approx(float(min(costs)) ** (1 / p), rel=1e-12)


@pytest.mark.parametrize("p", [1, 2, 50])
@pytest.mark.parametrize("size", [1e-100, 1.0, 1e100])
def test_a_translation_costs_its_length(p, size, generator):
    x, shift = normal(40, 3, generator), torch.tensor([3.0, -4.0, 12.0], dtype=DOUBLE)
    found = wasserstein(size * (x + shift), size * x, p=p).value
    assert found == pytest.approx(13 * size, rel=1e-12)


@pytest.mark.parametrize("projections", [2, 3, 128])
def test_a_translation_in_slices_on_the_plane(projections, dtype, generator):
    """The mean of cos^2 over equally spaced angles is one half, from two of them on."""
    x, shift = normal(40, 2, generator).to(dtype), torch.tensor([3.0, -4.0], dtype=dtype)
    found = sliced_wasserstein(x + shift, x, projections=projections).value
    assert found == pytest.approx(5 / math.sqrt(2), rel=10 * torch.finfo(dtype).eps)


def test_a_translation_in_slices_of_space(generator):
    """E (u s)^2 = |s|^2 / D, here over random directions: relative variance 2 (D - 1) / (D + 2)."""
    d, count = 6, 5000
    x, shift = normal(20, d, generator), torch.arange(1.0, d + 1).double()
    found = sliced_wasserstein(x + shift, x, projections=count, generator=generator).value
    stderr = math.sqrt(2 * (d - 1) / (d + 2) / count)
    assert found**2 / float(shift.square().sum() / d) == pytest.approx(1, abs=4 * stderr)


def test_on_the_line_each_slice_is_the_exact_distance(generator):
    x, y = normal(30, 1, generator), normal(30, 1, generator, 1.0)
    found = sliced_wasserstein(x, y, projections=3, generator=generator).value
    assert found == pytest.approx(wasserstein(x, y).value, rel=1e-12)


def test_slices_are_never_longer_than_the_whole(generator):
    for shift in (0.0, 1.0):
        x, y = normal(60, 2, generator, shift), normal(60, 2, generator)
        assert sliced_wasserstein(x, y).value <= wasserstein(x, y).value / math.sqrt(2)


@both
def test_order_does_not_matter(distance, generator):
    x, y = normal(40, 2, generator), normal(40, 2, generator, 0.5)
    mixed = [part[torch.randperm(40, generator=generator)] for part in (x, y)]
    assert distance(*mixed).value == pytest.approx(distance(x, y).value, rel=1e-12)


@both
@settings(deadline=None, max_examples=50)
@given(samples=clouds(3))
def test_axioms_of_a_metric(distance, samples):
    x, y, z = samples
    assert distance(x, x).value == pytest.approx(0, abs=1e-12)
    assert distance(x, y).value == pytest.approx(distance(y, x).value, rel=1e-9, abs=1e-12)
    assert distance(x, z).value <= distance(x, y).value + distance(y, z).value + 1e-9


@settings(deadline=None, max_examples=50)
@given(samples=clouds(2))
def test_the_distance_grows_with_its_power(samples):
    first, second, fourth = (wasserstein(*samples, p=p).value for p in (1, 2, 4))
    assert first <= second + 1e-9
    assert second <= fourth + 1e-9


@both
@pytest.mark.parametrize("features", [2, 3])
def test_the_floor_is_what_the_truth_gives(distance, features, generator):
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    options = {} if distance is wasserstein else {"generator": seeded()}
    x, y, z = (normal(200, features, generator, shift) for shift in (0.5, 0.0, 0.0))
    found = distance(x, y, z, **options)
    options = {} if distance is wasserstein else {"generator": seeded()}
    assert found.floor == pytest.approx(distance(z, y, **options).value, rel=1e-12)
    assert found.value > 1.2 * found.floor > 0
    assert (found.stderr, distance(x, y).floor) == (0, -math.inf)
    same = distance(z, y, z, **options)
    assert same.value == same.floor  # the same directions for both


def test_nothing_is_random_on_the_plane_and_a_seed_decides_elsewhere(generator):
    before = torch.get_rng_state()
    x, y = normal(50, 3, generator), normal(50, 3, generator)
    plane = [sliced_wasserstein(x[:, :2], y[:, :2], generator=generator).value for _ in range(2)]
    space = [
        sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(seed)).value
        for seed in (1, 1, 2)
    ]
    assert plane[0] == plane[1]
    assert space[0] == space[1] != space[2]
    assert torch.equal(torch.get_rng_state(), before)


@both
def test_samples_of_each_kind(distance, dtype, device, generator):
    """Devices, gradients and strides: the value is that of the numbers, the samples stay."""
    x, y = (normal(2, 30, generator).to(device, dtype).requires_grad_().T for _ in range(2))
    before = x.detach().clone()
    found = distance(x, y).value
    exact = distance(x.detach().cpu().double(), y.detach().cpu().double()).value
    assert found == pytest.approx(exact, rel=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: f(X, X[:, :1]), "reference: expected 2 features, as x, got 1"),
        (lambda f: f(X, X, X[:, :1]), "fresh: expected 2 features, as x, got 1"),
        (lambda f: f(X, X[:4]), "x: expected as many points as the reference, 4, got 5"),
        (lambda f: f(X, X, X[:4]), "fresh: expected as many points as the reference, 5, got 4"),
        (lambda f: f(X[:1], X[:1]), "x: expected a sample of shape .* n at least 2"),
        (lambda f: f(X[0], X), "x: expected a sample of shape"),
        (lambda f: f([0.0], X), "x: expected a sample"),
        (lambda f: f(X, X * math.nan), "reference: expected finite numbers"),
        (lambda f: f(X, X, X + math.inf), "fresh: expected finite numbers"),
        (lambda f: f(X[:, :0], X[:, :0]), "x: expected at least one number"),
    ],
)
@both
def test_refusals_of_samples(distance, call, words, unchecked):
    with pytest.raises(ValueError, match=f"^{words}"):
        call(distance)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: wasserstein(X, X, p=0.5), "p: expected at least 1, got 0.5"),
        (lambda: wasserstein(X, X, p=math.inf), "p: expected one positive number"),
        (lambda: sliced_wasserstein(X, X, projections=0), "projections: expected an integer"),
        (lambda: sliced_wasserstein(X, X, generator=3), "generator: expected a torch.Generator"),
    ],
)
def test_refusals_of_options(call, words, unchecked):
    with pytest.raises(ValueError, match=f"^{words}"):
        call()


def test_plan_reaches_every_point_once_and_has_the_distance(generator):
    x, y = normal(40, 2, generator), normal(40, 2, generator, 1.0)
    order, distance = assign(x, y)
    assert order.sort().values.tolist() == list(range(40))
    moved = (x - y[order]).square().sum(1).mean().sqrt()
    assert distance == pytest.approx(float(moved))
    assert distance == pytest.approx(wasserstein(x, y).value)


def test_plan_of_near_points_keeps_its_digits():
    """By |x|^2 - 2 xy + |y|^2 in float32 all these distances would be noise."""
    x = 1000 + 1e-3 * torch.arange(40.0)[:, None]
    order, _ = assign(x, x.flip(0))
    assert order.tolist() == list(range(40))[::-1]
