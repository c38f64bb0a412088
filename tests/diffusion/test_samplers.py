"""Samplers: theory says where each must land, and how fast its error falls."""

import math
from itertools import pairwise

import pytest
import torch

from lib.diffusion import (
    DDIM,
    SCHEDULES,
    Ancestral,
    EulerMaruyama,
    Heun,
    MixtureDenoiser,
    Multistep,
    NetworkDenoiser,
    NoiseMLP,
    from_betas,
)
from lib.diffusion.samplers import levels, root
from lib.diffusion.schedules import cosine, edm, polynomial

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
VARIANCE = torch.tensor([0.5, 0.05], dtype=torch.float64)


def gaussian(schedule, variance=VARIANCE, mean=MEAN):
    """The exact denoiser of one Gaussian with a diagonal covariance."""
    return MixtureDenoiser(torch.ones(1), mean[None], torch.diag(variance), schedule)


def flowed(y, now, then):
    """The probability flow of that Gaussian in closed form: it keeps each quantile."""
    before, after = ((level.a**2 * VARIANCE + level.s**2).sqrt() for level in (now, then))
    return then.a * MEAN + (y - now.a * MEAN) * after / before


@pytest.mark.parametrize(("kind", "order"), [(DDIM, 1), (Heun, 2), (Multistep, 2)])
def test_error_of_a_path_falls_with_the_order_of_the_solver(kind, order, generator):
    sampler = kind(gaussian(edm(10, 0.02, 5.0)))
    assert sampler.order == order
    y = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    errors = []
    for steps in (64, 128):
        grid = torch.linspace(0.9, 0.3, steps + 1, dtype=torch.float64)
        (_, now), (_, then) = levels(sampler.denoiser.schedule, grid[[0, -1]])
        *_, end = sampler.walk(y, grid)
        errors.append((end.x - flowed(y, now, then)).norm(dim=1).mean())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_full_ancestral_steps_give_the_law_of_gaussian_data_in_any_number(steps, generator):
    """Reverse kernels with the exact mean and covariance compose to the exact law."""
    sampler = Ancestral(gaussian(edm(10, 0.02, 200.0)), "full")
    x = torch.randn(100_000, 2, generator=generator, dtype=torch.float64)
    *_, end = sampler.walk(x, sampler.denoiser.schedule.grid(steps), generator=generator)
    torch.testing.assert_close(end.x.mean(0), MEAN, rtol=0, atol=0.015)
    torch.testing.assert_close(end.x.var(0), VARIANCE, rtol=0.03, atol=0)


@pytest.mark.parametrize("steps", [2, 5])
def test_large_variance_is_exact_for_standard_normal_data(steps, generator):
    """But for the last step, which by custom draws no noise: the law just before it is tested."""
    one = torch.ones(2, dtype=torch.float64)
    sampler = Ancestral(gaussian(cosine(10), one, 0 * one), "large")
    x = torch.randn(100_000, 2, generator=generator, dtype=torch.float64)
    grid = sampler.denoiser.schedule.grid(steps)[:-1]
    *_, end = sampler.walk(x, grid, generator=generator)
    torch.testing.assert_close(end.x.var(0), one, rtol=0.03, atol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_small_variance_is_exact_for_one_point(steps, generator):
    point = MixtureDenoiser(torch.ones(1), MEAN[None], None, polynomial(10))
    x = Ancestral(point, "small").sample(20, steps, generator=generator)
    torch.testing.assert_close(x, MEAN.float().expand(20, 2), rtol=0, atol=1e-6)


def test_ddim_with_eta_one_is_ancestral_with_the_small_variance():
    denoiser = gaussian(cosine(10))
    first, second = (
        sampler.sample(30, generator=torch.Generator().manual_seed(1))
        for sampler in (DDIM(denoiser, 1.0), Ancestral(denoiser, "small"))
    )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_euler_maruyama_has_weak_order_one(monkeypatch):
    """For Gaussian data each step is linear, so the variance has a recursion to run exactly."""
    sampler = EulerMaruyama(gaussian(edm(10, 0.02, 5.0), mean=0 * MEAN))
    schedule = sampler.denoiser.schedule
    errors = []
    for steps in (100, 200):
        path = levels(schedule, torch.linspace(0.9, 0.4, steps + 1, dtype=torch.float64))
        variance = path[0][1].a ** 2 * VARIANCE + path[0][1].s ** 2
        for (t, _), (s, _) in pairwise(path):
            unit = torch.eye(2, dtype=torch.float64)
            monkeypatch.setattr("lib.diffusion.samplers.normal_like", lambda y, g: 0 * y)
            slope = sampler.step(unit, t, s).diagonal()
            monkeypatch.setattr("lib.diffusion.samplers.normal_like", lambda y, g: 0 * y + 1)
            sd = sampler.step(0 * unit, t, s)[0]
            variance = slope**2 * variance + sd**2
        end = path[-1][1]
        errors.append((variance - end.a**2 * VARIANCE - end.s**2).abs().sum())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)


