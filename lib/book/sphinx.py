"""The Sphinx side of the book: chapters stay plain Markdown, the page gets what it cannot do.

A chapter holds no directive and no role, so that it reads the same in Jupyter and on Colab. Here
its text gains, when the book is rendered:

* ``[0.0448](#kl-gap)`` shows the value that this run measured, and links to its assertion;
* ``> **Title.** text`` becomes a box;
* ``lib.vi.fit_guide`` in code type links to the API reference;
* a link to a paper makes an entry under References;
* a line below the title says how long the page ran and how many claims held.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core.execute import cache as execution
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.math import MathDomain
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from lib.book import notebooks, outputs
from lib.book.references import Bibliography, is_paper

logger = logging.getLogger(__name__)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE]-?\d+)?")
API_NAME = re.compile(r"lib(\.\w+)+(\(\))?")
BOXES = {"It breaks": "warning", "Check": "tip", "Try it": "hint"}


def chapter_of(docname: str) -> str | None:
    """Name of the chapter that a document is, or None."""
    return docname.removeprefix("nbs/") if docname.startswith("nbs/") else None


# ------------------------------------------------------------------- transforms of a chapter


class ChapterTransform(SphinxTransform):
    """Base: applies to chapters only, before MyST resolves its own anchors (priority 879)."""

    default_priority = 870

    def apply(self, **kwargs: Any) -> None:
        """Apply to the documents in ``nbs``."""
        if chapter_of(self.env.docname):
            self.chapter(self.document)

    def chapter(self, document: nodes.document) -> None:
        """Transform one chapter; each transform says how."""


class Boxes(ChapterTransform):
    """A quotation that opens with a bold title is a box."""

    def chapter(self, document: nodes.document) -> None:
        for quote in list(document.findall(nodes.block_quote)):
            first = quote[0]
            while first.children and not first[0].astext():  # MyST leaves an empty text in front
                first.remove(first[0])
            if not isinstance(first, nodes.paragraph) or not isinstance(first[0], nodes.strong):
                continue
            name = first[0].astext().rstrip(".:")
            kind = BOXES.get(name, "note")
            first.remove(first[0])
            if first.children and isinstance(first[0], nodes.Text):
                first.replace(first[0], nodes.Text(first[0].astext().lstrip()))
            if not first.astext().strip():
                quote.remove(first)
            title = nodes.title(name, name)
            quote.replace_self(nodes.admonition("", title, *quote.children, classes=[kind]))


class Claims(ChapterTransform):
    """Collect the claims of a page; put the measured numbers into its prose."""

    def chapter(self, document: nodes.document) -> None:
        made = {}
        for node in document.findall(nodes.container):
            if "claim" in node:
                target = node["ids"][0]
                if target in made:
                    logger.warning("two claims share the anchor #%s", target, location=node)
                made[target] = node["claim"]
        claims_of(self.env)[self.env.docname] = list(made.values())
        for link in list(document.findall(nodes.reference)):
            target = link.get("refuri", "")[1:]
            if link.get("id_link") and target in made:
                self.fill(link, made[target])
                link["refid"] = target
                del link["refuri"], link["id_link"]

    def fill(self, link: nodes.reference, made: dict[str, Any]) -> None:
        """Replace the number that stands in the source by the one that was measured."""
        text = link.astext()
        found = NUMBER.search(text.replace("−", "-"))
        if not found:
            return
        percent = text[found.end() :].lstrip().startswith("%")
        stated = float(found[0]) / (100 if percent else 1)
        step = unit_of_last_digit(found[0]) / (100 if percent else 1)
        low = made["low"] if made["low"] is not None else -float("inf")
        high = made["high"] if made["high"] is not None else float("inf")
        if not low - step / 2 <= stated <= high + step / 2:
            logger.warning(
                "the text says %s where the claim %r asks for %s to %s",
                text, made["name"], low, high, location=link,
            )  # fmt: skip
        live = format_like(found[0], made["value"] * (100 if percent else 1))
        link.children.clear()
        link += nodes.Text(text[: found.start()] + live + text[found.end() :])
        link["classes"] += ["measured"]
        link["reftitle"] = f"measured in this run; asked: {made['because']}"


def unit_of_last_digit(text: str) -> float:
    """The size of one step in the last digit of a number as printed: 0.01 for 2.50."""
    mantissa, _, exponent = text.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def format_like(model: str, value: float) -> str:
    """Print ``value`` the way ``model`` is printed: same decimals, same notation."""
    mantissa, exponent, _ = model.lower().partition("e")
    places = len(mantissa.partition(".")[2])
    if not exponent:
        return f"{value:.{places}f}"
    digits, power = f"{value:.{places}e}".split("e")
    return f"{digits}e{int(power)}"


class ApiLinks(ChapterTransform):
    """A name of `lib` in code type links to the API reference; a wrong name fails the build."""

    def chapter(self, document: nodes.document) -> None:
        for literal in list(document.findall(nodes.literal)):
            name = literal.astext()
            if not API_NAME.fullmatch(name) or isinstance(literal.parent, nodes.reference):
                continue
            xref = addnodes.pending_xref(
                "", literal.deepcopy(), refdomain="py", reftype="obj", refexplicit=True,
                reftarget=defined_as(name.removesuffix("()")), refdoc=self.env.docname,
                refwarn=True,
            )  # fmt: skip
            literal.replace_self(xref)


def defined_as(name: str) -> str:
    """The full name under which the API reference has it: `lib.vi.x` may live in a submodule."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[end:]:
                found = getattr(found, part)
        except AttributeError:
            return name
        return f"{found.__module__}.{found.__qualname__}" if parts[end:] else name
    return name


