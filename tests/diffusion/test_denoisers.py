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
