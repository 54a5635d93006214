"""Rows of unequal length in one batch: what is run, what is padding, where a position stands (rule 9)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.layout import Layout

CPU = torch.device("cpu")


def test_rows_end_together_with_padding_on_the_left() -> None:
    layout = Layout([(5, 6, 7, 8), (9, 4)], width=5, run=3)
    assert layout.ids(CPU).tolist() == [[6, 7, 8], [0, 9, 4]]
    assert layout.mask(CPU).tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert layout.position_ids(CPU).tolist() == [[1, 2, 3], [0, 0, 1]]
    assert [layout.cached(row) for row in (0, 1)] == [1, 0]
    assert [layout.column(0, 1), layout.column(0, 3), layout.column(1, 0)] == [0, 2, 1]


@settings(deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_any_layout_tells_each_token_its_place(data: st.DataObject, lengths: list[int]) -> None:
    rows = [tuple(range(10 * (r + 1), 10 * (r + 1) + length)) for r, length in enumerate(lengths)]
    width = max(lengths) + data.draw(st.integers(0, 3))
    run = data.draw(st.integers(1, width))
    layout = Layout(rows, width, run)
    ids, positions, mask = layout.ids(CPU), layout.position_ids(CPU), layout.mask(CPU)
    assert ids.shape == positions.shape == (len(rows), run)
    assert mask.shape == (len(rows), width)
    for row, tokens in enumerate(rows):
        assert mask[row].tolist() == [0] * (width - len(tokens)) + [1] * len(tokens)
        for position in range(layout.cached(row), len(tokens)):
            column = layout.column(row, position)
            assert int(ids[row, column]) == tokens[position]
            assert int(positions[row, column]) == position
        in_padding = run - min(run, len(tokens))
        assert ids[row, :in_padding].tolist() == [0] * in_padding
        assert positions[row, :in_padding].tolist() == [0] * in_padding
        assert layout.cached(row) + min(run, len(tokens)) == len(tokens), "all that is not cached is run"
