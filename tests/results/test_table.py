"""What people see: layers down, controls beside, nothing left out in silence."""

from dataclasses import replace

import pytest

from patchscopes.errors import OptionError
from patchscopes.results import Results
from patchscopes.results.table import MAX_BLOCKS, as_html, as_text
from patchscopes.spec import Row, TopToken
from rows import FAILED, make_row, results


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
    assert "interrupted, not complete" in shown


def test_next_tokens_are_shown_with_probabilities() -> None:
    top = (TopToken(" Madrid", 5, -0.6931471805599453), TopToken(" Rome", 6, -2.3))
    shown = as_text(results(make_row(top=top, entropy=1.25)))
    assert "' Madrid' 50% ' Rome' 10% · H 1.2" in shown


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
