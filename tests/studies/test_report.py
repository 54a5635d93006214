"""A report and the folder that it is written to."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from patchscopes.analysis.intervals import Interval
from patchscopes.data import DataSet, Exclusion
from patchscopes.errors import OutputError
from patchscopes.models import Model
from patchscopes.reference import Reference
from patchscopes.studies.figures import Bar, bars
from patchscopes.studies.report import Finding, Report, findings_table, provenance_of, shown, shown_p
from patchscopes.studies.setup import Setup

FINDINGS = (
    Finding("rate", 0.5, 0.25, 0.75, 8, 4, None, "a rate", 0.125),
    Finding("rate", -0.5, math.nan, math.inf, 1, 1, "shuffled", "a difference"),
    Finding("never", math.inf, -math.inf, math.nan, 3, 3, None, "what is never reached"),
)


def report(**changes: Any) -> Report:
    figure = bars([Bar("rate", Interval(0.5, 0.25, 0.75, 8, 4))], title="t", x_label="x", note="n")
    table = pd.DataFrame({"name": ["Zoë, “a”", "line\nbreak"], "x": [0.1, math.nan], "n": [1, 2]})
    given = {
        "study": "made-up",
        "findings": FINDINGS,
        "excluded": [
            Exclusion("a", "no keywords", "entity"),
            Exclusion("b: part", "disagree", "part"),
            Exclusion("c", "no keywords", "entity"),
            Exclusion("d", "no keywords", "part"),
        ],
        "tables": {"findings": findings_table(FINDINGS), "odd": table},
        "figures": {"bars": figure},
        "pages": {"page": "# ℓ*\n", "walk": "walk\n"},
        "provenance": {"seed": 3},
        "notes": ["a note"],
        **changes,
    }
    return Report(**given)


def strict(text: str) -> Any:
    """JSON as the standard has it, without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_the_summary_is_json_without_nan_or_infinity(tmp_path: Path) -> None:
    report().write(tmp_path / "new" / "folder")
    summary = strict((tmp_path / "new" / "folder" / "summary.json").read_text(encoding="utf-8"))
    assert summary["schema"] == "patchscopes.study/1"
    assert [finding["low"] for finding in summary["findings"]] == [0.25, None, None]
    assert [finding["high"] for finding in summary["findings"]] == [0.75, None, None]
    assert [finding["estimate"] for finding in summary["findings"]] == [0.5, -0.5, None]
    assert [finding["p"] for finding in summary["findings"]] == [0.125, None, None]
    assert (summary["notes"], summary["provenance"]) == (["a note"], {"seed": 3})


def test_exclusions_are_counted_by_reason_and_kind() -> None:
    assert report().summary()["excluded"] == [
        {"reason": "no keywords", "kind": "entity", "count": 2},
        {"reason": "disagree", "kind": "part", "count": 1},
        {"reason": "no keywords", "kind": "part", "count": 1},
    ]


def test_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    made = report()
    made.write(tmp_path)
    for name, table in made.tables.items():
        parquet = pd.read_parquet(tmp_path / "tables" / f"{name}.parquet")
        csv = pd.read_csv(tmp_path / "tables" / f"{name}.csv")
        pd.testing.assert_frame_equal(parquet, table)
        pd.testing.assert_frame_equal(csv, table, check_dtype=False)
    assert b"\r" not in (tmp_path / "tables" / "odd.csv").read_bytes()


def test_figures_are_png_and_svg_without_a_date(tmp_path: Path) -> None:
    report().write(tmp_path)
    assert (tmp_path / "figures" / "bars.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "figures" / "bars.svg").read_text(encoding="utf-8")
    assert "<svg" in svg
    assert "dc:date" not in svg
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith("# ℓ*\n\n## Figures\n\n![bars](figures/bars.png)\n")
    assert page.endswith("- seed: 3\n"), "what made it"
    assert (tmp_path / "walk.md").read_text(encoding="utf-8") == "walk\n"


@pytest.mark.parametrize("name", ["tables", "figures", "summary.json"])
def test_what_cannot_be_written_to_is_told(tmp_path: Path, name: str) -> None:
    """Something else stands where a folder, or a file, has to be."""
    if name == "summary.json":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write the report to .*give another folder"):
        report().write(tmp_path)


def test_a_finding_stands_where_its_whole_interval_is_above_0() -> None:
    lows = {0.01: True, 0.0: False, -0.01: False, math.nan: False}
    for low, stands in lows.items():
        assert Finding.of("x", Interval(0.5, low, 0.9, 9, 9), "about").stands is stands
    made = Finding.of("x", Interval(0.5, 0.1, 0.9, 9, 8), "about", control="zero", p=0.5)
    assert made == Finding("x", 0.5, 0.1, 0.9, 9, 8, "zero", "about", 0.5)
    assert str(made) == "0.50 (0.10 to 0.90)"


def test_findings_are_found_by_name_and_control() -> None:
    assert report().finding("rate", "shuffled") is FINDINGS[1]
    assert report().finding("rate") is FINDINGS[0]
    with pytest.raises(KeyError, match="'rate' beside 'zero'"):
        report().finding("rate", "zero")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.126, "0.13"), (-0.5, "−0.50"), (-0.001, "0.00"), (math.inf, "never"), (-math.inf, "−∞"), (math.nan, "–")],
)
def test_numbers_are_shown_with_two_decimals(value: float, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.01234, "= 0.0123"), (1e-5, "< 0.0001"), (1.0, "= 1.0000"), (None, "not known"), (math.nan, "not known")],
)
def test_p_is_never_shown_as_nothing(p: float | None, text: str) -> None:
    assert shown_p(p) == text


def test_provenance_says_what_made_it(llama: Model) -> None:
    made = Setup.of(llama, {"seed": 5, "quick": True, "runner": Reference})
    made.counts["choice"] = {"ok": 3}
    made.kept.update({"choice": 2, "names": 4})
    data: DataSet[str] = DataSet("own", ("a",), (), "ab", "here", 3)
    found = provenance_of(made, data=data, design={"target_layer": 1}, began=0.0)
    assert strict(json.dumps(found)) == found
    assert found["model"] == llama.describe()
    assert (found["seed"], found["quick"], found["runner"]) == (5, True, "reference")
    assert found["data"] == {"name": "own", "source": "here", "sha256": "ab", "n_read": 3}
    assert found["design"] == {"target_layer": 1}
    assert found["rows"] == {"choice": {"ok": 3}}
    assert found["rows_kept"] == 6
    assert {"patchscopes", "torch"} <= set(found["versions"])
    assert found["seconds"] > 0
    odd = Setup.of(llama, {"runner": partial(Reference)})
    assert "0x" not in provenance_of(odd, data=data, design={}, began=0.0)["runner"], "no address of an object"
