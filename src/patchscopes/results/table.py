"""Results for people: one block for each (source, position, prompt), layers down, controls beside.

A control that exists once per cell has a column; one that exists once per prompt or source stands in a line under the
block. The same blocks are drawn in a terminal and in a notebook.
"""

import html
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchscopes.spec import Row

if TYPE_CHECKING:
    from rich.console import RenderableType

    from patchscopes.results.results import Results

PER_CELL = ("random", "random-state", "shuffled", "mean")
PER_TARGET_LAYER = ("self", "zero")
MAX_BLOCKS = 12
MAX_LINES = 400
N_TOP = 3
TEXT_WIDTH = 140


@dataclass(frozen=True, slots=True)
class Block:
    """One table: a heading, named columns, lines of text, and notes under it. `wide` are the columns of texts."""

    heading: str
    columns: tuple[str, ...]
    wide: frozenset[str]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def blocks_of(results: "Results") -> list[Block]:
    """Every block, in the order of the cells."""
    groups: dict[tuple[int | None, int | None, str | None], list[Row]] = {}
    for row in results:
        if row.control is None and row.position is not None:
            groups.setdefault((row.source_index, row.position, row.prompt), []).append(row)
    index = ControlIndex(results)
    return [_block(rows, index) for rows in groups.values()]


class ControlIndex:
    """Control rows by what they stand beside; the first draw of each."""

    def __init__(self, results: "Results") -> None:
        self.asked = tuple(dict.fromkeys(row.control for row in results if row.control is not None))
        self._rows: dict[tuple[object, ...], Row] = {}
        for row in results:
            if row.control is not None:
                self._rows.setdefault((row.control, *_place(row.control, row)), row)

    def beside(self, control: str, row: Row) -> Row | None:
        """The control's row that stands beside a cell's."""
        return self._rows.get((control, *_place(control, row)))


def _place(control: str, row: Row) -> tuple[object, ...]:
    """What a row of this control and the cell beside it have in common."""
    if control in PER_CELL:
        return row.source_index, row.position, row.source_layer, row.target_layer, row.prompt, row.sample
    if control in PER_TARGET_LAYER:
        return row.target_layer, row.prompt, row.sample
    if control == "unpatched":
        return row.prompt, row.sample
    return row.source_index, row.position, row.prompt, row.sample


def _block(rows: Sequence[Row], index: ControlIndex) -> Block:
    first = rows[0]
    product = any(row.source_layer != row.target_layer for row in rows)
    sampled = any(row.sample for row in rows)
    marked = any(row.expected is not None for row in rows)
    beside = [name for name in index.asked if name in PER_CELL + PER_TARGET_LAYER]
    columns = [
        "ℓ",
        *(["ℓ*"] if product else []),
        *(["sample"] if sampled else []),
        *(["✓"] if marked else []),
        "text",
        *beside,
    ]
    lines = []
    for row in rows:
        cells = [str(row.source_layer), *([str(row.target_layer)] if product else [])]
        cells += [str(row.sample)] if sampled else []
        cells += [mark(row)] if marked else []
        cells += [shown(row), *(_with_mark(index.beside(name, row)) for name in beside)]
        lines.append(tuple(cells))
    under = {name: index.beside(name, first) for name in index.asked if name not in beside}
    notes = [f"{name}: {_with_mark(row)}" for name, row in under.items() if row is not None]
    if first.flags:
        notes.append(f"flags: {', '.join(first.flags)}")
    notes += sorted({f"{row.status}: {row.reason}" for row in rows if row.status != "ok"})
    heading = (
        f"source {first.source_index} {quoted(first.source or '', 60)} · token {first.token!r} at position "
        f"{first.position} · prompt {quoted(first.prompt or '', 50)}"
    )
    return Block(heading, tuple(columns), frozenset({"text", *beside}), tuple(lines), tuple(notes))


def shown(row: Row | None) -> str:
    """What a row says: its text, or its next tokens with probabilities and the entropy, or why it has none."""
    if row is None:
        return ""
    if row.status != "ok":
        return f"({row.status})"
    if row.top is None:
        return escaped(row.text or "")
    tokens = " ".join(f"{top.token!r} {math.exp(top.logprob):.0%}" for top in row.top[:N_TOP])
    return f"{tokens} · H {row.entropy:.1f}"


