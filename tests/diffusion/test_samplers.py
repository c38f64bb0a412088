"""Samplers: theory says where each must land, and how fast its error falls."""

import math

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
        for (t, _), (s, _) in zip(path, path[1:], strict=False):
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
