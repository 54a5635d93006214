"""Source passes, and the vectors that are made from their states: one matrix for all of them, rows picked by index."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.forward import without_head
from patchscopes.hooks import Places, capture
from patchscopes.layout import Layout
from patchscopes.models import Inputs, Model
from patchscopes.plan import SourcePass
from patchscopes.spec import State, Vector
from patchscopes.vectors import make_vectors


class States:
    """Hidden states of source prompts, every (layer, position) that is wanted from one pass each."""

    def __init__(self, model: Model, compute: Compute, batches: Iterable[Sequence[SourcePass]]) -> None:
        self._model = model
        self._row: dict[State, int] = {}
        parts: list[Tensor] = []
        for batch in batches:
            with compute.installed(), without_head(model):
                parts.extend(self._capture(batch))
        empty = torch.empty(0, model.d_model, device=model.device)
        self._matrix = torch.cat(parts) if parts else empty

    def vectors(self, wanted: Sequence[Vector]) -> Float[Tensor, "vector d_model"]:
        """The vectors to write, in float32."""
        return make_vectors(wanted, self._rows, self._model)

    def _rows(self, states: Sequence[State]) -> Float[Tensor, "state d_model"]:
        index = torch.tensor([self._row[state] for state in states], dtype=torch.long, device=self._matrix.device)
        return self._matrix.index_select(0, index)

    def _capture(self, batch: Sequence[SourcePass]) -> Iterable[Tensor]:
        layout = Layout([source.ids for source in batch])
        by_layer: dict[int, list[tuple[State, int, int]]] = {}
        for row, source in enumerate(batch):
            for state in source.states:
                by_layer.setdefault(state.layer, []).append((state, row, layout.column(row, state.position)))
        wanted = {
            layer: Places(tuple(row for _, row, _ in entries), tuple(column for *_, column in entries))
            for layer, entries in by_layer.items()
        }
        device = self._model.device
        inputs = Inputs(layout.ids(device), layout.mask(device), layout.position_ids(device))
        with capture(self._model, wanted) as captured:
            self._model.forward(inputs, "last")
        for layer, entries in by_layer.items():
            start = len(self._row)
            self._row.update({state: start + k for k, (state, *_) in enumerate(entries)})
            yield captured[layer].float().to(device)
