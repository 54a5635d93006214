"""Layers against texts, controls beside: one figure, readable in black and white."""

import textwrap
from typing import TYPE_CHECKING

from patchscopes.errors import OptionError
from patchscopes.results.table import PER_CELL, PER_TARGET_LAYER, ControlIndex, mark, quoted, shown
from patchscopes.spec import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from patchscopes.results.results import Results

CROP = 46
LINE_INCHES, COLUMN_INCHES, HEAD_INCHES = 0.24, 3.9, 1.1


def figure(
    results: "Results",
    *,
    source_index: int | None,
    position: int | None,
    prompt: str | None,
    target_layer: int | None,
) -> "Figure":
    """Draw the cells of one (source, position, prompt, ℓ*); raises OptionError where there are none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wanted = {"source_index": source_index, "position": position, "prompt": prompt}
    cells = [row for row in results if row.control is None and row.position is not None and row.sample == 0]
    for name, value in wanted.items():
        chosen = value if value is not None else (getattr(cells[0], name) if cells else None)
        cells = [row for row in cells if getattr(row, name) == chosen]
    product = any(row.source_layer != row.target_layer for row in cells)
    if product or target_layer is not None:
        chosen = target_layer if target_layer is not None else cells[0].target_layer
        cells = [row for row in cells if row.target_layer == chosen]
    if not cells:
        raise OptionError(f"there are no cells to plot for {wanted}, target_layer={target_layer}.")
    index = ControlIndex(results)
    beside = [name for name in index.asked if name in PER_CELL + PER_TARGET_LAYER]
    under = [name for name in index.asked if name not in beside]
    columns = ["text", *beside]
    drawn = Figure(
        figsize=(0.8 + COLUMN_INCHES * len(columns), HEAD_INCHES + LINE_INCHES * (len(cells) + len(under))),
        layout="constrained",
    )
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    for x, name in enumerate(columns):
        for y, row in enumerate(cells):
            _write(axes, x, y, row if name == "text" else index.beside(name, row))
    axes.set_xlim(-0.02, len(columns))
    axes.set_ylim(-0.5, len(cells) - 0.5)
    axes.set_xticks([x + 0.45 for x in range(len(columns))], columns)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(cells)), [str(row.source_layer) for row in cells])
    axes.set_ylabel("layer ℓ (after ℓ blocks)")
    axes.tick_params(length=0)
    for side in ("right", "bottom"):
        axes.spines[side].set_visible(False)
    notes = [f"{name}: {_cropped(shown(index.beside(name, cells[0])), 2 * CROP)}" for name in under]
    axes.set_xlabel("\n".join(notes), loc="left")
    axes.set_title(_title(results, cells[0], product=product), loc="left", fontsize=10)
    return drawn


def _write(axes: object, x: int, y: int, row: Row | None) -> None:
    """One text; a hit is bold with a tick, a miss is plain, what was not run is grey."""
    sign = mark(row)
    text = f"{sign} {_cropped(shown(row), CROP)}" if sign else _cropped(shown(row), CROP)
    hit = row is not None and bool(row.expected)
    axes.text(  # type: ignore[attr-defined]
        x,
        y,
        text,
        va="center",
        fontsize=7.5,
        family="DejaVu Sans",
        fontweight="bold" if hit else "normal",
        color="black" if row is None or row.status == "ok" else "0.5",
        parse_math=False,
    )


def _cropped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _title(results: "Results", first: Row, *, product: bool) -> str:
    others = len(
        {(r.source_index, r.position, r.prompt) for r in results if r.control is None and r.position is not None}
    )
    lines = textwrap.wrap(
        f"{quoted(first.source or '', 60)}, token {first.token!r} at position {first.position}, prompt "
        f"{quoted(first.prompt or '', 40)}, {f'ℓ* = {first.target_layer}' if product else 'ℓ* = ℓ'}, {first.model}",
        110,
    )
    more = f" (1 of {others} places; choose with source_index=, position=, prompt=)" if others > 1 else ""
    return "\n".join(lines) + more
