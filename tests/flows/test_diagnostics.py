"""The error of a round trip in the arithmetic that the flow runs in."""

import math

import pytest
import torch

from lib.bijections import (
    Affine,
    Bijection,
    Compose,
    Coupling,
    Permutation,
    RationalQuadratic,
    ScaleShift,
    Squeeze,
)
from lib.flows import round_trip_error


class Scale(Bijection):
    """Both ways a product: overflows where it should."""

    event_shape = (2,)

    def __init__(self, factor, back):
        super().__init__()
        self.factor, self.back = factor, back

    def _forward(self, x, context):
        return x * self.factor, x.new_zeros(x.shape[:-1])

    def _inverse(self, z, context):
        return z * self.back, z.new_zeros(z.shape[:-1])


def test_zero_for_what_rounds_nothing(generator, dtype):
    x = torch.randn(4, 5, 3, generator=generator).to(dtype)
    error = round_trip_error(Permutation([2, 0, 1]), x)
    assert error.dtype == dtype
    assert torch.equal(error, torch.zeros(4, 5, dtype=dtype))


def test_it_is_the_largest_error_of_each_event():
    x = torch.tensor([[1.0, -3.0], [0.5, 0.25], [0.0, 0.0]])
    torch.testing.assert_close(round_trip_error(Scale(2.0, 1.0), x), torch.tensor([3.0, 0.5, 0.0]))


def test_infinite_where_it_overflows():
    x = torch.tensor([[1e30, 1.0], [1.0, 1.0], [math.nan, 1.0]])
    error = round_trip_error(Scale(1e20, 1e-20), x)
    assert error[0] == math.inf
    assert error[1] < 1e-6
    assert error[2] == math.inf
    zero_times_infinity = round_trip_error(Scale(1e30, 0.0), torch.full((1, 2), 1e30))
    assert zero_times_infinity == math.inf


def test_maps_of_single_numbers_and_of_images_have_their_shapes(generator):
    x = torch.randn(2, 4, 4, 4, generator=generator)
    assert round_trip_error(Affine(0.0, 3.0), x).shape == x.shape
    assert torch.equal(round_trip_error(Squeeze(4), x), torch.zeros(2))


def test_rounding_grows_with_depth_and_less_so_in_float64(generator):
    """Behrmann et al. (2021): the error is that of a product of slopes."""
    layers = [
        Coupling(4, ScaleShift("tanh", 1.0), hidden=(16,), swap=k % 2 == 1) for k in range(24)
    ]
    with torch.no_grad():
        for weight in torch.nn.ModuleList(layers).parameters():
            weight.normal_(0, 0.45, generator=generator)
    x = torch.randn(200, 4, generator=generator)
    shallow = round_trip_error(Compose(layers[:4]), x).median()
    deep = round_trip_error(Compose(layers), x).median()
    exact = round_trip_error(Compose(layers).double(), x.double()).median()
    assert 0 < shallow < 1e-5
    assert deep > 1000 * shallow
    assert exact < 1e-6 * deep


def test_context_and_no_gradient(generator):
    f = Coupling(4, RationalQuadratic(4), hidden=(8,), context_features=2)
    x = torch.randn(5, 4, generator=generator, requires_grad=True)
    error = round_trip_error(f, x, torch.randn(5, 2, generator=generator))
    assert error.shape == (5,)
    assert not error.requires_grad
    with pytest.raises(ValueError, match="context: expected a tensor"):
        round_trip_error(f, x)
