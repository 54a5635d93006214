"""attribute-extraction on made-up relations: everything is accounted for, a planted signal is found, and no other."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchscopes
from data_files import write, write_table
from patchscopes.engine import Engine
from patchscopes.errors import DataError
from patchscopes.studies import attribute_extraction, setup
from patchscopes.studies.attribute_extraction import design
from patchscopes.studies.headline import NEEDED
from patchscopes.studies.report import Report
from relation_cases import CAPITALS, COLOURS, COUNTRIES, TEMPLATES, UNKNOWN, folder, guessing, of, planted, relation
from study_cases import SPEED, Saying, long_model


@dataclass(frozen=True)
class Done:
    out: Path
    report: Report
    told: list[str]
    runner: Saying

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def no_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
        yield


def done(path: Path, runner: Saying, **options: Any) -> Done:
    told: list[str] = []
    report = attribute_extraction.run(
        long_model(), data=folder(path / "data"), out=path / "out", runner=lambda _: runner, tell=told.append, **options
    )
    return Done(path / "out", report, told, runner)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The grid of 8 layers has ℓ 0, 1, 2, 3, 4, 5, 6, 7 and ℓ* 0, 1, 2, 3, 4, 6, in part."""
    return done(tmp_path_factory.mktemp("found"), planted((2, 3), (1, 2)))


@pytest.fixture(scope="module")
def guessed(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("guessed"), guessing())


def test_what_is_planted_is_found_at_a_placement_chosen_without_the_subject(found: Done) -> None:
    for name in ("country capital", "country largest city", "berry colour"):
        places = {tuple(place) for place in found.summary["provenance"]["design"]["placements"][name]}
        assert places == {(2, 1)}, "the first of equals that are planted"
        hits = found.report.finding(f"chosen/{name}")
        n = 11 if name == "berry colour" else 12  # one berry has two colours
        assert (hits.estimate, hits.n_items, hits.n_subjects) == (1.0, n, n)
        for control in NEEDED:
            beside = found.report.finding(f"chosen/{name}", control)
            assert beside.stands, (name, control)
    capital = found.report.finding("chosen/country capital", "shuffled")
    assert capital.estimate == 1.0, "no other country has this capital"
    colour = found.report.finding("chosen/berry colour", "shuffled")
    assert 0.3 < colour.estimate < 1.0, "donors share colours, and then they hit too"


def test_the_papers_score_is_the_best_over_target_layers(found: Done) -> None:
    """Hits at two ℓ of those ≥ 1, whatever ℓ* they need."""
    layers = found.summary["provenance"]["design"]["sources"]
    expected = len({2, 3} & set(layers)) / len([layer for layer in layers if layer])
    assert found.report.finding("exists/country capital").estimate == pytest.approx(expected)
    table = found.report.tables["layers"]
    exists = table[(table.relation == "country capital") & (table.score == "exists")]
    assert dict(zip(exists.source_layer, exists.estimate, strict=True)) == {k: float(k in (2, 3)) for k in layers}


def test_comparisons_of_a_family_are_corrected(found: Done) -> None:
    """Rule 19. All of 12 subjects on one side are 2 of all flips: times three relations, and times seven controls."""
    for name in ("country capital", "country largest city", "berry colour"):
        assert found.report.finding(f"exists/{name}", "shuffled").p == pytest.approx(3 * 2 / 2**12), name
    ranked = [f.p or 0.0 for f in found.report.findings if f.name == "rank-gain/country capital" and f.control]
    assert (len(ranked), min(ranked)) == (7, pytest.approx(7 * 2 / 2**12))


def test_the_grid_shows_where_the_signal_is_and_what_was_chosen(found: Done) -> None:
    grid = found.report.tables["grid"]
    capital = grid[grid.relation == "country capital"].set_index(["source_layer", "target_layer"])
    for place, line in capital.iterrows():
        assert line.estimate == float(place[0] in (2, 3) and place[1] in (1, 2)), place
        assert line.n_chosen == (12 if place == (2, 1) else 0)
    everywhere = grid[grid.relation == "all relations"]
    assert everywhere.n_chosen.sum() == 12 + 12 + 11
    page = (found.out / "page.md").read_text(encoding="utf-8")
    assert "Chosen most often, ℓ → ℓ*: 2 → 1 (35 facts)" in page


