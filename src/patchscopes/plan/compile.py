"""Cells → Plan. Each distinct cell stands in one group of one wave, within the memory budget."""

from collections.abc import Iterator, Sequence

from patchscopes.errors import OptionError
from patchscopes.plan.plan import Plan
from patchscopes.plan.work import (
    MAX_TOKENS,
    Budget,
    Group,
    GroupBytes,
    ModelShape,
    Prompt,
    PromptKey,
    Side,
    SourcePass,
    Wave,
    gapless,
    layer_of,
    n_run,
    own_tokens,
    placeholder,
    states_of,
    suffix_of,
    text_bytes,
)
from patchscopes.spec import Cell, Ids, Own, State

# Sharing a prefix pays where so many cells have it.
MIN_SHARING = 4
# Set apart of the budget: what allocators keep, and finished results, these up to half of the rest.
SLACK_BYTES = 24 * 2**20
RESULT_BYTES = 4096
# Of what is left, source states and prompts take one part in so many; rows have the rest.
KEPT_PART = 4


def compile_plan(
    cells: Sequence[Cell], shape: ModelShape, budget: Budget, *, source_shape: ModelShape | None = None
) -> Plan:
    """Compile distinct cells into a Plan. `source_shape` is of the model whose states are written, where another.

    Raises OptionError where one row alone is over the budget, with the figures.
    """
    compiler = _Compiler(cells, shape, budget, source_shape or shape)
    return Plan(tuple(cells), tuple(compiler.waves()), shape, source_shape or shape)


