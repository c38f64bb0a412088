"""The whole way on a small book: what runs again, what is refused, what the reader gets."""

import pytest

from lib.book import build, notebooks


@pytest.fixture(scope="module")
def built(small):
    """The small book after its first build."""
    assert build.build(small) == 0, (small / "_build" / "render.log").read_text()
    return small


def page(folder, name):
    """HTML of a page."""
    return (folder / "_build" / "html" / "nbs" / f"{name}.html").read_text()


def test_prose_shows_the_measured_number_and_links_to_its_claim(built):
    html = page(built, "one")
    assert 'href="#half"' in html
    assert ">0.5</a>" in html  # the source says 0.9, this run measured 0.5
    assert 'id="half"' in html
    assert "1 claim asserted" in html
    assert "1 claim" not in page(built, "two")


def test_second_build_runs_nothing(built, capsys):
    before = {name: notebooks.last_run(built, name) for name in ("one", "two")}
    assert build.build(built) == 0
    assert "0 to run" in capsys.readouterr().out
    assert before == {name: notebooks.last_run(built, name) for name in ("one", "two")}


def test_prose_renders_again_without_a_run_and_code_runs_its_own_page_only(built, capsys, write):
    code = 'from lib.book import claim\nclaim("half", 1 / 2, low=0, high=1, because="it is")'
    write(built, "one", "Words were changed. [0.3](#half)", code)
    assert build.build(built) == 0
    assert "0 to run" in capsys.readouterr().out
    assert "Words were changed" in page(built, "one")
    write(built, "one", "More.", code.replace("1 / 2", "1 / 4"))
    assert build.build(built) == 0
    out = capsys.readouterr().out
    assert "one: passed" in out
    assert "two" not in out
    assert "0.25" in page(built, "one")


def test_outputs_are_taken_over_when_only_lib_changed(built, capsys, write):
    """The text of the page is the same, yet Sphinx must read it again."""
    write(
        built,
        "two",
        "Nothing.",
        "if False:\n    import lib.shared\nimport time\nprint(time.time_ns())",
    )
    assert build.build(built) == 0
    before = page(built, "two")
    (built / "lib" / "deep.py").write_text("value = 2\n")
    capsys.readouterr()
    assert build.build(built) == 0
    assert "two: passed" in capsys.readouterr().out
    assert page(built, "two") != before


@pytest.mark.parametrize(
    ("prose", "says"),
    [
        ("One half is [7.2](#half).", "the text says 7.2"),
        ("See [this](#no-such-claim).", "no-such-claim"),
        ("Call `lib.no_such_module.f`.", "lib.no_such_module"),
        ("See [a paper](https://doi.org/10.0000/none).", "not in references.bib"),
    ],
)
def test_wrong_number_link_name_or_paper_fails_the_build(built, prose, says, capsys, write):
    code = 'from lib.book import claim\nclaim("half", 1 / 2, low=0, high=1, because="it is")'
    write(built, "one", prose, code)
    assert build.build(built) == 1
    assert says in capsys.readouterr().out


def test_two_claims_with_one_anchor_fail_the_build(built, write, capsys):
    """Else the table would show one of them, and prose would link to either."""
    loop = "for x in (0.2, 0.8):\n    claim('half', x, high=1, because='b')"
    code = f"from lib.book import claim\n{loop}"
    write(built, "one", "Nothing.", code)
    assert build.build(built) == 1
    assert "two claims share the anchor #half" in capsys.readouterr().out


def test_sphinx_refuses_to_execute(built, capsys, write):
    write(built, "two", "Nothing.", "x = 'never run'")
    assert build.render(built) == 1
    assert "about to execute" in (built / "_build" / "render.log").read_text()


def test_a_failing_chapter_fails_the_build_readably(built, capsys, write):
    write(built, "two", "Nothing.", "raise RuntimeError('the reason')")
    assert build.build(built) == 1
    out = capsys.readouterr().out
    assert "two: FAILED" in out
    assert "RuntimeError: the reason" in out
