"""Cells → Plan: what to compute, decided before anything runs and without a model at hand.

A Plan holds each distinct cell once, one source pass per source prompt whatever its layers and positions, one prefix
per (ids before the first placeholder), and batches within a memory budget; and it says what that costs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from patchscopes.errors import OptionError
from patchscopes.spec import Cell, Ids, Neutral, Noise, Result, State, Vector

# Above this many rows a batch gains nothing more (docs/lab-log.md).
MAX_ROWS = 256


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a plan needs to know of a model: sizes, and bytes per element of activations."""

    n_layers: int
    d_model: int
    d_vocab: int
    kv_bytes_per_token: int
    n_matrix_parameters: int
    itemsize: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on one batch: bytes of keys, values and activations; rows."""

    memory_bytes: int
    max_rows: int = MAX_ROWS


@dataclass(frozen=True, slots=True)
class SourcePass:
    """One forward pass over `ids` that captures every (layer, position) in `states`."""

    ids: Ids
    states: tuple[State, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Cells that run together. Entry r of `cells` indexes Plan.cells; `prefixes[r]` indexes Plan.prefixes.

    All rows end at column `width`; a prefill runs the last `prefill` columns of each; up to `new_tokens` are decoded.
    """

    cells: tuple[int, ...]
    prefixes: tuple[int, ...]
    width: int
    prefill: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan takes at the most: texts that end early take less. `flops` counts matrix products."""

    forward_passes: int
    source_tokens: int
    prefix_tokens: int
    prefill_tokens: int
    decoded_tokens: int
    flops: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The work: distinct `cells`, what they share, and the batches that they run in."""

    cells: tuple[Cell, ...]
    source_batches: tuple[tuple[SourcePass, ...], ...]
    prefixes: tuple[Ids, ...]
    batches: tuple[Batch, ...]
    cost: Cost


@runtime_checkable
class Runner(Protocol):
    """Anything that turns a Plan into Results."""

    def run(self, plan: Plan) -> Iterator[Result]:
        """Yield one Result per cell of `plan`, in any order."""
        ...


def compile_plan(cells: Sequence[Cell], shape: ModelShape, budget: Budget) -> Plan:
    """Compile distinct cells into a Plan.

    Raises OptionError where one row alone is over the budget, with the figures.
    """
    prefixes, prefix_of = _prefixes(cells)
    order = sorted(
        range(len(cells)), key=lambda i: (_suffix(cells[i], prefixes[prefix_of[i]]), prefix_of[i], cells[i].new_tokens)
    )
    batches = tuple(_batches(cells, order, prefixes, prefix_of, shape, budget))
    sources = tuple(_source_batches(cells, shape, budget))
    return Plan(tuple(cells), sources, prefixes, batches, _cost(sources, prefixes, batches, shape))


def states_of(vector: Vector) -> tuple[State, ...]:
    """The hidden states that a vector is made from."""
    match vector:
        case State():
            return (vector,)
        case Noise(like=like):
            return (like,)
        case Neutral(state=state, like=like):
            return (state, like)
        case _:
            return ()


def _source_batches(cells: Sequence[Cell], shape: ModelShape, budget: Budget) -> Iterator[tuple[SourcePass, ...]]:
    """Source passes, of similar length together, as many as the budget holds."""
    wanted: dict[Ids, dict[State, None]] = {}
    for cell in cells:
        for vector in dict.fromkeys(cell.write.vectors) if cell.write else ():
            for state in states_of(vector):
                wanted.setdefault(state.ids, {})[state] = None
    passes = sorted((SourcePass(ids, tuple(states)) for ids, states in wanted.items()), key=lambda p: len(p.ids))
    batch: list[SourcePass] = []
    for source in passes:
        length = len(source.ids)
        _check_fits(_row_bytes(shape, length, length), budget, f"a source of {length} tokens")
        if batch and (len(batch) + 1) * _row_bytes(shape, length, length) > budget.memory_bytes:
            yield tuple(batch)
            batch = []
        batch.append(source)
        if len(batch) == budget.max_rows:
            yield tuple(batch)
            batch = []
    if batch:
        yield tuple(batch)


