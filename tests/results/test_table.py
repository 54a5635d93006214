"""What people see: layers down, controls beside, nothing left out in silence."""

import io
import math
from dataclasses import replace

import pytest

from patchscopes.errors import OptionError
from patchscopes.results import Results
from patchscopes.results.table import MAX_BLOCKS, MAX_LINES, as_html, as_text
from patchscopes.spec import Row, TopToken
from rows import FAILED, MADE_BY, make_row, results


def grid(n_layers: int = 3, **changes: object) -> list[Row]:
    """The cells of one source over the layers, each control's rows after them."""
    cells = [make_row(source_layer=i, target_layer=i, text=f" text {i}", **changes) for i in range(n_layers)]
    state = [replace(row, control="random-state", text=f" other {i}") for i, row in enumerate(cells)]
    zero = [
        replace(row, control="zero", source=None, source_index=None, position=None, source_layer=None, text=f" nil {i}")
        for i, row in enumerate(cells)
    ]
    once = replace(
        cells[0],
        control="unpatched",
        source=None,
        source_index=None,
        position=None,
        source_layer=None,
        target_layer=None,
        text=" as it is\nthen",
    )
    text = replace(cells[0], control="text-only", source_layer=None, target_layer=None, text=" read")
    return [*cells, *state, *zero, once, text]


def test_controls_stand_beside_their_cells_and_below_the_block() -> None:
    shown = as_text(results(*grid()))
    line = next(line for line in shown.splitlines() if " text 1" in line)
    assert " other 1" in line
    assert " nil 1" in line
    assert shown.count("as it is⏎then") == 1
    assert shown.count("text-only:  read") == 1
    assert "token ' Spain' at position 3" in shown
    assert "11 rows: 11 ok" in shown


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    rows = grid(text=None) if width == 0 else [replace(row, text="word " * 40) for row in grid()]
    assert max(map(len, as_text(results(*rows), width).splitlines())) <= width


def test_hits_and_misses_are_marked_and_counted_with_leaks_apart() -> None:
    rows = [replace(row, expected=i == 0) for i, row in enumerate(grid())]
    rows[1] = replace(rows[1], flags=("leaked",), expected=True)
    shown = as_text(results(*rows))
    assert "✓" in shown
    assert "(✓)" in shown
    assert "expected answer in 1 of 2 cells (1 leaked, apart)" in shown
    assert "expected answer in 0 of 3 random-state" in shown


def test_what_failed_or_is_inert_is_shown_with_its_reason() -> None:
    inert = make_row(
        source_layer=3, target_layer=3, text=None, token_ids=None, status="inert", reason="reaches nothing"
    )
    shown = as_text(results(*grid(), inert, FAILED, complete=False))
    assert "(inert)" in shown
    assert "inert: reaches nothing" in shown
    assert "failed: source 1" in shown
    assert "1 inert, 1 failed" in shown
    assert "1 failed · not complete" in shown
    skipped = make_row(text=None, token_ids=None, status="skipped", reason="interrupted")
    assert "interrupted, not complete" in as_text(results(skipped, complete=False))


def test_next_tokens_are_shown_with_probabilities() -> None:
    top = (TopToken(" Madrid", 5, -0.6931471805599453), TopToken(" Rome", 6, -2.3))
    shown = as_text(results(make_row(top=top, entropy=1.25)))
    lines = shown.splitlines()
    assert lines[1].split() == ["ℓ", "H", "next", "token"]
    assert lines[3].split(maxsplit=2) == ["2", "1.25", "' Madrid' 50% ' Rome' 10%"]
    rare = make_row(top=(TopToken(" a", 5, -20.0), TopToken(" b", 6, -math.inf)), entropy=None)
    assert "' a' <1% ' b' 0%" in as_text(results(rare))
    beside = as_text(results(make_row(top=top, entropy=1.0), make_row(top=top, entropy=2.0, control="random")))
    assert "H 2.00 · ' Madrid' 50%" in beside


def test_a_product_of_layers_shows_both() -> None:
    rows = [make_row(source_layer=a, target_layer=b, text=f" {a}→{b}") for a in (1, 2) for b in (0, 3)]
    shown = as_text(results(*rows))
    assert "ℓ*" in shown
    assert "2→3" in shown


def test_what_is_too_much_to_show_is_said() -> None:
    rows = [make_row(source_index=i, source=f"source {i}") for i in range(MAX_BLOCKS + 5)]
    shown = as_text(results(*rows))
    assert "5 more cells are not shown here" in shown
    assert str(results(*rows)).startswith("source 0")


def test_html_escapes_texts() -> None:
    shown = as_html(results(make_row(text="<script>alert(1)</script>", source="a<b")))
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<table>" in shown


