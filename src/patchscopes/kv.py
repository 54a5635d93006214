"""Keys and values: of prompts, and of rows beside a prefix that is kept once for all.

The only file that touches HF's cache and its attention interface.

Two ways, found per model at first use (`sharing`):

    shared   attention goes through transformers' interface: ours sees the prefix's keys once and the rows' own
    copied   it does not (BLOOM, Falcon): every row has a copy of its prefix, and the model's own attention sees that

Axes: row, kv_head, token, d_head. Rows fill from the left, each with its own number of tokens; what lies behind is
never seen. Keys carry their rotary position, so they may be copied to any row.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from patchscopes.compute.attention import OwnKeys, Scoring, SharedKeys, attend, kernel_runs
from patchscopes.models import Inputs, Model

T = TypeVar("T")

Sharing = Literal["shared", "copied"]
INTERFACE = "patchscopes"


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of one text, per block. Shapes: (kv_head, token, d_head)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1] if self.keys else 0

    def only(self, tokens: Sequence[int]) -> "KeysValues":
        """Those of some tokens."""
        keep = torch.tensor(tokens, dtype=torch.long, device="cpu")
        pick = [tuple(part[:, keep.to(part.device)] for part in parts) for parts in (self.keys, self.values)]
        return KeysValues(*pick)

    def shared(self, n_tokens: int) -> list[SharedKeys]:
        """The first `n_tokens`, per block, as attention shares them."""
        pairs = zip(self.keys, self.values, strict=True)
        return [SharedKeys.of(keys[:, :n_tokens], values[:, :n_tokens]) for keys, values in pairs]


def recording_cache(model: Model) -> Cache:
    """A cache that a forward pass fills with everything it computes, sliding windows or not."""
    return Cache(layers=[DynamicLayer() for _ in range(model.n_layers)])


def own_cache(model: Model) -> Cache:
    """Return the cache that the model's own `generate` makes."""
    return DynamicCache(config=model.hf.config.get_text_config(decoder=True))


def recorded(cache: Cache, row: int) -> KeysValues:
    """What a pass left in a recording cache for one row."""
    layers: Any = cache.layers
    return KeysValues(tuple(layer.keys[row] for layer in layers), tuple(layer.values[row] for layer in layers))


