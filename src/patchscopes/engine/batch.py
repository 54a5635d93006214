"""One batch: rows on their prefixes, a prefill that writes each row at its own layer, then decoding together."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.hooks import LayerWrite, Places, patch
from patchscopes.kv import Prefix, Rows
from patchscopes.layout import Layout
from patchscopes.models import Model
from patchscopes.plan import Batch, Plan
from patchscopes.readouts import Writing, choose, next_token_results
from patchscopes.spec import Cell, Result, State
from patchscopes.vectors import make_vector

# Rows that have ended are carried along until they are this share of the batch: dropping them copies the rest's keys.
ENDED_SHARE = 1 / 8


def run_batch(
    model: Model, plan: Plan, batch: Batch, *, prefixes: Mapping[int, Prefix], states: Mapping[State, Tensor]
) -> Iterator[Result]:
    """Yield a Result per row of `batch`, each as soon as its text has ended."""
    cells = [plan.cells[index] for index in batch.cells]
    layout = Layout([cell.target_ids for cell in cells], batch.width, batch.prefill)
    rows = Rows.on_prefixes(
        [prefixes[index] for index in batch.prefixes],
        [layout.cached(row) for row in range(len(cells))],
        width=batch.width - batch.prefill,
        capacity=batch.width + batch.new_tokens - 1,
        n_layers=model.n_layers,
    )
    # The phase is told, not guessed: this one pass holds every placeholder, and no later one does (rule 5).
    with patch(model, _writes(model, cells, layout, states)):
        logits = model.next_logits(
            layout.ids(model.device),
            mask=layout.mask(model.device),
            position_ids=layout.position_ids(model.device),
            cache=rows.cache,
        )
    if cells[0].readout.kind == "next-token":
        yield from next_token_results(model, logits, cells, batch.cells)
    else:
        yield from _Decoder(model, batch, cells, layout, rows).decode(logits)


def _writes(model: Model, cells: Sequence[Cell], layout: Layout, states: Mapping[State, Tensor]) -> list[LayerWrite]:
    """The batch's writes, grouped by layer."""
    by_layer: dict[int, list[tuple[int, int, Tensor]]] = {}
    for row, cell in enumerate(cells):
        if cell.write is None:
            continue
        made = {vector: make_vector(vector, states.__getitem__, model) for vector in dict.fromkeys(cell.write.vectors)}
        entries = by_layer.setdefault(cell.write.site.layer, [])
        for position, vector in zip(cell.write.positions, cell.write.vectors, strict=True):
            entries.append((row, layout.column(row, position), made[vector].to(model.device)))
    return [
        LayerWrite(
            layer,
            Places(tuple(row for row, *_ in entries), tuple(column for _, column, _ in entries)),
            torch.stack([vector for *_, vector in entries]),
        )
        for layer, entries in by_layer.items()
    ]


class _Decoder:
    """Decodes the rows of a batch together until each has ended."""

    def __init__(self, model: Model, batch: Batch, cells: Sequence[Cell], layout: Layout, rows: Rows) -> None:
        self._model, self._rows = model, rows
        self._indices, self._cells = list(batch.cells), list(cells)
        self._writings = [Writing(model, cell) for cell in cells]
        self._mask = layout.mask(model.device)
        self._next_position = torch.tensor([[len(ids)] for ids in layout.rows], device=model.device)

    def decode(self, logits: Float[Tensor, "row d_vocab"]) -> Iterator[Result]:
        step = 0
        while True:
            tokens = choose(logits, self._cells, step)
            for writing, token, index in zip(self._writings, tokens, self._indices, strict=True):
                if not writing.ended and writing.add(token):
                    yield writing.result(index)
            running = [row for row, writing in enumerate(self._writings) if not writing.ended]
            if not running:
                return
            if len(self._cells) - len(running) >= ENDED_SHARE * len(self._cells):
                tokens = [tokens[row] for row in running]
                self._keep(running)
            logits = self._step([token or 0 for token in tokens])
            step += 1

    def _step(self, tokens: Sequence[int]) -> Float[Tensor, "row d_vocab"]:
        """Run one more token of every row."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        logits = self._model.next_logits(
            torch.tensor(tokens, device=self._model.device)[:, None],
            mask=self._mask,
            position_ids=self._next_position,
            cache=self._rows.cache,
        )
        self._next_position = self._next_position + 1
        return logits

    def _keep(self, rows: Sequence[int]) -> None:
        self._rows.keep(rows)
        index = torch.tensor(list(rows), device=self._mask.device)
        self._mask, self._next_position = self._mask[index], self._next_position[index]
        self._cells = [self._cells[row] for row in rows]
        self._indices = [self._indices[row] for row in rows]
        self._writings = [self._writings[row] for row in rows]
