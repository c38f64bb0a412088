"""A page is a test: plant a bug in `lib`, and the page that uses it turns red."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from lib.book import notebooks

# (file, right, wrong, what stops the page)
BUGS = {
    "sign of the divergence": (
        "metrics/divergence.py",
        "ratio = (p.log_prob(x).detach() - _log_prob(q, x)).double()",
        "ratio = (_log_prob(q, x) - p.log_prob(x).detach()).double()",
        "ClaimFailed",
    ),
    "missing one half": (
        "vi/normal.py",
        "log_likelihood = 0.5 * (",
        "log_likelihood = 1.0 * (",
        "BoundDecreased",
    ),
    "dropped term": (
        "vi/normal.py",
        "(state.mu.mean - statistics.mean) ** 2 + state.mu.variance)",
        "(state.mu.mean - statistics.mean) ** 2)",
        "ClaimFailed",
    ),
    "dropped constant": (
        "vi/normal.py",
        "log_prior + mu.entropy() + lam.entropy()",
        "log_prior + mu.entropy() + lam.entropy() - 0.5",
        "ClaimFailed",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_page_turns_red(bug, root, tmp_path):
    file, right, wrong, stops = BUGS[bug]
    shutil.copytree(root / "lib", tmp_path / "lib")
    path = tmp_path / "lib" / file
    text = path.read_text()
    assert text.count(right) == 1, f"{file} has changed: plant this bug anew"
    path.write_text(text.replace(right, wrong))
    copy = tmp_path / "page" / "variational-inference.ipynb"
    copy.parent.mkdir()
    nbformat.write(notebooks.read(root / "nbs" / "variational-inference.md"), copy)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", str(copy)],
        cwd=copy.parent,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert stops in result.stdout, result.stdout
