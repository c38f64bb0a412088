"""The address of the repository stands in ``_config.yml``; everything else derives from it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from lib.book import notebooks
from lib.checks import reject

URL = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")


def address(root: Path) -> str:
    """The repository's URL, as ``_config.yml`` gives it."""
    return yaml.safe_load((root / "_config.yml").read_text())["repository"]["url"]


def derived(root: Path) -> list[Path]:
    """Files that repeat the address, since they are read where ``_config.yml`` is not."""
    fixed = [root / name for name in ("README.md", "pyproject.toml")]
    pages = [p for p in sorted((root / "nbs").iterdir()) if p.suffix in {".md", ".py", ".ipynb"}]
    return [path for path in [*fixed, *pages] if path.exists()]


def rewrite(root: Path, url: str) -> list[Path]:
    """Set the address in ``_config.yml`` and in all that derives from it.

    Args:
        root: the checkout.
        url: ``https://github.com/OWNER/NAME``.

    Returns:
        The files that changed.

    Raises:
        ValueError: ``url`` is not the address of a GitHub repository.
    """
    url = url.rstrip("/").removesuffix(".git")
    if not URL.fullmatch(url):
        reject("url", "https://github.com/OWNER/NAME", repr(url))
    old = address(root)
    changed = []
    for path in [root / "_config.yml", *derived(root)]:
        text = path.read_text()
        if path.suffix == ".ipynb" or (path.parent.name == "nbs" and path.suffix == ".py"):
            continue  # made from the .md below, with fresh cell ids
        # Colab's links name the repository without its host.
        new = text.replace(old, url).replace(
            f"/github/{old.removeprefix('https://github.com/')}/",
            f"/github/{url.removeprefix('https://github.com/')}/",
        )
        if new != text:
            path.write_text(new)
            changed.append(path)
    return changed + [path for path in notebooks.sync(root) if path not in changed]
