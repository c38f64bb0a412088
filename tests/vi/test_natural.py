"""A natural gradient step of size one is the update of coordinate ascent."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import hessian
from torch.distributions import kl_divergence

from lib.vi.factors import GammaFactor, NormalFactor
from lib.vi.natural import (
    gamma_from_natural,
    gamma_log_normalizer,
    gamma_natural,
    natural_gradient,
    normal_from_natural,
    normal_log_normalizer,
    normal_natural,
)
from lib.vi.normal import NormalState, normal_elbo, normal_updates
from lib.vi.statistics import SufficientStatistics

NORMAL = (normal_natural, normal_from_natural, normal_log_normalizer)
GAMMA = (gamma_natural, gamma_from_natural, gamma_log_normalizer)
FACTORS = {"mu": ("mu", *NORMAL), "lambda": ("lam", *GAMMA)}


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).unbind()


@pytest.mark.parametrize("factor", FACTORS)
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 50),
    mean=st.floats(-2, 2),
    s2=st.floats(0.2, 5),
    m=st.floats(-2, 2),
    v=st.floats(0.1, 3),
    a=st.floats(0.5, 30),
    b=st.floats(0.5, 30),
    prior=st.sampled_from(["flat", "reference"]),
)
def test_unit_step_is_the_update_and_a_half_step_is_half_way(
    factor, n, mean, s2, m, v, a, b, prior
):
    statistics = SufficientStatistics(n, *double(mean, s2))
    state = NormalState(NormalFactor(*double(m, v)), GammaFactor(*double(a, b)))
    field, natural, from_natural, log_normalizer = FACTORS[factor]
    update = normal_updates(statistics, prior)[factor]

    def bound(eta):
        pair = {"mu": state.mu, "lam": state.lam, field: from_natural(eta)}
        return normal_elbo(NormalState(**pair), statistics, prior)

    eta = natural(getattr(state, field))
    best = natural(getattr(update(state), field))
    step = natural_gradient(bound, eta, log_normalizer)
    size = float(eta.abs().max() + best.abs().max())
    torch.testing.assert_close(eta + step, best, rtol=1e-10, atol=1e-10 * size)
    torch.testing.assert_close(eta + step / 2, (eta + best) / 2, rtol=1e-10, atol=1e-10 * size)
    away = float((best - eta).abs().max())
    assert float((eta + step / 2 - best).abs().max()) == pytest.approx(away / 2, abs=1e-9 * size)
    # At the optimum there is nowhere to go.
    rest = natural_gradient(bound, best, log_normalizer)
    torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("family", [NORMAL, GAMMA], ids=["normal", "gamma"])
def test_conversions_invert_each_other(family, dtype, device):
    natural, from_natural, _ = family
    factor = (NormalFactor if family is NORMAL else GammaFactor)(
        *torch.tensor([1.3, 0.4], dtype=dtype, device=device).unbind()
    )
    again = from_natural(natural(factor))
    for name in vars(factor):
        torch.testing.assert_close(getattr(again, name), getattr(factor, name))


@pytest.mark.parametrize("family", [NORMAL, GAMMA], ids=["normal", "gamma"])
def test_log_normalizer_generates_divergences_and_fisher_information(family):
    """KL(p || q) = A(eta_q) - A(eta_p) - A'(eta_p) (eta_q - eta_p), with second derivative F."""
    natural, from_natural, log_normalizer = family
    make = NormalFactor if family is NORMAL else GammaFactor
    p, q = make(*double(0.7, 1.9)), make(*double(1.2, 0.6))
    eta_p, eta_q = natural(p).requires_grad_(), natural(q)
    (mean,) = torch.autograd.grad(log_normalizer(eta_p), eta_p)
    bregman = log_normalizer(eta_q) - log_normalizer(eta_p) - mean @ (eta_q - eta_p)
    torch.testing.assert_close(bregman, kl_divergence(p.distribution, q.distribution))
    divergence = lambda eta: kl_divergence(p.distribution, from_natural(eta).distribution)  # noqa: E731
    fisher = hessian(log_normalizer, natural(p))
    torch.testing.assert_close(hessian(divergence, natural(p)), fisher)


@pytest.mark.parametrize("family", [NORMAL, GAMMA], ids=["normal", "gamma"])
def test_parameters_outside_of_the_family_are_named(family, unchecked):
    _, from_natural, log_normalizer = family
    for bad in ([0.0, 1.0], [-2.0, 0.0], [0.0, math.nan]):
        eta = torch.tensor(bad)
        with pytest.raises(ValueError, match=r"^eta: expected"):
            natural_gradient(lambda eta: eta.sum(), eta, log_normalizer)
        with pytest.raises(ValueError, match=r"^eta: expected"):
            from_natural(eta)


@pytest.mark.parametrize("from_natural", [normal_from_natural, gamma_from_natural])
@pytest.mark.parametrize("bad", [[1.0], [1.0, -1.0, 0.0], [[1.0, -1.0]], None, -1.0])
def test_natural_parameters_of_another_shape_are_named(from_natural, bad, unchecked):
    with pytest.raises(ValueError, match=r"^eta: expected"):
        from_natural(bad)


def test_lists_of_natural_parameters_are_taken(unchecked):
    assert float(normal_from_natural([1.0, -0.5]).mean) == 1
    step = natural_gradient(lambda eta: eta.sum(), [0.0, -0.5], normal_log_normalizer)
    assert step.shape == (2,)


def test_the_argument_is_left_alone():
    eta = gamma_natural(GammaFactor(*double(2.0, 3.0)))
    before = eta.clone()
    natural_gradient(lambda eta: -eta.square().sum(), eta, gamma_log_normalizer)
    assert torch.equal(eta, before)
    assert not eta.requires_grad
