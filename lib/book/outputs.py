"""How the book draws what `lib.book` displays; found by MyST-NB through an entry point."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from docutils import nodes


class PageOutputs:
    """Renders figures with caption and alternative text, claims with their anchor.

    Source: the ``MimeRenderPlugin`` protocol of MyST-NB.
    """

    mime_priority_overrides: ClassVar[Sequence[tuple[str, str, int | None]]] = ()

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """Nodes for an output that carries our metadata; None for all others."""
        extra = data.output_metadata
        if inline:
            return None
        if "caption" in extra:  # a second copy for Jupyter and Colab, where captions are unknown
            return []
        if "figure" in extra and data.mime_type == "image/png":
            return [_figure(renderer, data, extra["figure"])]
        if "claim" in extra and data.mime_type == "text/plain":
            return [_claim(data.string, extra["claim"])]
        if "provenance" in extra and data.mime_type == "text/markdown":
            text = data.string.strip("*")
            return [nodes.container("", nodes.paragraph(text=text), classes=["provenance"])]
        return None


def anchor(name: str) -> str:
    """The id under which prose links to a claim."""
    return nodes.make_id(name)


def _figure(renderer: Any, data: Any, facts: dict[str, Any]) -> nodes.figure:
    image = renderer.render_image(data)[0]
    image["alt"] = facts["alt"]
    caption = nodes.caption()
    parser = renderer.renderer
    with parser.current_node_context(caption):
        parser.nested_render_text(facts["caption"], data.line or 0, inline=True)
    figure = nodes.figure("", image, caption)
    if "slides" in facts:  # book/assets/slides.js makes a slider of it
        figure["classes"].append("slides")
        told = json.dumps(facts["slides"]).replace("<", "\\u003c")
        script = f'<script type="application/json">{told}</script>'
        figure.insert(0, nodes.raw("", script, format="html"))
    return figure


def _claim(text: str, facts: dict[str, Any]) -> nodes.container:
    line = nodes.literal_block(text, text, language="none", classes=["claim"])
    target = nodes.container("", line, classes=["claim"], ids=[anchor(facts["name"])])
    target["claim"] = facts
    return target
