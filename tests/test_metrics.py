import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Gamma,
    Independent,
    Laplace,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    StudentT,
    Uniform,
)

from lib.metrics import Measured, kl_divergence


def mixture(mean=0.0):
    return MixtureSameFamily(
        Categorical(torch.tensor([0.5, 0.5])), Normal(torch.tensor([mean - 1.0, mean + 1.0]), 1.0)
    )


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (Measured(0.04483, 0.0, 0.00061), "0.0448 ± 0.0006 (floor 0)"),
        (Measured(0.04483, 0.02, 0.00096), "0.045 ± 0.001 (floor 0.020)"),
        (Measured(0.5), "0.5 (floor 0)"),
        (Measured(math.inf), "inf (floor 0)"),
        (Measured(-31.6, -math.inf, 0.3), "-31.6 ± 0.3"),
        (Measured(1234.0, -math.inf, 20.0), "1234 ± 20"),
    ],
)
def test_measured_prints_the_decimals_that_its_error_leaves(measured, text):
    assert str(measured) == f"{measured}" == text


def test_measured_follows_a_format_and_is_a_number():
    m = Measured(1.5, 1.0, 0.25)
    assert f"{m:.2f}" == "1.50 ± 0.25 (floor 1.00)"
    assert float(m) == 1.5
    assert m.excess == 0.5
    assert isinstance(m.value, float)


@pytest.mark.parametrize(
    "fields", [(math.nan,), (0.0, math.nan), (0.0, 0.0, -1.0), ("x",), (None,)]
)
def test_measured_refuses_what_is_no_measurement(fields, unchecked):
    with pytest.raises(ValueError, match=r"value|floor|stderr"):
        Measured(*fields)


def test_kl_takes_the_closed_form(dtype, device):
    p = Normal(torch.tensor(1.0, dtype=dtype, device=device), 1.0)
    q = Normal(torch.tensor(0.0, dtype=dtype, device=device), 2.0)
    kl = kl_divergence(p, q)
    assert kl.value == pytest.approx(math.log(2) + (1 + 1) / 8 - 0.5, rel=1e-6)
    assert (kl.stderr, kl.floor) == (0.0, 0.0)
    assert kl_divergence(p, p).value == 0.0


def test_monte_carlo_agrees_with_the_closed_form(dtype, device, generator):
    p = Normal(torch.tensor(1.0, dtype=dtype, device=device), 1.0)
    q = Normal(torch.tensor(0.0, dtype=dtype, device=device), 2.0)
    exact, estimate = kl_divergence(p, q), kl_divergence(p, q, samples=20_000, generator=generator)
    assert 0 < estimate.stderr < 0.01
    assert abs(estimate.value - exact.value) < 4 * estimate.stderr


def test_monte_carlo_takes_over_where_no_closed_form_is_known(generator):
    # By symmetry KL(mixture || its mirror image) = 0 for the mixture itself, and > 0 for a shift.
    assert kl_divergence(mixture(), mixture(), generator=generator).value == pytest.approx(
        0, abs=1e-6
    )
    kl = kl_divergence(mixture(), mixture(2.0), generator=generator)
    assert kl.value > 10 * kl.stderr > 0


def test_a_batch_is_one_joint_law(generator):
    p = Normal(torch.zeros(3), 1.0)
    q = Normal(torch.tensor([0.0, 1.0, 2.0]), 1.0)
    assert kl_divergence(p, q).value == pytest.approx(2.5)
    estimate = kl_divergence(p, q, samples=20_000, generator=generator)
    assert abs(estimate.value - 2.5) < 4 * estimate.stderr


@pytest.mark.parametrize("samples", [None, 1000])
def test_kl_is_infinite_outside_of_the_support(samples):
    p, q = Uniform(0.0, 2.0), Uniform(0.0, 1.0)
    assert kl_divergence(p, q, samples=samples).value == math.inf
    assert kl_divergence(q, p, samples=samples).value == pytest.approx(math.log(2), rel=1e-5)
    box = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
    wide = Independent(Uniform(torch.zeros(2), torch.tensor([1.0, 2.0])), 1)
    assert kl_divergence(wide, box, samples=samples).value == math.inf


