import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, autoguide
from pyro.nn import PyroModule, PyroParam
from scipy import optimize, special, stats
from torch import nn

from lib.training import NonFiniteLoss
from lib.vi.diagnostics import mean_field_gap, mean_field_variances, pareto_khat
from lib.vi.guides import fit_guide
from lib.vi.particles import elbo, local_parameters
from lib.vi.targets import correlated_normal, eight_schools, funnel, normal_normal, two_modes


def gaussian(covariance, mean=None):
    mean = torch.zeros(len(covariance)).to(covariance) if mean is None else mean

    def model():
        pyro.sample("z", dist.MultivariateNormal(mean, covariance))

    return model


def covariance(d, dtype=torch.float64):
    """Standard deviations from 0.1 to 10, correlations of every size."""
    generator = torch.Generator().manual_seed(d)
    factor = torch.randn(d, d, generator=generator, dtype=dtype)
    units = torch.logspace(-1, 1, d, dtype=dtype)
    return units[:, None] * (factor @ factor.mT / d + 0.3 * torch.eye(d, dtype=dtype)) * units


def schools():
    return eight_schools(False).model


# --- the estimator


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("landing", [False, True])
def test_elbo_is_that_of_pyro(particles, landing):
    with local_parameters():
        guide = autoguide.AutoNormal(schools())
        guide()
        torch.manual_seed(3)
        ours = elbo(schools(), guide, particles=particles, stick_the_landing=landing)
        torch.manual_seed(3)
        theirs = Trace_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
        expected = -theirs.loss(schools(), guide)
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def at_posterior(example, dtype):
    """A full-rank guide that equals the Gaussian posterior of `normal_normal`."""
    with local_parameters():
        guide = autoguide.AutoMultivariateNormal(example.model)
        guide()
        with torch.no_grad():
            guide.loc.copy_(example.mean["mu"])
            guide.scale = example.sd["mu"].reshape(1)
    return guide


def test_sticking_the_landing_has_no_noise_at_the_posterior(dtype, device, generator):
    """Roeder et al. (2017): zero for EVERY sample; the ordinary gradient only on average."""
    x = torch.randn(10, generator=generator, dtype=torch.float64).to(device, dtype)
    example = normal_normal(x, 0.0, 2.0, 1.0)
    guide = at_posterior(example, dtype)
    ordinary = []
    for seed in range(400):
        gradients = []
        for landing in (True, False):
            torch.manual_seed(seed)
            guide.zero_grad()
            value = elbo(example.model, guide, stick_the_landing=landing)
            value.backward()
            # The bound is tight for each sample: log p - log q is the log evidence.
            assert value.item() == pytest.approx(example.log_evidence, rel=1e-5)
            gradients.append(torch.stack([guide.loc.grad[0], guide.scale_unconstrained.grad[0]]))
        sticking, plain = gradients
        assert float(sticking.abs().max()) < (1e-3 if dtype == torch.float32 else 1e-10)
        ordinary.append(plain)
    ordinary = torch.stack(ordinary)
    noise = ordinary.std(0)
    assert bool((noise > 0.05).all())
    assert bool((ordinary.mean(0).abs() < 4 * noise / 20).all())


def test_both_gradients_have_one_expectation(generator):
    """The exact gradient of the ELBO of N(m, s^2) for N(0, 1) is (-m, 1 - s^2) in (m, log s)."""
    model = gaussian(torch.eye(1, dtype=torch.float64))
    with local_parameters():
        guide = autoguide.AutoDiagonalNormal(model)
        guide.scale_constraint = torch.distributions.constraints.positive
        guide()
        with torch.no_grad():
            guide.loc.fill_(0.7)
            guide.scale = torch.tensor([0.5], dtype=torch.float64)
    exact = torch.tensor([-0.7, 1 - 0.5**2], dtype=torch.float64)
    for landing in (True, False):
        torch.manual_seed(0)
        guide.zero_grad()
        elbo(model, guide, particles=200_000, stick_the_landing=landing).backward()
        found = torch.cat([guide.loc.grad, guide.scale_unconstrained.grad])
        torch.testing.assert_close(found, exact, rtol=0, atol=0.02)


