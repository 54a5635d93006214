"""What people see of candidates: their order at each layer, what is raised most, the expected answer's rank."""

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import pandas
import pytest
from matplotlib.figure import Figure

import patchscopes as ps
from conftest import tiny_model
from patchscopes.errors import OptionError
from patchscopes.models import Model
from patchscopes.results import Results, row_from_json, row_to_json
from patchscopes.results.blocks import Beside, blocks_of
from patchscopes.results.entry import Entry, listed, nats
from patchscopes.results.table import as_html, as_text
from patchscopes.spec import SCHEMA, Row

NAMES = ("American actor", "city in Spain", "physicist", "country in Europe")
WITHOUT = (-10.0, -12.0, -9.0, -11.0)  # the prompt alone
BASE = dict.fromkeys((field.name for field in fields(Row)), None) | {
    "cell": "c0", "source": "I went to Spain", "source_index": 0, "position": 3, "token": " Spain",
    "target_positions": (4,), "prompt": "entity-description", "draw": 0, "sample": 0, "flags": (), "status": "ok",
    "model": "tiny", "target_model": "tiny", "seed": 3, "schema": SCHEMA,
}  # fmt: skip


def scored(layer: int | None, logprobs: Sequence[float], *, expect: str = "", **changes: object) -> list[Row]:
    """The rows of one cell: a candidate each."""
    return [
        Row(
            **BASE  # type: ignore[arg-type]
            | {
                "source_layer": layer,
                "target_layer": layer,
                "token_ids": (k, 7),
                "candidate": NAMES[k] if k < len(NAMES) else f"number {k}",
                "logprob": logprob,
                "logprob_per_token": logprob / 2,
                "logprob_minus_unpatched": logprob - WITHOUT[k % 4],
                "rank": sum(other >= logprob for other in logprobs),
                "answer_surprisal": -logprob,
                "expected": (NAMES[k % 4] == expect if expect else None),
            }
            | changes
        )
        for k, logprob in enumerate(logprobs)
    ]


def idle(layer: int, status: str = "inert", **changes: object) -> list[Row]:
    nothing = dict.fromkeys(
        ("token_ids", "logprob", "logprob_per_token", "logprob_minus_unpatched", "rank", "answer_surprisal", "expected")
    )
    return [replace(r, status=status, reason="too late", **nothing | changes) for r in scored(layer, WITHOUT)]  # type: ignore[arg-type]


def results(*rows: Row) -> Results:
    spec = {"readout": {"kind": "candidates"}, "candidates": NAMES, "decoding": {}, "seed": 3}
    return Results(rows, model={"id": "tiny"}, spec=spec, complete=True)


def grid(expect: str = "country in Europe") -> Results:
    """Three layers, the last inert; unpatched, and another state whose order differs."""
    beside = {"control": "random-state"}
    alone = {"control": "unpatched", "source": None, "source_index": None, "position": None, "expected": None}
    return results(
        *scored(0, (-8.0, -12.0, -9.5, -13.0), expect=expect),
        *scored(1, (-14.0, -5.0, -9.0, -4.0), expect=expect),
        *idle(2),
        *scored(None, WITHOUT, **alone),
        *scored(0, (-3.0, -4.0, -2.0, -5.0), expect=expect, **beside),
        *scored(1, (-5.0, -2.0, -3.0, -4.0), expect=expect, **beside),
        *idle(2, **beside),
    )


def line_of(shown: str, layer: int) -> str:
    return next(line for line in shown.splitlines() if line.split()[:1] == [str(layer)])


def test_each_layer_has_one_line_with_its_candidates_in_order() -> None:
    shown = as_text(grid(), 300)
    assert "likeliest of 4: ln p (Δ)" in shown
    first, second = line_of(shown, 0), line_of(shown, 1)
    assert (
        "American actor −8.0 (+2.0) · physicist −9.5 (−0.5) · city in Spain −12.0 (±0.0) · ✓country in Europe" in first
    )
    assert "✓country in Europe −4.0 (+7.0) · city in Spain −5.0 (+7.0) · physicist" in second
    assert "physicist −2.0 (+7.0) · American actor −3.0 (+7.0)" in first, "the control stands beside"
    lines = [line for line in shown.splitlines() if re.match(r"^ ?[012]  ", line)]
    assert len(lines) == 3, "no line per candidate"


