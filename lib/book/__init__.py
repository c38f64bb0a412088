"""What the pages of the book need: start, claim, figure, show_source, claims_table, provenance.

`python -m lib.book` is the other half: it keeps the notebooks in step, runs them and renders them.
"""

from lib.book.figures import figure, slides
from lib.book.page import (
    Claim,
    ClaimFailed,
    claim,
    claims_table,
    device,
    provenance,
    scale,
    show_source,
    start,
)

__all__ = [
    "Claim",
    "ClaimFailed",
    "claim",
    "claims_table",
    "device",
    "figure",
    "provenance",
    "scale",
    "show_source",
    "slides",
    "start",
]