class References(ChapterTransform):
    """Every paper that a chapter links to stands in the bibliography, and at the chapter's end."""

    def chapter(self, document: nodes.document) -> None:
        bibliography = self.env.app.bibliography  # type: ignore[attr-defined]
        cited = set()
        for link in document.findall(nodes.reference):
            address = link.get("refuri", "")
            if address in bibliography.key_of:
                cited.add(bibliography.key_of[address])
            elif is_paper(address):
                logger.warning("not in references.bib: %s", address, location=link)
        self.env.note_dependency(str(Path(self.env.srcdir) / "book" / "references.bib"))
        cited_in(self.env)[self.env.docname] = sorted(cited)
        if cited:
            title = nodes.title("References", "References")
            section = nodes.section(
                "", title, bibliography.listing(cited), ids=["references"], names=["references"]
            )
            next(document.findall(nodes.section)).append(section)


class PageFacts(ChapterTransform):
    """Below the title: where to run the page, how long it ran, what it proved."""

    default_priority = 875  # after the claims are known

    def chapter(self, document: nodes.document) -> None:
        config = self.env.config
        name = chapter_of(self.env.docname)
        run = notebooks.last_run(Path(self.env.srcdir), name)
        if run is None:
            raise ExtensionError(f"{name} was never run: call `make book`")
        options = config.html_theme_options
        path = options["repository_url"].removeprefix("https://github.com/")
        branch = options.get("repository_branch", "main")
        colab = f"https://colab.research.google.com/github/{path}/blob/{branch}/nbs/{name}.ipynb"
        count = len(claims_of(self.env)[self.env.docname])
        threads = f"{run.threads} CPU thread" + "s" * (run.threads != 1)
        line = nodes.paragraph()
        line += nodes.reference("", "Open in Colab", refuri=colab, classes=["colab"])
        line += nodes.inline("", f"ran in {run.seconds:.0f} s on {threads}", classes=["fact"])
        held = f"{count} claim" + "s" * (count != 1) + " asserted, all held"
        line += nodes.inline("", held, classes=["fact"])
        page = next(document.findall(nodes.section))
        page.insert(1, nodes.container("", line, classes=["page-facts"]))


class Docstrings:
    """Docstrings are written to be read in an editor; here they become reStructuredText."""

    SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:", "Yields:", "Source:")

    @classmethod
    def convert(cls, app: Sphinx, what: str, name: str, item: Any, *rest: Any) -> None:
        """Set indented formulas as they stand, and keep ``|x|`` from meaning a substitution."""
        lines: list[str] = rest[-1]
        free, formula, out = True, False, []
        for number, line in enumerate(lines):
            indented = line.startswith("    ")
            if line and not indented:
                free = not line.startswith(cls.SECTIONS)
                formula = False
            elif indented and free and not formula and not (number and lines[number - 1].strip()):
                out += ["::", ""]
                formula = True
            out.append(line if formula and indented else escape_bars(line))
        lines[:] = out


def escape_bars(line: str) -> str:
    """Escape vertical bars outside of code."""
    parts = re.split(r"(``.*?``|`.*?`)", line)
    return "".join(p if p.startswith("`") else p.replace("|", r"\|") for p in parts)


# --------------------------------------------------------------------- pages about all chapters


def claims_of(env: BuildEnvironment) -> dict[str, list[dict[str, Any]]]:
    """Claims by document, kept from build to build."""
    return env.__dict__.setdefault("book_claims", {})


def cited_in(env: BuildEnvironment) -> dict[str, list[str]]:
    """Keys of the papers that each document cites."""
    return env.__dict__.setdefault("book_citations", {})


class Whole(nodes.General, nodes.Element):
    """Placeholder for something that is known when all pages are read."""


class WholeDirective(SphinxDirective):
    """``{whole-book} claims | papers | build`` puts a placeholder."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.__dict__.setdefault("book_whole", set()).add(self.env.docname)
        return [Whole(kind=self.arguments[0])]


def fill_placeholders(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace each placeholder by what all pages together say."""
    for node in list(doctree.findall(Whole)):
        make = {"claims": _all_claims, "papers": _all_papers, "build": _build_facts}[node["kind"]]
        node.replace_self(make(app, docname))


