"""`lib.book.figures`: a figure has words, slides are one sheet."""

import io

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from lib.book import figures


@pytest.mark.parametrize("alt", ["", "A plot", "Figure one of the chapter, as it is."])
def test_figure_needs_real_alternative_text(alt):
    with pytest.raises(ValueError, match="alt"):
        figures.figure(plt.figure(), alt=alt, caption="What one should look at here.")


def test_figure_needs_a_figure():
    with pytest.raises(ValueError, match="fig: expected a matplotlib figure"):
        figures.figure(
            None, alt="A line rises from zero to one.", caption="What one should see here."
        )


def test_figure_needs_a_caption():
    with pytest.raises(ValueError, match="caption"):
        figures.figure(plt.figure(), alt="A line rises from zero to one.", caption="Line.")


def test_slides_are_one_sheet_with_a_label_for_each(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "show", lambda data, metadata: shown.append((data, metadata)))
    figs = [plt.figure(figsize=(1, 0.5)) for _ in range(5)]
    words = {"alt": "A line rises from zero to one.", "caption": "What one should see here."}
    figures.slides(figs, list("abcde"), columns=2, **words)
    sheet = Image.open(io.BytesIO(shown[0][0]["image/png"]))
    assert sheet.size == (2 * 200, 3 * 100)  # 200 pixels for an inch
    assert shown[0][1]["figure"]["slides"] == {"labels": list("abcde"), "columns": 2}
    assert not {fig.number for fig in figs} & set(plt.get_fignums())


@pytest.mark.parametrize(
    ("figs", "labels", "name"),
    [
        ([(1, 1)], ["a"], "figs"),
        ([(1, 1), (2, 1)], ["a", "b"], "figs"),
        ([(1, 1), (1, 1)], ["a"], "labels"),
        ([(1, 1), (1, 1)], ["a", ""], "labels"),
    ],
)
def test_slides_that_do_not_fit_together_are_refused(figs, labels, name):
    figs = [plt.figure(figsize=size) for size in figs]
    with pytest.raises(ValueError, match=name):
        figures.slides(
            figs, labels, alt="A line rises from zero to one.", caption="One two three four."
        )
