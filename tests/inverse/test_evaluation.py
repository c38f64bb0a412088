"""The judges, judged: floors at the exact posterior, and models that are wrong in known ways."""

import math

import pytest
import torch

from lib.inverse import (
    ConditionalFlow,
    Exact,
    MixtureDensityNetwork,
    PriorOnly,
    Spoilt,
    Spread,
    calibration,
    diagnose,
    negative_log_likelihood,
    posterior_c2st,
    posterior_error,
    ranks,
    resimulation_error,
)
from lib.inverse.problems import GaussianLinear, Kinematics, TwoMoons

LINEAR = GaussianLinear()


class Bent:
    """The exact posterior N(y / 2, 0.05) with its spread multiplied or its mean moved."""

    has_density = True

    def __init__(self, spread=1.0, shift=0.0):
        self.sd, self.shift = spread * math.sqrt(0.05), shift

    def law(self, y):
        mean = y / 2 + self.shift
        return torch.distributions.Independent(torch.distributions.Normal(mean, self.sd), 1)

    def sample(self, y, n, generator=None):
        shape = (n, *y.shape)
        return y / 2 + self.shift + self.sd * torch.randn(shape, generator=generator)

    def log_prob(self, x, y):
        return self.law(y).log_prob(x)


@pytest.mark.parametrize("density", [False, True])
def test_the_exact_posterior_is_calibrated_and_bent_ones_are_not(density, generator):
    """At 99 %: right, too narrow, too wide, moved."""
    judged = lambda model: calibration(  # noqa: E731
        ranks(model, LINEAR, 600, draws=60, density=density, generator=generator)
    )
    assert judged(Bent()).calibrated
    assert judged(Exact(LINEAR)).calibrated
    assert not judged(Bent(spread=0.6)).calibrated
    assert not judged(Bent(spread=1.6)).calibrated
    assert not judged(Bent(shift=0.15)).calibrated


def test_the_prior_passes_simulation_based_calibration_and_fails_the_other(generator):
    """Known, and why one looks at more than ranks: the prior is calibrated, and useless."""
    prior = PriorOnly(10, 10)
    prior.fit(*LINEAR.sample(50_000, generator))
    assert calibration(ranks(prior, LINEAR, 600, draws=60, generator=generator)).calibrated
    y = LINEAR.sample(5, generator)[1]
    assert posterior_error(prior, LINEAR, y, generator=generator).mean.value > 0.05


def test_the_band_holds_as_often_as_it_says(generator):
    """Uniform ranks leave a 90 % band in one of ten cases, three columns together."""
    outside = [
        not calibration(torch.rand(100, 3, generator=generator), level=0.9).calibrated
        for _ in range(250)
    ]
    share = sum(outside) / 250
    assert share == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 250))


def test_a_spoilt_flow_is_what_it_says(generator):
    """Latents N(0, k^2), moved by s: its density integrates to one and belongs to its draws."""
    model = ConditionalFlow(2, 2, layers=2, hidden=(8,)).double()
    x, y = TwoMoons(dtype=torch.float64).sample(500, generator)
    model.fit(x, y, steps=20, lr=1e-2)
    spoilt = Spoilt(model, temperature=1.3, shift=0.1)
    drawn = spoilt.sample(y[0], 20_000, generator)
    with torch.no_grad():
        ratio = (model.log_prob(drawn, y[0]) - spoilt.log_prob(drawn, y[0])).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * error)
    z = model.encode(drawn - 0.1, y[0])
    assert float(z.std()) == pytest.approx(1.3, rel=0.02)
    assert spoilt.sample(y[:3], 5, generator).shape == (5, 3, 2)
    assert spoilt.log_prob(spoilt.sample(y[:3], 5, generator), y[:3]).shape == (5, 3)


def test_ranks_have_no_steps(generator, unchecked):
    """Few draws, many ties: a constant model that hits the truth at random stays uniform."""

    class Coin:
        def sample(self, y, n, generator=None):
            return torch.randint(2, (n, len(y), 1), generator=generator).float()

    class Coins:
        features, observed = 1, 1

        def sample(self, n, generator=None):
            x = torch.randint(2, (n, 1), generator=generator).float()
            return x, torch.zeros(n, 1)

    found = ranks(Coin(), Coins(), 3000, draws=3, generator=generator)
    assert calibration(found).calibrated
    assert len(found.unique()) > 2900


def test_likelihood_against_the_closed_form(generator):
    """E KL of a spread k: 10 (log k + 1 / 2k^2 - 1/2)."""
    k = 1.3
    found = negative_log_likelihood(Bent(spread=k), LINEAR, 20_000, generator)
    expected = 10 * (math.log(k) + 0.5 / k**2 - 0.5)
    assert found.excess == pytest.approx(expected, abs=4 * found.stderr)
    entropy = 5 * math.log(2 * math.pi * math.e * 0.05)
    assert found.floor == pytest.approx(entropy, abs=0.1)
    exact = negative_log_likelihood(Exact(LINEAR), LINEAR, 1000, generator)
    assert exact.excess == pytest.approx(0, abs=1e-5)


