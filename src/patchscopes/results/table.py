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

from patchscopes.results.blocks import Block, blocks_of
from patchscopes.results.entry import Entry
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
        table.add_row(Text(f"{name}:"), Text(said.whole, style=STYLES[said.kind]))
    return table


def _parts(block: Block, width: int) -> list[list[int]]:
    """The columns of each table of a block: one table where all columns have room, else controls go on in another."""
    keys = [i for i, column in enumerate(block.columns) if column.role == "key"]
    text = [i for i, column in enumerate(block.columns) if column.role == "text"]
    others = [i for i, column in enumerate(block.columns) if column.role in ("more", "control")]
    layers = [i for i in keys if block.columns[i].name not in ("✓", "=", "H", "rank", "Δ")]
    tables: list[list[int]] = [[]]
    # The first control shares the line with a text, however narrow; beside a list it might leave no part whole.
    shares = not any(_is_list(block, i) for i in text)
    left = width - sum(_natural(block, i) + GAP for i in keys)
    left -= sum(_least(block, i) + (0 if shares else GAP) for i in text)
    for i in others:
        needed = _least(block, i) + GAP
        if needed > left and (tables[-1] or not shares):
            tables.append([])
            left = width - sum(_natural(block, k) + GAP for k in layers)
        tables[-1].append(i)
        left -= needed
    return [[*keys, *text, *tables[0]], *([*layers, *more] for more in tables[1:])]


def _least(block: Block, column: int) -> int:
    """How wide a column is at the least, where there is room: a list shows one part whole."""
    if _is_list(block, column):
        return max(cell_len(block.columns[column].name), *(cell_len(line[column].within(0)) for line in block.lines))
    if block.columns[column].role == "more":
        return _natural(block, column)
    return MIN_TEXT if block.columns[column].role == "text" else MIN_CONTROL


def _is_list(block: Block, column: int) -> bool:
    return any(line[column].parts for line in block.lines)


def _table(block: Block, columns: Sequence[int], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))  # and a divider
    widths = _widths(block, columns, width)
    for i in columns:
        column = block.columns[i]
        justify = "left" if column.wide or column.name in ("control", "prompt", "flags") else "right"
        table.add_column(Text(column.name), justify=justify, no_wrap=True, overflow="ellipsis", width=widths[i])  # type: ignore[arg-type]
    for line in block.lines:
        table.add_row(*(Text(line[i].within(widths[i]), style=STYLES[line[i].kind]) for i in columns))
    return table


def _natural(block: Block, column: int) -> int:
    """How wide a column would be if nothing were cropped."""
    return max(cell_len(block.columns[column].name), *(cell_len(line[column].text) for line in block.lines), 1)


def _widths(block: Block, columns: Sequence[int], width: int) -> dict[int, int]:
    """A width for each column: what it needs, and where that is too much, texts get 3 parts and controls 2."""
    widths = {i: _natural(block, i) for i in columns}
    wide = {i: 3 if block.columns[i].role != "control" else 2 for i in columns if block.columns[i].wide}
    room = width - sum(widths[i] for i in columns if i not in wide) - GAP * len(columns)
    while wide:
        parts = sum(wide.values())
        tight = [i for i in wide if _is_list(block, i) and room * wide[i] // parts < _least(block, i) < widths[i]]
        if tight:
            widths[tight[0]] = _least(block, tight[0])
            room -= widths[tight[0]]
            del wide[tight[0]]
            continue
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
        once = "".join(f"<div>{html.escape(name)}: {_html(said, said.whole)}</div>" for name, said in block.once)
        head = "".join(f'<th style="text-align:left">{html.escape(column.name)}</th>' for column in block.columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="{CELL_CSS}">{_html(entry, entry.text)}</td>' for entry in line) + "</tr>"
            for line in block.lines
        )
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in block.notes)
        parts.append(
            f"<p><b>{html.escape(block.heading)}</b></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{once}{notes}"
        )
    parts += [f"<div>{html.escape(line)}</div>" for line in [*([rest] if rest else []), *summary(results)]]
    return "".join(parts)


def _html(entry: Entry, shown: str) -> str:
    text = html.escape(shown)
    if entry.kind == "hit":
        return f"<b>{text}</b>"
    return f'<span style="opacity:0.6">{text}</span>' if entry.kind == "note" else text
