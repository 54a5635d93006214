"""Candidates against layers: what the write adds to each one's log-probability, controls under the cells.

The x axis is ℓ. Every field has its number, so that the figure reads in black and white; a frame marks the candidate
that is the likeliest there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from patchscopes.results.blocks import Beside
from patchscopes.results.candidates import NAME_WIDTH, Candidates
from patchscopes.results.entry import cropped, nats
from patchscopes.results.headings import answers_of
from patchscopes.results.plot import SIZE, LayersFigure, families, fitted, title_of
from patchscopes.results.rows import Record
from patchscopes.results.summary import caption
from patchscopes.spec import Row

FIELD_INCHES, LINE_INCHES, NOTE_INCHES = 0.36, 0.22, 0.19
NAMES_INCHES, EDGE_INCHES, MIN_INCHES, GAP_INCHES = 3.0, 0.3, 7.5, 0.6
SMALL = 5.5  # of the numbers, in points


def heat(rows: Sequence[Row], more: str, results: Record) -> Figure:
    """Draw the cells that `rows` lead, by ℓ, and under them each control that tells layers apart."""
    beside = Beside(results)
    scored = beside.candidates
    panels: dict[str, list[Row | None]] = {"the state of the source": [*rows]}
    panels |= {
        name: [beside.row(name, row) for row in rows] for name in beside.names if beside.tells_layers_apart(name)
    }
    panels = {name: found for name, found in panels.items() if any(found)}
    names = list(dict.fromkeys(one.candidate for row in rows for one in scored.of(row)))
    largest = max((abs(value) for found in panels.values() for value in _differences(found, scored)), default=1.0)
    above = title_of(list(rows), more, answers_of(rows[0], results.spec))
    left_out = [name for name in beside.names if name not in panels and name != "unpatched"]
    under = [*_notes(rows, scored), *([f"not drawn: {', '.join(left_out)}"] if left_out else []), caption(results)]
    width = max(NAMES_INCHES + FIELD_INCHES * len(rows) + EDGE_INCHES, MIN_INCHES)
    tall = LINE_INCHES * len(names)
    top, bottom = NOTE_INCHES * len(above) + 0.5, NOTE_INCHES * len(under) + 0.6
    height = top + bottom + tall * len(panels) + GAP_INCHES * (len(panels) - 1)
    drawn = LayersFigure(figsize=(width, height))
    FigureCanvasAgg(drawn)
    for number, (name, found) in enumerate(panels.items()):
        low = height - top - tall * (number + 1) - GAP_INCHES * number
        across = FIELD_INCHES * len(rows)
        axes = drawn.add_axes((NAMES_INCHES / width, low / height, across / width, tall / height))
        _panel(axes, [_by_name(row, scored) for row in found], names, largest)
        _frame(axes, name, [_label(candidate, rows, scored) for candidate in names], [row.source_layer for row in rows])
    font: dict[str, Any] = {"family": list(families()), "fontsize": SIZE + 0.5, "parse_math": False}
    points = 72 * width - 30
    lines = [(height - 0.12 - NOTE_INCHES * i, text) for i, text in enumerate(above)]
    lines += [(NOTE_INCHES * (len(under) - i) + 0.05, text) for i, text in enumerate(under)]
    for y, text in lines:
        drawn.text(0.1 / width, y / height, fitted(text, points), va="top", **font)
    return drawn


def _differences(found: Sequence[Row | None], scored: Candidates) -> list[float]:
    values = [one.logprob_minus_unpatched for row in found if row is not None for one in scored.of(row)]
    return [value for value in values if value is not None and math.isfinite(value)]


def _by_name(row: Row | None, scored: Candidates) -> Mapping[str | None, Row]:
    return {} if row is None else {one.candidate: one for one in scored.of(row)}


def _panel(
    axes: Axes, by_name: Sequence[Mapping[str | None, Row]], names: Sequence[str | None], largest: float
) -> None:
    """A field for each candidate and layer, the candidates in the order that the cells have."""
    values = [[_difference(fields.get(name)) for fields in by_name] for name in names]
    axes.imshow(values, cmap="RdBu_r", vmin=-1.5 * largest, vmax=1.5 * largest, aspect="auto")
    axes.set_facecolor("0.93")
    for y, name in enumerate(names):
        for x, fields in enumerate(by_name):
            one = fields.get(name)
            if one is None or one.logprob_minus_unpatched is None:
                axes.text(x, y, "·", ha="center", va="center", fontsize=SMALL, color="0.5")
                continue
            first = one.rank == 1
            axes.text(
                x,
                y,
                nats(one.logprob_minus_unpatched, signed=True),
                ha="center",
                va="center",
                fontsize=SMALL,
                fontweight="bold" if first else "normal",
            )
            if first:
                axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fill=False, linewidth=1.1, edgecolor="black"))


def _difference(row: Row | None) -> float:
    return math.nan if row is None or row.logprob_minus_unpatched is None else row.logprob_minus_unpatched


def _label(candidate: str | None, rows: Sequence[Row], scored: Candidates) -> tuple[str, bool]:
    """A candidate with its log-probability where nothing is written, and whether it is an expected answer."""
    found = [one for row in rows for one in scored.of(row) if one.candidate == candidate]
    expected = any(one.expected for one in found)
    without = [
        one.logprob - one.logprob_minus_unpatched
        for one in found
        if one.logprob is not None and one.logprob_minus_unpatched is not None
    ]
    number = f"  {nats(without[0])}" if without else ""
    return f"{'✓ ' if expected else ''}{cropped(candidate or '', NAME_WIDTH)}{number}", expected


def _frame(axes: Axes, name: str, labels: Sequence[tuple[str, bool]], layers: Sequence[int | None]) -> None:
    axes.set_title(name, loc="left", fontsize=SIZE, fontweight="bold", pad=4)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers], fontsize=SIZE - 1)
    axes.set_xlabel("layer ℓ", fontsize=SIZE, loc="left", labelpad=1)
    points = 72 * (NAMES_INCHES - 0.2)
    texts = [fitted(label, points / 1.15) for label, _ in labels]
    axes.set_yticks(range(len(labels)), texts, fontsize=SIZE, family=list(families()), parse_math=False)
    for tick, (_, expected) in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_fontweight("bold" if expected else "normal")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _notes(rows: Sequence[Row], scored: Candidates) -> list[str]:
    lines = [
        "numbers: the candidate's log-probability, in nats, minus that where nothing is written, which is at its name",
        f"framed: the likeliest of the {scored.n_of(rows)} candidates · layer ℓ: the residual stream after ℓ blocks",
    ]
    if any(row.status != "ok" for row in rows):
        lines.append("·: nothing was scored, see the table for why")
    judged = [scored.judged(row) for row in rows]
    if any(row.expected is not None for row in judged):
        n_hits = sum(bool(row.expected) for row in judged)
        lines.append(f"✓ bold: an expected answer; it is the likeliest in {n_hits} of {len(rows)} cells")
    return lines
