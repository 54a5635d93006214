"""The figure: layers against texts, controls beside, and a title that says what was chosen and what was not."""

import io
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from patchscopes.errors import OptionError
from patchscopes.spec import Row
from rows import make_row, results


def cells(n_layers: int = 4, **changes: object) -> list[Row]:
    return [make_row(source_layer=i, target_layer=i, **{"text": f" text {i}", **changes}) for i in range(n_layers)]


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def title(figure: Figure) -> str:
    return figure.axes[0].get_title(loc="left")


def test_layers_go_up_and_a_control_has_its_column() -> None:
    rows = cells()
    figure = results(*rows, *[replace(row, control="random", text=f" noise {row.source_layer}") for row in rows]).plot()
    axes = figure.axes[0]
    heights = {text.get_text(): text.get_position() for text in axes.texts}
    assert [heights[f" text {i}"][1] for i in range(4)] == [0, 1, 2, 3]
    assert heights[" noise 2"][1] == 2
    assert heights[" noise 2"][0] > heights[" text 2"][0]
    low, high = axes.get_ylim()
    assert low < 0
    assert high > 3
    assert [label.get_text() for label in axes.get_xticklabels()] == ["text", "random"]


def test_hits_are_bold_and_marked() -> None:
    rows = [replace(row, expected=row.source_layer == 2) for row in cells()]
    rows[0] = replace(rows[0], status="inert", reason="late", text=None, expected=None)
    rows[3] = replace(rows[3], flags=("leaked",))
    figure = results(*rows).plot()
    weights = {text.get_text(): text.get_fontweight() for text in figure.axes[0].texts}
    assert weights == {"(inert)": "normal", "✗  text 1": "normal", "✓  text 2": "bold", "(✗)  text 3": "normal"}
    notes = figure.axes[0].get_xlabel()
    assert "1 of 4 cells" in notes
    assert "inert: late (ℓ = 0)" in notes
    assert "in brackets: it had leaked" in notes


def test_the_first_place_is_drawn_and_another_can_be_chosen() -> None:
    rows = [*cells(), *cells(source_index=1, position=5, source="other", text=" b"), *cells(prompt="else", text=" c")]
    given = results(*rows)
    assert "1 of 3 places" in title(given.plot())
    assert written(given.plot()) == [f" text {i}" for i in range(4)]
    assert written(given.plot(position=5)) == written(given.plot(source_index=1)) == [" b"] * 4
    assert written(given.plot(prompt="else")) == [" c"] * 4
    for wrong in ({"source_index": 2}, {"source_index": 0, "position": 5}, {"prompt": "none"}, {"target_layer": 9}):
        with pytest.raises(OptionError, match=r"no cells to plot.*source_index: 0, 1; position: 3, 5"):
            given.plot(**wrong)  # type: ignore[arg-type]


def test_of_a_product_of_layers_one_target_layer_is_drawn() -> None:
    rows = [make_row(source_layer=a, target_layer=b, text=f" {a} to {b}") for a in (0, 1) for b in (2, 3)]
    given = results(*rows)
    assert written(given.plot()) == [" 0 to 2", " 1 to 2"]
    assert "ℓ* = 2" in title(given.plot())
    assert "ℓ* is 2–3 in all" in title(given.plot())
    assert written(given.plot(target_layer=3)) == [" 0 to 3", " 1 to 3"]


def test_draws_and_samples_that_are_left_out_are_said() -> None:
    rows = [*cells(), *cells(sample=1), *cells(control="random"), *cells(control="random", draw=1, text=" d")]
    assert "sample 0; draw 0" in title(results(*rows).plot())
    assert " d" not in written(results(*rows).plot())


def test_texts_stay_in_their_columns() -> None:
    rows = cells(text=" W" * 80, expected=True)
    rows += [replace(row, control="random", text=f" {row.source_layer}" + "i" * 300, expected=None) for row in rows]
    figure = results(*rows).plot()
    figure.canvas.draw()
    axes = figure.axes[0]
    start = axes.transData.transform((axes.get_xticks()[1], 0))[0]
    for text in axes.texts:
        box = text.get_window_extent()
        assert text.get_text().endswith("…")
        assert box.x1 <= (start if text.get_text().startswith("✓") else figure.bbox.x1)


def test_any_text_can_be_drawn_without_a_warning() -> None:
    """Formulas are no formulas, and what no font has is a square and told."""
    texts = [" $x_1^2$ and $broken", " 東京 \U0001f600 \U00020000", " a\x1b[0m\nb", "", " नमस्ते"]
    rows = [make_row(source_layer=i, target_layer=i, text=text, source="in $Spain") for i, text in enumerate(texts)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = results(*rows).plot()
        figure.savefig(io.BytesIO(), format="png")
    assert " $x_1^2$ and $broken" in written(figure)
    assert " a\\x1b[0m⏎b" in written(figure)
    assert "no font here has" in figure.axes[0].get_xlabel()


def test_a_notebook_shows_it_and_pyplot_is_left_alone() -> None:
    assert results(*cells()).plot()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from rows import make_row, results\n"
        "slow = ('torch', 'pandas', 'pyarrow', 'matplotlib', 'rich')\n"
        "assert not [name for name in slow if name in sys.modules], sorted(sys.modules)\n"
        "results(make_row()).plot()\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
