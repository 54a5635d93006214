"""Cells → Plan: what to compute, decided before anything runs and without a model at hand.

    wave     cells whose source states and prompts are in memory together
    group    cells of a wave that share a prefix: the rows of its batches come from here, refilled as rows end
    prompt   an inspection prompt, run once for all its cells

Each distinct cell stands in one group of one wave. What a wave holds, and how many rows a group runs at once, keeps
within the memory budget; and the plan says what it costs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from patchscopes.errors import OptionError
from patchscopes.spec import Cell, Ids, Neutral, Noise, Result, State, Vector

# Beyond so many rows, or tokens in one pass, nothing is gained (docs/performance.md).
MAX_ROWS = 480
MAX_TOKENS = 2048
# Sharing a prefix pays where so many cells have it.
MIN_SHARING = 4
# Of the budget: what source states and prompts may take, and what finished results may.
KEPT_SHARE, RESULTS_SHARE = 1 / 4, 1 / 4
RESULT_BYTES = 4096
# What the head makes of a row at a time, and what is read of it.
HEAD_BYTES = 2 * 4 * 8192


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a plan needs to know of a model: sizes, and bytes per element of activations.

    `n_matrix_parameters` are those of blocks and head; `shares_prefix` says whether rows can attend to one prefix.
    """

    n_layers: int
    d_model: int
    d_vocab: int
    kv_bytes_per_token: int
    n_matrix_parameters: int
    itemsize: int
    shares_prefix: bool = True

    @property
    def head_parameters(self) -> int:
        """Parameters of the head's matrix."""
        return self.d_model * self.d_vocab

    @property
    def block_parameters(self) -> float:
        """Matrix parameters of one block."""
        return (self.n_matrix_parameters - self.head_parameters) / self.n_layers


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what runs at once: bytes of everything beside the weights; rows."""

    memory_bytes: int
    max_rows: int = MAX_ROWS


@dataclass(frozen=True, slots=True)
class SourcePass:
    """One forward pass over `ids` that captures every (layer, position) in `states`."""

    ids: Ids
    states: tuple[State, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """An inspection prompt to run once: its tokens from `start` on, the first placeholder, are read at `layers`."""

    ids: Ids
    start: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Cells that run together, in the order in which they start; entries index Plan.cells.

    All of them begin with `prefix`, which is kept once. At most `n_rows` run at once, `n_started` start at once, and
    each has room for `capacity` tokens of its own.
    """

    cells: tuple[int, ...]
    prefix: Ids
    n_rows: int
    n_started: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Wave:
    """Groups with the source passes and prompts that they need."""

    source_batches: tuple[tuple[SourcePass, ...], ...]
    prompts: tuple[Prompt, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan takes at the most: texts that end early take less.

    `flops` counts matrix products, the blocks below ℓ* left out; `peak_bytes` everything beside the weights.
    """

    forward_passes: int
    source_tokens: int
    prompt_tokens: int
    prefill_tokens: int
    decoded_tokens: int
    candidate_tokens: int
    flops: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The work: distinct `cells`, in waves of groups."""

    cells: tuple[Cell, ...]
    waves: tuple[Wave, ...]
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
    compiler = _Compiler(cells, shape, budget)
    waves = tuple(compiler.waves())
    return Plan(tuple(cells), waves, cost_of(cells, waves, shape))


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


def placeholder(cell: Cell) -> int:
    """The position of the first placeholder: what stands before it is the prefix. 0 where nothing is written."""
    return min(cell.write.positions) if cell.write is not None else 0


def layer_of(cell: Cell) -> int:
    """Where a cell's rows start: ℓ*, or 0 where nothing is written."""
    return cell.write.site.layer if cell.write is not None else 0


def suffix_of(cell: Cell, n_shared: int) -> int:
    """How many tokens of its prompt a row runs itself, where `n_shared` of them are shared."""
    return len(cell.target_ids) - (n_shared if cell.write is None else placeholder(cell))


class _Compiler:
    def __init__(self, cells: Sequence[Cell], shape: ModelShape, budget: Budget) -> None:
        self.cells, self.shape = cells, shape
        self.max_rows = budget.max_rows
        self.budget = budget.memory_bytes
        results = min(len(cells) * RESULT_BYTES, int(RESULTS_SHARE * self.budget))
        self.kept_bytes = int(KEPT_SHARE * self.budget)
        self.rows_bytes = self.budget - results - self.kept_bytes
        self.shared = self._shared_prefixes()
        self.lengths = sorted({len(ids) for ids in self.shared}, reverse=True)

    def _shared_prefixes(self) -> set[Ids]:
        """What stands before the first placeholder of enough cells."""
        if not self.shape.shares_prefix:
            return set()
        counts: dict[Ids, int] = {}
        for cell in self.cells:
            if cell.write is not None:
                prefix = cell.target_ids[: placeholder(cell)]
                counts[prefix] = counts.get(prefix, 0) + 1
        return {prefix for prefix, count in counts.items() if prefix and count >= MIN_SHARING}

    def prefix_of(self, cell: Cell) -> Ids:
        """The shared prefix that a cell's rows begin with; empty where they share none."""
        if cell.write is not None:
            prefix = cell.target_ids[: placeholder(cell)]
            return prefix if prefix in self.shared else ()
        starts = (cell.target_ids[:n] for n in self.lengths if n < len(cell.target_ids))
        return next((start for start in starts if start in self.shared), ())

    def waves(self) -> Iterator[Wave]:
        """Cut the cells, in their order, where states and prompts would be more than their share of the budget."""
        wave: list[int] = []
        seen: set[object] = set()
        held = 0
        for index, cell in enumerate(self.cells):
            new = {key: size for key, size in self._kept(cell) if key not in seen}
            if wave and held + sum(new.values()) > self.kept_bytes:
                yield self._wave(wave)
                wave, seen, held = [], set(), 0
                new = dict(self._kept(cell))
            seen.update(new)
            held += sum(new.values())
            wave.append(index)
        if wave:
            yield self._wave(wave)

    def _kept(self, cell: Cell) -> Iterator[tuple[object, int]]:
        """What a cell needs in memory all the while, with its size in bytes."""
        if cell.write is None:
            return
        shape = self.shape
        for vector in set(cell.write.vectors):
            for state in states_of(vector):
                yield state, 4 * shape.d_model
        n_tokens = len(cell.target_ids)
        yield cell.target_ids, 2 * shape.kv_bytes_per_token * n_tokens
        suffix = n_tokens - placeholder(cell)
        yield (cell.target_ids, cell.write.site.layer), shape.itemsize * shape.d_model * suffix

    def _wave(self, indices: Sequence[int]) -> Wave:
        by_group: dict[tuple[str, Ids], list[tuple[int, bool, int, int]]] = {}
        prompts: dict[Ids, tuple[int, set[int]]] = {}
        for index in indices:
            cell = self.cells[index]
            prefix = self.prefix_of(cell)
            suffix = suffix_of(cell, len(prefix))
            order = (suffix, cell.write is not None, layer_of(cell), index)
            by_group.setdefault((cell.readout.kind, prefix), []).append(order)
            if cell.write is not None:
                start, layers = prompts.setdefault(cell.target_ids, (placeholder(cell), set()))
                layers.add(cell.write.site.layer)
        return Wave(
            tuple(self._source_batches(indices)),
            tuple(Prompt(ids, start, tuple(sorted(layers))) for ids, (start, layers) in prompts.items()),
            tuple(self._group(prefix, sorted(rows)) for (_, prefix), rows in by_group.items()),
        )

    def _group(self, prefix: Ids, rows: Sequence[tuple[int, bool, int, int]]) -> Group:
        indices = tuple(index for *_, index in rows)
        cells = [self.cells[index] for index in indices]
        capacity = max(len(cell.target_ids) - len(prefix) + own_tokens(cell) for cell in cells)
        suffix = rows[-1][0]
        size = row_bytes(self.shape, capacity, suffix)
        if any(cell.readout.kind == "candidates" for cell in cells):
            size *= 2  # candidates run beside the rows that they follow
        check_fits(size, self.rows_bytes, self.budget, f"one cell of {len(prefix) + capacity:,} tokens")
        at_most = max(1, min(self.max_rows, self.rows_bytes // size))
        n_rows = -(-len(indices) // -(-len(indices) // at_most))  # batches of equal size
        return Group(indices, prefix, n_rows, max(1, min(n_rows, MAX_TOKENS // suffix)), capacity)

    def _source_batches(self, indices: Sequence[int]) -> Iterator[tuple[SourcePass, ...]]:
        """Source passes, of similar length together, as many as the budget holds."""
        wanted: dict[Ids, dict[State, None]] = {}
        for index in indices:
            write = self.cells[index].write
            for vector in dict.fromkeys(write.vectors) if write else ():
                for state in states_of(vector):
                    wanted.setdefault(state.ids, {})[state] = None
        passes = sorted((SourcePass(ids, tuple(states)) for ids, states in wanted.items()), key=lambda p: len(p.ids))
        batch: list[SourcePass] = []
        for source in passes:
            length = len(source.ids)
            size = row_bytes(self.shape, length, length)
            check_fits(size, self.rows_bytes, self.budget, f"a source of {length:,} tokens")
            many = len(batch) == self.max_rows or (len(batch) + 1) * length > MAX_TOKENS
            if batch and (many or (len(batch) + 1) * size > self.rows_bytes):
                yield tuple(batch)
                batch = []
            batch.append(source)
        if batch:
            yield tuple(batch)


def own_tokens(cell: Cell) -> int:
    """Tokens that a row takes in behind its prompt, at the most."""
    if cell.readout.kind == "candidates":
        return max(len(ids) for ids in cell.candidates) - 1
    return cell.new_tokens - 1


def row_bytes(shape: ModelShape, own: int, run: int) -> int:
    """Bytes that one row takes at its peak: own keys and values, activations of the tokens that run, part of logits."""
    return shape.kv_bytes_per_token * own + 32 * shape.d_model * shape.itemsize * run + HEAD_BYTES


def check_fits(size: int, available: int, budget: int, what: str) -> None:
    """Raise OptionError, with the figures, where `what` alone is more than there is."""
    if size > available:
        raise OptionError(
            f"{what} needs about {size / 2**20:,.1f} MiB beside the weights, and of the memory budget of "
            f"{budget / 2**20:,.1f} MiB there are {available / 2**20:,.1f} MiB for it; give more memory, or a shorter "
            "prompt."
        )


def cost_of(cells: Sequence[Cell], waves: Sequence[Wave], shape: ModelShape) -> Cost:
    """Count passes, tokens and matrix products of `waves`."""
    cost = Cost(0, 0, 0, 0, 0, 0, 0, 0)
    for wave in waves:
        cost = _with_kept(cost, wave, shape)
        for group in wave.groups:
            cost = _with_group(cost, [cells[index] for index in group.cells], group, shape)
    return cost


def _with_kept(cost: Cost, wave: Wave, shape: ModelShape) -> Cost:
    sources = sum(max(len(p.ids) for p in batch) * len(batch) for batch in wave.source_batches)
    prompts = sum(len(prompt.ids) for prompt in wave.prompts)
    passes = len(wave.source_batches) + len({len(prompt.ids) for prompt in wave.prompts})
    return replace(
        cost,
        forward_passes=cost.forward_passes + passes,
        source_tokens=cost.source_tokens + sources,
        prompt_tokens=cost.prompt_tokens + prompts,
        flops=cost.flops + round(2 * shape.block_parameters * shape.n_layers * (sources + prompts)),
    )


def _with_group(cost: Cost, cells: Sequence[Cell], group: Group, shape: ModelShape) -> Cost:
    prefill = decoded = answers = 0
    flops = 0.0
    whole = shape.block_parameters * shape.n_layers
    for cell in cells:
        suffix = suffix_of(cell, len(group.prefix))
        later = [len(ids) - 1 for ids in cell.candidates] if cell.readout.kind == "candidates" else []
        steps = cell.new_tokens - 1 if cell.readout.kind == "text" else 0
        prefill, decoded, answers = prefill + suffix, decoded + steps, answers + sum(later)
        above = shape.block_parameters * (shape.n_layers - layer_of(cell))
        flops += above * suffix + shape.head_parameters
        flops += (whole + shape.head_parameters) * (steps + sum(later))
    batches = -(-len(cells) // group.n_rows)
    starts = -(-len(cells) // group.n_started)
    longest = max(own_tokens(cell) for cell in cells)
    return replace(
        cost,
        forward_passes=cost.forward_passes + starts + batches * longest,
        prefill_tokens=cost.prefill_tokens + prefill,
        decoded_tokens=cost.decoded_tokens + decoded,
        candidate_tokens=cost.candidate_tokens + answers,
        flops=cost.flops + round(2 * flops),
        peak_bytes=max(cost.peak_bytes, group.n_rows * row_bytes(shape, group.capacity, 1)),
    )