def _link(app: Sphinx, origin: str, docname: str, text: str, target: str = "") -> nodes.reference:
    uri = app.builder.get_relative_uri(origin, docname) + (f"#{target}" if target else "")
    return nodes.reference(text, text, refuri=uri, internal=True)


def _all_claims(app: Sphinx, docname: str) -> list[nodes.Node]:
    out: list[nodes.Node] = []
    for page, claims in sorted(claims_of(app.env).items()):
        chapter = app.env.titles[page].astext()
        out.append(nodes.rubric("", "", _link(app, docname, page, chapter)))
        items = nodes.bullet_list(classes=["claims"])
        for c in claims:
            made = as_claim(c)
            name = _link(app, docname, page, c["name"], outputs.anchor(c["name"]))
            text = nodes.Text(f": {made.measured} (asked: {made.asked}; {c['because']})")
            items += nodes.list_item("", nodes.paragraph("", "", name, text))
        out.append(items)
    return out


def as_claim(facts: dict[str, Any]) -> Any:
    """A `Claim` again, from the metadata of its output."""
    from lib.book.page import Claim

    return Claim(**facts)


def _all_papers(app: Sphinx, docname: str) -> list[nodes.Node]:
    bibliography = app.bibliography  # type: ignore[attr-defined]
    listing = bibliography.listing(bibliography.data.entries)
    for item in listing:
        key = item["ids"][0].removeprefix("paper-")
        for page, keys in sorted(cited_in(app.env).items()):
            if key in keys:
                item[0] += nodes.Text(" Cited in ")
                item[0] += _link(app, docname, page, app.env.titles[page].astext())
                item[0] += nodes.Text(".")
    return [listing]


def _build_facts(app: Sphinx, docname: str) -> list[nodes.Node]:
    root = Path(app.srcdir)
    runs = [notebooks.last_run(root, name) for name in notebooks.chapters(root)]
    seconds = sum(run.seconds for run in runs if run)
    count = sum(map(len, claims_of(app.env).values()))
    chapters = f"{len(runs)} chapter" + "s" * (len(runs) != 1)
    text = f"In this build {chapters} ran for {seconds:.0f} s and asserted {count} claims."
    return [nodes.paragraph("", text, classes=["build-facts"])]


# ------------------------------------------------------------------------------- life of a build


def refuse_to_execute(*args: Any, **kwargs: Any) -> None:
    """Stand in for MyST-NB's execution: the book is rendered from nbmake's runs or not at all."""
    raise ExtensionError("Sphinx was about to execute a notebook; call `make book`")


def outdated(app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set) -> set:
    """Pages whose outputs are newer than what was rendered, though their text is the same."""
    kept = env.__dict__.setdefault("book_runs", {})
    out = set()
    for name in notebooks.chapters(Path(app.srcdir)):
        path = Path(app.srcdir) / "_build" / "executed" / f"{name}.ipynb"
        stamp = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
        if kept.get(name) != stamp and f"nbs/{name}" in env.found_docs:
            out.add(f"nbs/{name}")
        kept[name] = stamp
    return out


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget what a document contributed."""
    claims_of(env).pop(docname, None)
    cited_in(env).pop(docname, None)


def rewrite_whole(app: Sphinx, env: BuildEnvironment) -> set[str]:
    """Pages about all chapters are written in every build."""
    return env.__dict__.get("book_whole", set()) & env.found_docs


def begin(app: Sphinx) -> None:
    """Load the bibliography; make sure that nothing is executed from here on."""
    drop_thebe(app)
    # Sphinx counts the formulas of all chapters as those of the page that lists them.
    MathDomain.has_equations = lambda self, name=None: self.data["has_equations"].get(name, False)
    app.bibliography = Bibliography(Path(app.srcdir) / "book" / "references.bib")  # type: ignore
    execution.single_nb_execution = refuse_to_execute


def drop_thebe(app: Sphinx) -> None:
    """Silence the live-code extension that Jupyter Book always loads: it names a CDN, unused."""
    for listeners in app.events.listeners.values():
        listeners[:] = [entry for entry in listeners if entry.handler.__module__ != "sphinx_thebe"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    for transform in (Boxes, Claims, ApiLinks, References, PageFacts):
        app.add_transform(transform)
    app.add_node(Whole)
    app.add_directive("whole-book", WholeDirective)
    app.connect("builder-inited", begin)
    app.connect("autodoc-process-docstring", Docstrings.convert, priority=100)  # before napoleon
    app.connect("env-get-outdated", outdated)
    app.connect("env-purge-doc", purge)
    app.connect("env-updated", rewrite_whole)
    app.connect("doctree-resolved", fill_placeholders)
    return {"version": "1", "parallel_read_safe": False}
