import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, StudentT, kl_divergence

from lib.vi.diagnostics import (
    calibration_ranks,
    calibration_test,
    exact_khat_gaussian,
    exact_khat_scale,
    mean_field_gap,
    mean_field_variances,
    pareto_khat,
    psis_moments,
)


def pair(rho, dtype=torch.float64):
    return torch.tensor([[1, rho], [rho, 1]], dtype=dtype)


def covariance(d, generator):
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return factor @ factor.mT + 0.5 * torch.eye(d, dtype=torch.float64)


def ratios(target, n, generator):
    """Samples of the best mean-field guide of N(0, target), and their log ratios."""
    scale = mean_field_variances(target).sqrt()
    z = scale * torch.randn(n, len(target), generator=generator, dtype=target.dtype)
    p = MultivariateNormal(torch.zeros_like(scale), target)
    return z, p.log_prob(z) - Normal(torch.zeros_like(scale), scale).log_prob(z).sum(1)


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7, -0.7, 0.9])
def test_mean_field_on_a_correlated_pair(rho, dtype, device):
    target = pair(rho, dtype).to(device)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert exact_khat_gaussian(target) == pytest.approx(abs(rho), rel=tolerance)
    assert mean_field_gap(target) == pytest.approx(-0.5 * math.log(1 - rho**2), rel=tolerance)
    variances = mean_field_variances(target)
    torch.testing.assert_close(variances, torch.full_like(variances, 1 - rho**2))


def test_the_gap_is_the_divergence_and_the_smallest_one(generator):
    target = covariance(5, generator)
    p = MultivariateNormal(torch.zeros(5, dtype=torch.float64), target)

    def gap(variances):
        q = MultivariateNormal(torch.zeros(5, dtype=torch.float64), variances.diag())
        return float(kl_divergence(q, p))

    best = mean_field_variances(target)
    assert mean_field_gap(target) == pytest.approx(gap(best), rel=1e-10)
    for _ in range(10):
        other = best * (0.2 * torch.randn(5, generator=generator, dtype=torch.float64)).exp()
        assert gap(other) > gap(best)
    assert bool((best <= target.diagonal()).all())


def test_gap_and_k_do_not_depend_on_units(generator):
    target = covariance(4, generator)
    units = torch.tensor([1e-3, 1.0, 10.0, 1e3], dtype=torch.float64)
    scaled = units[:, None] * target * units
    assert mean_field_gap(scaled) == pytest.approx(mean_field_gap(target), rel=1e-8)
    assert exact_khat_gaussian(scaled) == pytest.approx(exact_khat_gaussian(target), rel=1e-8)
    assert exact_khat_gaussian(target.diagonal().diag()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7, 0.9])
def test_khat_finds_the_exact_tail_index(rho, generator):
    """Four estimates at 100,000 draws, each with standard error (1 + k)/(sqrt(3) draws^(1/4))."""
    draws = 100_000
    found = [pareto_khat(ratios(pair(rho), draws, generator)[1]).k for _ in range(4)]
    error = (1 + rho) / math.sqrt(3) / draws**0.25 / 2
    # The Pareto form holds up to a slowly varying factor log(t)^(-1/2), which lowers k a little.
    assert abs(sum(found) / 4 - rho) < 3 * error + 0.05


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.8, 1.5, 3.0])
def test_khat_finds_the_tail_index_of_a_wrong_scale(scale, generator):
    w = torch.randn(200_000, generator=generator, dtype=torch.float64)
    khat = pareto_khat(0.5 * w**2 * (1 - scale**2))
    assert khat.k == pytest.approx(exact_khat_scale(scale), abs=0.25 if scale > 1 else 0.12)
    assert exact_khat_scale(scale) == pytest.approx(1 - scale**2 if scale < 1 else -2.0)