def test_the_object_is_ranked_first_where_it_is_raised(found: Done) -> None:
    assert found.report.finding("rank-first/country capital").estimate == 1.0
    assert found.report.finding("rank-gain/country capital").estimate == pytest.approx(2.0)
    assert found.report.finding("rank-first/country capital", "shuffled").estimate == 1.0
    assert found.report.finding("rank-gain/country capital", "random").estimate == pytest.approx(2.0)


def test_capitals_are_told_from_largest_cities_also_where_the_model_does_not_know_them(found: Done) -> None:
    table = found.report.tables["cities"]
    assert len(table) == 2 * 14
    assert set(table.country) == {*COUNTRIES, *UNKNOWN}
    assert set(table[~table.differ].country) == set(COUNTRIES[:3])
    assert set(table[~table.known].country) == set(UNKNOWN)
    assert table.right.all(), "the state says it, though the text does not"
    assert not table[table.differ].says_other.any()
    apart = found.report.finding("cities-told-apart", "other relation")
    assert (apart.estimate, apart.n_subjects) == (1.0, 11)


def test_a_probe_cannot_name_capitals_and_is_told_its_ceiling(found: Done) -> None:
    assert found.report.finding("probe-possible/country capital").estimate == 0.0
    assert found.report.finding("probe-correct/country capital").estimate == 0.0
    assert found.report.finding("patchscope-minus-probe/country capital", "probe").estimate == 1.0
    assert found.report.finding("probe-possible/berry colour").estimate > 0.5
    assert found.report.finding("probe-level-at/country capital").estimate == np.inf, "never"
    entry = next(f for f in found.summary["findings"] if f["name"] == "probe-level-at/country capital")
    assert entry["estimate"] is None


def test_every_fact_is_an_item_or_left_out_with_a_reason(found: Done) -> None:
    summary = found.summary
    reasons = {entry["reason"]: entry["count"] for entry in summary["excluded"]}
    assert reasons["the model does not give the object from text"] == 4, "two countries in two relations"
    assert reasons["a relation with a single class: nothing to tell apart"] == 12
    assert reasons["a relation of which the model knows fewer than 10 facts"] == 4
    n_read = 14 + 14 + 14 + 12 + 4
    assert len(found.report.tables["items"]) + sum(reasons.values()) == n_read
    assert len(found.report.tables["excluded"]) == sum(reasons.values())


def test_guesses_do_not_stand(guessed: Done) -> None:
    """The best of many is inflated; what was chosen on others, and what is left beside shuffled states, is not."""
    assert guessed.report.finding("exists/country capital").estimate > 0.15
    adjusted = guessed.report.finding("exists/country capital", "shuffled")
    assert adjusted.low <= 0 <= adjusted.high
    for name in ("country capital", "country largest city", "berry colour"):
        assert not all(guessed.report.finding(f"chosen/{name}", control).stands for control in NEEDED)
    names = ("country capital", "country largest city", "berry colour")
    ranked = [guessed.report.finding(f"rank-first/{name}", "shuffled") for name in names]
    assert min(finding.p or 0.0 for finding in ranked) * len(ranked) > 0.05, "by the permutation test, over the three"


def test_findings_by_hand_from_the_stored_rows(found: Done) -> None:
    """Held-out hits minus shuffled, for colours, with plain loops over the rows on disk."""
    rows = list(patchscopes.open_run(found.out / "runs" / "grid" / "berry-colour"))
    place = (2, 1)
    by_subject: dict[str, float] = {}
    for row in rows:
        if row.control is None and (row.source_layer, row.target_layer) == place:
            subject = str(row.source).split()[-1]
            hit = COLOURS[subject] in str(row.text)
            donors = [
                COLOURS[subject] in str(other.text)
                for other in rows
                if other.control == "shuffled"
                and other.source_index == row.source_index
                and (other.source_layer, other.target_layer) == place
            ]
            assert len(donors) == 5
            by_subject[subject] = hit - sum(donors) / 5
    finding = found.report.finding("chosen/berry colour", "shuffled")
    assert finding.estimate == pytest.approx(sum(by_subject.values()) / 11)