def escaped(text: str) -> str:
    """`text` on one line: line breaks as ⏎, tabs as ⇥."""
    return text.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")


def quoted(text: str, width: int) -> str:
    """`text` in quotes, on one line, cropped to `width`."""
    line = escaped(text)
    return f"“{line if len(line) <= width else line[: width - 1] + '…'}”"


def mark(row: Row | None) -> str:
    """✓ or ✗ where an answer was expected; in brackets where it had leaked."""
    if row is None or row.expected is None:
        return ""
    sign = "✓" if row.expected else "✗"
    return f"({sign})" if "leaked" in row.flags else sign


def _with_mark(row: Row | None) -> str:
    sign = mark(row)
    return f"{sign} {shown(row)}" if sign else shown(row)


def summary(results: "Results") -> Iterator[str]:
    """Under the tables: hits beside the controls' hits, counts by status, what was left out, and what made it."""
    judged = [row for row in results if row.expected is not None]
    for name in dict.fromkeys(row.control for row in judged):
        of = [row for row in judged if row.control == name and "leaked" not in row.flags]
        leaks = sum(row.control == name for row in judged) - len(of)
        apart = f" ({leaks} leaked, apart)" if leaks else ""
        yield f"expected answer in {sum(bool(row.expected) for row in of)} of {len(of)} {name or 'cells'}{apart}"
    for row in results:
        if row.status == "failed" and row.control is None and row.position is None:
            reason = (row.reason or "").splitlines()[0]
            yield f"failed: source {row.source_index} {quoted(row.source or '', 60)}: {reason}"
    if any(row.draw for row in results):
        yield f"draw 0 of {1 + max(row.draw for row in results)} is shown; .to_pandas() has all"
    counts = ", ".join(f"{n:,} {status}" for status, n in Counter(row.status for row in results).items())
    state = "" if results.complete else " · interrupted, not complete"
    yield f"{len(results):,} rows: {counts or 'none'}{state}"
    model, seed = results.model, results.spec.get("seed")
    yield f"model {model.get('id')} ({str(model.get('weights'))[:19]}, {model.get('dtype')}), seed {seed}"


def cropped(blocks: Sequence[Block]) -> tuple[list[Block], str | None]:
    """The blocks that are shown, and what to say of the rest."""
    kept: list[Block] = []
    lines = 0
    for block in blocks[:MAX_BLOCKS]:
        if kept and lines + len(block.lines) > MAX_LINES:
            break
        room = MAX_LINES - lines
        kept.append(Block(block.heading, block.columns, block.wide, block.lines[:room], block.notes))
        lines += len(kept[-1].lines)
    hidden = sum(len(block.lines) for block in blocks) - lines
    if not hidden:
        return kept, None
    return kept, f"{hidden:,} more cells are not shown here; .to_pandas(), --format json or csv have all."


def as_rich(results: "Results", width: int) -> Iterator["RenderableType"]:
    """The tables as rich renders them in a terminal of `width` columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    blocks, rest = cropped(blocks_of(results))
    for block in blocks:
        table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1, 0, 0), width=width)
        for name in block.columns:
            if name in block.wide:
                table.add_column(name, ratio=3 if name == "text" else 2, no_wrap=True, overflow="ellipsis")
            else:
                table.add_column(name, justify="right", no_wrap=True)
        for line in block.lines:
            table.add_row(*(Text(cell) for cell in line))
        yield Text(block.heading, style="bold")
        yield table
        for note in block.notes:
            yield Text(note)
        yield Text("")
    for sentence in [*([rest] if rest else []), *summary(results)]:
        yield Text(sentence)


def as_text(results: "Results", width: int = TEXT_WIDTH) -> str:
    """The tables as plain text."""
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=False).print(results)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def as_html(results: "Results") -> str:
    """The tables for a notebook; every text is escaped."""
    blocks, rest = cropped(blocks_of(results))
    parts = []
    for block in blocks:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in block.columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in line) + "</tr>"
            for line in block.lines
        )
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in block.notes)
        parts.append(
            f"<p><b>{html.escape(block.heading)}</b></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"
        )
    parts += [f"<div>{html.escape(line)}</div>" for line in [*([rest] if rest else []), *summary(results)]]
    return "".join(parts)