SAMPLERS = {
    "small": lambda d: Ancestral(d, "small"),
    "large": lambda d: Ancestral(d, "large"),
    "learned": lambda d: Ancestral(d, "learned"),
    "full": lambda d: Ancestral(d, "full"),
    "DDIM": DDIM,
    "Heun": Heun,
    "multistep": Multistep,
    "SDE": EulerMaruyama,
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", [*SCHEDULES, "no signal at the end"])
def test_samples_are_finite_on_every_schedule(schedule, name):
    end = from_betas([0.01, 0.2, 0.7, 1.0])
    denoiser = gaussian(SCHEDULES[schedule](4) if schedule in SCHEDULES else end)
    x = SAMPLERS[name](denoiser).sample(16, generator=torch.Generator().manual_seed(0))
    assert x.shape == (16, 2)
    assert x.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_kinds_of_a_schedule_give_the_same_sample(name):
    """The size of x_t is a choice of coordinates."""
    base = edm(6, 0.05, 8.0)
    found = [
        SAMPLERS[name](gaussian(base.as_kind(kind))).sample(
            10, generator=torch.Generator().manual_seed(0)
        )
        for kind in ("preserving", "exploding", "flow")
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "calls"), [("small", 6), ("multistep", 6), ("Heun", 11)])
def test_calls_of_the_denoiser(name, calls):
    denoiser = gaussian(cosine(6))
    made, inner = [], denoiser._posterior
    denoiser._posterior = lambda *a: made.append(1) or inner(*a)
    SAMPLERS[name](denoiser).sample(3)
    assert len(made) == calls


def test_walk_yields_the_start_and_every_step(generator):
    sampler = DDIM(gaussian(cosine(5)))
    x = torch.randn(3, 2, generator=generator)
    states = list(sampler.walk(x, sampler.denoiser.schedule.grid()))
    assert [round(state.t, 9) for state in states] == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert states[0].mean is None
    assert states[0].x is x
    torch.testing.assert_close(states[-1].x, states[-1].mean)
    torch.testing.assert_close(sampler.step(x, 1.0, 0.8), states[1].x)


def test_root_squares_back_also_for_singular_matrices(generator):
    for size in (2, 3):
        L = torch.randn(7, size, size, generator=generator, dtype=torch.float64)
        L[0] = 0
        L[1, :, 1:] = 0  # of rank one
        cov = L @ L.mT
        found = root(cov, 0.0)
        torch.testing.assert_close(found @ found.mT, cov, rtol=1e-7, atol=1e-7)


