"""Parts of attribute-extraction by hand, and data that is odd: its items are excluded or told apart, never lost."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import patchscopes
from data_files import write
from patchscopes.data import Fact, Relation
from patchscopes.prompts import resolve_positions, tokenize
from patchscopes.spec import InspectionPrompt
from patchscopes.studies import attribute_extraction, setup
from patchscopes.studies.attribute_extraction import cities, design, known
from patchscopes.studies.attribute_extraction.findings import told_apart
from patchscopes.studies.attribute_extraction.hits import ranks
from patchscopes.studies.attribute_extraction.probing import level_of
from patchscopes.studies.report import Report
from relation_cases import CAPITALS, COLOURS, COUNTRIES, TEMPLATES, of, planted, relation
from rows import make_row, results
from study_cases import SPEED, long_model


@pytest.fixture(scope="module", autouse=True)
def no_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
        yield


def case_of(*facts: Fact, name: str = "colour") -> design.Case:
    made = Relation(name, ("The colour of {}",), "They spoke of {}", ("Nobody had heard of {}",), facts)
    return design.Case(made, InspectionPrompt("The colour of {}", placeholder="x"), facts)


def test_ranks_by_hand() -> None:
    """Three objects, ln p −1, −2, −2 with the write, raised by 0, 2, 2: green is first or second, red third."""
    values = {"red": (-1.0, 0.0), "green": (-2.0, 2.0), "blue": (-2.0, 2.0)}
    rows = [
        make_row(source_index=0, source_layer=2, target_layer=1, control=None, draw=0, candidate=name, logprob=logprob,
                 logprob_minus_unpatched=raised, text=None)
        for name, (logprob, raised) in values.items()
    ]  # fmt: skip
    case = case_of(Fact("a berry", "green"), Fact("a cherry", "red"), Fact("a sloe", "green", aliases=("blue",)))
    key = (None, 0, (2, 1), 0)
    rank = ranks(case, results(*rows), [(item, key) for item in range(3)])
    assert rank.first.tolist() == [1 / 2, 0.0, 1.0], "its alias is no competitor"
    assert rank.reciprocal.tolist() == pytest.approx([(1 + 1 / 2) / 2, 1 / 3, 1.0])
    assert rank.gain.tolist() == [2.0, 0.0, 2.0]
    total = np.exp(-1) + 2 * np.exp(-2)
    expected = [-2 - np.log(total), -1 - np.log(total), -2 - np.log(np.exp(-1) + np.exp(-2))]
    assert rank.logprob.tolist() == pytest.approx(expected)


def test_without_a_write_no_object_is_ahead() -> None:
    """The unpatched prompt raises nothing: first with the chance of one in so many, and not never."""
    rows = [
        make_row(source_index=None, source_layer=None, target_layer=None, control="unpatched", draw=0, candidate=name,
                 logprob=-1.0, logprob_minus_unpatched=None, text=None)
        for name in ("red", "green", "blue", "black")
    ]  # fmt: skip
    rank = ranks(case_of(Fact("a berry", "red")), results(*rows), [(0, ("unpatched", None, (None, None), 0))])
    assert (rank.first[0], rank.gain[0]) == (0.25, 0.0)
    assert rank.reciprocal[0] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


@pytest.mark.parametrize(
    ("accuracy", "patchscope", "level"),
    [
        ([0.2, 0.6, 0.7], 0.5, 4.0),
        ([0.6, 0.2, 0.7], 0.5, 8.0),  # once, by chance, is not level
        ([0.1, 0.2, 0.3], 0.5, math.inf),
        ([0.1, 0.2, 0.5], 0.5, 8.0),
        ([0.1, 0.2, 0.3], 0.0, math.nan),
    ],
)
def test_the_probe_is_level_from_where_on_it_stays_so(accuracy: list[float], patchscope: float, level: float) -> None:
    assert level_of([2, 4, 8], accuracy, patchscope) == pytest.approx(level, nan_ok=True)


def test_the_probe_may_choose_from_the_layers_that_are_patched_and_no_others() -> None:
    """Rule 20: the very states that are patched. ℓ 0 is for neither."""
    for quick in (False, True):
        made = design.Design.of(setup.Setup.of(long_model(), {"quick": quick}), 4)
        assert set(made.probed) == {made.placements[k][0] for k in made.eligible}
        assert 0 not in made.probed


def test_relations_have_folders_of_their_own_whatever_letters_they_are_written_in() -> None:
    names = ("country capital", "столица", "язык", "国家", "C++", "C#", "C", "c", "a-b", "a b")
    slugs = [case_of(name=name).slug for name in names]
    assert len(set(slugs)) == len(names)
    assert (slugs[0], slugs[7], slugs[9]) == ("country-capital", "c", "a-b"), "plain names as they are"
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for slug in slugs)


def test_a_subject_that_stands_in_its_sentence_too_is_read_at_the_sentences_end() -> None:
    for subject in ("heard", "had heard of", "o", "(.*"):
        found = design.source(case_of(), Fact(subject, "x"), None)
        other = design.source(case_of(Fact(subject, "x")), Fact(subject, "x"), 0)
        for made in (found, other):
            assert made.at is not None
            tokens = tokenize(long_model(), made.text, bos="auto")
            assert resolve_positions(long_model(), tokens, made.at) == (len(tokens) - 1,)


def test_a_subject_that_cannot_be_read_is_left_out_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = design.source

    def broken(case: design.Case, fact: Fact, context: int | None = None) -> patchscopes.Source:
        made = real(case, fact, context)
        return replace(made, at="not there") if fact.subject == "b" and context == 0 else made

    monkeypatch.setattr(design, "source", broken)
    made = setup.Setup.of(long_model(), {"quick": True})
    relation_ = Relation("r", ("The x of {}",), "Of {}", ("On {}",), tuple(Fact(s, "y") for s in "abc"))
    cases, excluded = design.cases_of(made, [relation_], design.Design.of(made, 1))
    assert sorted(fact.subject for fact in cases[0].facts) == ["a", "c"]
    assert [(e.item, "cannot be read in a sentence" in e.reason) for e in excluded] == [("r: b", True)]


def test_classes_are_counted_without_what_can_be_copied() -> None:
    """Twelve old ones and a young one that can be copied: nothing that is scored can be told apart."""
    facts = (*(Fact(f"the {word}ish", "old") for word in COUNTRIES), Fact("young me", "young", leaks=True))
    case = case_of(*facts)
    made = setup.Setup.of(long_model(), {"quick": True})
    rows = [
        make_row(source_index=k, control="phrase-only", source_layer=None, target_layer=None, draw=0, text=fact.object,
                 prompt=case.prompt.label)
        for k, fact in enumerate(facts)
    ]  # fmt: skip
    kept, excluded = known.known_cases(design.Design.of(made, 1), [case], {case.name: results(*rows)})
    assert not kept
    assert {e.reason for e in excluded if "young" not in e.item} == {known.SINGLE_CLASS}
    assert len(excluded) == len(facts)


@pytest.fixture(scope="module")
def tricky(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Relations in other letters; a subject, and an answer, that stand in the sentences; a key that is not read."""
    path = tmp_path_factory.mktemp("tricky")
    capitals = {c: CAPITALS[c] for c in COUNTRIES} | {"day": "Dayburg", "Ulland": "one"}
    entry = relation("столица", TEMPLATES["capital"], of(capitals)) | {"domain": "geography"}
    write(path / "data" / "1.json", entry)
    write(path / "data" / "2.JSON", relation("язык", TEMPLATES["colour"], of(COLOURS)))
    runner = planted((2, 3), (1, 2), {"day": "Dayburg", "Ulland": "one"})
    report = attribute_extraction.run(long_model(), data=path / "data", out=path / "out", runner=lambda _: runner)
    return report, path / "out"


