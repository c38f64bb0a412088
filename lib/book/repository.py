"""The address of the repository stands in ``_config.yml``; everything else derives from it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from lib.book import notebooks
from lib.checks import reject

URL = re.compile(r"https://github\.com/[\w-][\w.-]*/[\w-][\w.-]*")


def address(root: Path) -> str:
    """The repository's URL, as ``_config.yml`` gives it."""
    config = yaml.safe_load((root / "_config.yml").read_text())
    return config.get("repository", {}).get("url")


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
    if not isinstance(url, str):
        reject("url", "https://github.com/OWNER/NAME", repr(url))
    url, old = url.rstrip("/").removesuffix(".git"), address(root)
    for name, value in (("url", url), ("repository.url of _config.yml", old)):
        if not isinstance(value, str) or not URL.fullmatch(value):
            reject(name, "https://github.com/OWNER/NAME", repr(value))
    # Colab's links name the repository without its host; no longer name may follow.
    short, new = (text.removeprefix("https://github.com/") for text in (old, url))
    pattern = re.compile(rf"(github\.com/|/github/){re.escape(short)}(?![\w-]|\.(?!git\b)\w)")
    changed = []
    for path in [root / "_config.yml", *derived(root)]:
        if path.parent.name == "nbs" and path.suffix != ".md":
            continue  # made from the .md below, with fresh cell ids
        text = path.read_bytes().decode()
        replaced = pattern.sub(lambda found: found[1] + new, text)
        if replaced != text:
            path.write_bytes(replaced.encode())
            changed.append(path)
    return changed + [path for path in notebooks.sync(root) if path not in changed]