# --- landing on the exact answer


@pytest.mark.parametrize("guide", ["mean-field", "full-rank"])
@pytest.mark.parametrize(
    ("centre", "noise", "prior_sd"),
    [
        (8.0, 1.0, 10.0),
        (8.0, 10.0, 100.0),
        (1e3, 1.0, 1e4),
        (1e3, 1e-3, 1e4),
        (0.0, 1e-3, 1.0),
        (1e6, 1e3, 1e7),
    ],
)
def test_normal_normal_from_far(centre, noise, prior_sd, guide, generator):
    """PyMC's default ADVI said 3.1 where the exact mean is 8.0 (issue 6271)."""
    z = torch.randn(20, generator=generator, dtype=torch.float64)
    x = centre + noise * (z - z.mean())
    example = normal_normal(x, 0.0, prior_sd, noise)
    fit = fit_guide(example.model, guide=guide)
    assert fit.reason == "converged"
    posterior = fit.posterior()
    sd = float(example.sd["mu"])
    assert abs(float(posterior.mean) - float(example.mean["mu"])) < 0.02 * sd
    assert float(posterior.variance.sqrt()) == pytest.approx(sd, rel=0.02)
    assert fit.elbo.value == pytest.approx(example.log_evidence, abs=1e-3)


def test_float32_travels_as_far():
    x = torch.linspace(7.0, 9.0, 20)
    example = normal_normal(1000 * x, 0.0, 1e5, 300.0)
    posterior = fit_guide(example.model).posterior()
    assert posterior.mean.dtype == torch.float32
    assert abs(float(posterior.mean - example.mean["mu"])) < 0.02 * float(example.sd["mu"])


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
def test_mean_field_lands_on_the_optimum_of_its_family(rho):
    fit = fit_guide(correlated_normal(rho).model)
    assert fit.reason == "converged"
    posterior = fit.posterior()
    assert float(posterior.mean.abs().max()) < 0.02 * math.sqrt(1 - rho**2)
    assert (posterior.stddev / math.sqrt(1 - rho**2)).tolist() == pytest.approx([1, 1], abs=0.02)
    assert abs(fit.elbo.value - 0.5 * math.log(1 - rho**2)) < 4 * fit.elbo.stderr


@pytest.mark.parametrize("guide", ["full-rank", "low-rank"])
def test_richer_guides_land_on_the_covariance(guide):
    fit = fit_guide(
        correlated_normal(0.9).model, guide=guide, rank=1 if guide == "low-rank" else None
    )
    assert fit.reason == "converged"
    exact = torch.tensor([[1, 0.9], [0.9, 1]])
    torch.testing.assert_close(fit.posterior().covariance_matrix, exact, rtol=0.02, atol=0)
    assert fit.elbo.value == pytest.approx(0, abs=1e-3)


def test_ten_dimensions(generator):
    target, mean = covariance(10), 100 * torch.randn(10, generator=generator, dtype=torch.float64)
    narrow = fit_guide(gaussian(target, mean))
    best = mean_field_variances(target).sqrt()
    assert narrow.reason == "converged"
    assert float(((narrow.posterior().mean - mean) / best).abs().max()) < 0.02
    assert float((narrow.posterior().stddev / best - 1).abs().max()) < 0.02
    assert abs(narrow.elbo.value + mean_field_gap(target)) < 4 * narrow.elbo.stderr
    full = fit_guide(gaussian(target, mean), guide="full-rank")
    sd = target.diagonal().sqrt()
    found = full.posterior()
    assert full.reason == "converged"
    assert float(((found.mean - mean) / sd).abs().max()) < 0.02
    torch.testing.assert_close(
        found.covariance_matrix / sd / sd[:, None], target / sd / sd[:, None], rtol=0, atol=0.02
    )
    assert full.elbo.value == pytest.approx(0, abs=0.01)