def test_the_figure_shows_texts_and_says_what_it_leaves_out() -> None:
    rows = [*grid(), *[replace(row, source_index=1, source="other") for row in grid() if row.control is None]]
    figure = results(*rows).plot()
    axes = figure.axes[0]
    written = [text.get_text() for text in axes.texts]
    assert " text 2" in written
    assert " other 2" in written
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]
    assert "1 of 2 places" in axes.get_title(loc="left")
    assert "as it is" in axes.get_xlabel()
    second = results(*rows).plot(source_index=1)
    assert "other" in second.axes[0].get_title(loc="left")
    with pytest.raises(OptionError, match="no cells to plot"):
        results(*rows).plot(source_index=9)
    with pytest.raises(OptionError, match="no cells to plot"):
        Results([], model={}, spec={}, complete=True).plot()


def test_a_control_that_says_one_thing_stands_once() -> None:
    """A column that is the same on every line is one line, and a line that the cell has not either is no exception."""
    same = [replace(row, text=" same") if row.control == "zero" else row for row in grid()]
    assert as_text(results(*same)).count(" same") == 1
    assert "zero, every ℓ:" in as_text(results(*same))
    idle = {"status": "inert", "reason": "too late", "text": None}
    last = [replace(row, **idle) if row.target_layer == 2 else row for row in same]
    shown = as_text(results(*last))
    assert "zero, every ℓ:" in shown
    assert shown.count("too late") == 1, "a reason that cell and control share is told once"
    two = [replace(row, text=" other") if row.control == "zero" and row.target_layer == 2 else row for row in same]
    assert "every" not in as_text(results(*two))


def test_controls_go_on_in_another_table_where_there_is_no_room() -> None:
    rows = grid()
    more = [replace(row, control="random", text=f" noise {row.source_layer}") for row in rows[:3]]
    wide, narrow = as_text(results(*rows, *more), 140), as_text(results(*rows, *more), 60)
    line = next(line for line in wide.splitlines() if " text 1" in line)
    assert all(words in line for words in (" other 1", " nil 1", " noise 1"))
    for words in (" text 1", " other 1", " nil 1", " noise 1"):
        assert narrow.count(words) == 1
        assert next(line for line in narrow.splitlines() if words in line).startswith("1 ")


@pytest.mark.parametrize("width", range(44, 150, 3))
def test_layers_and_marks_are_never_cropped(width: int) -> None:
    """Only texts give way where there is little room."""
    layers = [(a, b) for a in (0, 10) for b in (5, 15)]
    rows = [make_row(source_layer=a, target_layer=b, text="word " * 9, expected=True) for a, b in layers]
    rows += [replace(row, control=name) for name in ("random", "random-state") for row in rows[:4]]
    rows = [replace(row, text=f"{i} {row.text}") for i, row in enumerate(rows)]
    lines = [line.split() for line in as_text(results(*rows), width).splitlines()]
    first = lines.index(next(line for line in lines if line[:4] == ["ℓ", "ℓ*", "✓", "text"]))
    found = [line[:3] for line in lines[first + 2 : first + 6]]
    assert found == [[str(a), str(b), "✓"] for a, b in layers]


def test_why_a_control_could_not_run_is_told() -> None:
    failed = {"status": "failed", "reason": "too long\nby far", "text": None}
    rows = [replace(row, **failed) if row.control in ("text-only", "random-state") else row for row in grid()]
    shown = as_text(results(*rows))
    said = {line.split(":")[0]: line for line in shown.splitlines()}
    assert said["text-only"].endswith("(failed: too long …)")
    assert said["random-state, every ℓ"].endswith("(failed: too long …)"), "all of a control failed"
    some = [replace(row, **failed) if row.control == "random-state" and row.source_layer else row for row in grid()]
    assert "random-state failed: too long … (ℓ = 1–2)" in as_text(results(*some))


def test_controls_without_their_cells_are_shown() -> None:
    shown = as_text(results(*grid()).controls)
    for text in ("other 0", "other 2", "nil 1", "as it is", "read"):
        assert text in shown
    assert "their cells are not here" in shown


def test_samples_and_draws_that_are_not_shown_are_said() -> None:
    rows = [make_row(sample=i, text=f" sample {i}") for i in range(3)]
    rows += [make_row(control="random", draw=i, text=f" draw {i}") for i in range(4)]
    rows += [make_row(control="unpatched", source_layer=None, target_layer=None, sample=i) for i in range(3)]
    shown = as_text(results(*rows))
    assert all(f" sample {i}" in shown for i in range(3))
    assert " draw 0" in shown
    assert " draw 1" not in shown
    assert "draw 0 of 4 of random is shown" in shown
    assert "sample 0 of 3 of unpatched is shown" in shown


def test_hits_are_told_by_layer() -> None:
    one = [make_row(source_layer=i, target_layer=i, expected=i in (1, 2, 4)) for i in range(6)]
    assert "expected answer in 3 of 6 cells, at ℓ = 1–2, 4" in as_text(results(*one))
    two = [*one, *[replace(row, source_index=1, expected=row.source_layer == 4) for row in one]]
    assert "in 4 of 12 cells, at ℓ = 1–2 (1 of 2), 4 (2 of 2)" in as_text(results(*two))
    leaks = [replace(row, flags=("leaked",)) for row in one]
    assert "in 0 of 0 cells (6 leaked, apart); in 3 of 6 leaked" in as_text(results(*leaks))