def test_the_expected_answer_has_its_mark_rank_and_difference() -> None:
    shown = as_text(grid(), 220)
    header = next(line for line in shown.splitlines() if "likeliest" in line)
    assert header.split()[:4] == ["ℓ", "✓", "rank", "Δ"]
    assert line_of(shown, 0).split()[:4] == ["0", "✗", "4", "−2.0"]
    assert line_of(shown, 1).split()[:4] == ["1", "✓", "1", "+7.0"]
    assert "✗ 4 · physicist" in line_of(shown, 0), "of a control, too"
    assert "expected answer is the likeliest of 4 candidates in 1 of 2 cells, at ℓ = 1" in shown
    assert "expected answer is the likeliest of 4 candidates in 0 of 2 random-state" in shown
    assert "expected answer is raised most in 1 of 2 cells, at ℓ = 1" in shown
    assert "raised most in 0 of 2 random-state" in shown


def test_what_the_write_raises_most_is_told_apart_from_the_likeliest() -> None:
    rows = scored(5, (-9.0, -8.0, -6.0, -11.5))
    lowered = scored(6, [value - 1 for value in WITHOUT])
    shown = as_text(results(*rows, *lowered), 220)
    assert re.search(r"physicist −6\.0 \(\+3\.0\).*  city in Spain \+4\.0", line_of(shown, 5))
    assert line_of(shown, 6).rstrip().endswith("(all lowered)")


def test_the_unpatched_line_has_its_own_whole_order() -> None:
    shown = as_text(grid(), 220)
    said = next(line for line in shown.splitlines() if line.startswith("unpatched: "))
    assert said == "unpatched: physicist −9.0 · American actor −10.0 · country in Europe −11.0 · city in Spain −12.0"


def test_an_expected_answer_that_is_no_candidate_is_told() -> None:
    shown = as_text(grid(expect="Madrid"), 140)
    assert "no candidate is an expected answer" in shown
    assert "rank" not in next(line for line in shown.splitlines() if "likeliest of 4" in line)
    assert "expected answer is the likeliest" not in shown
    assert "no candidate is" not in as_text(grid(expect=""), 140)


def test_leaked_answers_are_in_brackets_and_apart() -> None:
    rows = [replace(row, flags=("leaked",)) for row in scored(0, (-5.0, -1.0, -6.0, -7.0), expect="city in Spain")]
    shown = as_text(results(*rows))
    assert line_of(shown, 0).split()[:3] == ["0", "(✓)", "1"]
    assert "in 0 of 0 cells (1 leaked, apart); in 1 of 1 leaked" in shown


def test_what_was_not_scored_is_one_line_with_one_reason() -> None:
    shown = as_text(grid(), 140)
    assert line_of(shown, 2).split() == ["2", "(inert)", "(inert)"]
    assert shown.count("inert: too late (ℓ = 2)") == 1
    failed = idle(0, "failed", source="", position=None, source_layer=None, target_layer=None, source_index=1)
    assert as_text(results(*scored(0, WITHOUT), *failed)).count("failed: source 1") == 1, "not once per candidate"


def test_rows_are_counted_as_rows_of_candidates() -> None:
    shown = as_text(grid(), 200)
    assert "28 rows: 20 ok, 8 inert (12 of cells, 16 of controls; a row per cell and candidate, of 4)" in shown
    assert "ln p: log-probability of a candidate" in shown
    assert "ln p:" not in as_text(results(replace(scored(0, WITHOUT)[0], candidate=None, text="a")), 200)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_twenty_candidates_are_readable_and_none_is_cropped_in_silence(width: int) -> None:
    rows = [row for layer in range(4) for row in scored(layer, [-float(k + layer) for k in range(20)])]
    shown = as_text(results(*rows, *[replace(row, control="random-state") for row in rows]), width)
    assert max(map(len, shown.splitlines())) <= width
    first = line_of(shown, 0)
    assert first.rstrip().startswith("0  American actor 0.0 (+10.0)")
    parts = first.split("  ")[1]
    assert parts.endswith(" …"), "what is left out is marked"
    assert all(re.fullmatch(r".+ −?\d+\.\d \([+−±]\d+\.\d\)", part) for part in parts.removesuffix(" …").split(" · "))
    assert "…: there are more" in shown or "… after candidates" in shown


def test_a_long_candidate_is_cropped_and_keeps_its_numbers() -> None:
    rows = [replace(row, candidate=f"{'word ' * 20}{k}") for k, row in enumerate(scored(0, WITHOUT))]
    assert re.search(r"word …  ?−9\.0|word wo?r?d?… −9\.0", as_text(results(*rows), 140))