@pytest.mark.parametrize(
    ("p", "q", "truth"),
    [
        (Gamma(1e5, 1.0), Gamma(1e5 + 1, 1.0), 5.0e-6),
        (Gamma(1e6, 1.0), Gamma(1e6 + 1, 1.0), 5.0e-7),
        (Normal(0.0, 1e-30), Normal(0.0, 1.0), 30 * math.log(10) - 0.5),
        (Beta(1e6, 1e6), Beta(1e6, 1e6), 0.0),
        (Bernoulli(logits=torch.tensor(-40.0)), Bernoulli(logits=torch.tensor(-40.0)), 0.0),
    ],
)
def test_the_closed_form_does_not_drown_in_rounding(p, q, truth):
    kl = kl_divergence(p, q)
    assert kl.value == pytest.approx(truth, rel=1e-3, abs=1e-9)
    assert kl.value >= 0 == kl.stderr


def test_a_batch_meets_its_own_draws(generator):
    """Also with as many samples as laws."""
    q = StudentT(5.0, torch.zeros(3))
    three = kl_divergence(Normal(0.0, 1.0), q, generator=generator)
    one = kl_divergence(Normal(0.0, 1.0), StudentT(5.0), generator=generator)
    assert three.value == pytest.approx(3 * one.value, abs=5 * three.stderr + 15 * one.stderr)
    far = StudentT(5.0, torch.tensor([0.0, 0.0, 50.0]))
    kl = kl_divergence(Normal(0.0, 1.0), far, samples=3, generator=generator)
    assert kl.value > 10  # each sample is far from the third law
    assert kl.stderr < 5


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Bernoulli(0.0), Bernoulli(1.0)),
        (Bernoulli(0.5), Bernoulli(0.0)),
        (Categorical(torch.tensor([0.5, 0.5])), Categorical(torch.tensor([1.0, 0.0]))),
        (OneHotCategorical(torch.ones(2)), OneHotCategorical(torch.tensor([1.0, 0.0]))),
        (Multinomial(3, torch.ones(2)), Multinomial(3, torch.tensor([1.0, 0.0]))),
        (
            Independent(Bernoulli(torch.full((2,), 0.5)), 1),
            Independent(Bernoulli(torch.tensor([0.5, 1.0])), 1),
        ),
    ],
)
def test_kl_is_infinite_where_a_probability_is_zero(p, q):
    assert kl_divergence(p, q, samples=100).value == math.inf
    assert kl_divergence(p, p, samples=100).value == pytest.approx(0.0)


def test_tiny_probabilities_are_not_zero():
    p, q = Bernoulli(0.5), Bernoulli(logits=torch.tensor(-200.0))
    assert kl_divergence(p, q, samples=1000).value == pytest.approx(100, rel=0.2)


def test_global_randomness_is_untouched_and_the_generator_decides(generator):
    state = torch.get_rng_state()
    p, q = mixture(), Laplace(0.0, 1.0)
    first = kl_divergence(p, q, generator=generator)
    second = kl_divergence(p, q, generator=generator)
    again = kl_divergence(p, q, generator=torch.Generator().manual_seed(0))
    assert first == again != second
    assert kl_divergence(p, q) == kl_divergence(p, q)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_arguments(unchecked):
    p = Normal(0.0, 1.0)
    with pytest.raises(ValueError, match=r"^p: expected a torch.distributions"):
        kl_divergence(1.0, p)
    with pytest.raises(ValueError, match=r"^q: expected the event shape of p"):
        kl_divergence(p, MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ValueError, match=r"^samples: expected an integer of at least 2"):
        kl_divergence(p, p, samples=1)
    with pytest.raises(ValueError, match=r"^q: expected a batch that broadcasts"):
        kl_divergence(Normal(torch.zeros(2), 1.0), Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match=r"^q: expected a continuous law"):
        kl_divergence(p, Bernoulli(0.5))
    with pytest.raises(ValueError, match=r"^q: expected a discrete law"):
        kl_divergence(Bernoulli(0.5), p, samples=10)
    with pytest.raises(ValueError, match=r"^generator: expected a torch.Generator"):
        kl_divergence(p, p, samples=10, generator=3)
    broken = Normal(0.0, 1.0)
    broken.loc = torch.tensor(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        kl_divergence(p, broken)
