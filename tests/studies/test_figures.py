"""Figures: curves that a black-and-white copy tells apart, and intervals without bounds."""

import math
from io import BytesIO
from itertools import combinations

import pytest

from patchscopes.analysis.intervals import Interval
from patchscopes.studies.figures import Bar, Curve, Panel, bars, draw


def interval(estimate: float, low: float = math.nan, high: float = math.nan) -> Interval:
    return Interval(float(estimate), float(low), float(high), 5, 5)


def curves(n: int) -> list[Curve]:
    return [Curve(f"curve {k}", [0, 1], [interval(k, k - 0.2, k + 0.1)] * 2) for k in range(n)]


@pytest.mark.parametrize("n", [8, 20])
def test_curves_differ_without_colour(n: int) -> None:
    axes = draw([Panel("title", curves(n), "share")], note="note").axes[0]
    lines = [line for container in axes.containers for line in container.lines[:1]]
    looks = [(line.get_linestyle(), line.get_marker(), line.get_color()) for line in lines]
    assert len(looks) == n
    for look, other in combinations(looks, 2):
        assert look[:2] != other[:2], "line or marker"
    if n <= 8:
        assert min(sum(a != b for a, b in zip(*pair, strict=True)) for pair in combinations(looks, 2)) >= 2
    assert all(0 <= float(grey) <= 0.6 for _, _, grey in looks), "dark greys, no colours"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"curve {k}" for k in range(n)]


@pytest.mark.parametrize(
    "bounds", [(math.nan, math.nan), (math.nan, 0.7), (0.1, math.nan), (-math.inf, math.inf), (0.6, 0.4)]
)
def test_intervals_without_bounds_are_drawn(bounds: tuple[float, float]) -> None:
    found = [interval(0.5, *bounds), interval(0.25, 0.0, 0.75)]
    figure = draw([Panel("t", [Curve("a", [0, 1], found)], "y", zero=0.0, marks=((0.5, "half"),))], note="n")
    figure.savefig(BytesIO(), format="svg")
    segments = figure.axes[0].containers[0].lines[2][0].get_segments()
    assert all(math.isfinite(value) for segment in segments for _, value in segment)
    assert [y for _, y in segments[1]] == [0.0, 0.75]
    beside = bars([Bar("one", found[0]), Bar("two", found[1])], title="t", x_label="x", note="n")
    beside.savefig(BytesIO(), format="png")
    assert [label.get_text() for label in beside.axes[0].get_yticklabels()] == ["one", "two"]
    assert [patch.get_width() for patch in beside.axes[0].patches] == [0.5, 0.25]


def test_a_curve_without_points_is_drawn() -> None:
    figure = draw([Panel("t", [Curve("none", [], [])], "y"), Panel("u", curves(1), "y")], note="n")
    figure.savefig(BytesIO(), format="svg")
    assert len(figure.axes) == 2


def test_ticks_stand_at_layers_and_not_between_them() -> None:
    def ticks(x: list[float]) -> list[float]:
        axes = draw([Panel("t", [Curve("a", x, [interval(0.5)] * len(x))], "y")], note="n").axes[0]
        return [float(tick) for tick in axes.get_xticks()]

    assert all(tick.is_integer() for tick in ticks([5, 12, 18, 25]))
    assert not all(tick.is_integer() for tick in ticks([0.1, 0.2, 0.3])), "shares have no whole numbers between them"
