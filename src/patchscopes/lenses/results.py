"""A lens table as a value: for a terminal, as JSON, and as CSV.

Axes: layer, position, k.
"""

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from patchscopes.errors import LayerError
from patchscopes.results.entry import cropped, percent
from patchscopes.spec import Bos, Ids, TopToken

SCHEMA = "patchscopes.lens/1"
TOKEN_WIDTH = 12  # of a token in the table; what is longer is cropped
GAP = 2
TEXT_WIDTH = 140  # where there is no terminal to ask


@dataclass(frozen=True, slots=True)
class LensCell:
    """What one layer says at one position, and how far that is from what the model says there in the end.

    `top` has the likeliest tokens; `entropy` and `kl` (of the model's own distribution from this one) are in nats;
    `rank` is the place that this layer gives to the model's own likeliest token, `agrees` whether that is its first.
    """

    layer: int
    position: int
    top: tuple[TopToken, ...]
    entropy: float
    kl: float
    rank: int
    agrees: bool


@dataclass(frozen=True)
class LensTable:
    """A cell for each of `layers` and each token of `text`, layer by layer; `lens` is None for the logit lens.

    `bos` and `top_k` are what was asked for, `cautions` what to beware of in the text.
    """

    text: str
    ids: Ids
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    cells: tuple[LensCell, ...]
    lens: Mapping[str, object] | None
    model: Mapping[str, object]
    versions: Mapping[str, str]
    commit: str | None
    bos: Bos
    top_k: int
    cautions: tuple[str, ...] = ()

    def __getitem__(self, place: tuple[int, int]) -> LensCell:
        """The cell at (layer, position)."""
        layer, position = place
        return self.of_layer(layer)[position]

    def of_layer(self, layer: int) -> tuple[LensCell, ...]:
        """The cells of one layer, in the order of positions. Raises LayerError for one that is not in the table."""
        if layer not in self.layers:
            raise LayerError(f"layer {layer} is not in this table; it has {', '.join(map(str, self.layers))}.")
        start = self.layers.index(layer) * len(self.ids)
        return self.cells[start : start + len(self.ids)]

    def mean_kl(self, layer: int) -> float:
        """The mean of a layer's divergences over positions."""
        return sum(cell.kl for cell in self.of_layer(layer)) / len(self.ids)

    @property
    def name(self) -> str:
        """The lens as a heading calls it."""
        return "logit lens" if self.lens is None else f"{self.lens['kind']} lens {str(self.lens['digest'])[:8]}"

    def to_json(self) -> str:
        """All of it, with where it comes from, as one JSON document."""
        document = {
            "schema": SCHEMA,
            "lens": self.lens,
            "model": self.model,
            "spec": {
                "layers": self.layers,
                "top_k": self.top_k,
                "bos": self.bos,
                "lens": None if self.lens is None else self.lens["digest"],
            },
            "versions": self.versions,
            "commit": self.commit,
            "cautions": self.cautions,
            "text": self.text,
            "tokens": [
                {"position": position, "id": id, "token": token}
                for position, (id, token) in enumerate(zip(self.ids, self.tokens, strict=True))
            ],
            "cells": [_as_json(cell) for cell in self.cells],
        }
        return json.dumps(document, ensure_ascii=False, indent=1)

    def to_csv(self) -> str:
        """A line per cell: the token that was read, and what the layer says after it, `top_1` the likeliest."""
        k = max(len(cell.top) for cell in self.cells)
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        tops = [f"top_{n}{part}" for n in range(1, k + 1) for part in ("", "_id", "_logprob")]
        writer.writerow(["layer", "position", "id", "token", "entropy", "kl", "rank", "agrees", *tops])
        for cell in self.cells:
            read = [cell.layer, cell.position, self.ids[cell.position], self.tokens[cell.position]]
            found = [value for top in cell.top for value in (top.token, top.token_id, top.logprob)]
            writer.writerow([*read, cell.entropy, cell.kl, cell.rank, cell.agrees, *found])
        return file.getvalue()

    def __str__(self) -> str:
        return self.as_text(shutil.get_terminal_size((TEXT_WIDTH, 0)).columns)

    def as_text(self, width: int = TEXT_WIDTH) -> str:
        """The table as plain text of `width` columns."""
        file = io.StringIO()
        Console(file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Blocks of as many positions as the terminal is wide for; the last layer on top."""
        yield Text(f"{self.name} · {self.model['id']} · “{cropped(self.text, 60)}”", style="bold")
        for positions in self._blocks(options.max_width):
            yield _table(self, positions)
            yield Text("")
        yield Text(
            "A column is a token of the text, a line what that layer would say after it, with its probability. "
            "✓ the model's own next token · nats: KL from the model's own distribution, the mean of all positions"
        )

    def _blocks(self, width: int) -> Iterator[list[int]]:
        """Positions that have room beside each other, one at least."""
        left = _left_width(self)
        block: list[int] = []
        used = left
        for position in range(len(self.ids)):
            needed = GAP + _width(self, position)
            if block and used + needed > width:
                yield block
                block, used = [], left
            block.append(position)
            used += needed
        yield block


def _as_json(cell: LensCell) -> dict[str, object]:
    return {
        "layer": cell.layer,
        "position": cell.position,
        "entropy": cell.entropy,
        "kl": cell.kl,
        "rank": cell.rank,
        "agrees": cell.agrees,
        "top": [top._asdict() for top in cell.top],
    }


def _table(table: LensTable, positions: list[int]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    made.add_column("ℓ", justify="right", no_wrap=True)
    made.add_column("nats", justify="right", no_wrap=True)
    for position in positions:
        head = f"{position} {_shown(table.tokens[position])}"
        made.add_column(Text(head), no_wrap=True, width=_width(table, position))
    for layer in reversed(table.layers):
        cells = table.of_layer(layer)
        texts = [
            Text("\n").join(
                Text(_said(cells[position], n), style="bold" if cells[position].agrees and n == 0 else "")
                for n in range(len(cells[position].top))
            )
            for position in positions
        ]
        made.add_row(str(layer), _nats(table.mean_kl(layer)), *texts)
    return made


def _said(cell: LensCell, n: int) -> str:
    top = cell.top[n]
    mark = " ✓" if cell.agrees and n == 0 else ""
    return f"{_shown(top.token)} {percent(top.logprob)}{mark}"


def _shown(token: str) -> str:
    """A token on one line, its first space in sight."""
    return cropped(f"▁{token[1:]}" if token.startswith(" ") else token, TOKEN_WIDTH)


def _nats(value: float) -> str:
    return f"{value:.2f}" if value < 99.995 else f"{value:.0f}"


def _width(table: LensTable, position: int) -> int:
    """How wide a position's column is, in a terminal's columns."""
    head = cell_len(f"{position} {_shown(table.tokens[position])}")
    said = (_said(table[layer, position], n) for layer in table.layers for n in range(len(table[layer, position].top)))
    return max(head, *map(cell_len, said))


def _left_width(table: LensTable) -> int:
    """How wide the columns before the positions are."""
    return 2 + GAP + max(4, *(len(_nats(table.mean_kl(layer))) for layer in table.layers))
