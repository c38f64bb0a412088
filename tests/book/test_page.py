"""`lib.book`: a claim asserts, a figure has words, shown source has a test."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from lib.book import page
from lib.checks import floating


@pytest.fixture(autouse=True)
def fresh():
    """A page of its own for each test."""
    page.start(seed=0)


def test_claim_prints_one_line(capsys):
    page.claim("KL gap", torch.tensor(0.25), high=0.5, because="closed form")
    out = capsys.readouterr().out
    assert out == "✓ KL gap: 0.25 (asked: at most 0.5; closed form)\n"


@pytest.mark.parametrize("value", [2.0, -1.0, math.nan, math.inf, -math.inf])
def test_claim_outside_its_interval_fails_after_it_is_shown(value, capsys):
    with pytest.raises(page.ClaimFailed, match="KL gap"):
        page.claim("KL gap", value, low=0, high=1, because="closed form")
    assert capsys.readouterr().out.startswith("✗ KL gap")


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats())
def test_claim_holds_exactly_inside_the_closed_interval(a, b, value):
    low, high = min(a, b), max(a, b)
    made = page.Claim("x", value, low, high, "test")
    assert made.holds == (math.isfinite(value) and low <= value <= high)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"value": 1.0, "because": "b"}, "low, high"),
        ({"value": 1.0, "low": 2, "high": 1, "because": "b"}, "low, high"),
        ({"value": 1.0, "high": 2}, "because"),
        ({"value": 1.0, "high": 2, "because": "  "}, "because"),
        ({"value": torch.ones(2), "high": 2, "because": "b"}, "value"),
        ({"value": "many", "high": 2, "because": "b"}, "value"),
        ({"value": 1.0, "high": torch.ones(2), "because": "b"}, "high"),
        ({"value": 1.0, "low": "zero", "because": "b"}, "low"),
        ({"value": 1.0, "low": math.nan, "because": "b"}, "low, high"),
        ({"value": 1.0, "high": 2, "because": None}, "because"),
    ],
)
def test_claim_without_interval_reason_or_number_is_refused(arguments, names, unchecked):
    with pytest.raises(ValueError, match=names):
        page.claim("x", **arguments)


@given(st.floats(-1e6, 1e6), st.floats(1e-12, 1e3))
def test_a_printed_interval_holds_what_the_interval_holds(middle, half):
    """Rounded to what is printed, the interval still contains its middle and is as wide."""
    made = page.Claim("x", middle, middle - half, middle + half, "test")
    if "±" in made.asked:
        printed, width = map(float, made.asked.split(" ± "))
        assert abs(printed - middle) <= 0.06 * half + 1e-9 * abs(middle)
        assert width == pytest.approx((made.high - made.low) / 2, rel=0.06)


def test_claims_table_has_a_row_for_each_claim_and_escapes_bars(capsys):
    page.claim("|rho|", 0.5, low=0, high=1, because="exact")
    page.claim("gap", 0.1, high=1, because="closed form")
    capsys.readouterr()
    page.claims_table()
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("| \\|rho\\| | 0 to 1 | 0.5 |")


def test_show_source_refuses_a_test_that_does_not_exist():
    with pytest.raises(ValueError, match="test: expected a test in"):
        page.show_source(floating, test="tests/test_checks.py::test_no_such_thing")
    with pytest.raises(ValueError, match="test: expected a file"):
        page.show_source(floating, test="tests/no_such_file.py::test_x")
    with pytest.raises(ValueError, match="item"):
        page.show_source(math.sqrt, test="tests/test_checks.py::test_x")


def test_show_source_shows_the_code_that_runs(capsys):
    page.show_source(floating, test="tests/test_checks.py::test_floating_keeps_dtype")
    out = capsys.readouterr().out
    assert "def floating(" in out
    assert "reject(argument" in out
    assert "Returns:" not in out  # the docstring is left out


def test_start_gives_the_same_numbers_for_the_same_seed():
    first = torch.randn(3, generator=page.start(seed=4))
    second = torch.randn(3, generator=page.start(seed=4))
    assert torch.equal(first, second)


def test_scale_follows_the_device():
    assert page.scale(1, 2) == (2 if torch.cuda.is_available() else 1)


def test_device_is_named_after_the_accelerator_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an accelerator")
    assert page.device_name() == "an accelerator"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert page.device_name() not in ("", "an accelerator")


def test_outputs_carry_what_the_book_needs():
    """In a kernel: claims keep their interval, figures their words, and nothing is drawn twice."""
    source = """
from lib.book import *
import torch
import matplotlib.pyplot as plt
start(seed=3)
claim("one", torch.tensor(1.0), low=torch.tensor(0.0), high=2, because="it is one")
fig, ax = plt.subplots()
ax.plot([0, 1])
figure(fig, alt="A line rises from zero to one.", caption="The line has slope one.")
provenance()
"""
    notebook = new_notebook(cells=[new_code_cell(source)])
    NotebookClient(notebook, timeout=60).execute()
    outputs = notebook.cells[0].outputs
    claims = [o.metadata["claim"] for o in outputs if "claim" in o.get("metadata", {})]
    assert claims == [json.loads(json.dumps(claims[0]))]
    assert claims[0]["low"] == 0
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1
    assert pictures[0].metadata["figure"]["alt"].startswith("A line rises")
    text = outputs[-1].data["text/plain"]
    assert all(word in text for word in ("Commit", "Seed: 3", "torch", "Claims: 1"))