def best_gaussian(log_joint, start):
    """The exact optimum of a one-dimensional ELBO, by Gauss-Hermite quadrature."""
    node, weight = special.roots_hermitenorm(80)
    weight = weight / weight.sum()

    def loss(parameters):
        m, log_s = parameters
        return -(weight * log_joint(m + math.exp(log_s) * node)).sum() - log_s

    found = optimize.minimize(
        loss, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}
    )
    return found.x[0], math.exp(found.x[1]), -found.fun + 0.5 * math.log(2 * math.pi * math.e)


def beta_bernoulli():
    """p ~ Beta(2, 2), 7 of 8; in u = logit p with Jacobian p (1 - p): a = 9, b = 3."""

    def model():
        p = pyro.sample("p", dist.Beta(torch.tensor(2.0, dtype=torch.float64), 2.0))
        with pyro.plate("flips", 8):
            pyro.sample("x", dist.Bernoulli(p), obs=torch.tensor([1.0] * 7 + [0.0]).double())

    def log_joint(u):
        return 9 * special.log_expit(u) + 3 * special.log_expit(-u) - special.betaln(2, 2)

    return model, log_joint, special.betaln(9, 3) - special.betaln(2, 2)


def gamma_poisson():
    """rate ~ Gamma(2, 1), counts 1, 0, 2: in u = log rate, Gamma(5, 4)."""
    counts = torch.tensor([1.0, 0.0, 2.0]).double()

    def model():
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0))
        with pyro.plate("counts", 3):
            pyro.sample("x", dist.Poisson(rate), obs=counts)

    constant = -special.gammaln(counts.numpy() + 1).sum()

    def log_joint(u):
        return 5 * u - 4 * np.exp(u) + constant

    return model, log_joint, special.gammaln(5) - 5 * math.log(4) + constant


@pytest.mark.parametrize("conjugate", [beta_bernoulli, gamma_poisson])
def test_where_the_posterior_is_not_gaussian_the_best_gaussian_is_found(conjugate):
    model, log_joint, log_evidence = conjugate()
    mean, sd, bound = best_gaussian(log_joint, [0.0, 0.0])
    fit = fit_guide(model, tol=0.02)
    posterior = fit.posterior()
    assert fit.reason == "converged"
    assert abs(float(posterior.mean) - mean) < 0.02 * sd
    assert float(posterior.stddev) == pytest.approx(sd, rel=0.02)
    assert abs(fit.elbo.value - bound) < 4 * fit.elbo.stderr + 1e-4
    assert 0.001 < log_evidence - bound < 0.1  # the price of the Gaussian


def test_eight_schools_bound_and_moments():
    example = eight_schools(False)
    fit = fit_guide(example.model, guide="full-rank")
    assert fit.reason == "converged"
    gap = example.log_evidence - fit.elbo.value
    assert 0 < gap < 0.4
    draws, log_ratio = fit.draw(4000)
    assert log_ratio.shape == (4000,)
    assert draws["xi"].shape == (4000, 8)
    assert pareto_khat(log_ratio).k < 0.7 + 2 * 0.12  # close to the alarm: its noise is 0.12
    assert float(draws["mu"].mean()) == pytest.approx(float(example.mean["mu"]), abs=0.25)
    assert float(draws["tau"].min()) > 0


def test_of_two_far_modes_one_is_found_and_the_other_is_never_missed():
    """KL(q || p) = log 2 for a guide that covers one of two equal modes, and no ratio shows it."""
    fit = fit_guide(two_modes(20.0).model)
    assert fit.reason == "converged"
    assert abs(float(fit.posterior().mean)) == pytest.approx(10, abs=0.02)
    assert float(fit.posterior().stddev) == pytest.approx(1, abs=0.02)
    assert fit.elbo.value == pytest.approx(-math.log(2), abs=1e-3)
    assert pareto_khat(fit.log_ratio(4000)).reliable


def test_the_funnel_is_easy_once_it_is_not_centred():
    fit = fit_guide(funnel(9, centred=False).model)
    assert fit.reason == "converged"
    assert fit.elbo.value == pytest.approx(0, abs=1e-4)


# --- stopping


