"""Schedules: one function, log-SNR, and everything that follows from it."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.diffusion import SCHEDULES, MixtureDenoiser, Schedule, from_alpha_bar, from_betas
from lib.diffusion.schedules import KINDS, cosine, edm, linear, log_linear, polynomial, straight

CASES = [(name, steps) for name in SCHEDULES for steps in (1, 10, 1000)]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_starts_without_noise_and_loses_signal(name, steps):
    schedule = SCHEDULES[name](steps)
    k = torch.arange(steps + 1)
    assert float(schedule.alpha(0)) == 1
    assert float(schedule.sigma(0)) == 0
    assert float(schedule.log_snr(0)) == math.inf
    assert bool((schedule.log_snr(k).diff()[1:] < 0).all())
    torch.testing.assert_close(schedule.sigma(k), schedule.sigma(k.double() / steps))


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_betas_build_the_share_of_signal(name, steps):
    schedule = SCHEDULES[name](steps)
    bar = schedule.alpha_bar(torch.arange(1, steps + 1))
    torch.testing.assert_close((1 - schedule.betas).cumprod(0), bar, rtol=1e-9, atol=1e-15)


@given(st.lists(st.floats(1e-5, 0.999), min_size=1, max_size=30))
def test_betas_survive_the_round_trip(betas):
    expected = torch.tensor(betas, dtype=torch.float64)
    torch.testing.assert_close(from_betas(betas).betas, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_a_factor(kind):
    """Each kind keeps its own sum, and all have one signal-to-noise ratio."""
    base = edm(10, 0.02, 5.0)
    schedule, t = base.as_kind(kind), torch.linspace(0.01, 1, 20, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    kept = {
        "preserving": alpha**2 + sigma**2,
        "exploding": alpha,
        "flow": alpha + sigma,
    }[kind]
    torch.testing.assert_close(kept, torch.ones_like(t))
    torch.testing.assert_close(2 * (alpha / sigma).log(), base.log_snr(t))
    torch.testing.assert_close(schedule.alpha_bar(t), base.alpha_bar(t))


def test_scaled_data_have_the_schedule_shifted_by_twice_the_logarithm():
    """alpha (c x) + sigma eps is proportional to the shifted alpha' x + sigma' eps."""
    c, schedule = 1.7, cosine(10)
    shifted = schedule.shifted(2 * math.log(c))
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    ratio = schedule.alpha(t) * c / schedule.sigma(t)
    torch.testing.assert_close(ratio, shifted.alpha(t) / shifted.sigma(t))
    assert float(shifted.alpha(0)) == 1


def test_edm_interpolates_a_power_of_the_noise():
    schedule = edm(11, 0.01, 50.0, rho=5.0)
    s = (-schedule.log_snr(torch.arange(1, 12)) / 2).exp() ** (1 / 5)
    torch.testing.assert_close(s.diff(), s.diff()[:1].expand(10))
    assert float(s[0] ** 5) == pytest.approx(0.01)
    assert float(s[-1] ** 5) == pytest.approx(50)
    ratio = (-log_linear(11).log_snr(torch.arange(1, 12)) / 2).exp()
    torch.testing.assert_close(ratio[1:] / ratio[:-1], (ratio[1] / ratio[0]).expand(10))


def test_flow_schedule_is_a_straight_line():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = straight().alpha_sigma(t)
    torch.testing.assert_close(alpha, 1 - t)
    torch.testing.assert_close(sigma, t)


@pytest.mark.parametrize("kind", KINDS)
def test_one_shot_and_step_by_step_have_one_law(kind, generator):
    """From one point, x_t is Gaussian with mean alpha x and standard deviation sigma."""
    schedule = polynomial(6).as_kind(kind)
    x = torch.full((100_000, 1), 2.0, dtype=torch.float64)
    path = schedule.walk(x, generator)
    assert len(path) == 7
    for k in (1, 3, 6):
        shot, eps = schedule.noise(x, k, generator)
        alpha, sigma = schedule.alpha_sigma(k)
        for y in (path[k], shot):
            assert float(y.mean()) == pytest.approx(float(2 * alpha), abs=0.015 * float(sigma))
            assert float(y.std()) == pytest.approx(float(sigma), rel=0.01)
        torch.testing.assert_close(shot, alpha * x + sigma * eps)


def test_times_per_row_and_numbers_keep_their_precision(generator):
    schedule, x = cosine(10), torch.zeros(3, 2, dtype=torch.float64)
    y, eps = schedule.noise(x, torch.tensor([1, 5, 10]), generator)
    torch.testing.assert_close(y / eps, schedule.sigma(torch.tensor([1, 5, 10]))[:, None] + 0 * x)
    assert float(straight().sigma(0.4)) == 0.4  # a Python float is not rounded to float32


def test_last_beta_may_be_one():
    schedule = from_betas([0.1, 0.5, 1.0])
    assert float(schedule.alpha(3)) == 0
    assert float(schedule.log_snr(3)) == -math.inf
    assert float(schedule.sigma(3)) == 1
    assert float(schedule.alpha(2)) > 0
    torch.testing.assert_close(schedule.betas, torch.tensor([0.1, 0.5, 1.0]).double())


def test_mismatch_of_a_gaussian_is_the_closed_form(generator):
    """KL(N(0, a^2 v + s^2) || N(0, 1)) for data from N(0, v); none for v = 1."""
    schedule = linear(10)
    for v in (1.0, 0.3):
        law = MixtureDenoiser(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1), v), schedule)
        a = float(schedule.alpha(1.0))
        w = a**2 * v + 1 - a**2
        found = law.mismatch(50_000, generator)
        assert found.value == pytest.approx((w - 1 - math.log(w)) / 2, abs=4 * found.stderr + 1e-9)


def test_copies_share_nothing_that_breaks():
    schedule = copy.deepcopy(cosine(10))
    torch.testing.assert_close(schedule.betas, cosine(10).betas)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_below_one_are_refused(steps, unchecked):
    for make in SCHEDULES.values():
        with pytest.raises(ValueError, match="steps"):
            make(steps)


@pytest.mark.parametrize(
    "betas", [[], [0.0, 0.1], [0.1, 1.1], [-0.1], [1.0, 0.5], [math.nan], "many"]
)
def test_betas_out_of_range_are_refused(betas, unchecked):
    with pytest.raises(ValueError, match="betas"):
        from_betas(betas)


def test_schedules_that_rise_or_are_no_numbers_are_refused(unchecked):
    for bad in (lambda u: u, lambda u: u * math.nan, lambda u: 0 * u):
        with pytest.raises(ValueError, match="log_snr"):
            Schedule(bad, 10)
    with pytest.raises(ValueError, match="log_snr"):
        from_alpha_bar(lambda u: u, 10)
    with pytest.raises(ValueError, match="kind"):
        Schedule(lambda u: -u, 10, "vanishing")
    with pytest.raises(ValueError, match="log_snr"):
        straight(10).as_kind("exploding")
    with pytest.raises(ValueError, match="low, high"):
        edm(10, 2.0, 1.0)


@pytest.mark.parametrize(
    "t", [-0.1, 1.1, 11, -1, math.nan, True, torch.tensor([0.5, 2.0]), torch.tensor(1j)]
)
def test_times_out_of_range_are_refused(t, unchecked):
    for method in ("alpha", "sigma", "log_snr", "alpha_bar"):
        with pytest.raises(ValueError, match="t: expected"):
            getattr(cosine(10), method)(t)


def test_times_of_another_length_are_refused(unchecked):
    with pytest.raises(ValueError, match="t: expected"):
        cosine(10).noise(torch.zeros(3, 2), torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_betas_of_any_schedule_rebuild_it_at_its_steps(name, steps):
    """Also where the last beta is one; between the steps they may differ."""
    schedule, k = SCHEDULES[name](steps), torch.arange(steps + 1)
    again = from_betas(schedule.betas)
    torch.testing.assert_close(again.alpha_bar(k), schedule.alpha_bar(k), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_signal_falls_between_the_steps_too(name, steps):
    values = SCHEDULES[name](steps).log_snr(torch.linspace(0, 1, 2001, dtype=torch.float64))
    assert bool((values.diff() < 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_denoising_scaled_data_is_denoising_on_the_shifted_schedule(kind):
    """x_t of c x_0 is a factor times x'_t of x_0: the means differ by c, and by nothing else."""
    c, schedule = 1.7, edm(10, 0.05, 5.0, kind=kind)
    shifted = schedule.shifted(2 * math.log(c))
    means = torch.tensor([[0.5, -0.3], [-0.6, 0.4]], dtype=torch.float64)
    cov = torch.tensor([[0.2, 0.1], [0.1, 0.1]], dtype=torch.float64)
    large = MixtureDenoiser(torch.ones(2), c * means, c * c * cov, schedule)
    small = MixtureDenoiser(torch.ones(2), means, cov, shifted)
    x = torch.tensor([[0.3, -0.8], [1.0, 0.2]], dtype=torch.float64)
    for t in (0.1, 0.5, 1.0):
        factor = schedule.sigma(t) / shifted.sigma(t)
        torch.testing.assert_close(schedule.alpha(t) * c, factor * shifted.alpha(t))
        torch.testing.assert_close(large(x, t).mean, c * small(x / factor, t).mean)
        # and so do the densities, by the change of variables
        moved = small.log_prob(x / factor, t) - 2 * factor.log()
        torch.testing.assert_close(large.log_prob(x, t), moved)


