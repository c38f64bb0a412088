"""What every inverse problem promises: types, seeds, support, identities, errors."""

import copy
import math
import pickle
import time

import pytest
import torch

from lib.inverse import problems
from lib.inverse.problems import (
    PROBLEMS,
    Ballistics,
    DigitImages,
    EightModes,
    GaussianLinear,
    GaussianMixture,
    InverseProblem,
    Kinematics,
    TwoMoons,
)
from tests.inverse.problems.catalogue import BOXED, CASES, DENSE, QUICK, build, double, each, seeded


def test_problems_by_name():
    for name, cls in PROBLEMS.items():
        assert name == cls.name
        assert issubclass(cls, InverseProblem)
    assert set(problems.__all__) >= {cls.__name__ for cls in PROBLEMS.values()}
    assert {case[0] for case in CASES} == set(PROBLEMS.values())


@each(CASES)
def test_shapes_and_types(case, dtype, device):
    problem = case[0](**case[1], dtype=dtype, device=device)
    y = torch.tensor(case[2], dtype=dtype, device=device)
    x, made = problem.sample(20, seeded())
    draws = problem.sample_posterior(y, 20, seeded())
    for value, length in (
        (x, problem.features),
        (made, problem.observed),
        (draws, problem.features),
        (problem.sample_prior(20, seeded()), problem.features),
        (problem.simulate(x, seeded()), problem.observed),
    ):
        assert (value.shape, value.dtype) == ((20, length), dtype)
        assert value.device.type == device.type
        assert bool(value.isfinite().all())
    assert problem.simulate(x.view(4, 5, -1)).shape == (4, 5, problem.observed)
    assert problem.simulate(x[0]).shape == (problem.observed,)
    log_p = problem.log_prior(draws.view(4, 5, -1))
    assert (log_p.shape, log_p.dtype) == ((4, 5), dtype)
    assert bool(log_p.isfinite().all())
    evidence = problem.log_evidence(y)
    assert math.isfinite(evidence.value)
    assert evidence.floor == -math.inf
    assert evidence.stderr < 0.02


@each(CASES)
def test_a_seed_gives_the_same_numbers_and_leaves_the_global_state(case):
    problem, y = build(case)
    before = torch.get_rng_state()
    x, _ = problem.sample(30, seeded(1))
    for draw in (
        lambda seed: problem.sample_prior(30, seeded(seed)),
        lambda seed: torch.cat(problem.sample(30, seeded(seed)), 1),
        lambda seed: problem.sample_posterior(y, 30, seeded(seed)),
    ):
        first = draw(3)
        assert torch.equal(first, draw(3))
        assert not torch.equal(first, draw(4))
    assert torch.equal(problem.simulate(x, seeded(3)), problem.simulate(x, seeded(3)))
    assert problem.log_evidence(y) == problem.log_evidence(y)
    assert torch.equal(torch.get_rng_state(), before)


@each(CASES)
def test_single_precision_is_the_rounding_of_double(case):
    problem, y = build(case)
    single, _ = build(case, torch.float32)
    y = y.float()  # its digits count
    x = problem.sample_posterior(y.double(), 100, seeded())
    assert torch.equal(single.sample_posterior(y, 100, seeded()), x.float())
    rounded = x.float()
    wide = problem.log_prior(rounded.double())
    torch.testing.assert_close(single.log_prior(rounded), wide.float())


@each(BOXED)
def test_the_box_is_the_support(case, dtype):
    problem, y = build(case, dtype)
    low, high = problem.low.to(dtype), problem.high.to(dtype)
    for x in (problem.sample_prior(1000, seeded()), problem.sample_posterior(y, 1000, seeded())):
        assert bool(((x >= low) & (x <= high)).all())
    outside = problem.sample_prior(problem.features, seeded())
    outside.fill_diagonal_(float(high[0]) * 1.001)
    assert problem.log_prior(outside).tolist() == [-math.inf] * problem.features
    assert problem.log_posterior(outside, y).tolist() == [-math.inf] * problem.features
    volume = float((problem.high - problem.low).log().sum())
    assert float(problem.log_prior(low / 2)) == pytest.approx(-volume, rel=1e-6)


