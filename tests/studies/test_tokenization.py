"""The study tokenization from end to end on a tiny random model, its counts, and that it goes on from its folder."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from patchscopes.data import load_entities
from patchscopes.errors import DataError
from patchscopes.models import Model
from patchscopes.plan import Runner
from patchscopes.studies import STUDIES, find_study, tokenization
from patchscopes.studies.report import Report
from patchscopes.studies.setup import Setup
from patchscopes.studies.tokenization.design import Design
from patchscopes.studies.tokenization.findings import hit_rate
from patchscopes.studies.tokenization.forms import FORMS
from small_entities import entities, roomy_model, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenization")


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return tokenization.run(roomy_model(), data=written(folder), quick=True, out=folder / "out", seed=3)


def design_of(folder: Path) -> Design:
    setup = Setup.of(roomy_model(), {"quick": True, "seed": 3})
    return Design.of(setup, load_entities(folder / "entities.json").items)


def test_it_is_known_by_its_name() -> None:
    assert "tokenization" in STUDIES
    assert find_study("tokenization") is tokenization


def test_every_entity_is_an_item_or_left_out_with_a_reason(report: Report, folder: Path) -> None:
    design = design_of(folder)
    everyone = {str(entity["name"]) for entity in entities()}
    chosen, reported = {e.name for e in design.choosing}, set(report.tables["names"].name)
    left_out = {exclusion.item for exclusion in report.excluded} & everyone
    assert chosen | reported | left_out == everyone
    assert len(chosen) + len(reported) + len(left_out) == len(everyone)
    assert len(reported) == 18, "all that did not choose: nine of each type"


@pytest.mark.parametrize("form", FORMS)
def test_every_name_has_each_form_or_a_reason(report: Report, form: str) -> None:
    table = report.tables["forms"]
    there = list(table[table.form == form].name)
    without = [e.item.removesuffix(f": {form}") for e in report.excluded if e.item.endswith(f": {form}")]
    assert sorted(there + without) == sorted(report.tables["names"].name)
    assert all(exclusion.reason for exclusion in report.excluded)
    if there:
        assert report.finding(f"hit-rate/{form}", FORMS[form]).n_subjects == len(there)


def test_every_name_has_a_split_word_or_a_reason(report: Report) -> None:
    words = list(report.tables["words"].name)
    without = [e.item.removesuffix(": detokenisation") for e in report.excluded if e.item.endswith(": detokenisation")]
    assert sorted(words + without) == sorted(report.tables["names"].name)
    assert report.finding("detokenised/ever").n_subjects == len(words) > 1


def test_the_best_of_all_layers_stands_beside_the_same_of_other_names(report: Report) -> None:
    """Rule 17: whoever is ever resolved, minus the donors that would be."""
    own, left = report.finding("resolved"), report.finding("resolved", "shuffled")
    assert own.estimate == pytest.approx(report.tables["names"]["first"].notna().mean())
    assert left.estimate <= own.estimate
    assert left.p is not None
    assert "Resolved, two layers in a row" in report.pages["page"]


def test_names_are_grouped_by_their_tokens(report: Report) -> None:
    names = report.tables["names"]
    counts = Counter("3+" if n >= 3 else str(n) for n in names.n_tokens)
    assert len(counts) > 1
    for group, n in counts.items():
        finding = report.finding(f"resolved/tokens-{group}")
        among = names[names.n_tokens.clip(upper=3) == int(group[0])]
        assert finding.n_subjects == n
        assert finding.estimate == pytest.approx(among["first"].notna().mean())


def test_forms_have_other_tokens_and_a_difference_that_is_that_of_the_table(report: Report) -> None:
    table = report.tables["forms"]
    assert set(table.form) >= {"upper", "odd-split"}
    odd = table[table.form == "odd-split"]
    assert (odd.more_tokens >= 1).any()
    for form, group in table.groupby("form"):
        finding = report.finding(f"hit-rate/{form}", FORMS[str(form)])
        assert finding.estimate == pytest.approx((group.hit_rate - group.hit_rate_beside).mean())
        assert report.finding(f"more-tokens/{form}", FORMS[str(form)]).estimate == pytest.approx(
            group.more_tokens.mean()
        )


def test_some_texts_are_hits_so_that_the_counts_mean_something(report: Report) -> None:
    assert report.finding("keyword/headline").estimate > 0
    assert report.tables["names"].hit_rate.max() > 0
    assert report.tables["forms"].hit_rate.max() > 0


def test_a_placement_above_layer_0_is_chosen(report: Report) -> None:
    assert report.provenance["design"]["headline_layer"] > 0
    assert set(report.tables["choice"].source_layer) == {3}, "of a model of four layers, in steps of at most three"


def test_layer_0_counts_for_nothing(report: Report) -> None:
    """There the state is the last token itself, which of a name of one token is the whole name as text."""
    assert hit_rate(np.array([[True, True, False], [False, True, True]])).tolist() == [0.5, 1.0]
    assert (report.tables["names"]["first"].dropna() >= 1).all()
    n_above = len(range(1, roomy_model().n_layers))
    shares = report.tables["names"].hit_rate * n_above
    assert shares.to_numpy() == pytest.approx(shares.round().to_numpy())


def test_the_headline_stands_beside_the_controls(report: Report) -> None:
    for control in ("unpatched", "shuffled", "random", "random-state"):
        finding = report.finding("keyword/headline", control)
        assert finding.low <= finding.estimate <= finding.high
        assert finding.p is not None


def test_neighbours_at_layer_0_are_the_tokens_themselves(report: Report) -> None:
    table = report.tables["neighbours"]
    plain = table[(table.form == "plain") & (table.source_layer == 0) & (table["rank"] == 1)]
    last = report.tables["names"].set_index("name").tokens.str.split("|").str[-1]
    assert len(plain) == 12
    for row in plain.itertuples():
        assert row.token == last[row.name]
        assert row.cosine == pytest.approx(1, abs=1e-4)
    assert set(table.groupby(["name", "form", "source_layer"]).size()) == {10}


def test_what_is_written(report: Report, folder: Path) -> None:
    out = folder / "out"
    for name in ("findings", "curves", "names", "forms", "words", "neighbours", "choice"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(out / "tables" / f"{name}.parquet"), report.tables[name], check_dtype=False
        )
        assert (out / "tables" / f"{name}.csv").stat().st_size
    assert {path.stem for path in (out / "figures").glob("*.svg")} == {"number-of-tokens", "forms", "detokenisation"}
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"number-of-tokens", "forms", "detokenisation"}
    page = (out / "page.md").read_text(encoding="utf-8")
    assert "## What was left out" in page
    assert "An odd split (" in page
    counts = Counter(e.reason for e in report.excluded if e.item.endswith(": lower"))
    assert counts
    assert all(f"- {n} × lower: {reason}" in page for reason, n in counts.items())
    walk = (out / "walk.md").read_text(encoding="utf-8")
    assert "| 0 | “" in walk
    assert "odd-split: nearest tokens" in walk


def test_it_goes_on_from_its_folder_with_the_same_findings(report: Report, folder: Path) -> None:
    def none(model: Model) -> Runner:
        raise AssertionError("something was run again")

    again = tokenization.run(
        roomy_model(), data=folder / "entities.json", quick=True, out=folder / "out", seed=3, runner=none
    )
    assert json.dumps(again.summary()["findings"]) == json.dumps(report.summary()["findings"])
    assert again.pages == report.pages


def test_the_cost_is_told_before_it_starts(folder: Path, report: Report) -> None:
    told: list[str] = []
    tokenization.run(
        roomy_model(), data=folder / "entities.json", quick=True, out=folder / "out", seed=3, tell=told.append
    )
    assert "stages" in told[0]
    assert "cells" in told[0]
    assert told[1] == "stage choice"


def test_too_few_entities_are_refused(tmp_path: Path) -> None:
    few = written(tmp_path, entities(5))
    with pytest.raises(DataError, match="no type with 12"):
        tokenization.run(roomy_model(), data=few, quick=True)