def test_below_the_first_step_the_noise_of_edm_falls_linearly():
    ratio = (-edm(10, 0.01, 50.0).log_snr([0.05, 0.1, 0.02]) / 2).exp()
    torch.testing.assert_close(ratio, torch.tensor([0.005, 0.01, 0.002]).double())


def test_step_by_step_has_the_covariance_of_a_markov_chain(generator):
    """Cov(x_s, x_t) = (alpha_t / alpha_s) Var(x_s): each state comes from the one before."""
    schedule = cosine(5)
    path = schedule.walk(torch.zeros(200_000, dtype=torch.float64), generator)
    alpha, sigma = schedule.alpha_sigma(torch.arange(6))
    for s, t in ((1, 2), (2, 4)):
        expected = alpha[t] / alpha[s] * sigma[s] ** 2
        assert float((path[s] * path[t]).mean()) == pytest.approx(float(expected), abs=0.005)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_can_be_pickled(name):
    schedule = SCHEDULES[name](10).shifted(0.5)
    again = pickle.loads(pickle.dumps(schedule))
    assert again.kind == schedule.kind
    assert torch.equal(again.log_snr(0.3), schedule.log_snr(0.3))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: Schedule(3), "log_snr: expected a function"),
        (lambda: Schedule(lambda u: 1.0), "log_snr: expected a tensor"),
        (lambda: Schedule(lambda u: -u[:3]), "log_snr: expected a tensor"),
        (lambda: from_alpha_bar(0.5), "alpha_bar: expected a function"),
        (lambda: cosine(10).shifted(math.nan), "by: expected finite"),
        (lambda: cosine(10).shifted("far"), "by: expected"),
        (lambda: cosine(10).grid(0), "steps: expected"),
        (lambda: cosine(10).alpha("now"), "t: expected"),
        (lambda: cosine(10).alpha(None), "t: expected"),
        (lambda: cosine(10).noise(torch.zeros(3, 2).long(), 0.5), "x: expected"),
        (lambda: cosine(10).walk(torch.zeros(3, 2).long()), "x: expected"),
        (lambda: cosine(10).noise(torch.zeros(3, 2), torch.zeros(3, 1)), "t: expected one time"),
        (lambda: edm(10, rho=math.nan), "rho: expected"),
        (lambda: edm(10, rho="seven"), "rho: expected"),
        (lambda: SCHEDULES["sigmoid"](10, math.nan, 3.0), "low: expected finite"),
        (lambda: SCHEDULES["sigmoid"](10, "low", 3.0), "low: expected"),
        (lambda: polynomial(10, last=2.0), "betas: expected"),
    ],
)
def test_refusals(call, argument, unchecked):
    with pytest.raises(ValueError, match=argument):
        call()
