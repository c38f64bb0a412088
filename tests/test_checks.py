"""`lib.checks`: every refusal names the argument, what was expected and what came."""

import pytest
import torch

from lib.checks import floating, positive, whole


def test_floating_keeps_dtype(dtype, device):
    x = torch.ones(3, dtype=dtype, device=device)
    assert floating("x", x) is x


def test_a_number_loses_no_digit():
    assert float(floating("x", 0.3)) == 0.3
    assert float(positive("x", 1e-50)) == 1e-50


def test_floating_takes_lists_and_integers_as_float64():
    assert floating("x", [1, 2]).dtype == torch.float64
    assert floating("x", 3).dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("abc", "x: expected a tensor of numbers, got str"),
        (torch.ones(2, dtype=torch.complex64), "x: expected real numbers"),
        (torch.ones(2, 2), "x: expected 1 dimension, got shape"),
        (torch.ones(0), "x: expected at least one number"),
        (torch.tensor([1.0, float("nan")]), "x: expected finite numbers, got 1 of 2 NaN"),
        (torch.tensor([1.0, float("inf")]), "x: expected finite numbers"),
    ],
)
def test_floating_refuses(value, says):
    with pytest.raises(ValueError, match=says):
        floating("x", value, ndim=1)


def test_positive_draws_the_line_at_zero():
    assert positive("s", 1e-300) > 0
    assert positive("s", 0.0, zero=True) == 0
    for value, zero in ((0.0, False), (-1e-300, True)):
        with pytest.raises(ValueError, match="s: expected"):
            positive("s", value, zero=zero)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None])
def test_whole_refuses_what_is_not_a_count(value):
    with pytest.raises(ValueError, match="n: expected an integer of at least 1"):
        whole("n", value)


def test_whole_takes_what_python_takes_as_an_index():
    assert whole("n", torch.tensor(3)) == 3
