"""Source passes, and the vectors that are made from their states: a matrix for each model, rows picked by index.

The engine's `vectors.StateSource`. The states that cells compare with are read out here as well (rule 14).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.compute import Compute, columns_at_once, compute_of
from patchscopes.foreign import running
from patchscopes.forward import without_head
from patchscopes.hooks import Places, capture
from patchscopes.layout import Layout
from patchscopes.mappings import Transfer
from patchscopes.models import Inputs, Model, calm
from patchscopes.plan import Side, SourcePass
from patchscopes.spec import State, Vector
from patchscopes.vectors import Digests, make_vectors

# Logits that are made at once of the states whose next-token distribution is read: of 512 of them, a usual chunk.
READ_LOGITS = 512 * 2048


@dataclass(frozen=True, slots=True)
class Said:
    """What source runs say next: the head's input, and the likeliest token with its logit and log-probability."""

    x: Float[Tensor, "state d_head_in"]
    tokens: Int[Tensor, " state"]
    logits: Float[Tensor, " state"]
    logprobs: Float[Tensor, " state"]

    def of(self, rows: Int[Tensor, " row"]) -> "Said":
        """Those of some states."""
        return Said(self.x[rows], self.tokens[rows], self.logits[rows], self.logprobs[rows])


class States:
    """Hidden states of source prompts, every (layer, position) that is wanted from one pass each."""

    def __init__(self, transfer: Transfer, batches: Iterable[Sequence[SourcePass]]) -> None:
        self._transfer = transfer
        self.widths = transfer.source.d_model, transfer.target.d_model
        self.mapped = transfer.mapped
        self.source_compute = compute_of(transfer.source)
        self._side: dict[Side, _Captured] = {
            "source": _Captured(transfer.source, self.source_compute),
            "target": _Captured(transfer.target, compute_of(transfer.target)),
        }
        for batch in batches:
            self._side[batch[0].side].add(batch)
        self._said: tuple[Mapping[State, int], Said] | None = None

    def vectors(self, wanted: Sequence[Vector], maps: Digests) -> Float[Tensor, "vector d_model"]:
        """The vectors to write, in float32, each through the mapping of that digest."""
        return make_vectors(wanted, self, maps)

    def states(self, wanted: Sequence[State]) -> Float[Tensor, "state d_source"]:
        """States of the source model."""
        return self._side["source"].rows(wanted)

    def own_states(self, wanted: Sequence[State]) -> Float[Tensor, "state d_model"]:
        """States of the target model's own runs."""
        return self._side["target"].rows(wanted)

    def said(self, wanted: Sequence[State]) -> Said:
        """What the source runs say next at these last-layer states; read out once for all of them."""
        if self._said is None:
            self._said = self._read_out()
        row, said = self._said
        return said.of(torch.tensor([row[state] for state in wanted], dtype=torch.long, device=said.x.device))

    @calm()
    def _read_out(self) -> tuple[Mapping[State, int], Said]:
        model, head = self._transfer.source, self.source_compute.head
        last = [state for state in self._side["source"].known if state.layer == model.n_layers]
        parts = []
        at_once = max(1, READ_LOGITS // columns_at_once(model))
        for start in range(0, len(last), at_once):
            x = model.head_input(self.states(last[start : start + at_once]).to(model.dtype))
            found = head.distribution(x, 1)
            logits = head.token_logits(x, found.tokens)
            parts.append((x, found.tokens[:, 0], logits[:, 0], found.logprobs[:, 0]))
        return {state: k for k, state in enumerate(last)}, Said(*map(torch.cat, zip(*parts, strict=True)))


class _Captured:
    """The states of one model."""

    def __init__(self, model: Model, compute: Compute) -> None:
        self._model, self._compute = model, compute
        self.known: dict[State, int] = {}
        self._parts: list[Tensor] = []
        self._matrix: Tensor | None = None

    def add(self, batch: Sequence[SourcePass]) -> None:
        """Run a batch of source passes."""
        with running(self._model.id), calm(), self._compute.installed(), without_head(self._model):
            self._parts.extend(self._capture(batch))

    def rows(self, states: Sequence[State]) -> Float[Tensor, "state d"]:
        """The states, in the order given."""
        if self._matrix is None:
            empty = torch.empty(0, self._model.d_model, dtype=torch.float32, device=self._model.device)
            self._matrix, self._parts = torch.cat(self._parts) if self._parts else empty, []
        index = torch.tensor([self.known[state] for state in states], dtype=torch.long, device=self._matrix.device)
        return self._matrix.index_select(0, index)

    def _capture(self, batch: Sequence[SourcePass]) -> Iterable[Tensor]:
        layout = Layout([source.ids for source in batch], [source.masked for source in batch])
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
            start = len(self.known)
            self.known.update({state: start + k for k, (state, *_) in enumerate(entries)})
            yield captured[layer].float().to(device)
