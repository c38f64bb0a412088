"""``python -m lib.book COMMAND``: sync, run, build, repository (the Makefile calls these)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lib.book import build, notebooks, repository


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 0 when all went well."""
    parser = argparse.ArgumentParser(prog="python -m lib.book", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync", help="write .py and .ipynb from the .md (or from another)")
    sync.add_argument("--source", choices=["md", "py", "ipynb"], default="md")
    run = commands.add_parser("run", help="run the chapters that need it (or those named)")
    run.add_argument("names", nargs="*")
    commands.add_parser("build", help="run what needs it, then render _build/html")
    address = commands.add_parser("repository", help="set the address of the repository")
    address.add_argument("url")
    given = parser.parse_args(argv)
    root = Path.cwd()
    if not (root / "_config.yml").exists():
        parser.error("run this in the folder that holds _config.yml")
    if given.command == "sync":
        for path in notebooks.sync(root, given.source):
            print(path.relative_to(root))
        return 0
    if given.command == "run":
        names = given.names or notebooks.stale(root, notebooks.chapters(root))
        return 0 if all(run.passed for run in notebooks.execute(root, names)) else 1
    if given.command == "repository":
        for path in repository.rewrite(root, given.url):
            print(path.relative_to(root))
        return 0
    return build.build(root)


if __name__ == "__main__":
    sys.exit(main())
