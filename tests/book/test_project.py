"""Files that say the same thing in several places agree."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from lib.book import repository

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    Requirement(line).name.lower(): Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def requirements():
    """All requirements of the package and its extras."""
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + extras["book"] + extras["test"]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("need", requirements(), ids=lambda need: need.name)
def test_every_requirement_has_one_exact_pin_within_its_range(need):
    pin = PINS[need.name.lower()]
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert need.specifier.contains(exact.version, prereleases=True)


def test_ranges_leave_colab_its_own_torch_and_numpy():
    for need in requirements():
        if need.name in {"torch", "numpy"}:
            assert {s.operator for s in need.specifier} == {">="}


def test_environment_of_conda_is_the_pinned_one():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    assert any(d.startswith("python=3.11") for d in conda)
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert "-c constraints.txt" in pip
    assert "-e .[book,test]" in pip
    named = [Requirement(line) for line in pip if not line.startswith("-")]
    assert {"jupyter-book", "jupytext", "torch", "numpy", "matplotlib", "scikit-learn", "nbmake",
            "pyro-ppl"} <= {need.name for need in named}  # fmt: skip
    for need in named:
        assert need.specifier == PINS[need.name].specifier, need.name


def test_installed_versions_are_the_pinned_ones():
    """What runs here is what constraints.txt says."""
    from importlib.metadata import version

    for need in requirements():
        (exact,) = PINS[need.name.lower()].specifier
        assert version(need.name).split("+")[0] == exact.version, need.name


def test_address_of_the_repository_is_the_same_everywhere():
    url = repository.address(ROOT)
    for path in repository.derived(ROOT):
        text = path.read_text()
        installed = re.findall(r"git\+(https://[\w./-]+)", text)
        opened = re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)", text)
        assert url in text or opened, path
        assert set(installed) <= {url}, path
        assert {f"https://github.com/{name}" for name in opened} <= {url}, path
        assert "your-name" not in text.replace(url, "").replace(url[19:], ""), path
    assert PROJECT["urls"]["Repository"] == url


def test_a_new_address_reaches_every_file(tmp_path, unchecked):
    copied = ["_config.yml", "README.md", "pyproject.toml"]
    for name in copied:
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".*"))
    old, new = repository.address(ROOT), "https://github.com/somebody/else"
    changed = repository.rewrite(tmp_path, new + ".git")
    assert {p.name for p in changed} >= set(copied)
    assert not [p for p in tmp_path.rglob("*.*") if old in p.read_text()]
    assert repository.address(tmp_path) == new
    assert repository.rewrite(tmp_path, new) == []
    hosts = "http://github.com/a/b", "https://github.com/a", "https://github.com/a/b/c", ""
    for bad in (*hosts, "https://github.com/../..", None, 3):
        with pytest.raises(ValueError, match="url: expected"):
            repository.rewrite(tmp_path, bad)


def test_an_address_is_changed_as_a_whole_and_nothing_else_is(tmp_path):
    (tmp_path / "nbs").mkdir()
    config = tmp_path / "_config.yml"
    config.write_text("repository:\n  url: https://github.com/a/b\n")
    readme = tmp_path / "README.md"
    kept = b"https://github.com/a/book https://github.com/a/b-c\r\n"
    readme.write_bytes(kept + b"https://github.com/a/b.git, https://github.com/a/b.\r\n")
    repository.rewrite(tmp_path, "https://github.com/c/d")
    assert readme.read_bytes() == (
        kept + b"https://github.com/c/d.git, https://github.com/c/d.\r\n"
    )
    config.write_text("repository:\n  url: ''\n")
    with pytest.raises(ValueError, match=r"_config\.yml: expected"):
        repository.rewrite(tmp_path, "https://github.com/e/f")
    assert b"e/f" not in readme.read_bytes()


def test_readme_makefile_and_workflows_name_the_same_two_commands():
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for command in re.findall(r"(?:^|`)make (\w+)", readme, re.M):
        assert command in targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    workflow = (ROOT / ".github" / "workflows" / "book.yml").read_text()
    assert "make book" in workflow
    assert "make test" in workflow
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text())["jobs"]


def test_committed_files_are_small_and_free_of_machine_paths():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split("\n"):
        path = ROOT / name
        if path.is_file():
            assert path.stat().st_size < 1_000_000, name
            if path.suffix in {".py", ".md", ".ipynb", ".yml", ".toml", ".txt"}:
                assert not re.search(r"(?<![\w.])/(work|root|home)/\w", path.read_text()), name


def test_lib_imports_without_the_extras_and_without_torchvision():
    """What a chapter imports must not pull in Sphinx, jupytext or torchvision."""
    code = (
        "import sys, lib.book, lib.vi, lib.training, lib.metrics\n"
        "bad = {'torchvision', 'sphinx', 'jupytext', 'myst_nb', 'nbmake'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
