import math

import pytest
import torch

from lib.concepts.sizes import (
    canonical_correlations,
    canonical_size,
    noise_level,
    softmax_sizes,
)


def latents(n, shared, s, generator, features=6, dtype=torch.float32):
    """Both sides of pairs with `shared` common dimensions of correlation s, mixed linearly."""
    a, b = torch.randn(2, n, features, generator=generator, dtype=dtype)
    b[:, :shared] = s * a[:, :shared] + math.sqrt(1 - s**2) * b[:, :shared]
    mixing = torch.randn(features, features, generator=generator, dtype=dtype)
    mixing = mixing + 3 * torch.eye(features, dtype=dtype)
    return a @ mixing, b @ mixing


@pytest.mark.parametrize("shared", [0, 1, 2, 4, 6])
def test_size_is_the_number_of_shared_dimensions(shared, dtype, generator):
    a, b = latents(2000, shared, 0.8, generator, dtype=dtype)
    assert canonical_size(a, b, generator) == shared


def test_correlations_are_those_of_the_model_whatever_the_mixing(dtype, generator):
    a, b = latents(50_000, 3, 0.7, generator, dtype=dtype)
    found = canonical_correlations(a, b)
    assert (found[:3] - 0.7).abs().max() < 0.02
    assert found[3:].max() < 0.05
    linear = torch.randn(6, 6, generator=generator, dtype=dtype)
    again = canonical_correlations(a @ linear + 5, b)
    torch.testing.assert_close(found, again, rtol=1e-2, atol=1e-3)


def test_one_column_has_the_correlation_of_pearson(dtype, generator):
    a, b = torch.randn(2, 100, 1, generator=generator, dtype=dtype)
    wanted = torch.corrcoef(torch.cat([a, b], 1).T)[0, 1].abs()
    torch.testing.assert_close(canonical_correlations(a, b)[0], wanted)


def test_constant_and_repeated_columns_are_left_out(generator):
    a, b = latents(500, 1, 0.9, generator, features=3)
    wide = torch.cat([a, torch.ones(500, 1), a[:, :1]], 1)
    assert len(canonical_correlations(wide, b)) == 3
    assert canonical_size(torch.ones(500, 2), b, generator) == 0


def test_independent_sides_exceed_the_level_as_often_as_promised(generator):
    a, b = torch.randn(2, 200, 4, generator=generator)
    level = noise_level(a, b, generator, draws=400, level=0.1)
    fresh = torch.randn(300, 2, 200, 4, generator=generator)
    over = [float(canonical_correlations(x, y)[0]) > level for x, y in fresh]
    assert 0.03 < sum(over) / 300 < 0.2


def test_softmax_gives_dimensions_to_a_concept_that_is_not_there(generator):
    none = latents(2000, 0, 0.0, generator, features=64)
    strong = latents(2000, 64, 1.0, generator, features=64)
    sizes = softmax_sizes({"absent": none, "present": strong}, 64)
    # Scores 0, 1 and 1: 64 / (1 + 2 e) and 64 e / (1 + 2 e).
    assert sizes["absent"] in (9, 10)
    assert sizes["present"] in (26, 27)
    assert sum(sizes.values()) == 64
    assert canonical_size(*none, generator) == 0


def test_share_of_covariance_is_that_of_the_formula(generator):
    """Half of the dimensions are shared: scores 1/2 and 1, sizes in the ratio of e^1/2 to e."""
    pair = torch.randn(2, 20_000, 64, generator=generator)
    pair[1, :, :32] = pair[0, :, :32]
    assert softmax_sizes({"half": tuple(pair)}, 1000)["half"] == pytest.approx(
        1000 / (1 + math.exp(0.5)), abs=5
    )


def test_bad_arguments_are_refused(unchecked):
    z = torch.zeros(10, 2)
    for call, name in [
        (lambda: canonical_correlations(z, z[:9]), "b"),
        (lambda: canonical_correlations(z[:4], z[:4]), "a"),
        (lambda: noise_level(z, z, level=1.0), "level"),
        (lambda: noise_level(z, z, draws=0), "draws"),
        (lambda: softmax_sizes({}, 4), "pairs"),
        (lambda: softmax_sizes({"one": (z, z)}, 0), "features"),
    ]:
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            call()
