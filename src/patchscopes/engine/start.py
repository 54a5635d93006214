"""Rows begin: each at its own layer ℓ*, from its prompt's states there with the write made, one pass for all."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.engine.prompts import RunPrompt, RunPrompts
from patchscopes.engine.states import States
from patchscopes.forward import Span, forward
from patchscopes.hooks import Entry
from patchscopes.kv import Rows
from patchscopes.plan import PromptKey, layer_of, n_run, reads_masked, suffix_of, text_of
from patchscopes.spec import Cell, Vector


def start_rows(
    compute: Compute, rows: Rows, cells: Sequence[Cell], states: States, prompts: RunPrompts
) -> Float[Tensor, "row d_head_in"]:
    """Add a row per cell and run its prompt's suffix; the head's input after its last token.

    Cells come with those that write nothing first, then by ℓ*; their suffixes are of one length.
    """
    start = len(rows)
    suffix = suffix_of(cells[0], rows.n_shared)
    # Where no prefix is shared, a row that writes begins with a copy of its own.
    rows.add([n_run(cell) - suffix - rows.n_shared for cell in cells])
    written = [cell for cell in cells if cell.write is not None]
    first = start + len(cells) - len(written)
    begun = list(_by_prompt(written, first, prompts))
    for prompt, members, _ in begun:
        rows.put(members, 0, prompt.keys_values, slice(rows.n_shared, len(prompt.keys_values) - suffix))
    entry = None
    if written:
        stream = _written_states(written, suffix, states, prompts)
        entry = Entry([layer_of(cell) for cell in cells], stream, len(cells) - len(written))
    ids, positions = _suffixes(cells, suffix)
    x = forward(compute, rows, Span(start, len(cells), positions), ids, entry=entry)
    if cells[0].readout.kind != "next-token":
        # More is run behind the prompts. In the blocks that a row did not run, its keys and values are its prompt's.
        for prompt, members, layers in begun:
            n = len(prompt.keys_values)
            rows.put(members, n - suffix - rows.n_shared, prompt.keys_values, slice(n - suffix, n), layers=layers)
        rows.forget_last([start + k for k, cell in enumerate(cells) if reads_masked(cell)])
    return x[:, 0]


def _suffixes(cells: Sequence[Cell], suffix: int) -> tuple[Int[Tensor, "row column"], Int[Tensor, "row column"] | None]:
    """The last tokens of each text; with their positions, where some of a text is left out."""
    if not any(cell.masked for cell in cells):
        return _ids([cell.target_ids[-suffix:] for cell in cells]), None
    texts = [text_of(cell) for cell in cells]
    ids, positions = (_ids([part[-suffix:] for part in parts]) for parts in zip(*texts, strict=True))
    return ids, positions


def _ids(rows: Sequence[Sequence[int]]) -> Int[Tensor, "row column"]:
    return torch.tensor(rows, dtype=torch.long, device="cpu")


def _by_prompt(
    cells: Sequence[Cell], first: int, prompts: RunPrompts
) -> Iterator[tuple[RunPrompt, list[int], list[int]]]:
    """Each prompt with its rows, counted from `first` on, and their ℓ*."""
    found: dict[PromptKey, list[int]] = {}
    for k, cell in enumerate(cells):
        found.setdefault((cell.target_ids, cell.masked), []).append(k)
    for members in found.values():
        prompt = prompts.of(cells[members[0]])
        yield prompt, [first + k for k in members], [layer_of(cells[k]) for k in members]


def _written_states(
    cells: Sequence[Cell], suffix: int, states: States, prompts: RunPrompts
) -> Float[Tensor, "row column d_model"]:
    """The states that rows start with: the prompt's own at ℓ*, with the placeholders overwritten."""
    found = torch.stack([prompts.of(cell).states[layer_of(cell)][-suffix:] for cell in cells])
    places: list[tuple[int, int]] = []
    vectors: list[Vector] = []
    maps: list[str | None] = []
    for row, cell in enumerate(cells):
        assert cell.write is not None
        start = n_run(cell) - suffix
        columns = cell.write.positions
        if cell.masked:
            columns = tuple(map(text_of(cell).positions.index, columns))
        places.extend((row, column - start) for column in columns)
        vectors.extend(cell.write.vectors)
        maps.extend([cell.mapping] * len(columns))
    lines, at = torch.tensor(places, dtype=torch.long, device=found.device).unbind(1)
    found[lines, at] = states.vectors(vectors, maps).to(found)
    return found