def test_floors_at_the_exact_posterior(generator):
    """MMD zero within its errors, accuracy one half, re-simulation at its floor."""
    y = LINEAR.sample(20, generator)[1]
    exact = Exact(LINEAR)
    error = posterior_error(exact, LINEAR, y, draws=300, generator=generator)
    assert abs(error.mean.value) < 4 * error.mean.stderr
    assert error.quartiles[0] < 0 < error.quartiles[2]
    resim = resimulation_error(exact, LINEAR, y, draws=2000, generator=generator)
    assert resim.mean.value == pytest.approx(resim.floor, rel=0.05)
    test = posterior_c2st(exact, LINEAR, y[:3], draws=500, early_stopping=True)
    assert test.mean.value == pytest.approx(0.5, abs=0.03)
    assert test.floor == 0.5


def test_a_reference_takes_the_place_of_fresh_draws(generator):
    """The same numbers as with the draws that would have been made; a wrong shape is refused."""
    y = LINEAR.sample(2, generator)[1]
    exact = Exact(LINEAR).sample(y, 100, generator)
    model = Bent(1.2)
    options = {"draws": 100, "reference": exact}
    one, two = (
        posterior_error(model, LINEAR, y, generator=torch.Generator().manual_seed(0), **options)
        for _ in range(2)
    )
    assert torch.equal(one.values, two.values)
    same = resimulation_error(Bent(), LINEAR, y, generator=generator, **options)
    by_hand = (LINEAR.simulate(exact, generator) - y).square().sum(-1).mean()
    assert same.floor == pytest.approx(float(by_hand), rel=0.1)
    with pytest.raises(ValueError, match=r"reference: expected shape \(50, 2, 10\)"):
        posterior_error(model, LINEAR, y, draws=50, reference=exact)


def test_resimulation_rewards_collapse(generator):
    """One exact draw, repeated: error zero, and far from the posterior."""
    problem = Kinematics(dtype=torch.float64)

    class Collapsed(Exact):
        def sample(self, y, n, generator=None):
            return super().sample(y, 1, generator).expand(n, *y.shape[:-1], 4)

    y = problem.sample(4, generator)[1]
    model = Collapsed(problem)
    assert resimulation_error(model, problem, y, draws=50, generator=generator).mean.value < 1e-20
    assert posterior_error(model, problem, y, draws=200, generator=generator).mean.value > 0.3


def test_a_batch_of_observations_is_answered_one_by_one(generator):
    problem = TwoMoons()
    y = problem.sample(3, generator)[1]
    drawn = Exact(problem).sample(y, 50, generator)
    assert drawn.shape == (50, 3, 2)
    assert bool((problem.log_posterior(drawn, y) > -math.inf).all())


def test_spread_of_one_number():
    assert Spread(torch.tensor([2.0])).mean.stderr == 0
    assert Spread(torch.arange(5.0)).quartiles == (1.0, 2.0, 3.0)


def test_diagnose_prints_all_of_it(generator):
    table = str(diagnose(Bent(), LINEAR, observations=5, draws=200, pairs=200, generator=generator))
    for name in ("Err_post", "Err_resim", "C2ST", "log q", "SBC", "HPD"):
        assert name in table
    assert table.count("calibrated") == 2
    assert "NOT" not in table
    wrong = str(
        diagnose(
            Bent(0.5), LINEAR, observations=2, draws=50, pairs=300, test=False, generator=generator
        )
    )
    assert wrong.count("NOT calibrated") == 2
    assert "C2ST" not in wrong


Y = torch.zeros(2, 10)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: posterior_error(Bent(), LINEAR, Y[0]), r"y: expected shape \(observations, 10\)"),
        (lambda: posterior_c2st(Bent(), LINEAR, Y[:, :3]), "y: expected shape"),
        (lambda: resimulation_error(Bent(), LINEAR, [0.0]), "y: expected shape .* got list"),
        (lambda: ranks(Bent(), LINEAR, 0), "n: expected an integer of at least 1"),
        (lambda: ranks(Bent(), LINEAR, 5, draws=0), "draws: expected an integer"),
        (lambda: negative_log_likelihood(Bent(), LINEAR, 1), "n: expected an integer of at least"),
        (lambda: calibration(Y + 2), "ranks: expected numbers from 0 to 1"),
        (lambda: calibration(Y[0]), "ranks: expected"),
        (lambda: calibration(Y, level=1.0), "level: expected a probability below 1"),
        (lambda: diagnose(Bent(), LINEAR, observations=0), "observations: expected an integer"),
        (
            lambda: negative_log_likelihood(PriorOnly(10, 10), LINEAR, 10),
            "model: expected one that has a density",
        ),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_mixture_network_learns_a_linear_posterior(generator):
    """KL below a line: a network that must find y / 2 and 0.05 in ten dimensions."""
    torch.manual_seed(0)
    model = MixtureDensityNetwork(10, 10, components=1, hidden=(64,))
    model.fit(*LINEAR.sample(20_000, generator), steps=800, lr=5e-3)
    assert negative_log_likelihood(model, LINEAR, 5000, generator).excess < 0.15
