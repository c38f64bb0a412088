"""Checks of arguments: a refusal is a `ValueError` that names argument, expected and got."""

from __future__ import annotations

import math
import operator
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor


def reject(argument: str, expected: str, got: Any) -> NoReturn:
    """Raise the one kind of error that this package raises on bad input.

    Args:
        argument: name of the argument, as the caller wrote it.
        expected: what would have been right, in words.
        got: what came; shown as it prints.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{argument}: expected {expected}, got {got}")


def floating(argument: str, value: Any, ndim: int | None = None) -> Tensor:
    """A non-empty floating-point tensor with finite entries, or a ``ValueError``.

    Args:
        argument: name used in the error.
        value: a tensor, an array, or numbers in lists; Python's numbers and integers are float64.
        ndim: the number of dimensions that is asked for.

    Returns:
        The tensor, on its own device and in its own dtype; arrays are copied.

    Raises:
        ValueError: not numeric, masked, complex, of another number of dimensions, empty, NaN or
            infinite.
    """
    if isinstance(value, np.ma.MaskedArray):
        reject(argument, "an array without a mask", type(value).__name__)
    try:
        tensor = value if torch.is_tensor(value) else torch.as_tensor(_native(value))
    except (TypeError, ValueError, RuntimeError):
        reject(argument, "a tensor of numbers", type(value).__name__)
    if tensor.is_complex():
        reject(argument, "real numbers", str(tensor.dtype))
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    if ndim is not None and tensor.ndim != ndim:
        reject(argument, f"{ndim} dimension{'s' * (ndim != 1)}", f"shape {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        reject(argument, "at least one number", f"shape {tuple(tensor.shape)}")
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        reject(argument, "finite numbers", f"{bad} of {tensor.numel()} NaN or infinite")
    return tensor


def _native(value: Any) -> np.ndarray:
    """A contiguous copy in the byte order of this machine; integers and long doubles as float64."""
    array = np.asarray(value)
    wide = array.dtype.kind in "iu" or (array.dtype.kind == "f" and array.dtype.itemsize > 8)
    return np.array(array, np.float64 if wide else array.dtype.newbyteorder("="), order="C")


def positive(argument: str, value: Any, *, zero: bool = False) -> Tensor:
    """Finite numbers that are all positive (``zero=True``: or zero), or a ``ValueError``."""
    tensor = floating(argument, value)
    low = float(tensor.min())
    if low < 0 or (low == 0 and not zero):
        reject(argument, "non-negative numbers" if zero else "positive numbers", f"minimum {low:g}")
    return tensor


def number(argument: str, value: Any, *, zero: bool = False) -> float:
    """A finite positive (``zero=True``: or zero) number in full precision, or a ``ValueError``."""
    expected = f"one {'non-negative' if zero else 'positive'} number"
    try:
        kind = "b" if getattr(value, "dtype", None) == torch.bool else "f"
        kind = kind if torch.is_tensor(value) else np.asarray(value).dtype.kind
        if kind in "bSU":  # truth values and text, which float() takes
            raise TypeError
        found = float(value)
    except OverflowError:
        reject(argument, expected, "one too large for float64")
    except (TypeError, ValueError, RuntimeError):
        reject(argument, expected, repr(value))
    if not (math.isfinite(found) and (found > 0 or (zero and found == 0))):
        reject(argument, expected, found)
    return found


def whole(argument: str, value: Any, *, low: int = 1) -> int:
    """An integer of at least ``low``, or a ``ValueError``."""
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        found = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        reject(argument, f"an integer of at least {low}", repr(value))
    if found < low:
        reject(argument, f"an integer of at least {low}", found)
    return found