def test_expected_answers_stand_over_the_table() -> None:
    spec = {"sources": ({"expect": ()}, {"expect": ["Rome"]}), "expect": ("Madrid", "Villa")}
    rows = [make_row(expected=True), make_row(expected=True, source_index=1)]
    shown = as_text(Results(rows, model={}, spec=spec, complete=True))
    assert "expected “Madrid” or “Villa”" in shown
    assert "expected “Rome”" in shown


def test_flags_are_explained_and_warnings_that_no_flag_tells_are_shown() -> None:
    row = make_row(flags=("sink", "new-flag"))
    given = Results([row], warnings=["needs a BOS", "at position 0 (flag: sink)"], complete=True, **MADE_BY)
    shown = as_text(given)
    assert "flag sink: the token is at position 0" in shown
    assert "flag new-flag" in shown
    assert "warning: needs a BOS" in shown
    assert "flag: sink" not in shown
    differ = as_text(results(make_row(flags=("leaked",)), make_row(source_layer=3)))
    assert "flags" in differ.splitlines()[1]


def test_a_text_cannot_steer_the_terminal() -> None:
    row = make_row(text=" a\x1b[2Jb\r\n\tc\u202ed\u2028e\udc80 [bold]f[/bold] :smile:", source="\x1b]0;title\x07")
    shown = as_text(results(row))
    assert " a\\x1b[2Jb␍⏎⇥c\\u202ed\\u2028e\\udc80 [bold]f[/bold] :smile:" in shown
    assert not {"\x1b", "\x07", "\r", "\t", "\u202e", "\u2028"} & set(shown)
    assert "\x1b" not in as_html(results(row))
    shown.encode()


def test_an_empty_text_is_told_from_none() -> None:
    shown = as_text(results(make_row(text=""), make_row(source_layer=3, status="skipped", text=None, reason="later")))
    assert "(empty text)" in shown
    assert "(skipped)" in shown
    assert "skipped: later (ℓ = 3)" in shown


def test_a_reason_may_be_missing_or_empty() -> None:
    for reason in ("", None, "\n"):
        failed = replace(FAILED, reason=reason)
        assert "no reason was given" in as_text(results(failed, make_row(status="failed", reason=reason, text=None)))


@pytest.mark.parametrize("width", [50, 80, 200])
def test_wide_characters_are_cropped_to_the_width(width: int) -> None:
    from rich.cells import cell_len

    rows = [replace(row, text="東京タワー" * 20) for row in grid()]
    table = [line for line in as_text(results(*rows), width).splitlines() if "…" in line]
    assert table
    assert max(map(cell_len, table)) <= width


def test_a_long_block_is_cropped_and_said_so() -> None:
    rows = [make_row(source_layer=i, target_layer=i) for i in range(MAX_LINES + 7)]
    assert "7 more cells are not shown here;" in as_text(results(*rows))
    assert "not shown here" not in as_text(results(*rows[:MAX_LINES]))


def test_html_has_what_the_terminal_has() -> None:
    rows = [replace(row, expected=i == 0) for i, row in enumerate(grid())]
    shown = as_html(results(*rows, FAILED))
    for words in ("<b>✓</b>", "random-state", "unpatched: ✗  as it is⏎then", "failed: source 1", "model tiny"):
        assert words in shown
    assert shown.count("<tr>") == 1 + 3
    assert shown.count("<td ") == 3 * 5, "ℓ, ✓, text and two controls"


def test_rich_and_notebooks_show_the_table() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results(*grid()))
    assert " other 1" in console.export_text()
    assert results(*grid())._repr_html_().startswith("<p><b>source 0")
    assert "0 rows: none" in as_text(results())


def test_a_heading_says_what_no_placeholder_shows() -> None:
    prompt = {"name": None, "text": "the capital of it is", "at": "span:capital of", "mask": " it"}
    source = {"text": "I went to Spain", "expect": ["Madrid"], "mask": None}
    row = make_row(prompt="the capital of it is", target_positions=(1, 2))
    masked = Results(
        [row], model=MADE_BY["model"], complete=True, spec={"sources": [source], "prompts": [prompt], "mask": "I went"}
    )
    line = " ".join(as_text(masked, 400).split())
    assert "written at positions 1–2, named “span:capital of” · masked in the source “I went”" in line
    assert "masked in the prompt “ it” · expected “Madrid”" in line
    own = {"sources": [{**source, "mask": "went"}], "prompts": [{**prompt, "at": 2, "mask": None}], "mask": "I went"}
    line = " ".join(
        as_text(
            Results([replace(row, target_positions=(2,))], model=MADE_BY["model"], complete=True, spec=own), 400
        ).split()
    )
    assert "written at position 2, named “2” · masked in the source “went”" in line
    assert "masked in the prompt" not in line
    assert "written at" not in as_text(results(row))