def test_relations_in_other_letters_run_beside_each_other(tricky: tuple[Report, Path]) -> None:
    report, out = tricky
    assert set(report.provenance["design"]["relations"]) == {"столица", "язык"}
    assert len(list((out / "runs" / "grid").iterdir())) == 2


def test_a_sentence_that_holds_the_answer_is_not_scored_and_counted(tricky: tuple[Report, Path]) -> None:
    """ "On day one we read about Ulland": "one" stands there already. The four other sentences count."""
    report, _ = tricky
    lost = [(e.item, e.kind) for e in report.excluded if e.reason == "the answer stands in this source sentence"]
    assert lost == [("столица: Ulland", "context")]
    assert report.finding("contexts/столица", "shuffled").estimate == 1.0
    assert "day" in set(report.tables["items"].subject)


def test_what_was_not_read_of_the_data_is_told(tricky: tuple[Report, Path]) -> None:
    report, out = tricky
    assert any("domain" in note for note in report.notes)
    assert "domain" in (out / "page.md").read_text(encoding="utf-8")
    assert report.provenance["data"]["n_read"] == 14 + 12


def test_at_most_is_no_less_than_what_is_run(tmp_path: Path) -> None:
    """Each fold at another placement, other sentences and all countries are in the announced number."""
    for number, name in enumerate(("capital", "largest")):
        entry = relation(f"country {name}{' city' * number}", TEMPLATES[name], of(CAPITALS))
        write(tmp_path / "data" / f"{name}.json", entry)
    told: list[str] = []
    runner = planted((2, 3), (1, 2))
    attribute_extraction.run(
        long_model(),
        data=tmp_path / "data",
        out=tmp_path / "out",
        runner=lambda _: runner,
        tell=told.append,
        quick=True,
    )
    announced = int(told[0].split("stages, ")[1].split(" cells")[0].replace(",", ""))
    ran = len([cell for cell in runner.cells if cell.write is not None or cell.readout.kind != "candidates"])
    stages = sum(line.startswith("stage ") for line in told)
    assert int(told[0].split("at most ")[1].split(" stages")[0].replace(",", "")) >= stages
    assert announced >= ran