def test_k_of_a_pair_is_that_of_its_principal_direction():
    """Both tails are 1/2 a w^2: a = |rho| for the pair, a = 1 - s^2 for the scale."""
    for rho in (0.2, 0.6, 0.95):
        assert exact_khat_gaussian(pair(rho)) == pytest.approx(
            exact_khat_scale(math.sqrt(1 - rho)), rel=1e-6
        )


def test_thresholds(generator):
    log_ratios = torch.randn(4000, generator=generator)
    assert pareto_khat(log_ratios).threshold == 0.7
    assert pareto_khat(log_ratios[:100]).threshold == pytest.approx(0.5)
    assert pareto_khat(log_ratios[:1000]).threshold == pytest.approx(1 - 1 / 3)
    _, bad = ratios(pair(0.99), 10_000, generator)
    assert pareto_khat(0.1 * log_ratios).reliable
    assert not pareto_khat(bad).reliable


def test_khat_ignores_constants_and_knows_exact_guides(generator, dtype, device):
    log_ratios = torch.randn(1000, generator=generator).to(device, dtype)
    assert pareto_khat(log_ratios + 7).k == pytest.approx(pareto_khat(log_ratios).k, abs=1e-3)
    exact = pareto_khat(torch.full_like(log_ratios, -31.3))
    assert exact.k == -math.inf
    assert exact.reliable


def test_flat_ratios_have_no_tail(generator):
    """p uniform on half of the guide's support: ratios 2 or 0, bounded, and weights to match."""
    z = torch.rand(1000, generator=generator)
    inside = z < 0.5
    log_ratios = torch.where(inside, math.log(2.0), -math.inf)
    found = psis_moments(z, log_ratios)
    assert found.khat.k == -math.inf
    torch.testing.assert_close(found.mean, z[inside].mean())
    noise = 1e-6 * torch.randn(1000, generator=generator)  # rounding of an exact guide
    assert pareto_khat(-31.3 + noise).k == -math.inf


@pytest.mark.parametrize("outlier", [100.0, 600.0, 740.0, 800.0])
def test_one_giant_ratio_is_an_alarm(outlier, generator):
    body = torch.randn(1000, generator=generator, dtype=torch.float64)
    for log_ratios in (torch.cat([body, torch.tensor([outlier])]), body * outlier):
        khat = pareto_khat(log_ratios)
        assert khat.k > 2
        assert not khat.reliable
        found = psis_moments(torch.ones_like(log_ratios), log_ratios)
        assert float(found.mean) == pytest.approx(1.0)


def test_a_few_giants_above_equal_ratios_are_an_alarm():
    log_ratios = torch.zeros(1000)
    log_ratios[:5] = 100.0
    assert not pareto_khat(log_ratios).reliable
    assert pareto_khat(log_ratios / 1000).reliable


def test_spread_is_not_taken_for_rounding(generator):
    """Ratios of -1e5 in float32 carry an error of 0.01 nats, not of ten."""
    spread = 3 * torch.randn(1000, generator=generator)
    assert not pareto_khat(spread - 1e5).reliable
    assert pareto_khat(torch.full((1000,), -1e5)).k == -math.inf


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 6e4), (torch.float32, 1e30)])
def test_moments_do_not_overflow(dtype, size, generator):
    z, log_ratios = torch.randn(1000, generator=generator).clamp(-1, 1), torch.zeros(1000)
    expected = psis_moments(z, log_ratios)
    found = psis_moments((size * z).to(dtype), log_ratios)
    assert found.sd.dtype == dtype
    assert float(found.sd) == pytest.approx(size * float(expected.sd), rel=1e-3)


def test_covariances_may_carry_rounding_and_any_units():
    target = torch.eye(3, dtype=torch.float64)
    target[0, 1], target[1, 2], target[2, 1] = 1e-17, 0.5, 0.5
    assert exact_khat_gaussian(target) == pytest.approx(0.5)
    units = torch.tensor([1e-140, 1.0, 1e140], dtype=torch.float64)
    scaled = units[:, None] * target * units
    assert exact_khat_gaussian(scaled) == pytest.approx(0.5)
    assert mean_field_gap(scaled) == pytest.approx(-0.5 * math.log(0.75))