def test_no_convergence_is_admitted():
    fit = fit_guide(funnel(4).model, max_steps=300, seed=1)
    assert (fit.reason, fit.steps, len(fit.elbo_path)) == ("max_steps", 300, 300)
    assert all(map(math.isfinite, fit.elbo_path))
    assert bool(torch.isfinite(fit.posterior().mean).all())
    assert math.isfinite(fit.elbo.value)
    assert fit.elbo.value < 0  # log evidence of the funnel


@pytest.mark.parametrize("lr", [0.01, 1e-3, 1e-4, 1e-6])
def test_a_small_rate_on_a_long_way_is_not_taken_for_arrival(lr):
    """A guide of one's own starts where it is, 4,000 standard deviations away: a rule that looks at
    how far the iterates spread would be content, and the more so the smaller the rate.
    """
    model = normal_normal(torch.full((20,), 1000.0), 0.0, 1e3, 1.0).model
    with local_parameters():
        guide = autoguide.AutoNormal(model)
    assert fit_guide(model, guide=guide, lr=lr, max_steps=1000).reason == "max_steps"


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_nan_names_step_and_site():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample(
            "broken", dist.Normal(z * math.nan, 1.0, validate_args=False), obs=torch.zeros(())
        )

    with pytest.raises(NonFiniteLoss, match=r"step 0: term '-?log p\(broken\)' is nan"):
        fit_guide(model)


# --- guides of one's own, state, shapes


class Shifted(PyroModule):
    """A guide without autoguide: z ~ N(m, s^2), written by hand."""

    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.tensor(3.0))
        self.s = PyroParam(torch.tensor(0.3), constraint=dist.constraints.positive)

    def forward(self):
        return pyro.sample("z", dist.Normal(self.m, self.s))


@pytest.mark.parametrize("landing", [True, False])
def test_a_guide_of_ones_own(landing):
    def model():
        pyro.sample("z", dist.Normal(-1.0, 0.5))

    guide = Shifted()
    fit = fit_guide(model, guide=guide, stick_the_landing=landing)
    assert fit.guide is guide
    assert fit.reason == "converged"
    assert float(guide.m.detach()) == pytest.approx(-1, abs=0.02)
    assert float(guide.s.detach()) == pytest.approx(0.5, rel=0.03)
    with pytest.raises(ValueError, match="get_posterior"):
        fit.posterior()