def test_bad_input_is_refused(unchecked):
    denoiser = gaussian(cosine(5))
    sampler, x = DDIM(denoiser), torch.zeros(3, 2)
    for grid in ([0.2, 0.8], [0.5], [1.5, 0.0], [0.5, 0.5]):
        with pytest.raises(ValueError, match=r"grid|t: expected"):
            list(sampler.walk(x, grid))
    with pytest.raises(ValueError, match="eta"):
        DDIM(denoiser, 1.5)
    with pytest.raises(ValueError, match="variance"):
        Ancestral(denoiser, "medium")
    with pytest.raises(ValueError, match="denoiser"):
        Heun(torch.nn.Identity())
    with pytest.raises(ValueError, match="steps"):
        sampler.sample(3, 0)
    with pytest.raises(ValueError, match="n: expected"):
        sampler.sample(0)
    with pytest.raises(ValueError, match="label"):
        sampler.sample(3, label=torch.zeros(3, dtype=torch.long))


def moments(sampler, grid, mean, cov, monkeypatch):
    """Of the law after all steps, exactly: for Gaussian data each step is A y + b + R z."""
    D = len(mean)
    unit, zero = torch.eye(D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
    for t, s in pairwise(grid):
        monkeypatch.setattr("lib.diffusion.samplers.normal_like", lambda y, g: zero)
        b = sampler.step(zero, t, s)[0]
        A = (sampler.step(unit, t, s) - b).mT
        monkeypatch.setattr("lib.diffusion.samplers.normal_like", lambda y, g: unit)
        R = (sampler.step(zero, t, s) - b).mT
        mean, cov = A @ mean + b, A @ cov @ A.mT + R @ R.mT
    return mean, cov


def correlated(size, schedule):
    """One Gaussian whose axes are not those of the coordinates."""
    generator = torch.Generator().manual_seed(size)
    L = torch.randn(size, size, generator=generator, dtype=torch.float64) / 2
    m = torch.randn(size, generator=generator, dtype=torch.float64)
    return m, L @ L.mT, MixtureDenoiser(torch.ones(1), m[None], L @ L.mT, schedule)


@pytest.mark.parametrize("kind", ["preserving", "exploding", "flow"])
@pytest.mark.parametrize("grid", [[0.9, 0.0], [0.9, 0.3, 0.0], [0.9, 0.5, 0.45, 0.1]])
@pytest.mark.parametrize("size", [2, 3])
def test_full_ancestral_steps_compose_to_the_exact_law(size, grid, kind, monkeypatch):
    """Without any sampling error: from the law at the first time to the law at the last."""
    schedule = edm(10, 0.05, 3.0).as_kind(kind)
    m, C, denoiser = correlated(size, schedule)
    (a, s), (a_end, s_end) = (schedule.alpha_sigma(t) for t in (grid[0], grid[-1]))
    unit = torch.eye(size, dtype=torch.float64)
    start = a * m, a**2 * C + s**2 * unit
    mean, cov = moments(Ancestral(denoiser, "full"), grid, *start, monkeypatch)
    torch.testing.assert_close(mean, a_end * m)
    torch.testing.assert_close(cov, a_end**2 * C + s_end**2 * unit)


@pytest.mark.parametrize(("variance", "size"), [("large", 1.0), ("small", 0.0)])
def test_fixed_variances_are_exact_for_their_one_law(variance, size, monkeypatch):
    """ "large" for N(0, I), "small" for a point; and each is off for the law of the other."""
    schedule, grid = cosine(10), [1.0, 0.6, 0.3]
    unit = torch.eye(2, dtype=torch.float64)
    a, s = schedule.alpha_sigma(0.3)
    for own in (size, 1 - size):
        sampler = Ancestral(gaussian(schedule, own * VARIANCE.new_ones(2), 0 * MEAN), variance)
        a_start, s_start = schedule.alpha_sigma(1.0)
        start = (a_start**2 * own + s_start**2) * unit
        _, cov = moments(sampler, grid, 0 * MEAN, start, monkeypatch)
        error = (cov - (a**2 * own + s**2) * unit).abs().max()
        assert float(error) < 1e-12 if own == size else float(error) > 0.01


def test_learned_variance_is_full_where_the_axes_are_the_coordinates(monkeypatch):
    schedule, grid = edm(10, 0.05, 3.0), [0.9, 0.4, 0.0]
    a, s = schedule.alpha_sigma(0.9)
    for denoiser, C in (
        (gaussian(schedule), torch.diag(VARIANCE)),
        (correlated(2, schedule)[2], correlated(2, schedule)[1]),
    ):
        m = denoiser.means[0]
        start = a * m, a**2 * C + s**2 * torch.eye(2, dtype=torch.float64)
        mean, cov = moments(Ancestral(denoiser, "learned"), grid, *start, monkeypatch)
        torch.testing.assert_close(mean, m)  # the mean is right with any variance
        assert torch.allclose(cov, C) == (float(C[0, 1]) == 0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_law_of_a_point_for_any_eta(eta, monkeypatch):
    """There e is the noise itself, so that x_s = a_s x_0 + s_s (new noise) for every eta."""
    schedule = cosine(10)
    point = MixtureDenoiser(torch.ones(1), MEAN[None], None, schedule)
    (a, s), (a_end, s_end) = (schedule.alpha_sigma(t) for t in (0.9, 0.2))
    unit = torch.eye(2, dtype=torch.float64)
    start = a * MEAN, s**2 * unit
    mean, cov = moments(DDIM(point, eta), [0.9, 0.5, 0.2], *start, monkeypatch)
    torch.testing.assert_close(mean, a_end * MEAN)
    torch.testing.assert_close(cov, s_end**2 * unit)


@pytest.mark.parametrize("kind", [DDIM, Heun, Multistep])
def test_paths_to_a_point_have_no_error(kind, generator):
    """The mean is constant, so x / a is linear in s / a: one step is as good as many."""
    point = MixtureDenoiser(torch.ones(1), MEAN[None], None, edm(10, 0.02, 5.0))
    y = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    (_, now), (_, then) = levels(point.schedule, torch.tensor([0.9, 0.2], dtype=torch.float64))
    exact = then.a * MEAN + then.s / now.s * (y - now.a * MEAN)
    for grid in ([0.9, 0.2], [0.9, 0.6, 0.5, 0.2]):
        *_, end = kind(point).walk(y, grid)
        torch.testing.assert_close(end.x, exact)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "multistep"])