def test_a_cells_rows_may_come_in_any_order_and_in_part() -> None:
    rows = scored(0, (-8.0, -12.0, -9.5, -13.0))
    assert line_of(as_text(results(*rows[::-1]), 220), 0) == line_of(as_text(results(*rows), 220), 0)
    part = as_text(results(*rows)[1:3], 220)
    assert "physicist −9.5 (−0.5) · city in Spain −12.0 (±0.0)" in line_of(part, 0)


def test_controls_without_their_cells_have_a_line_each() -> None:
    shown = as_text(grid().controls, 220)
    assert "their cells are not here" in shown
    assert shown.count("physicist −2.0 (+7.0)") == 1


def test_html_has_what_the_terminal_has_and_escapes_it() -> None:
    rows = [replace(row, candidate=f"<b>{row.candidate}") for row in grid()]
    shown = as_html(results(*rows))
    assert "<b>American" not in shown
    assert "&lt;b&gt;American actor −8.0 (+2.0)" in shown
    assert shown.count("<tr>") == 1 + 3
    scores = [-float(k) for k in range(20)]
    many = results(*scored(0, scores), *scored(None, scores, control="unpatched"))
    assert "number 4 −4.0 (+6.0) …</td>" in as_html(many)
    assert "number 19 −19.0" in as_html(many), "the one order that stands once is whole"


def test_numbers_keep_their_signs() -> None:
    assert [nats(x) for x in (-0.04, 0.0, -3.25, -math.inf, math.nan, None)] == ["0.0", "0.0", "−3.2", "−∞", "?", "?"]
    assert [nats(x, signed=True) for x in (0.04, -0.04, 2.0, -2.0, math.inf)] == ["±0.0", "±0.0", "+2.0", "−2.0", "+∞"]


def test_a_list_gives_way_by_whole_parts() -> None:
    entry = listed(["aaaa", "bbbb", "cccc", "dddd"], 3, head="✓ 1 · ")
    assert entry.text == "✓ 1 · aaaa · bbbb · cccc …"
    assert entry.whole == "✓ 1 · aaaa · bbbb · cccc · dddd"
    assert [entry.within(width) for width in (5, 20, 26)] == ["✓ 1 · aaaa …", "✓ 1 · aaaa · bbbb …", entry.text]
    assert Entry("text").within(2) == Entry("text").whole == "text"


def test_every_format_holds_the_scores() -> None:
    given = grid()
    assert [row_from_json(row_to_json(row)) for row in given] == list(given)
    assert Results.from_json(given.to_json()) == given
    line = list(csv.DictReader(io.StringIO(given.to_csv())))[4]
    assert (line["candidate"], line["rank"], line["logprob_minus_unpatched"]) == ("American actor", "4", "-4.0")
    frame = given.to_pandas()
    assert frame["rank"].tolist()[:5] == [1, 3, 2, 4, 4]
    assert frame["answer_surprisal"].tolist()[:2] == [8.0, 12.0]
    assert frame["rank"][8] is pandas.NA
    assert given.to_arrow().to_pylist() == [row_to_json(row) for row in given]
    assert json.loads(given.to_json())["cells"][8]["logprob"] is None


def numbers(figure: Figure, panel: int) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in figure.axes[panel].texts}


def test_the_figure_shows_differences_by_layer_and_frames_the_likeliest() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = grid().plot()
        figure.savefig(io.BytesIO(), format="png")
    cells, state = figure.axes
    assert [label.get_text() for label in cells.get_xticklabels()] == ["0", "1", "2"]
    names = [label.get_text() for label in cells.get_yticklabels()]
    assert names == ["American actor  −10.0", "city in Spain  −12.0", "physicist  −9.0", "✓ country in Europe  −11.0"]
    assert numbers(figure, 0)[1, 3] == "+7.0"
    assert numbers(figure, 0)[0, 0] == "+2.0"
    assert numbers(figure, 0)[2, 0] == "·", "an inert cell has no number"
    assert state.get_title(loc="left") == "random-state"
    assert numbers(figure, 1)[0, 2] == "+7.0"
    frames = [(round(p.get_x() + 0.47), round(p.get_y() + 0.45)) for p in cells.patches]
    assert frames == [(0, 0), (1, 3)]
    said = [text.get_text() for text in figure.texts]
    assert any("I went to Spain" in line for line in said)
    assert any("it is the likeliest in 1 of 3 cells" in line for line in said)
    with pytest.raises(OptionError, match="no cells to plot"):
        grid().plot(source_index=9)


