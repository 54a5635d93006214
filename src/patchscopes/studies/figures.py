"""Figures of studies: curves by layer with their intervals, and bars; told apart by line and marker, not colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patchscopes.analysis.intervals import Interval

# Line, marker, grey: eight curves differ from each other in two of them, so that a black-and-white copy is as good.
# Behind the first eight, markers come again with other lines.
_FIRST = (
    ("-", "o", "0.0"), ("--", "s", "0.35"), ("-.", "^", "0.2"), (":", "D", "0.5"), ("-", "v", "0.6"),
    ("--", "x", "0.1"), (":", "P", "0.3"), ("-.", "*", "0.55"),
)  # fmt: skip
_LINES = ("-", "--", "-.", ":")
STYLES = tuple(
    (_LINES[(_LINES.index(line) + turn) % len(_LINES)], marker, grey)
    for turn in range(len(_LINES))
    for line, marker, grey in _FIRST
)
WIDTH, HEIGHT = 7.0, 3.6  # inches
FONT = 9.0


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: a mean with its interval at each `x`; no interval is drawn where there is none."""

    label: str
    x: Sequence[int] | Sequence[float]
    intervals: Sequence[Interval]

    @classmethod
    def of(cls, label: str, rows: pd.DataFrame) -> "Curve":
        """The curve over `source_layer` that `rows` of a table of curves hold."""
        intervals = [Interval(r.estimate, r.low, r.high, r.n_items, r.n_subjects) for r in rows.itertuples()]
        return cls(label, list(rows.source_layer), intervals)


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes with its curves; `marks` are vertical lines with what they mean."""

    title: str
    curves: Sequence[Curve]
    y_label: str
    x_label: str = "source layer ℓ"
    zero: float | None = None
    marks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with its interval."""

    label: str
    interval: Interval


def draw(panels: Sequence[Panel], *, note: str) -> Figure:
    """The panels side by side, with a note on what the intervals are."""
    figure = Figure(
        figsize=(WIDTH * (1 if len(panels) == 1 else 0.75 * len(panels)), HEIGHT + 0.3), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        _panel(axes, panel)
    figure.supxlabel(note, fontsize=FONT - 2, x=0.01, ha="left")
    return figure


def bars(found: Sequence[Bar], *, title: str, x_label: str, note: str) -> Figure:
    """Horizontal bars with intervals, the first on top."""
    figure = Figure(figsize=(WIDTH, 1.1 + 0.24 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for k, bar in enumerate(found):
        estimate = bar.interval.estimate
        axes.barh(k, estimate, color="0.8", edgecolor="0.0", height=0.65)
        axes.errorbar(estimate, k, xerr=[[a] for a in _arms(bar.interval)], color="0.0", capsize=2.5, linewidth=1)
    axes.set_yticks(range(len(found)), [bar.label for bar in found], fontsize=FONT - 1)
    axes.invert_yaxis()
    axes.axvline(0, color="0.0", linewidth=0.8)
    _label(axes, title, x_label, "")
    figure.supxlabel(note, fontsize=FONT - 2, x=0.01, ha="left")
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    if all(isinstance(x, int) for curve in panel.curves for x in curve.x):  # layers: there is none between two
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for curve, (line, marker, grey) in zip(panel.curves, cycle(STYLES)):
        means = [interval.estimate for interval in curve.intervals]
        arms = [list(arm) for arm in zip(*map(_arms, curve.intervals), strict=True)]
        axes.errorbar(
            curve.x, means, yerr=arms or None, label=curve.label, linestyle=line, marker=marker, color=grey,
            markersize=3.5, linewidth=1.2, elinewidth=0.6, capsize=1.5,
        )  # fmt: skip
    if panel.zero is not None:
        axes.axhline(panel.zero, color="0.5", linewidth=0.8)
    for x, text in panel.marks:
        axes.axvline(x, color="0.5", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            text, (x, 1), xycoords=("data", "axes fraction"), fontsize=FONT - 2, ha="left", va="top", rotation=90
        )
    _label(axes, panel.title, panel.x_label, panel.y_label)
    if len(panel.curves) > 1:
        axes.legend(fontsize=FONT - 2, frameon=False)


def _label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=FONT, loc="left")
    axes.set_xlabel(x_label, fontsize=FONT)
    axes.set_ylabel(y_label, fontsize=FONT)
    axes.tick_params(labelsize=FONT - 1)
    axes.spines[["top", "right"]].set_visible(False)


def _arms(interval: Interval) -> tuple[float, float]:
    """How far the interval reaches below and above its mean; 0 where it has no bounds."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return 0.0, 0.0
    return max(interval.estimate - interval.low, 0.0), max(interval.high - interval.estimate, 0.0)