def test_nothing_global_changes_and_the_seed_decides():
    pyro.get_param_store().setdefault("mine", torch.tensor(1.0))
    state = torch.get_rng_state()
    before = (pyro.settings.get(), torch.get_default_dtype(), list(pyro.get_param_store()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = fit_guide(schools(), max_steps=50)
        again = fit_guide(schools(), max_steps=50)
        other = fit_guide(schools(), max_steps=50, seed=1)
    first.sample(3)
    assert torch.equal(state, torch.get_rng_state())
    after = (pyro.settings.get(), torch.get_default_dtype(), list(pyro.get_param_store()))
    assert before == after
    pyro.clear_param_store()
    assert torch.equal(first.posterior().mean, again.posterior().mean)
    assert not torch.equal(first.posterior().mean, other.posterior().mean)
    assert first.elbo == again.elbo


def test_draws_have_the_shapes_of_the_model_and_the_law_of_the_guide(generator):
    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("columns", 2, dim=-1), pyro.plate("rows", 3, dim=-2):
            w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("n", len(x)):
            total = w.sum(-1).sum((-1, -2), keepdim=True)
            pyro.sample("x", dist.Normal(total, scale), obs=x)

    fit = fit_guide(model, torch.ones(5), max_steps=50)
    draws = fit.sample(7, generator)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "scale": (7,),
        "w": (7, 3, 2, 4),
    }
    assert fit.posterior().event_shape == (25,)
    assert not fit.posterior().mean.requires_grad
    assert fit.log_ratio(7).shape == (7,)
    assert torch.equal(fit.sample(5)["scale"], fit.sample(5)["scale"])
    assert not torch.equal(fit.sample(5, generator)["scale"], fit.sample(5, generator)["scale"])


def test_log_ratio_is_log_p_minus_log_q_of_the_same_draw(generator):
    """In constrained space: with z = log rate, q(rate) = N(log rate; m, s^2) / rate."""
    model, _, _ = gamma_poisson()
    fit = fit_guide(model, max_steps=100)
    draws, found = fit.draw(50, generator)
    rate = draws["rate"].numpy()
    posterior = fit.posterior()
    m, s = float(posterior.mean), float(posterior.stddev)
    log_q = stats.lognorm.logpdf(rate, s, scale=math.exp(m))
    log_p = stats.gamma.logpdf(rate, 2.0)
    log_p += sum(stats.poisson.logpmf(count, rate) for count in (1, 0, 2))
    assert found.tolist() == pytest.approx((log_p - log_q).tolist(), abs=1e-9)


def test_fit_follows_the_device_and_dtype_of_the_model(device, dtype):
    example = normal_normal(torch.ones(4, dtype=dtype, device=device), 0.0, 1.0, 1.0)
    fit = fit_guide(example.model, max_steps=50)
    mean = fit.posterior().mean
    assert (mean.dtype, mean.device.type) == (dtype, device.type)
    assert fit.sample(3)["mu"].device.type == device.type


def test_a_model_that_mixes_its_particles_is_refused(unchecked):
    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"^model: expected operations that broadcast"):
        fit_guide(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guide": "flow"}, "^guide: expected one of mean-field"),
        ({"guide": 3}, "^guide: expected an nn.Module"),
        ({"rank": 2}, "^rank: expected None"),
        ({"guide": "low-rank", "rank": 0}, "^rank: expected an integer"),
        ({"particles": 0}, "^particles: expected"),
        ({"max_steps": 0}, "^max_steps: expected"),
        ({"tol": 0.0}, "^tol: expected"),
        ({"lr": -1.0}, "^lr: expected"),
        ({"seed": -1}, "^seed: expected"),
    ],
)
def test_bad_arguments(change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        fit_guide(schools(), **change)


class Discrete(PyroModule):
    def forward(self):
        pyro.sample("k", dist.Bernoulli(0.5))


def test_bad_models_and_guides(unchecked):
    def coin():
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"^guide: expected sample sites with rsample, got 'k'"):
        elbo(coin, Discrete())
    with pytest.raises(ValueError, match=r"^model: expected continuous latents"):
        fit_guide(coin)
    with pytest.raises(ValueError, match=r"^model: expected continuous latents"):
        fit_guide(lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(())))
    with pytest.raises(ValueError, match=r"^model: expected a callable"):
        fit_guide(3)
    with pytest.raises(ValueError, match=r"^guide: expected an nn.Module"):
        elbo(schools(), lambda: None)


class Fixed(PyroModule):
    def forward(self):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_guide_has_the_latents_of_its_model(unchecked):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def two():
        model()
        pyro.sample("w", dist.Normal(0.0, 1.0))

    def other():
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"^guide: .*latents \['w', 'z'\], got none for \['w'\]"):
        fit_guide(two, guide=Shifted())
    with pytest.raises(ValueError, match=r"^guide: .*latents \['w'\], got none for \['w'\]"):
        elbo(other, Shifted())
    with pytest.raises(ValueError, match=r"^guide: .*latents \[\], got also \['z'\]"):
        elbo(lambda: None, Shifted())
    for auto in (autoguide.AutoNormal, autoguide.AutoDiagonalNormal, autoguide.AutoIAFNormal):
        with local_parameters():
            guide = auto(two)
        assert math.isfinite(elbo(two, guide).item())


def test_what_is_no_trainable_guide_is_named(unchecked):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"^guide: expected at least one parameter"):
        fit_guide(model, guide=Fixed())
    for module in (nn.Linear(3, 1), nn.Module()):
        with pytest.raises(ValueError, match=r"^guide: expected a Pyro guide"):
            fit_guide(model, guide=module)
    with pytest.raises(ValueError, match=r"^generator: expected a torch.Generator"):
        fit_guide(model, max_steps=1).draw(2, 3)
