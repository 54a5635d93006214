"""Results for people: the blocks drawn for a terminal by rich, and for a notebook in HTML."""

import html
import io
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from patchscopes.results.blocks import Block, Entry, blocks_of
from patchscopes.results.rows import Record
from patchscopes.results.summary import summary

if TYPE_CHECKING:
    from rich.console import RenderableType


TEXT_WIDTH = 140  # where there is no terminal to ask
MAX_BLOCKS, MAX_LINES = 12, 400
GAP = 2
MIN_TEXT, MIN_CONTROL = 30, 20
STYLES = {"plain": "", "hit": "bold", "miss": "", "note": "dim"}
CELL_CSS = "text-align:left;vertical-align:top;white-space:pre-wrap"


def as_rich(results: Record, width: int) -> Iterator["RenderableType"]:
    """The tables as rich renders them in a terminal of `width` columns."""
    blocks, rest = blocks_of(results, max_blocks=MAX_BLOCKS, max_lines=MAX_LINES)
    for block in blocks:
        yield Text(block.heading, style="bold")
        for columns in _parts(block, width):
            yield _table(block, columns, width)
            yield Text("")
        if block.once:
            yield _once(block, width)
        for note in block.notes:
            yield Text(note)
        yield Text("")
    for line in [*([rest] if rest else []), *summary(results)]:
        yield Text(line)


def terminal_width() -> int:
    """How wide the terminal is; 140 columns where there is none."""
    return shutil.get_terminal_size((TEXT_WIDTH, 0)).columns


def as_text(results: Record, width: int = TEXT_WIDTH) -> str:
    """The tables as plain text."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False).print(results)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _once(block: Block, width: int) -> Table:
    """Controls with one text each, one below the other, whole."""
    names = max(cell_len(name) for name, _ in block.once) + 1
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=names, no_wrap=True)
    table.add_column(max_width=max(width - names - 1, 10), overflow="fold")
    for name, said in block.once:
        table.add_row(Text(f"{name}:"), Text(said.text, style=STYLES[said.kind]))
    return table


def _parts(block: Block, width: int) -> list[list[int]]:
    """The columns of each table of a block: one table where all columns have room, else controls go on in another."""
    keys = [i for i, column in enumerate(block.columns) if column.role == "key"]
    text = [i for i, column in enumerate(block.columns) if column.role == "text"]
    controls = [i for i, column in enumerate(block.columns) if column.role == "control"]
    room = width - sum(_natural(block, i) + GAP for i in keys)
    n_first = max((room - MIN_TEXT) // (MIN_CONTROL + GAP), 1)
    n_more = max(room // (MIN_CONTROL + GAP), 1)
    rest = controls[n_first:]
    layers = [i for i in keys if block.columns[i].name not in ("✓", "H")]
    more = [[*layers, *rest[at : at + n_more]] for at in range(0, len(rest), n_more)]
    return [[*keys, *text, *controls[:n_first]], *more]


def _table(block: Block, columns: Sequence[int], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))  # and a divider
    widths = _widths(block, columns, width)
    for i in columns:
        column = block.columns[i]
        justify = "left" if column.wide or column.name in ("control", "prompt", "flags") else "right"
        table.add_column(Text(column.name), justify=justify, no_wrap=True, overflow="ellipsis", width=widths[i])  # type: ignore[arg-type]
    for line in block.lines:
        table.add_row(*(Text(line[i].text, style=STYLES[line[i].kind]) for i in columns))
    return table


def _natural(block: Block, column: int) -> int:
    """How wide a column would be if nothing were cropped."""
    return max(cell_len(block.columns[column].name), *(cell_len(line[column].text) for line in block.lines), 1)


def _widths(block: Block, columns: Sequence[int], width: int) -> dict[int, int]:
    """A width for each column: what it needs, and where that is too much, texts get 3 parts and controls 2."""
    widths = {i: _natural(block, i) for i in columns}
    wide = {i: 3 if block.columns[i].role == "text" else 2 for i in columns if block.columns[i].wide}
    room = width - sum(widths[i] for i in columns if i not in wide) - GAP * len(columns)
    while wide:
        parts = sum(wide.values())
        narrow = [i for i in wide if widths[i] <= room * wide[i] // parts]
        if not narrow:
            widths.update({i: max(room * wide[i] // parts, 4) for i in wide})
            break
        for i in narrow:  # leaves its share to the others
            room -= widths[i]
            del wide[i]
    return widths


def as_html(results: Record) -> str:
    """The tables for a notebook; every text is escaped, and none is cropped."""
    blocks, rest = blocks_of(results, max_blocks=MAX_BLOCKS, max_lines=MAX_LINES)
    parts = []
    for block in blocks:
        once = "".join(f"<div>{html.escape(name)}: {_html(said)}</div>" for name, said in block.once)
        head = "".join(f'<th style="text-align:left">{html.escape(column.name)}</th>' for column in block.columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="{CELL_CSS}">{_html(entry)}</td>' for entry in line) + "</tr>"
            for line in block.lines
        )
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in block.notes)
        parts.append(
            f"<p><b>{html.escape(block.heading)}</b></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{once}{notes}"
        )
    parts += [f"<div>{html.escape(line)}</div>" for line in [*([rest] if rest else []), *summary(results)]]
    return "".join(parts)


def _html(entry: Entry) -> str:
    text = html.escape(entry.text)
    if entry.kind == "hit":
        return f"<b>{text}</b>"
    return f'<span style="opacity:0.6">{text}</span>' if entry.kind == "note" else text