class _Compiler:
    def __init__(self, cells: Sequence[Cell], shape: ModelShape, budget: Budget, source_shape: ModelShape) -> None:
        self.cells, self.shape = cells, shape
        self.shapes: dict[Side, ModelShape] = {"source": source_shape, "target": shape}
        self.max_rows = budget.max_rows
        self.budget = budget.memory_bytes
        left = self.budget - min(SLACK_BYTES, self.budget // 4)
        left -= min(len(cells) * RESULT_BYTES, left // 2)
        self.kept_bytes = left // KEPT_PART
        self.rows_bytes = left - self.kept_bytes
        self.shared = self._shared_prefixes()
        self.lengths = sorted({len(ids) for ids in self.shared}, reverse=True)

    def _shared_prefixes(self) -> set[Ids]:
        """What stands before the first placeholder of enough cells."""
        if not self.shape.shares_prefix:
            return set()
        counts: dict[Ids, int] = {}
        for cell in self.cells:
            if cell.write is not None and gapless(cell, placeholder(cell)):
                prefix = cell.target_ids[: placeholder(cell)]
                counts[prefix] = counts.get(prefix, 0) + 1
        return {prefix for prefix, count in counts.items() if prefix and count >= MIN_SHARING}

    def prefix_of(self, cell: Cell) -> Ids:
        """The shared prefix that a cell's rows begin with; empty where they share none."""
        if cell.write is not None:
            prefix = cell.target_ids[: placeholder(cell)]
            return prefix if prefix in self.shared and gapless(cell, len(prefix)) else ()
        starts = (cell.target_ids[:n] for n in self.lengths if n < len(cell.target_ids) and gapless(cell, n))
        return next((start for start in starts if start in self.shared), ())

    def waves(self) -> Iterator[Wave]:
        """Cut the cells, in their order, where states and prompts would be more than their share of the budget."""
        wave: list[int] = []
        seen: set[object] = set()
        held = 0
        for index, cell in enumerate(self.cells):
            # Most cells share their vectors with one neighbour and their prompt with all: told by the very objects.
            needs = cell.write is not None or cell.compare is not None
            known = not needs or _marks(cell) <= seen
            new = {} if known else {key: size for key, size in self._kept(cell) if key not in seen}
            if wave and new and held + sum(new.values()) > self.kept_bytes:
                yield self._wave(wave)
                wave, seen, held = [], set(), 0
                new = dict(self._kept(cell))
            if not known:
                seen.update(new, _marks(cell))
                held += sum(new.values())
            wave.append(index)
        if wave:
            yield self._wave(wave)

    def _kept(self, cell: Cell) -> Iterator[tuple[object, int]]:
        """What a cell needs in memory all the while, with its size in bytes."""
        shape = self.shape
        for side, state in _states(cell):
            yield (side, state), 4 * self.shapes[side].d_model
        if cell.write is None:
            return
        prompt: PromptKey = (cell.target_ids, cell.masked)
        yield prompt, 2 * shape.kv_bytes_per_token * len(cell.target_ids)
        suffix = n_run(cell) - placeholder(cell)
        yield (prompt, cell.write.site.layer), shape.itemsize * shape.d_model * suffix

    def _wave(self, indices: Sequence[int]) -> Wave:
        by_group: dict[tuple[str, Ids], list[tuple[int, bool, int, int]]] = {}
        prompts: dict[PromptKey, tuple[int, set[int]]] = {}
        places: dict[tuple[int, int, tuple[int, ...]], tuple[Ids, int]] = {}
        for index in indices:
            cell = self.cells[index]
            start, prompt = placeholder(cell), (cell.target_ids, cell.masked)
            place = (id(cell.target_ids), start if cell.write is not None else -1, cell.masked)
            if place not in places:
                prefix = self.prefix_of(cell)
                places[place] = prefix, suffix_of(cell, len(prefix))
                if cell.write is not None:
                    # The same tokens may be written elsewhere: "x {} x" and "x x {}".
                    before, layers = prompts.get(prompt, (start, set()))
                    prompts[prompt] = min(start, before), layers
            prefix, suffix = places[place]
            order = (suffix, cell.write is not None, layer_of(cell), index)
            by_group.setdefault((cell.readout.kind, prefix), []).append(order)
            if cell.write is not None:
                prompts[prompt][1].add(cell.write.site.layer)
        return Wave(
            tuple(self._source_batches(indices)),
            tuple(Prompt(k[0], start, tuple(sorted(layers)), k[1]) for k, (start, layers) in prompts.items()),
            tuple(self._group(prefix, sorted(rows)) for (_, prefix), rows in by_group.items()),
            self._prompt_tokens([len(ids) for ids, _ in prompts]),
        )

    def _prompt_tokens(self, lengths: Sequence[int]) -> int:
        """Return how many tokens of prompts run in one pass: those of the longest, or what the budget holds."""
        longest = max(lengths, default=1)
        size = text_bytes(self.shape, longest)
        check_fits(size, self.rows_bytes, self.budget, f"an inspection prompt of {longest:,} tokens")
        return max(longest, min(MAX_TOKENS, self.rows_bytes // size * longest))

    def _group(self, prefix: Ids, rows: Sequence[tuple[int, bool, int, int]]) -> Group:
        indices = tuple(index for *_, index in rows)
        cells = [self.cells[index] for index in indices]
        capacity = max(n_run(cell) - len(prefix) + own_tokens(cell) for cell in cells)
        size = GroupBytes.of(self.shape, cells, rows[-1][0], len(prefix), capacity)  # the longest suffix comes last
        check_fits(size.of_rows(1), self.rows_bytes, self.budget, f"one cell of {len(prefix) + capacity:,} tokens")
        at_most = max(1, size.rows_in(self.rows_bytes, self.max_rows))
        n_rows = -(-len(indices) // -(-len(indices) // at_most))  # batches of equal size
        return Group(indices, prefix, n_rows, min(n_rows, size.start_at_once), capacity)

    def _source_batches(self, indices: Sequence[int]) -> Iterator[tuple[SourcePass, ...]]:
        """Source passes, of similar length together, as many as the budget holds."""
        wanted: dict[tuple[Side, Ids, tuple[int, ...]], dict[State, None]] = {}
        # Most cells have their very vectors and what they compare with in common with a neighbour.
        distinct = {(id(c.write and c.write.vectors), id(c.compare)): c for c in map(self.cells.__getitem__, indices)}
        for cell in distinct.values():
            for side, state in _states(cell):
                wanted.setdefault((side, state.ids, state.masked), {})[state] = None
        passes = sorted(
            (SourcePass(ids, tuple(states), masked, side) for (side, ids, masked), states in wanted.items()),
            key=lambda p: (p.side, len(p.ids)),
        )
        batch: list[SourcePass] = []
        for source in passes:
            length = len(source.ids)
            size = text_bytes(shape := self.shapes[source.side], length) + shape.head_bytes  # read out where compared
            check_fits(size, self.rows_bytes, self.budget, f"a source of {length:,} tokens")
            many = len(batch) == self.max_rows or (len(batch) + 1) * length > MAX_TOKENS
            many = many or bool(batch and batch[0].side != source.side)
            if batch and (many or (len(batch) + 1) * size > self.rows_bytes):
                yield tuple(batch)
                batch = []
            batch.append(source)
        if batch:
            yield tuple(batch)


def _marks(cell: Cell) -> set[object]:
    """What tells a cell's vectors, prompt and comparison at a glance: the very objects."""
    marks: set[object] = {id(cell.compare)}
    if cell.write is not None:
        marks |= {id(cell.write.vectors), (id(cell.target_ids), cell.masked, cell.write.site.layer)}
    return marks


def _states(cell: Cell) -> Iterator[tuple[Side, State]]:
    """The states that a cell needs, with whose they are."""
    for vector in dict.fromkeys(cell.write.vectors if cell.write is not None else ()):
        side: Side = "target" if isinstance(vector, Own) else "source"
        for state in states_of(vector):
            yield side, state
    if cell.compare is not None:
        yield "source", cell.compare


def check_fits(size: int, available: int, budget: int, what: str) -> None:
    """Raise OptionError, with the figures, where `what` alone is more than there is."""
    if size > available:
        raise OptionError(
            f"{what} needs about {size / 2**20:,.1f} MiB beside the weights, and of the memory budget of "
            f"{budget / 2**20:,.1f} MiB there are {available / 2**20:,.1f} MiB for it; give more memory, or a shorter "
            "prompt."
        )