def test_steps_one_by_one_are_the_walk(name, generator):
    """Multistep is the exception: it remembers the step before."""
    sampler, grid = SAMPLERS[name](gaussian(cosine(5))), [5, 3, 2, 0]
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    source, y = torch.Generator().manual_seed(1), x
    for t, s in pairwise(grid):
        y = sampler.step(y, t, s, generator=source)
    *_, end = sampler.walk(x, grid, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(y, end.x)


def test_multistep_remembers_one_step_and_no_more(generator):
    """Else the chain of moves would keep all states of a walk in memory."""
    seen = []

    class Spy(Multistep):
        def _step(self, y, move):
            seen.append(move)
            return super()._step(y, move)

    list(Spy(gaussian(cosine(6))).walk(torch.zeros(3, 2), cosine(6).grid()))
    assert seen[0].before is None
    for before, move in pairwise(seen):
        assert move.before.found is before.found
        assert move.before.before is None


def test_a_sample_is_a_walk_from_noise(dtype):
    """In the precision of the network; and the same seed gives the same numbers."""
    torch.manual_seed(0)
    network = NoiseMLP(2).to(dtype)
    torch.nn.init.normal_(network.last.weight, std=0.1)
    sampler = Ancestral(NetworkDenoiser(network, cosine(5), (2,)), "large")
    found = sampler.sample(4, 3, generator=torch.Generator().manual_seed(7))
    source = torch.Generator().manual_seed(7)
    x = torch.randn(4, 2, generator=source, dtype=dtype)
    *_, end = sampler.walk(x, cosine(5).grid(3), generator=source)
    assert found.dtype == dtype
    assert torch.equal(found, end.x)
    assert not found.requires_grad


def test_steps_and_times_name_one_grid(generator):
    """Integers are steps of the schedule, numbers in [0, 1] are times; a list is one or other."""
    sampler, x = DDIM(gaussian(cosine(10))), torch.randn(3, 2, generator=generator)
    ends = []
    for grid in ([10, 5, 0], [1, 0.5, 0], torch.tensor([10, 5, 0]), cosine(10).grid(2)):
        *_, end = sampler.walk(x, grid)
        ends.append(end.x)
    assert all(torch.equal(end, ends[0]) for end in ends)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_a_class_are_those_of_its_own_denoiser(name):
    """In every call of the denoiser, Heun's second one too."""
    means, labels = torch.tensor([[-0.5, 0.0], [0.7, 0.2]]), torch.tensor([0, 1])
    both = MixtureDenoiser(torch.ones(2), means, 0.3 * torch.eye(2), cosine(6), labels)
    alone = MixtureDenoiser(torch.ones(1), means[1:], 0.3 * torch.eye(2), cosine(6))
    one, two = (
        SAMPLERS[name](denoiser).sample(5, generator=torch.Generator().manual_seed(0), label=label)
        for denoiser, label in ((both, torch.ones(5, dtype=torch.long)), (alone, None))
    )
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("variance", ["learned", "full"])
def test_covariance_is_asked_for_where_it_is_needed(variance, unchecked):
    sampler = Ancestral(NetworkDenoiser(NoiseMLP(2), cosine(5), (2,)), variance)
    with pytest.raises(ValueError, match="variance: expected 'small' or 'large'"):
        sampler.sample(3)


def test_last_step_of_full_draws_from_the_posterior(monkeypatch):
    """To t = 0 in one step from t: the covariance of what is drawn is Cov(x_0 | x_t)."""
    _, _, denoiser = correlated(2, cosine(10))
    x = torch.ones(1, 2, dtype=torch.float64)
    found = denoiser(x, 0.5)
    unit = torch.eye(2, dtype=torch.float64)
    monkeypatch.setattr("lib.diffusion.samplers.normal_like", lambda y, g: unit)
    R = Ancestral(denoiser, "full").step(x.expand(2, 2), 0.5, 0.0) - found.mean
    torch.testing.assert_close(R.mT @ R, found.cov[0])
    for variance in ("small", "large"):  # by custom, no noise
        end = Ancestral(denoiser, variance).step(x, 0.5, 0.0)
        torch.testing.assert_close(end, found.mean)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d, x: d.walk(x, []), "grid: expected at least two"),
        (lambda d, x: d.walk(x, 3), "grid: expected at least two"),
        (lambda d, x: d.walk(x, [[0.5, 0.1]]), "grid: expected at least two"),
        (lambda d, x: d.walk(x, ["end", "start"]), "t: expected times"),
        (lambda d, x: d.walk(x, [0.5, math.nan]), "t: expected times"),
        (lambda d, x: d.walk(x, [11, 0]), "t: expected integers in 0..5"),
        (lambda d, x: d.walk(torch.zeros(3, 3), [0.5, 0.1]), "x: expected"),
        (lambda d, x: d.walk(x[0], [0.5, 0.1]), r"x: expected shape \(n, 2\)"),
        (lambda d, x: d.walk(x.long(), [0.5, 0.1]), "x: expected"),
        (lambda d, x: d.step(x, 0.2, 0.5), "grid: expected at least two times that fall"),
        (lambda d, x: d.step(x, torch.full((3,), 0.5), 0.2), "t, s: expected one time each"),
        (lambda d, x: d.step(x.long(), 0.5, 0.2), "x: expected"),
        (lambda d, x: d.sample(-1), "n: expected"),
        (lambda d, x: d.sample(3, 2.5), "steps: expected"),
        (lambda d, x: d.sample(3, generator=7), "generator: expected a torch.Generator or None"),
        (lambda d, x: DDIM(d.denoiser, math.nan), "eta: expected"),
        (lambda d, x: DDIM(d.denoiser, -0.1), "eta: expected"),
    ],
)
def test_refusals(call, words, unchecked):
    """Where they are asked for: a walk is refused before its first state is."""
    with pytest.raises(ValueError, match=words):
        call(DDIM(gaussian(cosine(5))), torch.zeros(3, 2))