@each(DENSE)
def test_posterior_times_evidence_is_prior_times_likelihood(case):
    problem, y = build(case)
    x = torch.cat([problem.sample_posterior(y, 20, seeded()), problem.sample_prior(20, seeded())])
    joint = problem.log_prior(x) + problem.log_likelihood(y, x)
    product = problem.log_posterior(x, y) + problem.log_evidence(y).value
    torch.testing.assert_close(product, joint, rtol=1e-9, atol=1e-9)


@each(DENSE)
def test_observations_broadcast(case):
    problem, _ = build(case)
    x, y = problem.sample(4, seeded())
    each_one = torch.stack([problem.log_posterior(*pair) for pair in zip(x, y, strict=True)])
    torch.testing.assert_close(problem.log_posterior(x, y), each_one)
    assert problem.log_posterior(x.view(2, 2, -1), y.view(2, 2, -1)).shape == (2, 2)
    assert problem.log_likelihood(y, x[0]).shape == (4,)
    pairs = problem.log_likelihood(y[:, None], x)
    torch.testing.assert_close(pairs.diagonal(), problem.log_likelihood(y, x))


@each(QUICK)
def test_the_truth_ranks_uniformly_among_posterior_draws(case):
    """For (x, y) from the joint law, x is one more draw of p(x | y): chi-squared of its ranks."""
    problem, _ = build(case)
    n, others = 1000, 9
    x, y = problem.sample(n, seeded(1))
    g = seeded(2)
    direction = torch.randn(problem.features, 3, generator=g, dtype=x.dtype)
    draws = torch.stack([problem.sample_posterior(row, others, g) for row in y])
    ranks = ((draws @ direction) < (x @ direction)[:, None]).sum(1)
    counts = torch.stack([(ranks == k).sum(0) for k in range(others + 1)]).double()
    expected = n / (others + 1)
    score = (counts - expected).square().sum(0) / expected  # chi-squared, 9 degrees of freedom
    assert bool((score < 36).all()), score  # p = 4e-5 for each


@pytest.mark.parametrize("case", [c for c in CASES if not c[0].has_density])
def test_without_a_density_there_is_none(case):
    problem, y = build(case)
    x = problem.sample_prior(2, seeded())
    for call in (lambda: problem.log_posterior(x, y), lambda: problem.log_likelihood(y, x)):
        with pytest.raises(ValueError, match="deterministic: its posterior lies on a surface"):
            call()


@each(CASES)
def test_bad_arguments_are_refused(case, unchecked):
    problem, y = build(case)
    x = problem.sample_prior(3, seeded())
    nan = torch.full_like(y, math.nan)
    for call, name in [
        (lambda: problem.sample_prior(0), "n"),
        (lambda: problem.sample(2.5), "n"),
        (lambda: problem.sample_posterior(y, -1), "n"),
        (lambda: problem.sample_prior(3, generator=3), "generator"),
        (lambda: problem.sample(3, generator="seed"), "generator"),
        (lambda: problem.sample_posterior(y, 3, generator=3), "generator"),
        (lambda: problem.simulate(x, generator=3), "generator"),
        (lambda: problem.simulate(x[:, 1:]), "x"),
        (lambda: problem.simulate(x.long()), "x"),
        (lambda: problem.simulate(x * math.nan), "x"),
        (lambda: problem.log_prior(x[:, 1:]), "x"),
        (lambda: problem.sample_posterior(torch.cat([y, y]), 3), "y"),
        (lambda: problem.sample_posterior(y.expand(3, -1), 3), "y"),
        (lambda: problem.sample_posterior(y.tolist(), 3), "y"),
        (lambda: problem.sample_posterior(nan, 3), "y"),
        (lambda: problem.sample_posterior(nan.fill_(math.inf), 3), "y"),
        (lambda: problem.log_evidence(y.expand(3, -1)), "y"),
        (lambda: case[0](dtype=torch.int64), "dtype"),
    ]:
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            call()
    if problem.has_density:
        with pytest.raises(ValueError, match=r"^y: expected a batch that broadcasts with"):
            problem.log_likelihood(y.expand(2, -1), x)


