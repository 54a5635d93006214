"""Rows begin: each at its own layer ℓ*, from its prompt's states there with the write made, one pass for all."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.engine.prompts import RunPrompts
from patchscopes.engine.states import States
from patchscopes.forward import Span, forward
from patchscopes.hooks import Entry
from patchscopes.kv import Rows
from patchscopes.plan import layer_of, suffix_of
from patchscopes.spec import Cell, Ids, Vector


def start_rows(
    compute: Compute, rows: Rows, cells: Sequence[Cell], states: States, prompts: RunPrompts
) -> Float[Tensor, "row d_head_in"]:
    """Add a row per cell and run its prompt's suffix; the head's input after its last token.

    Cells come with those that write nothing first, then by ℓ*; their suffixes are of one length.
    """
    span = Span(len(rows), len(cells))
    suffix = suffix_of(cells[0], rows.n_shared)
    # Where no prefix is shared, a row that writes begins with a copy of its own.
    lengths = [len(cell.target_ids) - suffix - rows.n_shared for cell in cells]
    rows.add(lengths)
    written = [cell for cell in cells if cell.write is not None]
    first = span.start + len(cells) - len(written)
    begun = list(_by_prompt(written, first))
    for ids, members, _ in begun:
        rows.put(members, 0, prompts[ids].keys_values, slice(rows.n_shared, len(ids) - suffix))
    entry = None
    if written:
        stream = _written_states(written, suffix, states, prompts)
        entry = Entry([layer_of(cell) for cell in cells], stream, len(cells) - len(written))
    x = forward(compute, rows, span, torch.tensor([cell.target_ids[-suffix:] for cell in cells]), entry=entry)
    if cells[0].readout.kind != "next-token":
        # More is run behind the prompts. In the blocks that a row did not run, its keys and values are its prompt's.
        for ids, members, layers in begun:
            own, end = slice(len(ids) - suffix, len(ids)), len(ids) - suffix - rows.n_shared
            rows.put(members, end, prompts[ids].keys_values, own, layers=layers)
    return x[:, 0]


def _by_prompt(cells: Sequence[Cell], first: int) -> Iterator[tuple[Ids, list[int], list[int]]]:
    """Of each prompt its ids, its rows, counted from `first` on, and their ℓ*."""
    found: dict[Ids, list[int]] = {}
    for k, cell in enumerate(cells):
        found.setdefault(cell.target_ids, []).append(k)
    for ids, members in found.items():
        yield ids, [first + k for k in members], [layer_of(cells[k]) for k in members]


def _written_states(
    cells: Sequence[Cell], suffix: int, states: States, prompts: RunPrompts
) -> Float[Tensor, "row column d_model"]:
    """The states that rows start with: the prompt's own at ℓ*, with the placeholders overwritten."""
    found = torch.stack([prompts[cell.target_ids].states[layer_of(cell)][-suffix:] for cell in cells])
    places: list[tuple[int, int]] = []
    vectors: list[Vector] = []
    for row, cell in enumerate(cells):
        assert cell.write is not None
        start = len(cell.target_ids) - suffix
        places.extend((row, position - start) for position in cell.write.positions)
        vectors.extend(cell.write.vectors)
    lines, columns = torch.tensor(places, device=found.device).unbind(1)
    found[lines, columns] = states.vectors(vectors).to(found)
    return found