def test_weights_move_the_moments_to_the_target(generator):
    """From a guide with wrong mean and wide tails to N(1, 0.5^2)."""
    n, z = 50_000, 2 * torch.randn(50_000, generator=generator, dtype=torch.float64)
    target, guide = Normal(1.0, 0.5), Normal(0.0, 2.0)
    log_ratios = target.log_prob(z) - guide.log_prob(z)
    found = psis_moments(z, log_ratios)
    error = 0.5 / math.sqrt(found.effective)
    assert float(found.mean) == pytest.approx(1.0, abs=5 * error)
    assert float(found.sd) == pytest.approx(0.5, abs=5 * error)
    assert 0 < found.effective < n
    assert found.khat.reliable


def test_weights_repair_the_mean_field_variance(generator):
    z, log_ratios = ratios(pair(0.5), 100_000, generator)
    found = psis_moments(z, log_ratios)
    assert float(z.std(0).mean()) == pytest.approx(math.sqrt(0.75), abs=0.01)
    torch.testing.assert_close(found.sd, torch.ones(2, dtype=torch.float64), rtol=0, atol=0.02)
    shaped = psis_moments(z.view(-1, 2, 1), log_ratios)
    assert torch.equal(shaped.sd.ravel(), found.sd)


def test_equal_weights_are_the_plain_moments_and_zero_weights_count_for_nothing(generator):
    z = torch.randn(1000, generator=generator)
    plain = psis_moments(z, torch.zeros(1000))
    torch.testing.assert_close(plain.mean, z.mean())
    torch.testing.assert_close(plain.sd, z.std(correction=0))
    assert plain.effective == pytest.approx(1000)
    log_ratios = 0.1 * torch.randn(1000, generator=generator)
    log_ratios[::2] = -math.inf
    extreme = z.clone()
    extreme[::2] = 1e6
    assert abs(float(psis_moments(extreme, log_ratios).mean)) < 0.3


def test_inputs_and_globals_stay(generator):
    z, log_ratios = ratios(pair(0.5), 100, generator)
    copies, state = (z.clone(), log_ratios.clone()), torch.get_rng_state()
    psis_moments(z, log_ratios)
    assert torch.equal(z, copies[0])
    assert torch.equal(log_ratios, copies[1])
    assert torch.equal(state, torch.get_rng_state())


def simulate(width, shift, generator, m=2000, draws=99):
    """Prior N(0, 1), one datum with noise 1: posterior N(y/2, 1/2), reported with errors."""
    truth = torch.randn(m, generator=generator)
    y = truth + torch.randn(m, generator=generator)
    noise = torch.randn(m, draws, generator=generator)
    posterior = y[:, None] / 2 + math.sqrt(0.5) * (shift + width * noise)
    return calibration_ranks(truth, posterior), draws


@pytest.mark.parametrize(
    ("width", "shift", "direction"),
    [
        (1.0, 0.0, "calibrated"),
        (0.7, 0.0, "overconfident"),
        (1.4, 0.0, "too wide"),
        (1.0, -0.3, "too low"),
        (1.0, 0.3, "too high"),
    ],
)
def test_calibration_names_what_is_wrong(width, shift, direction, generator):
    ranks, draws = simulate(width, shift, generator)
    found = calibration_test(ranks, draws)
    assert found.direction == direction
    assert (found.p_value > 0.01) == (direction == "calibrated")
    assert sum(found.counts) == len(ranks) == pytest.approx(sum(found.expected))


