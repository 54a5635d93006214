"""Texts of unequal length in one batch: what is padding, and where a position stands (rule 9)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.layout import Layout

CPU = torch.device("cpu")


def test_rows_end_together_with_padding_on_the_left() -> None:
    layout = Layout([(5, 6, 7, 8), (9, 4)])
    assert layout.ids(CPU).tolist() == [[5, 6, 7, 8], [0, 0, 9, 4]]
    assert layout.mask(CPU).tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert layout.position_ids(CPU).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert [layout.column(0, 1), layout.column(0, 3), layout.column(1, 0)] == [1, 3, 2]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_any_layout_tells_each_token_its_place(lengths: list[int]) -> None:
    rows = [tuple(range(10 * (r + 1), 10 * (r + 1) + length)) for r, length in enumerate(lengths)]
    layout = Layout(rows)
    ids, positions, mask = layout.ids(CPU), layout.position_ids(CPU), layout.mask(CPU)
    assert ids.shape == positions.shape == mask.shape == (len(rows), max(lengths))
    for row, tokens in enumerate(rows):
        n_padding = max(lengths) - len(tokens)
        assert mask[row].tolist() == [0] * n_padding + [1] * len(tokens)
        for position, token in enumerate(tokens):
            column = layout.column(row, position)
            assert int(ids[row, column]) == token
            assert int(positions[row, column]) == position
        assert ids[row, :n_padding].tolist() == positions[row, :n_padding].tolist() == [0] * n_padding
