"""Rows begin: each at its own layer ℓ*, from its prompt's states there with the write made, one pass for all."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.engine.prompts import RunPrompts
from patchscopes.engine.states import States
from patchscopes.forward import Span, forward
from patchscopes.hooks import Entry
from patchscopes.kv import Rows
from patchscopes.models import Model
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
    first_written = span.start + len(cells) - len(written)
    for ids, members in _by_prompt(written).items():
        n_copied = len(ids) - suffix - rows.n_shared
        if n_copied:
            whole = torch.tensor([first_written + k for k in members])
            for block in range(compute.model.n_layers):
                rows.put(block, whole, 0, prompts[ids].keys_values, slice(rows.n_shared, rows.n_shared + n_copied))
    entry = None
    if written:
        layers = [layer_of(cell) for cell in cells]
        stream = _written_states(written, suffix, states, prompts)
        entry = Entry(layers, stream, len(cells) - len(written))
    ids_run = torch.tensor([cell.target_ids[-suffix:] for cell in cells])
    x = forward(compute, rows, span, ids_run, entry=entry)
    if own_follow(cells):
        _fill_below(compute.model, rows, written, first_written, suffix, prompts)
    return x[:, 0]


def own_follow(cells: Sequence[Cell]) -> bool:
    """Whether anything is run behind the prompts of these cells."""
    return cells[0].readout.kind != "next-token"


def _by_prompt(cells: Sequence[Cell]) -> dict[Ids, list[int]]:
    found: dict[Ids, list[int]] = {}
    for k, cell in enumerate(cells):
        found.setdefault(cell.target_ids, []).append(k)
    return found


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


def _fill_below(model: Model, rows: Rows, cells: Sequence[Cell], first: int, suffix: int, prompts: RunPrompts) -> None:
    """In the blocks that a row did not run, its keys and values are its prompt's."""
    for ids, members in _by_prompt(cells).items():
        n_own = len(ids) - rows.n_shared
        for block in range(model.n_layers):
            below = [first + k for k in members if layer_of(cells[k]) > block]
            if below:
                source = prompts[ids].keys_values
                rows.put(block, torch.tensor(below), n_own - suffix, source, slice(len(ids) - suffix, len(ids)))