def test_results_of_a_model_are_shown(tiny: Callable[..., Model]) -> None:
    """From the model to the table: what the table says is what the rows say."""
    given = ps.inspect(
        tiny("llama"),
        ["say the cat", ps.Source("go to Spain", expect=("hello",))],
        prompt="the capital of {} is",
        candidates=["cat", "hello Spain", "hello"],
        controls=("unpatched", "random", "text-only", "zero"),
    )
    assert {row.candidate for row in given} == {"cat", "hello Spain", "hello"}
    shown = as_text(given, 300)
    for layer in range(4):
        of = [row for row in given if (row.source_index, row.source_layer, row.control) == (0, layer, None)]
        parts = [f"{r.candidate} {nats(r.logprob)} (" for r in sorted(of, key=lambda row: row.rank or 0)]
        line = line_of(shown, layer)
        assert [line.find(part) for part in parts] == sorted(line.find(part) for part in parts)
        assert min(line.find(part) for part in parts) > 0
    assert given.plot(source_index=1).axes


def of_two_sets(**options: object) -> Results:
    """Two sources with sets of candidates of their own, of unequal length, and a third with the first one's, turned."""
    sources = [
        ps.Source("say the cat", candidates=("cat", "hello", "hello Spain")),
        ps.Source("go to Spain", candidates=("Wales", "hello"), expect=("Wales",)),
        ps.Source("of Wales", at="Wales", candidates=("hello Spain", "cat", "hello")),
    ]
    return ps.inspect(
        tiny_model("llama"),
        sources,
        prompt="the capital of {} is",
        controls=("unpatched", "zero", "shuffled"),
        **options,
    )


def test_each_table_has_the_controls_of_its_own_candidates() -> None:
    given = of_two_sets(source_layers=[1, 2])
    blocks, rest = blocks_of(given, max_blocks=9, max_lines=99)
    assert (len(blocks), rest) == (3, None), "and none of controls without a cell"
    for block, names in zip(
        blocks, ({"cat", "hello", "hello Spain"}, {"Wales", "hello"}, {"cat", "hello", "hello Spain"}), strict=True
    ):
        assert [column.name for column in block.columns if column.role == "text"] == [
            f"likeliest of {len(names)}: ln p (Δ)"
        ]
        (said,) = [said for name, said in block.once if name == "unpatched"]
        shown = [said.parts, *(line[i].parts for line in block.lines for i, c in enumerate(block.columns) if c.wide)]
        for parts in shown:
            assert not parts or {part.removeprefix("✓").rsplit(" −", 1)[0].split(" −")[0] for part in parts} == names
    shown = as_text(given, 300)
    assert "expected answer is the likeliest of 2–3 candidates" in shown
    assert "a row per cell and candidate, of 2–3" in shown


def test_a_figure_has_the_candidates_of_its_own_source_in_their_order() -> None:
    given = of_two_sets()
    for index, names in (
        (0, ["cat", "hello", "hello Spain"]),
        (1, ["Wales", "hello"]),
        (2, ["hello Spain", "cat", "hello"]),
    ):
        figure = given.plot(source_index=index)
        labels = [label.get_text().removeprefix("✓ ").split("  ")[0] for label in figure.axes[0].get_yticklabels()]
        assert labels == names
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["the state of the source", "zero", "shuffled"]
        of = {
            r.candidate: r
            for r in given
            if r.control == "zero" and r.target_layer == 1 and r.cell in beside(given, names)
        }
        for y, name in enumerate(names):
            assert numbers(figure, 1)[1, y] == nats(of[name].logprob_minus_unpatched, signed=True)
        assert any(f"the likeliest of the {len(names)} candidates" in text.get_text() for text in figure.texts)


def beside(given: Results, names: list[str]) -> set[str | None]:
    """The cells that score just these."""
    found: dict[str | None, set[str | None]] = {}
    for row in given:
        found.setdefault(row.cell, set()).add(row.candidate)
    return {cell for cell, candidates in found.items() if candidates == set(names)}


def test_of_a_slice_a_control_stands_beside_what_is_left_of_its_cell() -> None:
    given = of_two_sets(source_layers=[1])
    cells = [row for row in given if row.source_index == 1 and row.control is None][:1]
    kept = results(*cells, *[row for row in given if row.control == "unpatched"])
    found = Beside(kept).row("unpatched", cells[0])
    assert found is not None
    assert (found.candidate, found.cell in beside(given, ["Wales", "hello"])) == ("Wales", True)
    assert len(Beside(kept).alone(kept)) == 1, "the other set's has no cell here, and is shown by itself"
