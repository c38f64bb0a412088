"""The base laws: densities against torch and scipy, samples against distribution functions."""

import math

import pytest
import torch
from scipy import stats
from torch import distributions as td

from lib.flows import Base, Flow, StandardLogistic, StandardNormal, Uniform
from lib.flows.bases import AnyBase

LAWS = {
    "normal": (lambda n: StandardNormal(n), stats.norm),
    "logistic": (lambda n: StandardLogistic(n), stats.logistic),
    "uniform": (lambda n: Uniform(n, -1.0, 3.0), stats.uniform(-1, 4)),
    "any": (lambda n: AnyBase(td.Laplace(torch.zeros(n), 1.0)), stats.laplace),
}
OURS = ["normal", "logistic", "uniform"]


@pytest.mark.parametrize("name", LAWS)
def test_density_is_the_product_of_those_of_the_numbers(name, dtype, generator):
    make, exact = LAWS[name]
    z = (4 * torch.rand(7, 3, generator=generator, dtype=torch.float64) - 1).to(dtype)
    found = make(3).to(dtype).log_prob(z)
    expected = torch.tensor(exact.logpdf(z.double().numpy()).sum(-1))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_samples_have_the_distribution_function(name):
    make, exact = LAWS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = make(2).sample((20_000,))
    for column in z.T.numpy():
        assert stats.kstest(column, exact.cdf).pvalue > 1e-3
    assert abs(stats.pearsonr(*z.numpy().T).statistic) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("name", OURS)
def test_the_generator_decides_and_nothing_else(name, dtype, device):
    law = LAWS[name][0](3).to(device, dtype)
    state = torch.get_rng_state()
    one, two, other = (
        law.sample((5, 2), torch.Generator(device).manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert (one.shape, one.dtype, one.device.type) == ((5, 2, 3), dtype, device.type)


@pytest.mark.parametrize("name", ["normal", "logistic"])
def test_far_tails_are_finite_with_the_right_slope(name, dtype):
    z = torch.tensor([[-1e4], [1e4]], dtype=dtype, requires_grad=True)
    log_prob = LAWS[name][0](1).to(dtype).log_prob(z)
    log_prob.sum().backward()
    assert bool(log_prob.isfinite().all())
    slope = 1e4 if name == "normal" else 1.0
    assert z.grad.flatten().tolist() == pytest.approx([slope, -slope], rel=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (-1 / 3, 1e-3), (1e4, 1e4 + 0.1)])
def test_the_ends_of_the_uniform_law_belong_to_it(low, high, dtype):
    law = Uniform(1, low, high).to(dtype)
    ends = torch.tensor([[low], [high]], dtype=dtype)
    assert bool(law.log_prob(ends).isfinite().all())
    far = torch.tensor([[-math.inf], [math.inf]], dtype=dtype)
    assert bool((law.log_prob(torch.nextafter(ends, far)) == -math.inf).all())
    z = law.sample((10_000,), torch.Generator().manual_seed(0))
    assert bool(law.support.check(z).all())
    assert bool(law.log_prob(z).isfinite().all())


def test_one_number_outside_is_enough():
    law = Uniform(2, torch.tensor([0.0, 5.0]), torch.tensor([1.0, 7.0]))
    z = torch.tensor([[0.5, 6.0], [0.5, 4.9], [1.1, 6.0]])
    assert law.log_prob(z).tolist() == [pytest.approx(-math.log(2)), -math.inf, -math.inf]


def test_a_law_of_torch_counts_its_batch_as_part_of_the_event():
    law = td.MultivariateNormal(torch.zeros(4, 3), torch.eye(3))
    base = AnyBase(law)
    z = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    assert base.event_shape == (4, 3)
    torch.testing.assert_close(base.log_prob(z), law.log_prob(z).sum(-1))
    assert base.sample((6,)).shape == (6, 4, 3)


def test_bad_arguments_are_refused_in_words(unchecked):
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match=r"^low: expected finite numbers below high, got"):
            Uniform(2, low, high)
    for sizes in (0, (2, 0), (-1,)):
        with pytest.raises(ValueError, match=r"^event_shape: expected an integer of at least 1"):
            StandardNormal(sizes)
    law = AnyBase(td.Normal(torch.zeros(2), 1.0))
    with pytest.raises(ValueError, match=r"^generator: expected None"):
        law.sample((3,), torch.Generator())
    assert isinstance(Flow(_identity(), law.law).base, Base)


def _identity():
    from lib.bijections import ActNorm

    return ActNorm(2)
