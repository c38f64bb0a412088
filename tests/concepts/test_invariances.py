import math

import pytest
import torch

from lib.concepts import Invariances

SIZES = {"sum": 1, "all": 2}


def both(zbar):
    """A sum, and everything."""
    return {"sum": zbar.sum(-1, keepdim=True), "all": zbar}


@pytest.fixture(scope="module")
def trained():
    """zbar ~ N(0, I) in the plane: given the sum s the fibre is N(s/2 (1, 1), I - 11^T / 2)."""
    zbar = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Invariances(2, SIZES, kind="affine", layers=2, hidden=(16,), noise=0.1)
    model.fit(zbar, both(zbar), steps=600, warm_up=100, batch_size=256, lr=5e-3)
    return model


def test_samples_of_a_gaussian_fibre(trained, generator):
    z = torch.tensor([[-1.5], [0.0], [1.0]])
    draws = trained.sample("sum", z, 4000, generator)
    assert (draws.sum(-1).mean(0) - z[:, 0]).abs().max() < 0.1
    assert draws.sum(-1).std(0).max() < 0.3
    across = (draws[..., 0] - draws[..., 1]) / math.sqrt(2)
    assert (across.std(0) - 1).abs().max() < 0.1
    assert across.mean(0).abs().max() < 0.1


def test_one_flow_answers_for_each_name(trained, generator):
    zbar = torch.randn(200, 2, generator=generator)
    again = trained.sample("all", zbar, 20, generator)
    assert (again - zbar).square().mean().sqrt() < 0.25
    again = trained.sample("sum", zbar.sum(1, keepdim=True), 20, generator)
    assert (again - zbar).square().mean().sqrt() > 0.7


def test_encode_and_decode_are_inverse(trained, generator):
    zbar = torch.randn(50, 2, generator=generator)
    z = zbar.sum(1, keepdim=True)
    v = trained.encode("sum", zbar, z)
    assert torch.allclose(trained.decode("sum", v, z), zbar, atol=1e-4)
    # v hardly depends on z; the noise of the training and its shortness leave a rest.
    zbar = torch.randn(4000, 2, generator=generator)
    v = trained.encode("sum", zbar, zbar.sum(1, keepdim=True))
    assert torch.corrcoef(torch.cat([v, zbar.sum(1, keepdim=True)], 1).T)[2, :2].abs().max() < 0.35


def test_refined_draws_have_the_law_of_the_target_whatever_the_flow(generator):
    """A flow that was never trained, and a prior N(0, 4 I) that it has never seen."""
    zbar = torch.randn(5000, 2, generator=generator)
    torch.manual_seed(0)
    model = Invariances(2, {"sum": 1}, kind="affine", layers=2, hidden=(8,))
    model.fit(zbar, {"sum": zbar.sum(1, keepdim=True)}, steps=0, warm_up=0)
    z = torch.tensor([[1.0], [-0.5]])
    start = model.sample("sum", z, 3000, generator)
    done = model.refine(
        "sum",
        start,
        z,
        lambda code: code.sum(-1, keepdim=True),
        log_prior=lambda code: -code.square().sum(-1) / 8,
        tolerance=0.1,
        steps=400,
        step=0.5,
        generator=generator,
    )
    # The sum had s.d. sqrt 2 in training: the window is 0.14 wide, in a prior of 2 sqrt 2.
    assert (done.sum(-1).mean(0) - z[:, 0]).abs().max() < 0.05
    assert (done.sum(-1).std(0) - 0.1 * math.sqrt(2)).abs().max() < 0.06
    across = (done[..., 0] - done[..., 1]) / math.sqrt(2)
    assert (across.std(0) - 2).abs().max() < 0.15
    assert across.mean(0).abs().max() < 0.15


def test_chains_from_outside_of_the_support_come_in(trained, generator):
    z = torch.zeros(1, 1)
    start = torch.tensor([[[2.1, -2.1]]]).expand(200, 1, 2)
    inside = lambda c: torch.where(c[..., 0].abs() < 2, 0.0, -torch.inf)  # noqa: E731
    done = trained.refine(
        *("sum", start, z, lambda c: c.sum(-1, keepdim=True)),
        log_prior=inside,
        steps=100,
        generator=generator,
    )
    assert (done[..., 0].abs() < 2).float().mean() > 0.9


def test_a_seed_gives_the_same_model():
    zbar = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))

    def weights():
        torch.manual_seed(5)
        model = Invariances(2, SIZES, layers=1, hidden=(8,), kind="affine")
        model.fit(zbar, both(zbar), steps=5, warm_up=5, batch_size=64)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(), weights())


def test_devices(device):
    zbar = torch.randn(300, 2, device=device)
    model = Invariances(2, SIZES, layers=1, hidden=(8,), kind="affine").to(device)
    model.fit(zbar, both(zbar), steps=3, warm_up=3, batch_size=64)
    draws = model.sample("all", zbar[:5], 4)
    assert (draws.shape, draws.device.type) == ((4, 5, 2), device.type)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda m: Invariances(2, {}), "sizes"),
        (lambda m: Invariances(2, {"z": 0}), "sizes"),
        (lambda m: Invariances(2, {"z": 1}, noise=-1.0), "noise"),
        (lambda m: m.fit(torch.zeros(9, 2), {"sum": torch.zeros(9, 1)}), "z"),
        (lambda m: m.fit(torch.zeros(9, 2), both(torch.zeros(8, 2))), "z"),
        (lambda m: m.fit(torch.ones(9, 2), both(torch.ones(9, 2)), weights={"x": 1}), "weights"),
        (lambda m: m.sample("product", torch.zeros(3, 1), 2), "name"),
        (lambda m: m.sample("sum", torch.zeros(3, 2), 2), "z"),
        (lambda m: m.sample("sum", torch.full((3, 1), math.nan), 2), "z"),
        (lambda m: m.refine("sum", torch.zeros(4, 3, 2), torch.zeros(2, 1), torch.sum), "draws"),
        (
            lambda m: m.refine(
                "sum", torch.zeros(4, 3, 2), torch.zeros(3, 1), torch.sum, tolerance=0.0
            ),
            "tolerance",
        ),
        (
            lambda m: m.refine("sum", torch.zeros(4, 3, 2), torch.zeros(3, 1), torch.sum, steps=0),
            "steps",
        ),
        (
            lambda m: m.refine("sum", torch.zeros(4, 3, 2), torch.zeros(3, 1), torch.sum, step=2.0),
            "step",
        ),
    ],
)
def test_bad_input_is_named(unchecked, trained, call, argument):
    with pytest.raises(ValueError, match=argument):
        call(trained)