def test_a_second_run_runs_nothing_and_says_the_same(found: Done, tmp_path: Path) -> None:
    again = planted((2, 3), (1, 2))
    report = attribute_extraction.run(
        long_model(), data=found.out.parent / "data", out=found.out, runner=lambda _: again
    )
    assert {cell.readout.kind for cell in again.cells} == {"candidates"}, "the walk's contrasts, which are not kept"
    assert len(again.cells) <= 2 * 8
    n_rows = sum(sum(counts.values()) for counts in report.provenance["rows"].values())
    assert (found.report.provenance["rows_kept"], report.provenance["rows_kept"]) == (0, n_rows)
    first = [(f.name, f.control, f.estimate, f.low, f.high, f.n_items, f.p) for f in found.report.findings]
    assert [(f.name, f.control, f.estimate, f.low, f.high, f.n_items, f.p) for f in report.findings] == first


def test_the_page_says_what_was_left_out_and_the_walk_shows_one_fact(found: Done) -> None:
    page, walk = ((found.out / name).read_text(encoding="utf-8") for name in ("page.md", "walk.md"))
    assert "3 of 3 relations stand by themselves" in page
    assert "4 × the model does not give the object from text" in page
    assert "are told apart" in page
    assert "| 2 | is " in walk
    assert "**the object**" in walk
    assert any("at most" in line and "cells" in line for line in found.told[:1]), "the cost, before anything else"


def test_the_number_of_facts_falls_with_the_number_of_relations() -> None:
    made = setup.Setup.of(long_model(), {})
    assert design.Design.of(made, 5).cap == 30
    assert design.Design.of(made, 40).cap == 15
    assert design.Design.of(made, 400).cap == design.FEWEST


def test_a_model_that_knows_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of no relation in .* does .* know 10 facts.*does not give the object"):
        attribute_extraction.run(long_model(), data=folder(tmp_path), quick=True, runner=Engine)


def test_leaked_facts_are_reported_apart(tmp_path: Path) -> None:
    """An answer that stands in its subject can be copied: "Borburg Republic" has the capital Borburg."""
    leaking = {f"{answer} Republic": answer for answer in CAPITALS.values()}
    pairs = {**{c: CAPITALS[c] for c in COUNTRIES}, **dict(list(leaking.items())[:3])}
    write(tmp_path / "data" / "r.json", relation("country capital", TEMPLATES["capital"], of(pairs)))
    runner = planted((2, 3), (1, 2), leaking)
    report = attribute_extraction.run(long_model(), data=tmp_path / "data", runner=lambda _: runner, quick=True)
    assert report.finding("leaked/country capital").n_items <= 3
    assert set(report.tables["items"].subject) <= set(COUNTRIES)


def test_the_papers_own_form_is_read(tmp_path: Path) -> None:
    """A table with the subject's own source sentences, which are the contexts."""
    rows = [(c, CAPITALS[c], "The capital of x", f"Long ago I lived in {c} alone") for c in COUNTRIES]
    write_table(tmp_path / "country_capital.tsv", *rows)
    runner = planted((2, 3), (1, 2))
    report = attribute_extraction.run(
        long_model(), data=tmp_path, runner=lambda _: runner, quick=True, out=tmp_path / "out"
    )
    (name,) = report.provenance["design"]["relations"]
    assert report.finding(f"chosen/{name}").estimate > 0
    kept = list((tmp_path / "out" / "runs" / "contexts").iterdir())
    assert kept
    texts = {row.source for row in patchscopes.open_run(kept[0]) if row.source}
    assert all(text.startswith("Long ago I lived in ") for text in texts), texts


def test_quick_runs_the_relations_that_it_prefers_and_others_to_make_up_their_number() -> None:
    from patchscopes.data import Fact, Relation

    names = ["a", "b", "country capital", "c", "country language", "d"]
    made = setup.Setup.of(long_model(), {"quick": True})
    relations = [Relation(n, ("The x of {}",), "Of {}", ("On {}",), (Fact("a", "b"),)) for n in names]
    cases, excluded = design.cases_of(made, relations, design.Design.of(made, len(relations)))
    assert [case.name for case in cases] == ["country capital", "country language", "a", "b"]
    assert len(excluded) == 2
