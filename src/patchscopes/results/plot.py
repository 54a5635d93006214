"""Layers against texts, controls beside: one figure, readable in black and white.

The y axis is ℓ, from the lowest at the bottom; a column each for the cells' texts and for every control that differs
between layers. A hit is bold, behind a ✓.
"""

import io
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font, get_font_names
from matplotlib.ft2font import FT2Font

from patchscopes.errors import OptionError
from patchscopes.results.blocks import Beside, Block, block_of, marked, place_of
from patchscopes.results.candidates import Candidates
from patchscopes.results.entry import Entry, escaped, quoted, ranges
from patchscopes.results.headings import answers_of
from patchscopes.results.rows import Record
from patchscopes.results.summary import caption
from patchscopes.spec import Row

SIZE = 8.0  # of the texts, in points
LINE_INCHES, NOTE_INCHES = 0.22, 0.19
ALONE_INCHES, TEXT_INCHES, CONTROL_INCHES, SIDE_INCHES, GAP_INCHES = 7.0, 4.4, 3.4, 0.75, 0.2
BOLD = 1.13  # how much wider bold letters are, at the most that matters
HINTED = 1.05  # and how much wider letters are at screen resolutions, which put them on whole pixels
MISSING = "\N{WHITE SQUARE}"
# DejaVu Sans comes with matplotlib. Where a system has one of the others, texts in more scripts can be shown.
FONTS = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "Hiragino Sans", "Yu Gothic",
    "Microsoft YaHei", "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai",
    "Arial Unicode MS",
)  # fmt: skip


