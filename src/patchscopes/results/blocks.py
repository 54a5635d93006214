"""What a table shows, before it is drawn: one block for each (source, position, prompt), layers down, controls beside.

A control whose rows tell layers apart (one a cell, or one a target layer) is a column, aligned on whatever it has of
source, position, ℓ, ℓ*, prompt and sample. One that has a single text for the whole block stands once under it; so does
a column that says the same on every line. The same blocks are drawn in a terminal, in a notebook and in a figure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from patchscopes.results.candidates import Candidates, mark
from patchscopes.results.entry import Entry, Kind, escaped, first_line, percent, ranges
from patchscopes.results.headings import heading_of
from patchscopes.results.rows import Record
from patchscopes.spec import Row

N_TOP, N_TOP_BESIDE = 5, 3
PLACE = ("source_index", "position", "source_layer", "target_layer")

CONTROLS: Mapping[str, str] = MappingProxyType(
    {
        "unpatched": "the prompt alone, nothing written",
        "self": "the placeholder's own state, written back",
        "zero": "the zero vector",
        "random": "noise of the same norm",
        "random-state": "the state of an unrelated sentence, at the same norm",
        "shuffled": "another item's state",
        "mean": "the mean of other states",
        "text-only": "the source's text in the prompt, nothing written",
        "phrase-only": "the phrase's text in the prompt, nothing written",
    }
)
FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "sink": "the token is at position 0 without a BOS: its state is large and says little of it",
        "target-sink": "the placeholder sees nothing before it, without a BOS: the write replaces the prompt's sink",
        "leaked": "an expected answer already stands in the prompt or the source, so that a hit shows nothing",
        "special": "the token is a special one, no text",
    }
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column, by what stands over it; a wide one holds texts and may be cropped. "more" is another text."""

    name: str
    role: Literal["key", "text", "more", "control"]

    @property
    def wide(self) -> bool:
        """Whether this column holds texts."""
        return self.role != "key"


@dataclass(frozen=True, slots=True)
class Block:
    """One table. `once` are controls that say one thing for all lines; `rows` are the cells, one for each line."""

    heading: str
    once: tuple[tuple[str, Entry], ...]
    columns: tuple[Column, ...]
    lines: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    rows: tuple[Row, ...] = ()


class Beside:
    """Control rows by the cells that they stand beside; of several draws the first. Knows how each row is written."""

    def __init__(self, results: Record) -> None:
        self.candidates = Candidates(results)
        controls = [row for row in results if row.control is not None]
        self.names: tuple[str, ...] = tuple(dict.fromkeys(row.control for row in controls if row.control is not None))
        self._fields = {
            name: (
                *(
                    field
                    for field in PLACE
                    if any(getattr(r, field) is not None for r in controls if r.control == name)
                ),
                "prompt",
                "sample",
            )
            for name in self.names
        }
        # Of a control without a source there is a row at one place for every set of candidates.
        self._rows: dict[tuple[object, ...], dict[frozenset[str], Row]] = {}
        for row in controls:
            at = self._rows.setdefault(self._place(str(row.control), row), {})
            if row.candidate is None or self.candidates.leads(row):
                at.setdefault(self.candidates.names(row), row)

    def row(self, control: str, cell: Row) -> Row | None:
        """The row of `control` that stands beside `cell`: where there are several, that which scores its candidates."""
        found = self._rows.get(self._place(control, cell), {})
        if len(found) < 2:
            return next(iter(found.values()), None)
        # Of results that were sliced, a cell may have lost some of its candidates.
        names = self.candidates.names(cell)
        return found.get(names) or next((row for known, row in found.items() if names <= known), None)

    def tells_layers_apart(self, control: str) -> bool:
        """Whether `control` has rows of its own for each layer."""
        return "source_layer" in self._fields[control] or "target_layer" in self._fields[control]

    def alone(self, results: Record) -> list[Row]:
        """The control rows that stand beside no cell of `results`, which may have been sliced."""
        cells = [row for row in results if row.control is None and self.candidates.leads(row)]
        # Each by the row that is shown, which further draws and samples stand behind.
        seen = {id(row) for name in self.names for cell in cells if (row := self.row(name, cell)) is not None}
        controls = [row for row in results if row.control is not None and self.candidates.leads(row)]
        return [row for row in controls if id(self._shown(row)) not in seen]

    def _shown(self, row: Row) -> Row:
        """The row that stands for the place, and the candidates, of a control's row."""
        return self._rows[self._place(str(row.control), row)][self.candidates.names(row)]

    def entry(self, row: Row) -> Entry:
        """What a cell says."""
        return entry(row) if row.candidate is None else self.candidates.entry(row)

    def marked(self, row: Row | None) -> Entry:
        """As `entry`, where there is no column for marks: with them."""
        return marked(row) if row is None or row.candidate is None else self.candidates.marked(row)

    def _place(self, control: str, row: Row) -> tuple[object, ...]:
        return control, *(getattr(row, field) for field in self._fields[control])