class Rows:
    """The own keys and values of up to `n_rows` rows of `capacity` tokens, beside a prefix that all of them share.

    Rows 0…`len(self)`−1 are in use. `lengths` says how many own tokens each has.
    """

    def __init__(self, model: Model, *, n_rows: int, capacity: int, shared: Sequence[SharedKeys] = ()) -> None:
        self._model, self._n_rows, self._capacity = model, n_rows, capacity
        self._shared = list(shared)
        self._buffers: list[tuple[Tensor, Tensor] | None] = [None] * model.n_layers
        self._lengths = torch.zeros(n_rows, dtype=torch.long, device="cpu")
        self._next = torch.zeros(
            n_rows, dtype=torch.long, device="cpu"
        )  # the position that the next token of a row has
        self._start = self._count = 0
        self._sharing = sharing(model)
        self.cache = Cache(layers=[_RowsLayer(self, index) for index in range(model.n_layers)])
        self.n = 0

    def __len__(self) -> int:
        return self.n

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """Own tokens of the rows in use."""
        return self._lengths[: self.n]

    @property
    def n_shared(self) -> int:
        """The length of the shared prefix, in tokens."""
        return self._shared[0].n_tokens if self._shared else 0

    def add(self, lengths: Sequence[int]) -> None:
        """Take rows into use behind those there are, with so many tokens each, which `put` fills."""
        if self.n + len(lengths) > self._n_rows or not all(0 <= n <= self._capacity for n in lengths):
            raise AssertionError(f"{self.n} rows and {len(lengths)} more, in {self._n_rows} of {self._capacity} tokens")
        new = slice(self.n, self.n + len(lengths))
        self._lengths[new] = torch.tensor(lengths, dtype=torch.long, device="cpu")
        self._next[new] = self.n_shared + self._lengths[new]
        self.n += len(lengths)

    def put(
        self, rows: Sequence[int], at: int, source: KeysValues, tokens: slice, *, layers: Sequence[int] | None = None
    ) -> None:
        """Copy `tokens` of `source` to own token `at` and on of `rows`.

        In every block; where `layers` are given, row k gets those of its first `layers[k]` blocks alone.
        """
        for block, pair in enumerate(zip(source.keys, source.values, strict=True)):
            keys, values = (part[:, tokens] for part in pair)
            here = [row for k, row in enumerate(rows) if layers is None or layers[k] > block]
            if here and keys.shape[1]:
                own_keys, own_values = self._buffer(block, keys, values)
                end = at + keys.shape[1]
                own_keys[here, :, at:end], own_values[here, :, at:end] = keys, values

    def forget_last(self, rows: Sequence[int]) -> None:
        """Let go of the last token of `rows`, which nothing later sees; later ones keep their positions."""
        self._lengths[list(rows)] -= 1

    @contextmanager
    def running(self, start: int, count: int, columns: int) -> Iterator[None]:
        """While open, a forward pass runs rows start…start+count−1 on; then each has `columns` tokens more."""
        self._start, self._count = start, count
        # Raised and not asserted: under -O nothing may run behind its buffers.
        if self.seen + columns > self._capacity:
            raise AssertionError(f"{self.seen} own tokens and {columns} more, in buffers of {self._capacity}")
        with _through_interface(self) if self._sharing == "shared" else nullcontext():
            yield
        self._lengths[start : start + count] += columns

    def inputs(self, ids: Int[Tensor, "row column"], positions: Int[Tensor, "row column"] | None = None) -> Inputs:
        """What a pass of the rows that run is given: `ids`, behind what each of them has.

        `positions` are those of the ids, where tokens between them are left out.
        """
        device, columns = self._model.device, ids.shape[1]
        lengths = self._running[:, None]
        mask = None
        if self._sharing == "copied":  # the model's own attention must be told what is padding
            mask = torch.ones(len(ids), self.seen + columns, dtype=torch.long, device=device)
            mask[:, : self.seen] = (torch.arange(self.seen, dtype=torch.long, device="cpu") >= self.seen - lengths).to(
                device
            )
        running = slice(self._start, self._start + self._count)
        if positions is None:
            positions = self._next[running, None] + torch.arange(columns, dtype=torch.long, device="cpu")
        self._next[running] = positions[:, -1] + 1
        return Inputs(ids.to(device), mask, positions.to(device), self.cache)

    @property
    def _running(self) -> Int[Tensor, " row"]:
        return self._lengths[self._start : self._start + self._count]

    @property
    def seen(self) -> int:
        """The longest own part of the rows that run."""
        return int(self._running.max()) if self._count else 0

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep only `rows`: the last ones move into the places of those that leave. Says which row stands where now."""
        kept = set(rows)
        movers = iter([row for row in range(len(rows), self.n) if row in kept])
        order = [row if row in kept else next(movers) for row in range(len(rows))]
        moved = [(to, source) for to, source in enumerate(order) if to != source]
        if moved:
            to, source = torch.tensor(moved, dtype=torch.long, device="cpu").unbind(1)
            longest = int(self._lengths[source].max())
            for pair in self._buffers:
                for buffer in pair or ():
                    buffer[to, :, :longest] = buffer[source, :, :longest]
            for numbers in (self._lengths, self._next):
                numbers[to] = numbers[source]
        self.n = len(rows)
        return order

    def copied(self, rows: Int[Tensor, " row"], *, extra: int) -> "Rows":
        """New rows, each with a copy of what the named one has, and room for `extra` tokens more."""
        longest = int(self._lengths[rows].max())
        new = Rows(self._model, n_rows=len(rows), capacity=longest + extra, shared=self._shared)
        for block, pair in enumerate(self._buffers):
            if pair is not None:
                keys, values = (buffer[:, :, :longest].index_select(0, rows.to(buffer.device)) for buffer in pair)
                own_keys, own_values = new._buffer(block, keys[0], values[0])
                own_keys[:, :, :longest], own_values[:, :, :longest] = keys, values
        new._lengths, new._next = self._lengths[rows].clone(), self._next[rows].clone()
        new.n = len(rows)
        return new

    def update(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values for a block's attention: only the new ones with ours, else the cached ones too."""
        if self._sharing == "shared":
            return keys, values
        count, columns = keys.shape[0], keys.shape[2]
        own = self._own(block, keys, values, count)
        lengths = own.lengths.to(keys.device)
        lines = torch.arange(count, dtype=torch.long, device=keys.device)[:, None]
        at = lengths[:, None] + torch.arange(columns, dtype=torch.long, device=keys.device)
        own.keys[lines, :, at], own.values[lines, :, at] = keys.transpose(1, 2), values.transpose(1, 2)
        # All rows end where the new tokens begin: columns then differ as positions do, and windows hold (as in Layout).
        ended = (torch.arange(self.seen, dtype=torch.long, device=keys.device) - (self.seen - lengths[:, None])).clamp(
            min=0
        )
        before = (part[lines, :, ended].transpose(1, 2) for part in (own.keys, own.values))
        seen_keys, seen_values = (torch.cat(pair, 2) for pair in zip(before, (keys, values), strict=True))
        return seen_keys, seen_values

    def attention(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, None]:
        """Return the output of one block's attention, in the form that transformers expects."""
        _refuse_unknown(options, mask)
        block, count = int(module.layer_idx), q.shape[0]  # type: ignore[arg-type]
        scale = options.get("scaling")
        scoring = Scoring(
            float(q.shape[-1] ** -0.5 if scale is None else scale),
            float(options.get("softcap") or 0.0),
            int(options.get("sliding_window") or 0),
        )
        shared = self._shared[block] if self._shared else SharedKeys.none(k, v)
        return attend((q, k, v), shared, self._own(block, k, v, count), scoring), None

    def _own(self, block: int, keys: Tensor, values: Tensor, count: int) -> OwnKeys:
        own_keys, own_values = self._buffer(block, keys[0], values[0])
        rows = slice(self._start, self._start + count)
        return OwnKeys(own_keys[rows], own_values[rows], self._lengths[rows])

    def _buffer(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One block's buffers, made at first use like `keys` and `values` of shape (kv_head, token, d_head)."""
        pair = self._buffers[block]
        if pair is None:
            shapes = [(self._n_rows, like.shape[0], self._capacity, like.shape[2]) for like in (keys, values)]
            # Zeros where masked columns take part: in 0 · v, and 0 · NaN is NaN. The kernel never looks at them.
            make = keys.new_empty if self._sharing == "shared" and kernel_runs(keys, values) else keys.new_zeros
            pair = self._buffers[block] = make(shapes[0]), make(shapes[1])
        return pair


class _RowsLayer(DynamicLayer):
    """One block of a Rows as transformers' cache has it."""

    def __init__(self, rows: Rows, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Weakly: buffers in a reference cycle would stay until the collector comes round.
        self._rows: Rows = weakref.proxy(rows)
        self._index = index
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return self._rows.update(self._index, key_states, value_states)

    def get_seq_length(self) -> int:
        return self._rows.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._rows.seen + query_length, 0


@dataclass(frozen=True, slots=True)
class _Found:
    sharing: Sharing


def sharing(model: Model) -> Sharing:
    """How rows of this model have their prefix: by what its attention offers, unless `copy_prefixes` said otherwise."""
    return model.kept(_Found, _find).sharing


def _find(model: Model) -> _Found:
    offers = any(
        hasattr(sys.modules[type(part).__module__], "ALL_ATTENTION_FUNCTIONS")
        for block in model.blocks
        for part in block.modules()
    )
    return _Found("shared" if offers else "copied")


def copy_prefixes(model: Model) -> None:
    """Have this model's rows copy their prefix from now on: the self-check found that its attention needs more."""
    model.keep(_Found("copied"))


class _Attending(threading.local):
    """Whose rows attention sees in this thread."""

    rows: Rows | None = None


_attending = _Attending()


def _attend(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, None]:
    """Attend to the rows that run in this thread; what transformers calls for private modules while they do."""
    rows = _attending.rows
    if rows is None:
        raise AssertionError("only private modules have this implementation, and only while rows run")
    return rows.attention(module, *args, **options)


# One name for all models and threads, in a table that transformers never walks through. No mask function has that name:
# transformers then makes no mask, and ours needs none.
AttentionInterface.register(INTERFACE, _attend)


def shared_or_copied(model: Model, run: Callable[[], T]) -> T:
    """Return what `run` gives; where its attention needs what ours does not know, with prefixes copied from now on."""
    try:
        return run()
    except NotImplementedError:
        if sharing(model) == "copied":
            raise
        copy_prefixes(model)
        return run()


@contextmanager
def _through_interface(rows: Rows) -> Iterator[None]:
    """While open, the attention of the private modules that this thread runs is that of `rows`."""
    with rows._model.running() as tree:
        if not tree.private:
            raise AssertionError("a prefix is shared in private modules alone")
        seen, _attending.rows = _attending.rows, rows
        try:
            with tree.attending_by(INTERFACE):
                yield
        finally:
            _attending.rows = seen


def _refuse_unknown(options: dict[str, Any], mask: Tensor | None) -> None:
    """What this attention does not know (sinks, biases) must not be left out in silence."""
    unknown = sorted(name for name, value in options.items() if isinstance(value, Tensor) and name != "position_ids")
    if unknown or mask is not None or options.get("is_causal") is False:
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'a mask of its own'} cannot share a prefix")