def test_bad_options_are_refused(unchecked):
    for call, name in [
        (lambda: EightModes("most"), "labels"),
        (lambda: Ballistics("slow"), "speed"),
        (lambda: GaussianLinear("flat"), "prior"),
        (lambda: DigitImages(torch.ones(8, 8)), "hidden"),
        (lambda: DigitImages(torch.ones(8, 8, dtype=torch.bool)), "hidden"),
        (lambda: DigitImages(torch.ones(4, 8, dtype=torch.bool)), "hidden"),
        (lambda: DigitImages(sd=0.0), "sd"),
        (lambda: DigitImages(noise=-1.0), "noise"),
    ]:
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            call()


@pytest.mark.parametrize(
    ("problem", "y", "why"),
    [
        (Kinematics(), [2.5, 0.0], r"\[2.5, 0.0\] \(the arm reaches \|y_1\| < 2\)"),
        (Kinematics(), [-9.0, 0.0], "the arm reaches"),
        (TwoMoons(), [9.0, 0.0], r"\[9.0, 0.0\] \(none of 1,\d+,\d+ proposals reaches it\)"),
        (TwoMoons(), [0.5, 0.0], "proposals reaches it"),
        (Ballistics(), [500.0], "beyond -10 and 25"),
        (Ballistics("poisson"), [-40.0], "beyond -10 and 25"),
        (EightModes(), [0.5] * 8, "8 labels in use"),
        (EightModes("some"), [0.0] * 7 + [1.0], "4 labels in use, the first 4"),
    ],
)
def test_what_cannot_be_produced_is_refused_at_once(problem, y, why):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"^y: expected an observation that the problem.*{why}"):
        problem.sample_posterior(torch.tensor(y), 10, seeded())
    assert time.perf_counter() - start < 5


def test_what_cannot_be_produced_has_no_evidence():
    for problem, y in [
        (Kinematics(), double(2.5, 0.0)),
        (TwoMoons(), double(9.0, 0.0)),
        (EightModes("none"), double(0, 1, 0, 0, 0, 0, 0, 0)),
    ]:
        assert problem.log_evidence(y).value == -math.inf
    with pytest.raises(ValueError, match=r"^y: expected an observation that the problem can"):
        TwoMoons().log_posterior(double(0.0, 0.0), double(9.0, 0.0))


def test_far_observations_have_a_posterior():
    """A box far away, where probabilities underflow: the nearest face, and an exponential law."""
    y = torch.full((10,), 50.0, dtype=torch.float64)
    x = GaussianLinear("uniform", dtype=torch.float64).sample_posterior(y, 20_000, seeded())
    depth = (1 - x) * 49 / 0.1  # in units of the mean depth, up to (0.1 / 49)^2
    assert float(depth.mean()) == pytest.approx(1, abs=0.01)
    assert float(depth.var()) == pytest.approx(1, abs=0.03)
    x = GaussianMixture(dtype=torch.float64).sample_posterior(double(200.0, 0.0), 1000, seeded())
    assert bool((x[:, 0] > 9.8).all())


@each(CASES)
def test_a_problem_can_be_stored_and_does_not_change_its_input(case):
    problem, y = build(case)
    again = pickle.loads(pickle.dumps(problem))
    before = copy.deepcopy(y)
    first = problem.sample_posterior(y, 10, seeded())
    assert torch.equal(first, again.sample_posterior(y, 10, seeded()))
    assert torch.equal(y, before)