def countries(*facts: tuple[str, tuple[str, ...], tuple[str, ...]]) -> cities.Pair:
    """The pair of made-up countries: subject, capital with aliases, largest city with aliases."""
    capital, largest = (
        tuple(Fact(name, *[both[which][0], both[which][1:]]) for name, *both in facts) for which in (0, 1)
    )
    return cities.pair_of(
        {
            cities.CAPITAL: case_of(*capital, name=cities.CAPITAL),
            cities.LARGEST: case_of(*largest, name=cities.LARGEST),
        },
        cap=10,
    )


def test_a_city_by_another_name_is_the_same_city() -> None:
    pair = countries(("U", ("Kiev", "Kyiv"), ("Kyiv",)), ("T", ("Ankara",), ("Istanbul",)))
    assert [fact.subject for fact in pair.capital.facts] == ["T", "U"], "those that differ first"
    assert [cities._same(*both) for both in zip(pair.capital.facts, pair.largest.facts, strict=True)] == [False, True]


def test_told_apart_beside_other_countries_and_without_what_leaks() -> None:
    import pandas as pd

    lines = [
        {"country": f"c{k}", "relation": name, "differ": k < 8, "leaks": k == 0, "right": True, "says_other": False,
         "right_shuffled": 0.4, "says_other_shuffled": 0.2}
        for k in range(10) for name in ("country capital", "country largest city")
    ]  # fmt: skip
    found = {(f.name, f.control): f for f in told_apart(pd.DataFrame(lines), seed=0)}
    apart = found["cities-told-apart", "other relation"]
    assert (apart.estimate, apart.n_subjects) == (1.0, 7)
    assert found["cities-told-apart", "shuffled"].estimate == pytest.approx(0.8)
    assert found["cities-right/country capital", "shuffled"].estimate == pytest.approx(0.6)
    assert told_apart(pd.DataFrame(lines)[:0], seed=0) == []
