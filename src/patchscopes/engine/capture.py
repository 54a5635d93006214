"""Source passes: every layer and position that the plan asks of a source prompt, from one forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from patchscopes.hooks import Places, capture
from patchscopes.layout import Layout
from patchscopes.models import Model
from patchscopes.plan import SourcePass
from patchscopes.spec import State


def capture_states(model: Model, batches: Sequence[Sequence[SourcePass]]) -> dict[State, Tensor]:
    """The hidden state, shape (d_model), that each State of the passes names."""
    states: dict[State, Tensor] = {}
    for batch in batches:
        states.update(_capture_batch(model, batch))
    return states


def _capture_batch(model: Model, batch: Sequence[SourcePass]) -> dict[State, Tensor]:
    width = max(len(source.ids) for source in batch)
    layout = Layout([source.ids for source in batch], width, width)
    by_layer: dict[int, list[tuple[State, int, int]]] = {}
    for row, source in enumerate(batch):
        for state in source.states:
            by_layer.setdefault(state.layer, []).append((state, row, layout.column(row, state.position)))
    wanted = {
        layer: Places(tuple(row for _, row, _ in entries), tuple(column for *_, column in entries))
        for layer, entries in by_layer.items()
    }
    with capture(model, wanted) as captured:
        model.next_logits(
            layout.ids(model.device), mask=layout.mask(model.device), position_ids=layout.position_ids(model.device)
        )
    return {
        state: tensor
        for layer, entries in by_layer.items()
        for (state, *_), tensor in zip(entries, torch.unbind(captured[layer]), strict=True)
    }
