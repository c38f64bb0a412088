import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
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
    broken = Normal(0.0, 1.0)
    broken.loc = torch.tensor(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        kl_divergence(p, broken)
