"""`lib.checks`: every refusal names the argument, what was expected and what came."""

import math

import numpy as np
import pytest
import torch

from lib.checks import floating, number, positive, whole


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
        (np.ma.masked_less([1.0, 2.0], 1.5), "x: expected an array without a mask"),
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


@pytest.mark.parametrize("kind", ["<f4", ">f4", ">f8", "g", ">i4", "u8"])
def test_floating_takes_every_layout_of_numpy(kind):
    for x in (np.arange(6).astype(kind)[::-2], np.arange(1).astype(kind)[::-1]):
        found = floating("x", x)
        assert found.tolist() == x.tolist()
        assert found.dtype == (torch.float32 if kind.endswith("f4") else torch.float64)


@pytest.mark.parametrize(
    "value",
    ["1", b"3", True, np.True_, torch.tensor(True), np.array("1"), 10**400, None, torch.ones(2)],
)
def test_number_refuses_text_truth_and_what_overflows(value):
    with pytest.raises(ValueError, match="s: expected one positive number, got"):
        number("s", value)


def test_number_takes_every_scalar():
    for value in (2, 2.0, np.float32(2), torch.tensor(2.0), np.array(2)):
        assert number("s", value) == 2


FLOATS = [torch.tensor(2.7), torch.tensor(math.nan), torch.tensor(3.0)]


@pytest.mark.parametrize(
    "value",
    [0, -1, 1.0, True, "2", None, *FLOATS, torch.tensor(True), np.True_, torch.ones(2).int()],
)
def test_whole_refuses_what_is_not_a_count(value):
    with pytest.raises(ValueError, match="n: expected an integer of at least 1"):
        whole("n", value)


def test_whole_takes_what_python_takes_as_an_index():
    for value in (torch.tensor(3), np.int8(3), np.array(3)):
        assert whole("n", value) == 3