def blocks_of(results: Record, *, max_blocks: int, max_lines: int) -> tuple[list[Block], str | None]:
    """The blocks that are shown, in the order of the cells, and what to say of the rest.

    Controls without a cell beside them come last.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    beside = Beside(results)
    for row in results:
        if row.control is None and row.position is not None and beside.candidates.leads(row):
            groups.setdefault(place_of(row), []).append(row)
    alone = beside.alone(results)
    blocks: list[Block] = []
    room = max_lines
    for rows in [*groups.values(), *([alone] if alone else [])]:
        if len(blocks) == max_blocks or (blocks and len(rows) > room):
            break
        shown = rows[:room]
        blocks.append(_block_of_controls(shown, beside) if rows is alone else block_of(shown, beside, results))
        room -= len(shown)
    hidden = sum(map(len, groups.values())) + len(alone) - (max_lines - room)
    if not hidden:
        return blocks, None
    n_tables = len(groups) + bool(alone) - len(blocks)
    tables = f" ({n_tables:,} more tables)" if n_tables else ""
    return blocks, f"{hidden:,} more cells are not shown here{tables}; .to_pandas(), --format json or csv have all."


def place_of(row: Row) -> tuple[int | None, int | None, str | None]:
    """The block that a cell belongs to."""
    return row.source_index, row.position, row.prompt


def block_of(rows: Sequence[Row], beside: Beside, results: Record) -> Block:
    """The block of cells that differ in ℓ, ℓ* and sample only."""
    rows = tuple(rows)
    controls = {name: [beside.row(name, row) for row in rows] for name in beside.names}
    controls = {name: found for name, found in controls.items() if any(found)}
    once, same = _above_lines(controls, rows, beside)
    columns = {name: found for name, found in controls.items() if name not in once and name not in same}
    layer = "ℓ*" if any(row.source_layer != row.target_layer for row in rows) else "ℓ"
    under = [(name, once[name]) if name in once else (f"{name}, every {layer}", same[name])
             for name in controls if name not in columns]  # fmt: skip
    keys = _keys(rows, beside.candidates)
    header = [*(Column(name, "key") for name in keys), Column(_text_column(rows, beside), "text")]
    texts = [[beside.entry(row) for row in rows]]
    if rows[0].candidate is not None:
        header.append(Column("raised most (Δ)", "more"))
        texts.append([beside.candidates.raised(row) for row in rows])
    texts += [[beside.marked(row) for row in found] for found in columns.values()]
    return Block(
        heading=heading_of(rows[0], results.spec),
        once=tuple(under),
        columns=(*header, *(Column(name, "control") for name in columns)),
        lines=tuple(zip(*keys.values(), *texts, strict=True)),
        notes=(*_flag_notes(rows), *_reason_notes(rows, columns), *beside.candidates.notes(rows)),
        rows=rows,
    )


def _above_lines(
    controls: Mapping[str, Sequence[Row | None]], rows: Sequence[Row], beside: Beside
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Controls that have one row for the block, and those that say the same on every line."""
    once: dict[str, Entry] = {}
    same: dict[str, Entry] = {}
    for name, found in controls.items():
        if not beside.tells_layers_apart(name):
            once[name] = _once(found, rows, beside)
        elif _is_one(found, rows, beside):
            same[name] = _once(found, rows, beside)
    return once, same


def _block_of_controls(rows: Sequence[Row], beside: Beside) -> Block:
    """Control rows one below the other, where their cells are not among the results."""
    keys = {"control": [Entry(str(row.control)) for row in rows], "prompt": [Entry(row.prompt or "") for row in rows]}
    keys = {name: column for name, column in keys.items() if len({entry.text for entry in column}) > 1}
    names = {"source_index": "source", "position": "position", "source_layer": "ℓ", "target_layer": "ℓ*"}
    for field, name in {**names, "draw": "draw", "sample": "sample"}.items():
        values = [getattr(row, field) for row in rows]
        if any(value not in (None, 0) for value in values) or len(set(values)) > 1:
            keys[name] = [Entry("" if value is None else str(value)) for value in values]
    return Block(
        heading=f"controls: {', '.join(dict.fromkeys(str(row.control) for row in rows))} (their cells are not here)",
        once=(),
        columns=(*(Column(name, "key") for name in keys), Column(_text_column(rows, beside), "text")),
        lines=tuple(zip(*keys.values(), [beside.marked(row) for row in rows], strict=True)),
        notes=(*_flag_notes(rows), *_reason_notes(rows, {})),
        rows=tuple(rows),
    )


