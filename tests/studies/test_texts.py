"""Rows → arrays: axes and order, what is never scored, and whose a control without a source is."""

import numpy as np
import pytest

from patchscopes.errors import DataError, OptionError
from patchscopes.spec import Row
from patchscopes.studies.texts import Table
from rows import make_row, results

P = "country-capital"
PLACES = [(0, 2), (1, 2)]


def number(_: int, row: Row) -> float:
    """The number that a row's text is."""
    return float(row.text or "nan")


def cell(item: int | None, place: tuple[int | None, int | None], text: object, **changes: object) -> Row:
    source, target = place
    return make_row(source_index=item, source_layer=source, target_layer=target, text=str(text), **changes)


def table(*rows: Row, n_items: int = 2) -> Table:
    return Table.of(results(*rows), P, n_items)


def test_axes_are_item_draw_place_in_the_order_asked_for() -> None:
    rows = [
        cell(item, place, 100 * item + 10 * draw + place[0], control="shuffled", draw=draw)
        for place in reversed(PLACES)
        for draw in (2, 0, 1)
        for item in (1, 0)
    ]
    drawn = table(*rows).drawn("shuffled", number, [1, 0], PLACES, 3)
    assert drawn.tolist() == [[[100, 101], [110, 111], [120, 121]], [[0, 1], [10, 11], [20, 21]]]
    assert table(*rows).drawn("shuffled", number, [0], PLACES[::-1], 2).tolist() == [[[1, 0], [11, 10]]]
    own = table(*(cell(item, place, 10 * item + place[0]) for item in (0, 1) for place in PLACES))
    assert own.own(number, [1, 0], PLACES).tolist() == [[10, 11], [0, 1]]
    assert own.own(number, [], PLACES).shape == (0, 2)
    assert table().drawn("shuffled", number, [], PLACES, 3).shape == (0, 3, 2)


def test_only_rows_of_the_prompt_are_taken() -> None:
    found = table(cell(0, (0, 2), 5, prompt="other"), cell(0, (0, 2), 7))
    assert found.own(number, [0], [(0, 2)]).tolist() == [[7]]


def test_a_control_without_a_source_belongs_to_every_item_and_an_item_s_own_goes_before() -> None:
    found = table(
        cell(None, (None, None), 4, control="unpatched"),
        cell(None, (None, 2), 6, control="zero"),
        cell(None, (None, 3), 8, control="zero"),
        cell(1, (None, None), 9, control="text-only"),
        cell(None, (None, None), 1, control="text-only"),
    )
    assert found.once("unpatched", number, [0, 1]).tolist() == [4, 4]
    assert found.once("text-only", number, [0, 1]).tolist() == [1, 9]
    assert found.per_target("zero", number, [0, 1], [(0, 3), (1, 2)]).tolist() == [[8, 6], [8, 6]]
    assert found.per_target("zero", number, [], PLACES).shape == (0, 2)


def test_failed_rows_are_missing_with_the_first_reason() -> None:
    failed = {"status": "failed"}
    found = table(
        cell(0, (0, 2), 1),
        cell(1, (0, 2), "", **failed, reason="too long"),
        cell(1, (1, 2), "", **failed, reason="later"),
        cell(2, (None, None), "", **failed, reason="empty", prompt=None),
        cell(None, (None, None), "", **failed, reason="not finite", control="unpatched"),
        n_items=4,
    )
    assert found.missing == {1: "too long", 2: "empty"}
    assert found.items() == [0, 3]
    with pytest.raises(
        DataError, match=r"unpatched at .* failed, and nothing could be compared without it: not finite"
    ):
        found.once("unpatched", number, [0])


def test_inert_rows_are_never_scored_and_a_missing_row_is_an_error() -> None:
    inert = cell(0, (1, 4), 3, status="inert", reason="changes nothing")
    found = table(cell(0, (0, 4), 2), inert)
    assert found.missing == {}, "an inert row is no failure of its item"
    assert np.array_equal(found.own(number, [0], [(0, 4)]), [[2]])
    with pytest.raises(OptionError, match=r"no row of the cell for item 0 at \(ℓ, ℓ\*\) = \(1, 4\), draw 0"):
        found.own(number, [0], [(0, 4), (1, 4)])
    with pytest.raises(OptionError, match="no row of shuffled for item 1"):
        found.drawn("shuffled", number, [1], [(0, 4)], 1)
    with pytest.raises(OptionError, match="no row of unpatched"):
        found.once("unpatched", number, [0])


def test_where_several_rows_are_one_place_s_none_is_taken() -> None:
    """The unpatched prompt has a row for each source's own candidates: the last must not stand for all."""
    two = [cell(None, (None, None), k, control="unpatched", candidate=f"answer {k}") for k in (1, 2)]
    with pytest.raises(OptionError, match="no row of unpatched"):
        table(*two).once("unpatched", number, [0])
