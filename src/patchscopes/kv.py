"""Keys and values: a prefix computed once, rows of a batch on top of it. The only file that touches HF's cache.

Layout of a batch: each row's tokens end at the same column and padding stands on the left, so columns differ as
positions do and every mask that HF builds from columns (causal, sliding, ALiBi) is right. Keys carry their rotary
position, so a prefix's keys may be copied to any column.

Axes: row, head (of keys and values), column, d_head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from patchscopes.models import Model
from patchscopes.spec import Ids


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of `ids`, per block (rule 15). Shapes: (1, head, token, d_head)."""

    ids: Ids
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def build_prefix(model: Model, ids: Ids) -> Prefix:
    """Run `ids` once and keep what later tokens attend to. An empty prefix is legal and costs nothing."""
    if not ids:
        return Prefix((), (), ())
    rows = Rows(model.n_layers, capacity=len(ids))
    model.next_logits(torch.tensor([ids], device=model.device), cache=rows.cache)
    pairs = rows.filled()
    return Prefix(ids, tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs))


class Rows:
    """The KV cache of a batch: room for `capacity` columns, of which `width` are filled.

    `cache` is what a forward pass takes; each pass fills the columns that it runs.
    """

    def __init__(self, n_layers: int, capacity: int) -> None:
        self._layers = [_RowsLayer(capacity) for _ in range(n_layers)]
        self.cache = Cache(layers=list(self._layers))

    @property
    def width(self) -> int:
        """How many columns are filled."""
        return self._layers[0].get_seq_length()

    @classmethod
    def on_prefixes(
        cls, prefixes: Sequence[Prefix], lengths: Sequence[int], *, width: int, capacity: int, n_layers: int
    ) -> "Rows":
        """Rows whose first `width` columns end in the first `lengths[r]` tokens of prefix r, padding before them."""
        rows = cls(n_layers, capacity)
        copies = _runs(prefixes, lengths)
        for index, layer in enumerate(rows._layers if copies else ()):
            layer.fill(index, copies, n_rows=len(prefixes), width=width)
        return rows

    def filled(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the filled columns, per block."""
        return [layer.filled() for layer in self._layers]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but `rows`: those whose text has ended leave the batch."""
        for layer in self._layers:
            layer.keep(rows)


class _RowsLayer(DynamicLayer):
    """One block's keys and values in a buffer made once, so that a step copies one column and not the whole cache."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity
        self._filled = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def fill(self, index: int, copies: "Sequence[_Copy]", *, n_rows: int, width: int) -> None:
        """Copy block `index` of each prefix to its rows, so that it ends at column `width`."""
        like = copies[0].prefix
        buffers = self._allocate(like.keys[index], n_rows), self._allocate(like.values[index], n_rows)
        for copy in copies:
            for buffer, part in zip(buffers, (copy.prefix.keys[index], copy.prefix.values[index]), strict=True):
                buffer[copy.rows, :, width - copy.length : width] = part[:, :, : copy.length]
        self._buffers = buffers
        self._advance(width)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the columns just run; return those of all columns so far."""
        if self._buffers is None:
            n_rows = key_states.shape[0]
            self._buffers = self._allocate(key_states, n_rows), self._allocate(value_states, n_rows)
        end = self._filled + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._filled : end] = new
        self._advance(end)
        return self.filled()

    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the filled columns."""
        assert self._buffers is not None
        keys, values = (buffer[:, :, : self._filled] for buffer in self._buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """How many columns are filled."""
        return self._filled

    def keep(self, rows: Sequence[int]) -> None:
        if self._buffers is None:
            return
        index = torch.tensor(list(rows), device=self._buffers[0].device)
        self._buffers = self._buffers[0].index_select(0, index), self._buffers[1].index_select(0, index)
        self._advance(self._filled)

    def _allocate(self, like: Float[Tensor, "row head column d_head"], n_rows: int) -> Tensor:
        # Zeros, not empty memory: a masked column takes part in 0 · v, and 0 · NaN is NaN.
        return like.new_zeros(n_rows, like.shape[1], self._capacity, like.shape[3])

    def _advance(self, end: int) -> None:
        self._filled, self.is_initialized = end, True
        self.keys, self.values = self.filled()


@dataclass(frozen=True, slots=True)
class _Copy:
    """The first `length` tokens of `prefix`, to be copied to `rows`."""

    prefix: Prefix
    length: int
    rows: slice


def _runs(prefixes: Sequence[Prefix], lengths: Sequence[int]) -> list[_Copy]:
    """Neighbouring rows with the same prefix and length as one copy, instead of one copy per row."""
    runs: list[_Copy] = []
    start = 0
    for row in range(1, len(lengths) + 1):
        if row < len(lengths) and prefixes[row] is prefixes[start] and lengths[row] == lengths[start]:
            continue
        if lengths[start]:
            runs.append(_Copy(prefixes[start], lengths[start], slice(start, row)))
        start = row
    return runs