def _keys(rows: Sequence[Row], candidates: Candidates) -> dict[str, list[Entry]]:
    """The narrow columns: ℓ always, what else differs or was asked for."""
    keys = {"ℓ": [Entry(str(row.source_layer)) for row in rows]}
    if any(row.source_layer != row.target_layer for row in rows):
        keys["ℓ*"] = [Entry(str(row.target_layer)) for row in rows]
    if any(row.sample for row in rows):
        keys["sample"] = [Entry(str(row.sample)) for row in rows]
    if any(row.flags != rows[0].flags for row in rows):
        keys["flags"] = [Entry(", ".join(row.flags)) for row in rows]
    judged = [candidates.judged(row) for row in rows]
    if any(row.expected is not None for row in judged):
        keys["✓"] = [Entry(mark(row), "hit" if row.expected else "miss") for row in judged]
    keys.update(candidates.keys([row for row in rows if row.candidate is not None]))
    if any(row.agrees is not None for row in rows):
        keys["="] = [Entry("" if row.agrees is None else "=" if row.agrees else "≠") for row in rows]
    if any(row.entropy is not None for row in rows):
        keys["H"] = [Entry("" if row.entropy is None else f"{row.entropy:.2f}") for row in rows]
    return keys


def _text_column(rows: Sequence[Row], beside: Beside) -> str:
    if any(row.candidate is not None for row in rows):
        return f"likeliest of {beside.candidates.n_of(rows)}: ln p (Δ)"
    return "next token" if any(row.top is not None for row in rows) else "text"


def entry(row: Row, *, n_top: int = N_TOP) -> Entry:
    """What a row says: its text, or its next tokens with their probabilities, or why it has neither."""
    if row.status != "ok":
        return Entry(f"({row.status})", "note")
    kind: Kind = "plain" if row.expected is None else "hit" if row.expected else "miss"
    if row.top is not None:
        return Entry(" ".join(f"{top.token!r} {percent(top.logprob)}" for top in row.top[:n_top]), kind)
    return Entry(escaped(row.text), kind) if row.text else Entry("(empty text)", "note" if kind == "plain" else kind)


def marked(row: Row | None) -> Entry:
    """As `entry`, where there is no column for the mark and the entropy: with both."""
    if row is None:
        return Entry("")
    found = entry(row, n_top=N_TOP_BESIDE)
    sign = mark(row)
    # The entropy first, since what comes last is cropped.
    entropy = f"H {row.entropy:.2f} · " if row.entropy is not None else ""
    return Entry(f"{sign} {entropy}{found.text}" if sign else f"{entropy}{found.text}", found.kind)


def _is_one(found: Sequence[Row | None], rows: Sequence[Row], beside: Beside) -> bool:
    """Whether a control says the same on every line, two at least, where anything was run at all."""
    said = [beside.marked(row) for row, cell in zip(found, rows, strict=True) if row is None or not _as_idle(row, cell)]
    return len(said) > 1 and None not in found and len(set(said)) == 1


def _as_idle(row: Row, cell: Row) -> bool:
    return row.status != "ok" and (row.status, row.reason) == (cell.status, cell.reason)


def _once(found: Sequence[Row | None], rows: Sequence[Row], beside: Beside) -> Entry:
    """What a control says that says one thing; where it could not be run, with the reason."""
    told = [(row, cell) for row, cell in zip(found, rows, strict=True) if row is not None]
    # After an interruption a control may be idle for the reason that its cells are; it is told all the same.
    row = next((row for row, cell in told if not _as_idle(row, cell)), told[0][0])
    if row.status == "ok":
        return beside.marked(row)
    return Entry(f"({row.status}: {first_line(row.reason)})", "note")


def _flag_notes(rows: Sequence[Row]) -> Iterator[str]:
    for flag in dict.fromkeys(flag for row in rows for flag in row.flags):
        yield f"flag {flag}: {FLAGS[flag]}" if flag in FLAGS else f"flag {flag}"


def _reason_notes(rows: Sequence[Row], columns: Mapping[str, Sequence[Row | None]]) -> Iterator[str]:
    """Why lines have no text. A control that shares its cell's reason is not told of again."""
    pairs = [(row, row) for row in rows]
    for found in columns.values():
        pairs += [(row, cell) for row, cell in zip(found, rows, strict=True) if row and not _as_idle(row, cell)]
    idle: dict[tuple[str | None, str, str], list[int | None]] = {}
    for row, cell in pairs:
        if row.status != "ok":
            idle.setdefault((row.control, row.status, first_line(row.reason)), []).append(cell.source_layer)
    for (control, status, reason), layers in idle.items():
        at = ranges([layer for layer in layers if layer is not None])
        yield f"{f'{control} ' if control else ''}{status}: {reason}{f' (ℓ = {at})' if at else ''}"
