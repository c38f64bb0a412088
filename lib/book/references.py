"""References: prose links to a paper by its address; the book looks the paper up in the .bib."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from docutils import nodes
from pybtex.database import BibliographyData, parse_file
from pybtex.plugin import find_plugin
from pybtex_docutils import Backend

PAPERS = ("https://doi.org/", "https://arxiv.org/abs/", "https://jmlr.org/")


class Bibliography:
    """The papers of ``references.bib``, by key and by address."""

    def __init__(self, path: Path) -> None:
        self.data: BibliographyData = parse_file(path)
        self.key_of = {self.address(key): key for key in self.data.entries}

    def address(self, key: str) -> str:
        """Where a paper is found: its DOI as a link, or its URL."""
        fields = self.data.entries[key].fields
        return f"https://doi.org/{fields['doi']}" if "doi" in fields else fields["url"]

    def listing(self, keys: Iterable[str]) -> nodes.bullet_list:
        """A list of references, formatted, sorted by author and year."""
        style = find_plugin("pybtex.style.formatting", "unsrt")()
        backend = Backend()

        def order(key: str) -> tuple[str, str]:
            entry = self.data.entries[key]
            return str(entry.persons["author"][0]), entry.fields["year"]

        items = nodes.bullet_list(classes=["references"], bullet="-")
        entries = [self.data.entries[key] for key in sorted(set(keys), key=order)]
        for entry in style.format_entries(entries):
            items += nodes.list_item("", backend.paragraph(entry), ids=[f"paper-{entry.key}"])
        return items


def is_paper(address: str) -> bool:
    """True for the address of a paper, which then has to stand in the bibliography."""
    return address.startswith(PAPERS)