def _prefixes(cells: Sequence[Cell]) -> tuple[tuple[Ids, ...], list[int]]:
    """The distinct prefixes, and each cell's.

    A cell with a write shares what stands before its first placeholder. One without (the controls `unpatched` and
    `text-only`) takes the longest of those that begins its prompt, else all of its prompt but the last token.
    """
    found: dict[Ids, int] = {}
    for cell in cells:
        if cell.write is not None:
            found.setdefault(cell.target_ids[: min(cell.write.positions)], len(found))
    lengths = sorted({len(ids) for ids in found}, reverse=True)
    prefix_of = []
    for cell in cells:
        if cell.write is not None:
            ids = cell.target_ids[: min(cell.write.positions)]
        else:
            starts = (cell.target_ids[:n] for n in lengths if n < len(cell.target_ids))
            ids = next((start for start in starts if start in found), cell.target_ids[:-1])
        prefix_of.append(found.setdefault(ids, len(found)))
    return tuple(found), prefix_of


def _suffix(cell: Cell, prefix: Ids) -> int:
    return len(cell.target_ids) - len(prefix)


def _batches(
    cells: Sequence[Cell],
    order: Sequence[int],
    prefixes: Sequence[Ids],
    prefix_of: Sequence[int],
    shape: ModelShape,
    budget: Budget,
) -> Iterator[Batch]:
    rows: list[int] = []
    width = prefill = new = 0
    for index in order:
        cell = cells[index]
        grown = (
            max(width, len(cell.target_ids)),
            max(prefill, _suffix(cell, prefixes[prefix_of[index]])),
            max(new, cell.new_tokens),
        )
        row_bytes = _row_bytes(shape, grown[0] + grown[2], grown[1])
        full = len(rows) == budget.max_rows or (len(rows) + 1) * row_bytes > budget.memory_bytes
        # One readout a batch: a next-token cell has nothing to decode beside others.
        if rows and (full or cells[rows[0]].readout.kind != cell.readout.kind):
            yield Batch(tuple(rows), tuple(prefix_of[i] for i in rows), width, prefill, new)
            rows = []
            grown = len(cell.target_ids), _suffix(cell, prefixes[prefix_of[index]]), cell.new_tokens
        width, prefill, new = grown
        _check_fits(_row_bytes(shape, width + new, prefill), budget, f"one cell of {width} + {new} tokens")
        rows.append(index)
    if rows:
        yield Batch(tuple(rows), tuple(prefix_of[i] for i in rows), width, prefill, new)


def _row_bytes(shape: ModelShape, context: int, run: int) -> int:
    """Bytes that one row takes at its peak.

    Keys and values twice (HF repeats them for grouped heads), activations of the columns that run (about 16 d_model
    wide), a float32 copy of the logits and their reduction.
    """
    activations = 16 * shape.d_model * shape.itemsize * run
    return 2 * shape.kv_bytes_per_token * context + activations + 8 * shape.d_vocab


def _check_fits(row_bytes: int, budget: Budget, what: str) -> None:
    if row_bytes > budget.memory_bytes:
        raise OptionError(
            f"{what} needs about {row_bytes / 2**20:,.1f} MiB, and the memory budget is "
            f"{budget.memory_bytes / 2**20:,.1f} MiB; give more memory, or a shorter prompt."
        )


def _cost(
    sources: Sequence[Sequence[SourcePass]], prefixes: Sequence[Ids], batches: Sequence[Batch], shape: ModelShape
) -> Cost:
    source_tokens = sum(max(len(p.ids) for p in batch) * len(batch) for batch in sources)
    prefix_tokens = sum(map(len, prefixes))
    prefill = sum(len(batch.cells) * batch.prefill for batch in batches)
    decoded = sum(len(batch.cells) * (batch.new_tokens - 1) for batch in batches)
    steps = sum(batch.new_tokens for batch in batches)
    tokens = source_tokens + prefix_tokens + prefill + decoded
    peaks = [len(b.cells) * _row_bytes(shape, b.width + b.new_tokens, b.prefill) for b in batches]
    return Cost(
        forward_passes=len(sources) + sum(1 for ids in prefixes if ids) + steps,
        source_tokens=source_tokens,
        prefix_tokens=prefix_tokens,
        prefill_tokens=prefill,
        decoded_tokens=decoded,
        flops=2 * shape.n_matrix_parameters * tokens,
        peak_bytes=max(peaks, default=0),
    )