class LayersFigure(Figure):
    """A figure that a notebook shows also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=100)
        return file.getvalue()


def figure(
    results: Record,
    *,
    source_index: int | None,
    position: int | None,
    prompt: str | None,
    target_layer: int | None,
) -> Figure:
    """Draw the cells of one (source, position, prompt, ℓ*); raises OptionError where there are none."""
    wanted = {"source_index": source_index, "position": position, "prompt": prompt, "target_layer": target_layer}
    rows, more = chosen(results, {name: value for name, value in wanted.items() if value is not None})
    if rows[0].candidate is not None:
        from patchscopes.results.heat import heat

        return heat(rows, more, results)
    block = block_of(rows, Beside(results), results)
    header = [column.name for column in block.columns if column.wide]
    columns = [[marked(row) for row in rows], *_controls(block)]
    widths = [TEXT_INCHES if columns[1:] else ALONE_INCHES, *[CONTROL_INCHES] * (len(columns) - 1)]
    above, under = title_of(rows, more, answers_of(rows[0], results.spec)), _notes(block, rows, results)
    page = _Page(sum(widths), LINE_INCHES * (len(rows) + 0.4), len(above), len(under))
    drawn = LayersFigure(figsize=page.size)
    FigureCanvasAgg(drawn)
    axes = drawn.add_axes(page.axes)
    left = [sum(widths[:i], 0.0) for i in range(len(widths))]
    for x, width, column in zip(left, widths, columns, strict=True):
        for y, entry in enumerate(column):
            _text(axes, (x, float(y)), entry, width - GAP_INCHES)
    _frame(axes, [str(row.source_layer) for row in rows], left, header)
    axes.set_xlim(-0.05, sum(widths))
    points = 72 * page.size[0] - 80
    font: dict[str, Any] = {
        "family": list(families()),
        "fontsize": SIZE + 0.5,
        "linespacing": 1.45,
        "parse_math": False,
    }
    axes.set_title("\n".join(fitted(line, points) for line in above), loc="left", pad=10, **font)
    axes.set_xlabel("\n".join(fitted(line, points) for line in under), loc="left", labelpad=8, **font)
    return drawn


@dataclass(frozen=True, slots=True)
class _Page:
    """Where everything stands, in inches: a title, the columns, and notes under them."""

    columns: float
    lines: float
    n_above: int
    n_under: int

    @property
    def size(self) -> tuple[float, float]:
        return SIDE_INCHES + self.columns, self._top + self.lines + self.n_under * NOTE_INCHES + 0.25

    @property
    def axes(self) -> tuple[float, float, float, float]:
        """Left, bottom, width and height, as shares of the figure."""
        width, height = self.size
        bottom = height - self._top - self.lines
        return (SIDE_INCHES - 0.1) / width, bottom / height, self.columns / width, self.lines / height

    @property
    def _top(self) -> float:
        return self.n_above * NOTE_INCHES + 0.45


def chosen(results: Record, wanted: dict[str, object]) -> tuple[list[Row], str]:
    """The cells to draw, by ℓ, and what was left out for them."""
    leads = Candidates(results).leads
    cells = [r for r in results if r.control is None and r.position is not None and r.sample == 0 and leads(r)]
    found = [row for row in cells if all(getattr(row, name) == value for name, value in wanted.items())]
    if not found:
        there = {name: sorted({getattr(row, name) for row in cells}) for name in ("source_index", "position", "prompt")}
        shown = "; ".join(f"{name}: {', '.join(map(str, values[:12]))}" for name, values in there.items())
        asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items()) or "any"
        raise OptionError(f"there are no cells to plot ({asked}); those that there are have {shown or 'nothing'}.")
    first = found[0]
    here = [row for row in cells if place_of(row) == place_of(first)]
    more = []
    n_places = len({place_of(row) for row in cells})
    if n_places > 1:
        more.append(f"1 of {n_places:,} places: choose with source_index=, position=, prompt=")
    layers = list(dict.fromkeys(row.target_layer for row in here if row.target_layer is not None))
    if any(row.source_layer != row.target_layer for row in here):
        here = [row for row in here if row.target_layer == first.target_layer]
        if len(layers) > 1:
            more.append(f"ℓ* is {ranges(layers)} in all: choose with target_layer=")
    elif "target_layer" in wanted:
        here = [row for row in here if row.target_layer == first.target_layer]
    if any(row.sample for row in results):
        more.append("sample 0")
    if any(row.draw for row in results):
        more.append("draw 0")
    return sorted(here, key=lambda row: row.source_layer or 0), "; ".join(more)


def _controls(block: Block) -> list[list[Entry]]:
    """The columns of the controls, top to bottom as the block has them."""
    return [[line[i] for line in block.lines] for i, column in enumerate(block.columns) if column.role == "control"]


def title_of(rows: list[Row], more: str, answers: list[str]) -> list[str]:
    """The lines over a figure: what was read, where it was written, what was expected, what is left out."""
    first = rows[0]
    paired = all(row.source_layer == row.target_layer for row in rows)
    lines = [
        f"{quoted(first.source or '', 70)}: what the state of {first.token!r} (position {first.position}) says",
        f"prompt {quoted(first.prompt or '', 70)}, written at {'ℓ* = ℓ' if paired else f'ℓ* = {first.target_layer}'}",
    ]
    if answers:
        lines.append(f"expected {' or '.join(quoted(answer, 30) for answer in answers)}")
    return [*lines, f"({more})"] if more else lines


def _notes(block: Block, rows: list[Row], results: Record) -> list[str]:
    lines = [f"{name}: {said.text}" for name, said in block.once]
    lines += block.notes
    lines.append("layer ℓ: the residual stream after ℓ blocks; 0 is what enters the first")
    if any(row.expected is not None for row in rows):
        n_hits = sum(bool(row.expected) for row in rows)
        leaks = "; in brackets: it had leaked" if any("leaked" in row.flags for row in rows) else ""
        lines.append(f"✓ bold: an expected answer is in the text ({n_hits} of {len(rows)} cells); ✗: none is{leaks}")
    texts = "".join(entry.text for line in block.lines for entry in line)
    if any(not _font_of(character) for character in escaped(texts)):
        lines.append(f"{MISSING}: a character that no font here has")
    return [*lines, caption(results)]


def _frame(axes: Axes, layers: list[str], left: list[float], names: list[str]) -> None:
    axes.set_ylim(-0.6, len(layers) - 0.4)
    axes.set_yticks(range(len(layers)), layers, fontsize=SIZE)
    axes.set_ylabel("layer ℓ", fontsize=SIZE + 1)
    axes.set_xticks(left, names, ha="left", fontsize=SIZE + 1, fontweight="bold")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for y in range(0, len(layers), 2):
        axes.axhspan(y - 0.5, y + 0.5, color="0.955", zorder=0, linewidth=0)
    for x in left[1:]:
        axes.axvline(x - GAP_INCHES / 2, color="0.8", linewidth=0.6)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _text(axes: Axes, place: tuple[float, float], entry: Entry, width_inches: float) -> None:
    """One line, cropped to a width: a hit is bold, the figure's own words are grey."""
    hit = entry.kind == "hit"
    axes.text(
        *place,
        fitted(entry.text, 72 * width_inches / (BOLD if hit else 1)),
        va="center",
        fontsize=SIZE,
        family=list(families()),
        fontweight="bold" if hit else "normal",
        color="0.45" if entry.kind == "note" else "black",
        parse_math=False,
    )


def fitted(text: str, points: float) -> str:
    """`text` in the letters of these fonts, cropped to a width; a character that no font has is a white square."""
    line = "".join(c if _font_of(c) else MISSING for c in escaped(text))
    widths = [HINTED * _advance(character) for character in line]
    if sum(widths) <= points:
        return line
    room = points - HINTED * _advance("…")
    kept = sum(width <= room for width in accumulate(widths))
    return f"{line[:kept]}…"


@cache
def families() -> tuple[str, ...]:
    """The fonts that there are, in the order in which a character is looked for."""
    there = set(get_font_names())
    return tuple(name for name in FONTS if name in there)


@cache
def _fonts() -> tuple[tuple[FT2Font, frozenset[int]], ...]:
    fonts = [get_font(findfont(name)) for name in families()]
    return tuple((font, frozenset(font.get_charmap())) for font in fonts)


@cache
def _font_of(character: str) -> FT2Font | None:
    return next((font for font, characters in _fonts() if ord(character) in characters), None)


@cache
def _advance(character: str) -> float:
    """How far a character moves the pen, in points."""
    font = _font_of(character)
    if font is None:
        return SIZE
    font.set_size(SIZE, 72)
    return float(font.load_char(ord(character)).linearHoriAdvance) / 65536
