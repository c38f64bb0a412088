"""Show an output: as a MIME bundle in a notebook, as text in a plain process."""

from __future__ import annotations

from typing import Any


def show(data: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Display a MIME bundle in a notebook; print its text in a plain process."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(data["text/plain"])
    else:
        display(data, raw=True, metadata=metadata)
