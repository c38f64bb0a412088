import math

import pytest
import torch

from lib.concepts import fibre_ratio, nearest, retained_share
from lib.data.shapes import CONCEPTS, Shapes


def test_ratio_of_gaussians(generator, dtype):
    """Samples z + s xi of unit normal z: E |s xi|^2 / E |z - z'|^2 = s^2 / 2."""
    z = torch.randn(4000, 3, generator=generator, dtype=dtype)
    for s in (0.0, 0.3, math.sqrt(2)):
        found = z + s * torch.randn(20, 4000, 3, generator=generator, dtype=dtype)
        assert abs(fibre_ratio(found, z) - s / math.sqrt(2)) < 0.02
    fresh = torch.randn(20, 4000, 3, generator=generator, dtype=dtype)
    assert abs(fibre_ratio(fresh, z) - 1) < 0.02


def test_ratio_does_not_depend_on_units_or_place(generator):
    z, found = torch.randn(50, 2, generator=generator), torch.randn(3, 50, 2, generator=generator)
    assert torch.allclose(fibre_ratio(found, z), fibre_ratio(7 * found - 3, 7 * z - 3), atol=1e-5)


def test_share_of_samplers_that_know_nothing_everything_or_a_part(generator):
    world = Shapes()
    everything = world.sample(20_000, generator)
    own = everything[:300]
    nothing = everything[torch.randint(20_000, (20, 300), generator=generator)]
    assert max(abs(v) for v in retained_share(nothing, everything).values()) < 0.05
    assert min(retained_share(own.expand(20, -1, -1), everything).values()) > 1 - 1e-6
    part = nothing.clone()
    part[..., 5:] = own[:, 5:]  # colour alone is kept
    share = retained_share(part, everything)
    assert share["colour"] > 1 - 1e-6
    assert max(abs(share[k]) for k in CONCEPTS if k != "colour") < 0.05


def test_share_of_a_known_posterior(generator):
    """x within a tenth of its range: the variance falls by a hundred."""
    world = Shapes()
    everything = world.sample(20_000, generator)
    draws = everything[:500].expand(40, -1, -1).clone()
    width = (world.high - world.low)[1:3] / 10
    draws[..., 1:3] += width * (torch.rand(40, 500, 2, generator=generator) - 0.5)
    assert abs(retained_share(draws, everything)["position"] - 0.99) < 1e-3


def test_the_correction_for_few_draws_has_no_bias(generator):
    everything = Shapes().sample(50_000, generator)
    for n in (2, 5, 50):
        few = everything[torch.randint(50_000, (n, 4000), generator=generator)]
        share = retained_share(few, everything)
        rest = {k: v for k, v in share.items() if k != "shape"}
        assert max(abs(v) for v in rest.values()) < 0.05, n


def test_nearest_is_brute_force(generator, dtype):
    bank = torch.randn(500, 4, generator=generator, dtype=dtype)
    z = torch.randn(130, 4, generator=generator, dtype=dtype)
    index, radius = nearest(bank, z, 7)
    wanted = torch.cdist(z, bank).sort(1)
    assert torch.equal(index, wanted.indices[:, :7].mT)
    assert torch.allclose(radius, wanted.values[:, 6], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: fibre_ratio(torch.zeros(2, 3, 4), torch.zeros(5, 4)), "found"),
        (lambda: fibre_ratio(torch.zeros(2, 1, 4), torch.zeros(1, 4)), "found"),
        (lambda: fibre_ratio(torch.zeros(2, 3, 4), torch.zeros(3, 4)), "z"),
        (lambda: retained_share(torch.zeros(1, 3, 8), torch.zeros(9, 8)), "factors"),
        (lambda: retained_share(torch.zeros(5, 3, 7), torch.zeros(9, 8)), "factors"),
        (lambda: retained_share(torch.zeros(5, 3, 8), torch.zeros(9, 7)), "everything"),
        (lambda: nearest(torch.zeros(3, 2), torch.zeros(4, 2), 5), "k"),
    ],
)
def test_bad_input_is_named(unchecked, call, argument):
    with pytest.raises(ValueError, match=argument):
        call()