def test_p_values_are_uniform_when_calibrated(generator):
    """Also where the bins do not divide the number of ranks."""
    p = torch.tensor(
        [
            calibration_test(torch.randint(0, 64, (500,), generator=generator), 63, bins=10).p_value
            for _ in range(400)
        ]
    )
    assert abs(float(p.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 400)
    assert abs(float((p < 0.1).float().mean()) - 0.1) < 4 * math.sqrt(0.09 / 400)


def test_ranks_count_the_draws_below():
    draws = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert calibration_ranks(torch.tensor([0.0, 2.5]), draws).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto_khat(torch.zeros(24)), "^log_ratios: expected at least 25 draws"),
        (lambda: pareto_khat(torch.zeros(5, 5)), "^log_ratios: expected 1 dimension"),
        (lambda: pareto_khat(torch.full((30,), math.nan)), "^log_ratios: expected numbers"),
        (lambda: pareto_khat(torch.full((30,), math.inf)), "^log_ratios: expected numbers"),
        (lambda: pareto_khat(torch.full((30,), -math.inf)), "^log_ratios: expected a guide"),
        (lambda: pareto_khat(None), "^log_ratios: expected a tensor"),
        (lambda: pareto_khat("a"), "^log_ratios: expected a tensor"),
        (lambda: pareto_khat(torch.ones(30, dtype=torch.int64)), "^log_ratios: .*int64"),
        (lambda: pareto_khat(torch.ones(30, dtype=torch.bool)), "^log_ratios: .*bool"),
        (lambda: pareto_khat(torch.ones(30, dtype=torch.complex64)), "^log_ratios: .*complex64"),
        (lambda: pareto_khat(torch.ones(30).half()), "^log_ratios: .*float16"),
        (lambda: pareto_khat(torch.full((30,), -1e6)), "^log_ratios: expected .* resolves"),
        (lambda: psis_moments(torch.zeros(30), torch.zeros(31)), "^values: expected as many"),
        (
            lambda: psis_moments(torch.full((30,), math.nan), torch.zeros(30)),
            "^values: expected fin",
        ),
        (lambda: exact_khat_scale(0.0), "^scale: expected positive"),
        (lambda: mean_field_gap(torch.ones(2, 2)), "^covariance: expected a positive-definite"),
        (lambda: mean_field_gap(torch.ones(2, 3)), "^covariance: expected a square"),
        (lambda: mean_field_gap(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "^covariance: .*symm"),
        (lambda: calibration_ranks(torch.zeros(2), torch.zeros(3, 4)), "^draws: expected one row"),
        (lambda: calibration_test(torch.tensor([5]), 4), "^ranks: expected integers in 0..4"),
        (lambda: calibration_test(torch.zeros(3), 4), "^ranks: expected integers"),
        (lambda: calibration_test([1, 2], 4), "^ranks: expected integers"),
        (lambda: calibration_test(torch.tensor([1, 2]).numpy(), 4), "^ranks: expected integers"),
        (lambda: calibration_test(torch.tensor([True]), 4), "^ranks: expected integers"),
        (lambda: calibration_test(torch.tensor(1), 4), "^ranks: expected integers"),
        (lambda: calibration_test(torch.ones(2, 2).long(), 4), "^ranks: expected integers"),
        (lambda: calibration_test(torch.tensor([1, 2]), 4, level=None), "^level: expected"),
        (lambda: calibration_test(torch.tensor([1, 2]), 4, bins=6), "^bins: expected at most"),
        (lambda: calibration_test(torch.tensor([1, 2]), 4, level=2.0), "^level: expected"),
        (lambda: calibration_test(torch.tensor([1, 2]), 0), "^draws: expected an integer"),
    ],
)
def test_bad_arguments(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_student_t_has_k_of_one_over_its_degrees_of_freedom(generator):
    """Ratios with the tail of a t law with nu degrees have k = 1/nu."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = StudentT(torch.tensor(4.0, dtype=torch.float64)).sample((200_000,)).abs()
    assert pareto_khat(draws.log()).k == pytest.approx(0.25, abs=0.1)
