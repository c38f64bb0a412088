"""Shapes written as jaxtyping annotations in `lib` are checked while the tests run."""

import sys
from types import SimpleNamespace

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import config, install_import_hook

# As in the type system itself: an integer will do where a float is asked for.
checker = SimpleNamespace(check=beartype(conf=BeartypeConf(is_pep484_tower=True)))
sys.modules["typechecker"] = checker
install_import_hook("lib", "typechecker.check")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request):
    """Each device that this machine has."""
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    """Both precisions that the package promises."""
    return request.param


@pytest.fixture
def unchecked():
    """Switch the shape checks off: what a user sees who passes bad input."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def generator():
    """A seeded source of randomness on the CPU."""
    return torch.Generator().manual_seed(0)
