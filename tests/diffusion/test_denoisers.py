"""Denoisers from networks: whatever the network says, the mean is the same."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lib.diffusion import (
    Guided,
    MixtureDenoiser,
    NetworkDenoiser,
    NoiseMLP,
    OneHotMLP,
    from_betas,
    random_steps,
    stratified_times,
)
from lib.diffusion.denoisers import Level, triangle
from lib.diffusion.schedules import cosine, edm, polynomial

PREDICTS = ("eps", "x0", "v", "score", "velocity", "edm")
MEANS = torch.tensor([[0.5, -0.3], [-0.6, 0.4]], dtype=torch.float64)
SD = 0.7


def exact(schedule):
    return MixtureDenoiser(torch.ones(2), MEANS, 0.1 * torch.eye(2), schedule)


class Perfect(nn.Module):
    """A network that says the exact noise, data, or whatever it is asked for."""

    def __init__(self, schedule, predicts):
        super().__init__()
        self.denoiser, self.predicts = exact(schedule), predicts

    def forward(self, y, c_noise, label=None):
        log_snr = -8 * c_noise.double().view(-1, 1)
        a, s = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        size = ((a * SD) ** 2 + s**2).sqrt()
        y = y * size  # the input came at unit variance
        x0 = self.denoiser.posterior(y, Level(a, s, log_snr, 1.0)).mean
        eps = (y - a * x0) / s
        return {
            "x0": x0,
            "eps": eps,
            "v": a * eps - s * x0,
            "score": -eps / s,
            "velocity": eps - x0,
            "edm": (x0 - a * (SD / size) ** 2 * y) * size / (s * SD),
        }[self.predicts]


@pytest.mark.parametrize("kind", ["preserving", "exploding", "flow"])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_mean_does_not_depend_on_what_is_predicted(predicts, kind, generator):
    schedule = edm(10, 0.01, 20.0).as_kind(kind)
    made = NetworkDenoiser(Perfect(schedule, predicts), schedule, (2,), predicts=predicts, sd=SD)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    for t in (0.1, 0.5, 1.0, torch.linspace(0.1, 1, 6, dtype=torch.float64)):
        torch.testing.assert_close(made(x, t).mean, exact(schedule)(x, t).mean)
        torch.testing.assert_close(made.score(x, t), exact(schedule).score(x, t))


@pytest.mark.parametrize("predicts", PREDICTS)
def test_slope_is_the_derivative_of_the_mean(predicts, generator):
    """An error of the network becomes slope times it in the mean; so does the loss."""
    schedule, x = cosine(10), torch.randn(4, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)

    class Off(Perfect):
        def forward(self, y, c_noise, label=None):
            return super().forward(y, c_noise) + 0.01

    right, wrong = (
        NetworkDenoiser(kind(schedule, predicts), schedule, (2,), predicts=predicts, sd=SD)
        for kind in (Perfect, Off)
    )
    slope = wrong.slope(wrong._rows(x, t))
    moved = (wrong(x, t).mean - right(x, t).mean).abs()
    torch.testing.assert_close(moved, 0.01 * abs(slope) + 0 * x, rtol=1e-6, atol=1e-9)


def test_simple_weight_is_the_error_of_the_noise():
    """w(t) |x_0 - mean|^2 with w = SNR is |eps - E eps|^2; "network" is the error in its own."""
    schedule, t = cosine(10), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(0)
    net = NoiseMLP(2).double()
    nn.init.normal_(net.last.weight, std=0.1)
    for predicts in ("v", "eps"):
        made = NetworkDenoiser(net, schedule, (2,), predicts=predicts)
        x_t, eps = schedule.noise(x, t, torch.Generator().manual_seed(2))
        error = (eps - made.noise(x_t, t)).square().mean()
        same = {"generator": torch.Generator().manual_seed(2)}
        loss = made.loss(x, t, **same, weight="simple")["mean"]
        torch.testing.assert_close(loss, error)
        if predicts == "eps":
            same = {"generator": torch.Generator().manual_seed(2)}
            torch.testing.assert_close(made.loss(x, t, **same)["mean"], error)
    a, s = schedule.alpha_sigma(t)
    made, same = made.on(schedule), {"generator": torch.Generator().manual_seed(2)}
    w = (a / s).square().clamp(max=5.0)[:, None]
    plain = (w * (x - made(x_t, t).mean).square()).mean()
    torch.testing.assert_close(made.loss(x, t, **same, weight="min-snr")["mean"], plain)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_pure_noise_says_nothing_to_a_network_that_predicts_noise(predicts, unchecked):
    """beta_T = 1 is legal, but x_0 = (x - sigma eps) / alpha is not, and the error says so."""
    end, start = from_betas([0.1, 0.5, 1.0]), from_betas([0.1, 0.5, 0.9])
    net = NoiseMLP(2)
    if predicts in ("eps", "score"):
        with pytest.raises(ValueError, match="schedule: expected some signal"):
            NetworkDenoiser(net, end, (2,), predicts=predicts)
        with pytest.raises(ValueError, match="schedule: expected some signal"):
            NetworkDenoiser(net, start, (2,), predicts=predicts).on(end)
    else:
        made = NetworkDenoiser(net, start, (2,), predicts=predicts).on(end)
        assert made(torch.ones(3, 2), 1.0).mean.isfinite().all()


def test_covariance_head_is_a_factor_in_units_of_gaussian_data():
    """With an identity factor it is the posterior covariance of data from N(0, sd^2)."""

    class Zero(nn.Module):
        def forward(self, y, c_noise, label=None):
            return y.new_zeros(len(y), 3)

    schedule = cosine(10)
    made = NetworkDenoiser(NoiseMLP(2), schedule, (2,), sd=SD, spread=Zero())
    law = MixtureDenoiser(torch.ones(1), torch.zeros(1, 2), SD**2 * torch.eye(2), schedule)
    for t in (0.2, 0.7):
        x = torch.ones(3, 2)
        torch.testing.assert_close(made(x, t).cov, law(x, t).cov)
        torch.testing.assert_close(made(x, t).mean, law(x, t).mean)  # the network says zero


def test_triangle_holds_logarithms_on_its_diagonal():
    L = triangle(torch.tensor([[0.0, math.log(2), 0.5]]), 2)
    torch.testing.assert_close(L, torch.tensor([[[1.0, 0.0], [0.5, 2.0]]]))


def test_likelihood_of_the_covariance_leaves_the_mean_alone(generator):
    torch.manual_seed(0)
    made = NetworkDenoiser(NoiseMLP(2), cosine(10), (2,), spread=NoiseMLP(2, 3))
    x = torch.randn(64, 2, generator=generator)
    made.loss(x, stratified_times(64, generator), generator)["spread"].backward()
    assert all(w.grad is None for w in made.network.parameters())
    assert any(float(w.grad.abs().max()) > 0 for w in made.spread.parameters())


def test_likelihood_of_the_covariance_is_smallest_at_the_true_one():
    class Scaled(nn.Module):
        def __init__(self, log):
            super().__init__()
            self.log = log

        def forward(self, y, c_noise, label=None):
            return torch.tensor([self.log, self.log, 0.0]).to(y).expand(len(y), 3)

    schedule = cosine(10)
    x = SD * torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    losses = []
    for log in (-0.2, 0.0, 0.2):
        made = NetworkDenoiser(NoiseMLP(2), schedule, (2,), sd=SD, spread=Scaled(log))
        found = made.loss(x, 0.5, torch.Generator().manual_seed(1))
        losses.append(float(found["spread"]))
    assert min(losses) == losses[1]


@pytest.mark.parametrize("label", [None, "classes"])
def test_one_level_for_all_is_the_level_of_each(label, dtype):
    torch.manual_seed(0)
    net = NoiseMLP(2, classes=3 if label else 0).to(dtype)
    nn.init.normal_(net.last.weight)
    y = torch.randn(5, 2, dtype=dtype)
    labels = torch.tensor([0, 1, 2, -1, 0]) if label else None
    one = net(y, torch.full((1,), 0.3, dtype=dtype), labels)
    torch.testing.assert_close(one, net(y, torch.full((5,), 0.3, dtype=dtype), labels))
    if label:
        none = net(y, torch.full((1,), 0.3, dtype=dtype))
        torch.testing.assert_close(none[3], one[3])
        assert not torch.allclose(none[:3], one[:3])


def test_network_starts_at_zero():
    assert not NoiseMLP(2)(torch.ones(3, 2), torch.zeros(1)).any()


def test_step_as_one_number_is_the_one_hot_map():
    """The network of the guide: linear map of one_hot(t - 1), joined to x."""
    torch.manual_seed(0)
    schedule = polynomial(7)
    net = OneHotMLP(schedule)
    made = NetworkDenoiser(net, schedule, (2,), predicts="eps")
    x = torch.randn(4, 2)
    for t in range(1, 8):
        code = nn.functional.one_hot(torch.full((4,), t - 1), 7).float()
        literal = net.mlp(torch.cat([x, net.time(code)], -1))
        torch.testing.assert_close(made.noise(x, t), literal, rtol=1e-3, atol=1e-4)


def test_stratified_times_hold_one_in_each_part(generator):
    t = stratified_times(100, generator, dtype=torch.float64)
    assert torch.equal((t * 100).floor(), torch.arange(100.0, dtype=torch.float64))
    k = random_steps(10_000, 4, generator)
    assert k.unique().tolist() == [1, 2, 3, 4]


def test_copies_and_weights_travel():
    torch.manual_seed(0)
    made = NetworkDenoiser(NoiseMLP(2), cosine(10), (2,), spread=NoiseMLP(2, 3))
    nn.init.normal_(made.network.last.weight)
    other = NetworkDenoiser(NoiseMLP(2), cosine(10), (2,), spread=NoiseMLP(2, 3))
    other.load_state_dict(pickle.loads(pickle.dumps(made.state_dict())))
    x = torch.randn(3, 2)
    for twin in (copy.deepcopy(made), other, made.on(cosine(10))):
        torch.testing.assert_close(twin(x, 0.5).mean, made(x, 0.5).mean)
    assert made.double()(x.double(), 0.5).cov.dtype == torch.float64


def test_bad_input_is_refused(unchecked):
    schedule = cosine(10)
    made = NetworkDenoiser(NoiseMLP(2), schedule, (2,))
    for x in (torch.zeros(3, 3), torch.zeros(2), torch.zeros(3, 2, dtype=torch.long), None):
        with pytest.raises(ValueError, match="x: expected"):
            made(x, 0.5)
    for t in (1.5, -1, 11, torch.tensor([0.1, 0.2])):
        with pytest.raises(ValueError, match="t: expected"):
            made(torch.zeros(3, 2), t)
    with pytest.raises(ValueError, match="x: expected"):
        made(torch.zeros(3, 2, dtype=torch.float64), 0.5)
    with pytest.raises(ValueError, match="label"):
        made(torch.zeros(3, 2), 0.5, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="predicts"):
        NetworkDenoiser(NoiseMLP(2), schedule, (2,), predicts="noise")
    with pytest.raises(ValueError, match="schedule"):
        NetworkDenoiser(NoiseMLP(2), None, (2,))
    with pytest.raises(ValueError, match="schedule"):
        made.on("cosine")
    with pytest.raises(ValueError, match="sd"):
        NetworkDenoiser(NoiseMLP(2), schedule, (2,), sd=0.0)
    with pytest.raises(ValueError, match="weight"):
        made.loss(torch.zeros(3, 2), 0.5, weight="all")
    with pytest.raises(ValueError, match="label"):
        NoiseMLP(2, classes=2)(torch.zeros(3, 2), torch.zeros(1), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="denoiser"):
        Guided(made, 2.0)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_weight_network_is_the_error_of_what_the_network_says(predicts):
    """Against what each kind of network ought to say, written from x_0 and eps."""
    schedule, same = cosine(10), {"generator": torch.Generator().manual_seed(2)}
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t, eps = schedule.noise(x, t, torch.Generator().manual_seed(2))
    a, s = (part[:, None] for part in schedule.alpha_sigma(t))
    size = ((a * SD) ** 2 + s**2).sqrt()
    wanted = {
        "x0": x,
        "eps": eps,
        "v": a * eps - s * x,
        "score": -eps / s,
        "velocity": eps - x,
        "edm": (x - a * (SD / size) ** 2 * x_t) * size / (s * SD),
    }[predicts]
    torch.manual_seed(0)
    net = NoiseMLP(2).double()
    nn.init.normal_(net.last.weight, std=0.1)
    made = NetworkDenoiser(net, schedule, (2,), predicts=predicts, sd=SD)
    error = wanted - net(x_t / size, -schedule.log_snr(t) / 8)
    torch.testing.assert_close(made.loss(x, t, **same)["mean"], error.square().mean())


def test_edm_has_inputs_and_targets_of_unit_variance(generator):
    """What Karras et al. chose c_in, c_skip and c_out for, at any level and size of the data."""
    schedule, heard = edm(10, 0.01, 20.0), []

    class Ear(nn.Module):
        def forward(self, y, c_noise, label=None):
            heard.append(y)
            return 0 * y

    x = SD * torch.randn(100_000, 2, generator=generator, dtype=torch.float64)
    made = NetworkDenoiser(Ear(), schedule, (2,), sd=SD)
    for t in (1, 5, 10):
        loss = made.loss(x, t, generator)["mean"]  # of a network that says zero: the target's
        assert float(loss) == pytest.approx(1, abs=0.02)
        assert float(heard[-1].var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_at_time_zero_nothing_is_to_be_guessed(predicts, generator):
    torch.manual_seed(0)
    net, spread = NoiseMLP(2), NoiseMLP(2, 3)
    nn.init.normal_(net.last.weight)
    made = NetworkDenoiser(net, cosine(10), (2,), predicts=predicts, spread=spread)
    x = torch.randn(4, 2, generator=generator)
    for t in (0, 0.0, torch.zeros(4)):
        mean, cov = made(x, t)
        assert torch.equal(mean, x)
        assert not cov.any()
    some = made(x, torch.tensor([0.0, 0.5, 0.0, 0.5]))
    assert torch.equal(some.mean[::2], x[::2])
    torch.testing.assert_close(some.mean[1::2], made(x, 0.5).mean[1::2])


def test_score_noise_and_mean_say_one_thing(generator):
    """x_t = alpha E[x_0] + sigma E[eps], and the score is -E[eps] / sigma, for every kind."""
    for kind in ("preserving", "exploding", "flow"):
        schedule = edm(10, 0.05, 5.0).as_kind(kind)
        denoiser, x = exact(schedule), torch.randn(3, 2, generator=generator, dtype=torch.float64)
        alpha, sigma = schedule.alpha_sigma(0.4)
        noise = denoiser.noise(x, 0.4)
        torch.testing.assert_close(alpha * denoiser(x, 0.4).mean + sigma * noise, x)
        torch.testing.assert_close(denoiser.score(x, 0.4), -noise / sigma)
        x.requires_grad_()
        (slope,) = torch.autograd.grad(denoiser.log_prob(x, 0.4).sum(), x)
        torch.testing.assert_close(noise, -sigma * slope)


def test_likelihood_of_the_covariance_has_no_slope_at_the_true_one():
    """In all directions of L at once, correlated ones too."""
    C = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    schedule, t = cosine(10), 0.6
    law = MixtureDenoiser(torch.ones(1), torch.zeros(1, 2), C, schedule)
    level = law._rows(torch.zeros(1, 2, dtype=torch.float64), t)

    class Exact(nn.Module):
        def forward(self, y, c_noise, label=None):
            return law.posterior(y, level).mean

    class Factor(nn.Module):
        def __init__(self):
            super().__init__()
            a, s = level.a, level.s
            c_out = s / (a**2 + s**2) ** 0.5
            L = torch.linalg.cholesky(law(torch.zeros(1, 2).double(), t).cov[0]) / c_out
            numbers = torch.stack([L[0, 0].log(), L[1, 1].log(), L[1, 0]])
            self.numbers = nn.Parameter(numbers)

        def forward(self, y, c_noise, label=None):
            return self.numbers.expand(len(y), 3)

    made = NetworkDenoiser(Exact(), schedule, (2,), predicts="x0", spread=Factor())
    n = 100_000
    x = law.sample(n, torch.Generator().manual_seed(0))
    made.loss(x, t, torch.Generator().manual_seed(1))["spread"].backward()
    assert float(made.spread.numbers.grad.abs().max()) < 5 / n**0.5


def test_exchanged_schedule_shares_the_weights_and_leaves_the_first_alone():
    torch.manual_seed(0)
    made = NetworkDenoiser(NoiseMLP(2), cosine(10), (2,))
    other = made.on(edm(7))
    assert (made.schedule.steps, other.schedule.steps) == (10, 7)
    nn.init.normal_(made.network.last.weight)
    y = torch.ones(1, 2)
    t = 0.5
    level = other._rows(y, t)
    torch.testing.assert_close(other(y, t).mean, made.posterior(y, level).mean)


def test_denoisers_can_be_pickled():
    torch.manual_seed(0)
    made = NetworkDenoiser(NoiseMLP(2, classes=2), cosine(10), (2,))
    nn.init.normal_(made.network.last.weight)
    again = pickle.loads(pickle.dumps(made))
    x, label = torch.ones(2, 2), torch.tensor([0, -1])
    assert torch.equal(again(x, 0.5, label).mean, made(x, 0.5, label).mean)
    assert not torch.equal(made(x, 0.5, label).mean[0], made(x, 0.5, label).mean[1])


def test_empty_batches_pass_where_nothing_is_averaged():
    made = NetworkDenoiser(NoiseMLP(2), cosine(10), (2,))
    assert made(torch.zeros(0, 2), 0.5).mean.shape == (0, 2)
    assert made(torch.zeros(0, 2), torch.zeros(0)).mean.shape == (0, 2)


class Column(nn.Module):
    def forward(self, y, c_noise, label=None):
        return y[:, :1]


def denoiser(network=None, schedule=None, event=(2,), **options):
    network = NoiseMLP(2) if network is None else network
    return NetworkDenoiser(network, cosine(10) if schedule is None else schedule, event, **options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: denoiser("mlp"), "network: expected a Module, got str"),
        (lambda x: denoiser(spread=3), "spread: expected a Module, got int"),
        (lambda x: denoiser(event=2), "event_shape: expected a sequence"),
        (lambda x: denoiser(event=(0,)), "event_shape: expected an integer"),
        (lambda x: denoiser(sd=math.nan), "sd: expected"),
        # float32 cannot divide by an alpha of 1e-84 any better than by 0
        (
            lambda x: denoiser(schedule=polynomial(1000), predicts="eps"),
            "schedule: expected some signal.*alpha.1. = 1.85e-84",
        ),
        # broadcasting would hide that a network has too few outputs
        (lambda x: denoiser(Column())(x, 0.5), r"network: expected an output of shape \(3, 2\)"),
        (lambda x: denoiser(spread=NoiseMLP(2, 2))(x, 0.5), "spread: expected 3 outputs, got 2"),
        (lambda x: denoiser()(x.half(), 0.5), "x: expected the precision of the network"),
        (lambda x: denoiser()(x, math.nan), "t: expected times"),
        (lambda x: denoiser()(x, True), "t: expected times"),
        (lambda x: denoiser().loss(x, 0.0), "t: expected times above 0"),
        (lambda x: denoiser().loss(x, torch.tensor([0.1, 0.0, 1.0])), "t: expected times above 0"),
        (lambda x: denoiser().loss(x.long(), 0.5), "x: expected"),
        (lambda x: denoiser().loss(x.double(), 0.5), "x: expected the precision"),
        (lambda x: denoiser().loss(torch.zeros(3, 3), 0.5), "x: expected"),
        (lambda x: denoiser().loss(torch.zeros(0, 2), 0.5), "x: expected at least one point"),
        (lambda x: denoiser().loss(x, torch.zeros(2) + 0.5), "t: expected one time or 3"),
        (lambda x: denoiser().loss(x, 0.5, label=torch.zeros(3).long()), "label: expected None"),
        (lambda x: denoiser().noise(x, 0), "t: expected times above 0"),
        (lambda x: stratified_times(0), "n: expected"),
        (lambda x: stratified_times(2.5), "n: expected"),
        (lambda x: random_steps(3, 0), "steps: expected"),
        (lambda x: random_steps(-1, 10), "n: expected"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(3, 2))


def test_fit_finds_the_mean_and_the_covariance_of_gaussian_data(generator):
    """And leaves the labels out of it where they are hidden."""
    torch.manual_seed(0)
    schedule, sd = edm(10, 0.05, 5.0), torch.tensor([0.7, 0.2])
    x = sd * torch.randn(4000, 2, generator=generator)
    made = NetworkDenoiser(
        NoiseMLP(2, hidden=(32,), classes=2),
        schedule,
        (2,),
        sd=0.5,
        spread=NoiseMLP(2, 3, (32,), classes=2),
    )
    label = torch.randint(2, (4000,), generator=generator)
    history = made.fit(x, label, steps=400, hide=0.5, lr=1e-2, ema=0.98, devices="cpu")
    assert set(history.terms) == {"mean", "spread"}
    law = MixtureDenoiser(torch.ones(1), torch.zeros(1, 2), torch.diag(sd**2), schedule)
    y = torch.tensor([[0.5, 0.1], [-0.3, 0.2]])
    for labels in (None, torch.tensor([0, 1])):
        with torch.no_grad():
            found = made(y, 0.6, labels)
        torch.testing.assert_close(found.mean, law(y, 0.6).mean, rtol=0, atol=0.08)
        torch.testing.assert_close(found.cov, law(y, 0.6).cov, rtol=0, atol=0.03)


def test_hidden_labels_are_those_of_no_class(unchecked):
    """With all labels hidden a network cannot learn what they say."""
    torch.manual_seed(0)
    x = torch.cat([torch.ones(200, 1), -torch.ones(200, 1)])
    label = torch.arange(2).repeat_interleave(200)
    spread = []
    for hide in (0.0, 1.0):
        made = NetworkDenoiser(NoiseMLP(1, hidden=(16,), classes=2), edm(10, 0.1, 20.0), (1,))
        made.fit(x, label, steps=200, hide=hide, lr=1e-2, ema=0.95, devices="cpu")
        with torch.no_grad():
            mean = made(torch.zeros(2, 1), 1.0, torch.tensor([0, 1])).mean
        spread.append(float(mean[0] - mean[1]))
    assert spread[0] > 1.5
    assert abs(spread[1]) < 0.5
    with pytest.raises(ValueError, match="hide"):
        made.fit(x, label, steps=1, hide=1.5)
