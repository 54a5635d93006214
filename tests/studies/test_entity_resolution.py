"""entity-resolution on made-up entities: everything is accounted for, and a planted signal is found where it is.

A `Saying` runs no model, so that what should be found is known: `planted` brings out the entity at some layers and
never a donor's; `babbling` says words that have nothing to do with the entity.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import patchscopes
from data_files import write
from patchscopes.data import load_entities
from patchscopes.engine import Engine
from patchscopes.errors import DataError, OptionError
from patchscopes.plan import Plan
from patchscopes.reference import Reference
from patchscopes.spec import Result, Row
from patchscopes.studies import entity_resolution, setup
from patchscopes.studies.entity_resolution import design
from patchscopes.studies.report import Report
from study_cases import (
    N_LAYERS,
    N_PER_KIND,
    SPEED,
    Failing,
    Saying,
    babbling,
    broken,
    data_file,
    long_model,
    made_up,
    one_kind,
    planted,
)

PROMPTS = ("entity-description", "sentence-description", "question-description")
FOUR = ("unpatched", "random", "random-state", "shuffled")


@dataclass(frozen=True)
class Done:
    """A study that was run: its folder, its report, what it told, its runner."""

    out: Path
    report: Report
    told: list[str]
    runner: Saying

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def no_timing() -> Iterator[None]:
    """The model is not timed before each study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
        yield


def done(folder: Path, runner: Saying, **options: Any) -> Done:
    told: list[str] = []
    data = data_file(folder, more=broken())
    report = entity_resolution.run(
        long_model(), data=data, out=folder / "out", runner=lambda _: runner, tell=told.append, **options
    )
    return Done(folder / "out", report, told, runner)


@pytest.fixture(scope="module")
def babbled(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("babbled"), babbling("a"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Each entity's own state says its keyword at ℓ 3, 4 and 5 of 8."""
    return done(tmp_path_factory.mktemp("found"), planted(made_up(), (3, 4, 5)))


# ---------------------------------------------------------------------------------------------------- what is accounted


def test_every_entity_is_reported_or_chooses_or_is_left_out_with_a_reason(babbled: Done) -> None:
    summary, n_read = babbled.summary, 3 * N_PER_KIND + len(broken())
    reported, choosing = (summary["provenance"]["design"][part] for part in ("reported", "choosing"))
    left_out = sum(entry["count"] for entry in summary["excluded"] if entry["kind"] == "entity")
    assert len(reported) + len(choosing) + left_out == n_read
    assert left_out == len(broken())
    assert all(entry["reason"] for entry in summary["excluded"])
    names = {entry["name"] for entry in made_up()}
    assert set(reported) | set(choosing) == names, "and none is there twice"
    assert not set(reported) & set(choosing)


def test_no_entity_that_is_reported_chose(babbled: Done) -> None:
    """By the rows themselves: whose states were run before the choice, and whose in all other stages."""
    chose = {row.source for row in patchscopes.open_run(babbled.out / "runs" / "choice") if row.source}
    assert len(chose) == len(babbled.summary["provenance"]["design"]["choosing"])
    for run in (babbled.out / "runs").iterdir():
        if run.name != "choice":
            sources = {row.source for row in patchscopes.open_run(run) if row.source}
            assert sources
            assert not sources & chose, run.name
            bare = {source.removeprefix("All of them were talking about ") for source in chose}
            assert not sources & bare, run.name
    assert set(babbled.report.tables["entities"]["name"]) == set(babbled.summary["provenance"]["design"]["reported"])


def test_a_type_with_too_few_entities_is_left_out_with_the_reason(babbled: Done, tmp_path: Path) -> None:
    reasons = {exclusion.item: exclusion.reason for exclusion in babbled.report.excluded}
    for name in ("Fair One", "Fair Two"):
        assert reasons[name] == "fewer than 12 entities of its type: each part needs 5 donors"
    assert reasons["Leaky"] == "the name or a keyword stands in an inspection prompt"
    with pytest.raises(DataError, match="has 33 entities, and no type with 12 of them"):
        entity_resolution.run(long_model(), data=data_file(tmp_path, n_per_kind=11))


def test_eleven_are_too_few_and_twelve_are_enough(tmp_path: Path) -> None:
    entries = [entry for entry in made_up(12) if entry["type"] != "work"] + made_up(11)[22:]
    setting = setup.Setup.of(long_model(), {})
    made = design.Design.of(setting, load_entities(write(tmp_path / "e.json", entries)).items)
    assert Counter(entity.type for entity in made.reported) == {"person": 6, "place": 6}
    assert Counter(entity.type for entity in made.choosing) == {"person": 6, "place": 6}
    assert len(made.excluded) == 11
    assert {exclusion.kind for exclusion in made.excluded} == {"entity"}


def test_entities_whose_cells_fail_are_left_out_with_the_reason(babbled: Done, tmp_path: Path) -> None:
    """One of each part; also those that drew one of them as a donor."""
    parts = babbled.summary["provenance"]["design"]
    failing = (parts["reported"][0], parts["choosing"][0])
    broke = done(tmp_path, Failing(failing))
    now = broke.summary["provenance"]["design"]
    lost = {e.item for e in broke.report.excluded if e.reason == "logits not finite"}
    assert set(failing) <= lost
    assert set(now["reported"]) | set(now["choosing"]) | lost == set(parts["reported"]) | set(parts["choosing"])
    assert not lost & {*now["reported"], *now["choosing"]}
    assert broke.report.finding("keyword/headline").n_subjects == len(now["reported"]) > 0
    assert any("logits not finite" in note for note in broke.report.notes), "further stages are told of too"


def test_a_model_with_too_few_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has 2 layers; this study needs a model with 3"):
        entity_resolution.run(long_model(2), data=data_file(tmp_path))


# ------------------------------------------------------------------------------------------------------ what is written


def test_the_folder_has_what_the_report_has(babbled: Done) -> None:
    out = babbled.out
    for name in babbled.report.tables:
        assert {p.suffix for p in (out / "tables").glob(f"{name}.*")} == {".csv", ".parquet"}
    for name in ("keyword", "rouge-l", "part-type-entity", "surprisal", "resolution", "controls"):
        assert {p.suffix for p in (out / "figures").glob(f"{name}.*")} == {".png", ".svg"}
    page = (out / "page.md").read_text(encoding="utf-8")
    assert page == babbled.report.pages["page"] + babbled.report.ending()
    assert all(f"figures/{name}.png" in page for name in babbled.report.figures)
    assert str(babbled.summary["provenance"]["seconds"]) in page
    assert "**The finding does not stand**" in page
    for finding in babbled.report.findings:
        assert f"| {finding.name} | {finding.control or ''} |" in page
    for reason in ("no keywords", "fewer than 12 entities of its type"):
        assert f"1 × {reason}" in page or f"2 × {reason}" in page
    assert "{" not in page.replace("{}", "")
    csv = pd.read_csv(out / "tables" / "findings.csv")
    assert list(csv["name"]) == [finding.name for finding in babbled.report.findings]


def test_the_cost_is_told_first_and_the_choice_before_the_rest(babbled: Done) -> None:
    assert babbled.told[0].startswith("8 stages, ")
    assert babbled.told[1] == "stage choice"
    assert babbled.told[2].startswith("chosen on 30 entities that are not reported: ℓ* = ")
    after = ("same", "fixed", "controls", "surprisal", "surprisal-controls", "bare", "short")
    assert babbled.told[3:] == [f"stage {name}" for name in after]


def comparable(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary but for how long it took, what was there already, and in which folder the data was."""
    data = {key: value for key, value in summary["provenance"]["data"].items() if key != "source"}
    made_by = {key: value for key, value in summary["provenance"].items() if key not in ("seconds", "rows_kept")}
    return {**summary, "provenance": {**made_by, "data": data}}


def test_a_study_killed_between_and_within_stages_goes_on_to_the_same(babbled: Done, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Dying(Saying):
        n_plans = 0

        def run(self, plan: Plan) -> Iterator[Result]:
            self.n_plans += 1
            for number, result in enumerate(super().run(plan)):
                if (self.n_plans, number) == (4, 300):  # names, choice, same, fixed
                    raise Killed
                yield result

    dying = Dying(babbling("a").say, babbling("a").score)
    with pytest.raises(Killed):
        done(tmp_path, dying)
    kept = {run.name: len(patchscopes.open_run(run)) for run in (tmp_path / "out" / "runs").iterdir()}
    assert set(kept) == {"choice", "same", "fixed"}, "the rest had not begun"
    assert 0 < kept["fixed"] < babbled.summary["provenance"]["rows"]["fixed"]["ok"]
    assert not (tmp_path / "out" / "summary.json").exists()
    resumed = done(tmp_path, babbling("a"))
    assert comparable(resumed.summary) == comparable(babbled.summary)
    assert (tmp_path / "out" / "walk.md").read_text() == (babbled.out / "walk.md").read_text()
    n_again = sum(cell.readout.kind == "text" for cell in resumed.runner.cells)
    assert n_again < sum(cell.readout.kind == "text" for cell in babbled.runner.cells) - 700


# ------------------------------------------------------------------------------------------------ numbers, recomputed


def rows_of(done: Done, stage: str) -> list[Row]:
    return list(patchscopes.open_run(done.out / "runs" / stage))


def says(row: Row, words: list[str]) -> bool:
    """Whether a word stands whole in what is said before the next entity; nothing of the package's own matching."""
    text = row.text or ""
    cut = re.search(r",\s+[^,:]{1,60}:", text)
    text = (text[: cut.start()] if cut else text).lower()
    return any(re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text) for word in words)


def keywords_by_index(done: Done) -> dict[int, list[str]]:
    """The keywords of each source of the main stages."""
    words = {f"All of them were talking about {entry['name']}": entry["keywords"] for entry in made_up()}
    return {row.source_index: words[row.source] for row in rows_of(done, "fixed") if row.source_index is not None}


def test_the_headline_beside_shuffled_is_what_the_stored_rows_say(babbled: Done) -> None:
    where = babbled.summary["provenance"]["design"]
    place = (where["headline_layer"], where["target_layer"])
    keywords = keywords_by_index(babbled)
    own: dict[int, bool] = {}
    donors: dict[int, list[bool]] = {item: [] for item in keywords}
    for row in rows_of(babbled, "fixed"):
        if row.prompt == PROMPTS[0] and (row.source_layer, row.target_layer) == place:
            if row.control is None:
                own[row.source_index] = says(row, keywords[row.source_index])
            elif row.control == "shuffled":
                donors[row.source_index].append(says(row, keywords[row.source_index]))
    assert {len(found) for found in donors.values()} == {5}
    differences = [own[item] - sum(donors[item]) / 5 for item in keywords]
    finding = babbled.report.finding("keyword/headline", "shuffled")
    assert finding.estimate == pytest.approx(sum(differences) / len(differences))
    assert babbled.report.finding("keyword/headline").estimate == pytest.approx(sum(own.values()) / len(own))
    assert finding.n_subjects == len(keywords) == 18
    assert len(set(differences)) > 2, "a number that says something"


@pytest.mark.parametrize("prompt", [0, 1, 2])
def test_the_resolved_share_is_rule_23_by_plain_loops(babbled: Done, prompt: int) -> None:
    name, keywords = PROMPTS[prompt], keywords_by_index(babbled)
    rows = [row for row in rows_of(babbled, "fixed") if row.prompt == name]
    (unpatched,) = [row for row in rows if row.control == "unpatched"]

    def said(item: int, layer: int, control: str | None) -> list[bool]:
        if name == "entity-description":
            return [says(row, keywords[item]) for row in at[item, layer, control]]
        return [
            any(f" {word.lower()} " in f" {row.text.lower()} " for word in keywords[item])
            for row in at[item, layer, control]
        ]

    at: dict[tuple[int, int, str | None], list[Row]] = {}
    for row in rows:
        at.setdefault((row.source_index, row.source_layer, row.control), []).append(row)
    first: dict[int, int | None] = {}
    last: dict[int, int | None] = {}
    for item in keywords:
        hit = []
        for layer in range(N_LAYERS):
            without = any(f" {word.lower()} " in f" {unpatched.text.lower()} " for word in keywords[item])
            alone = sum(said(item, layer, "shuffled")) <= 1
            hit.append(layer > 0 and said(item, layer, None)[0] and not without and alone)
        pairs = [layer for layer in range(N_LAYERS - 1) if hit[layer] and hit[layer + 1]]
        first[item], last[item] = (pairs[0], pairs[-1]) if pairs else (None, None)
    share = sum(layer is not None for layer in first.values()) / len(first)
    assert babbled.report.finding(f"resolved/fixed/{name}").estimate == pytest.approx(share)
    table = babbled.report.tables["entities"]
    for which, expected in (("first", first), ("last", last)):
        column = [None if pd.isna(layer) else int(layer) for layer in table[f"{which}/fixed/{name}"]]
        assert column == [expected[item] for item in sorted(expected)]
    shares = babbled.report.finding("resolved/fixed/range")
    assert shares.low <= share <= shares.high


# --------------------------------------------------------------------------------------------- nothing, and something


def stands(report: Report) -> bool:
    """Rule 17."""
    return all(report.finding("keyword/headline", control).stands for control in FOUR)


def test_what_knows_nothing_of_the_entities_does_not_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By chance the first of four lower bounds is above 0 in one study of forty: of four, two would be rare."""
    monkeypatch.setattr(design, "QUICK", replace(design.QUICK, n_choosing=8))
    data = one_kind(tmp_path)
    reports = [
        entity_resolution.run(long_model(4), data=data, quick=True, runner=lambda _, k=k: babbling(f"{k}"), seed=k)
        for k in range(4)
    ]
    assert sum(map(stands, reports)) <= 1
    rates = [report.finding("keyword/headline").estimate for report in reports]
    assert max(rates) > 0.1, "words are said that could stand"
    curves = pd.concat(report.tables["curves"] for report in reports)
    adjusted = curves[(curves.score == "keyword") & (curves.kind == "adjusted")].estimate
    assert len(adjusted) == 4 * 4 * 4, "four studies, layers, and pairs of stage and prompt"
    assert abs(adjusted.mean()) < 0.08, "what is left beside donors is nothing; its standard error is 0.025"


def test_a_random_model_s_states_say_nothing_of_the_entities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design, "QUICK", replace(design.QUICK, n_choosing=6, n_reported=8))
    report = entity_resolution.run(long_model(4), data=one_kind(tmp_path), quick=True)
    assert not stands(report)
    assert report.provenance["runner"] == "engine"
    (note,) = [note for note in report.notes if note.startswith("--quick")]
    with_part = {entry["name"] for entry in made_up() if "part" in entry}
    n_parts = len(with_part & set(report.provenance["design"]["reported"]))
    assert n_parts > 0
    assert note == f"--quick: 2 of 16 entities were not run; of the 8 reported, {n_parts} have a misleading part"


def test_a_planted_signal_is_found_where_it_is(found: Done) -> None:
    where = found.report.provenance["design"]
    assert where["headline_layer"] == 4, "the only ℓ that says anything, of those that choose"
    assert where["target_layer"] == 0, "of equals, the earliest"
    entities = found.report.tables["entities"]
    for stage, prompts in (("same", PROMPTS[:1]), ("fixed", PROMPTS)):
        for prompt in prompts:
            assert set(entities[f"first/{stage}/{prompt}"]) == {3}
            assert set(entities[f"last/{stage}/{prompt}"]) == {4}
            assert found.report.finding(f"resolved/{stage}/{prompt}").estimate == 1.0
            median = found.report.finding(f"resolution-median/{stage}/{prompt}")
            assert (median.estimate, median.low, median.high) == (3 / 8, 3 / 8, 3 / 8)
            assert found.report.finding(f"resolved/{stage}/{prompt}", "shuffled").stands, "no donor ever says it"
            layers = [found.report.finding(f"{which}-layer/{stage}/{prompt}").estimate for which in ("first", "last")]
            assert layers == [3 / 8, 4 / 8]
            assert found.report.finding(f"early-first/{stage}/{prompt}").estimate == 1.0, "3 lies before the half of 8"
            assert found.report.finding(f"early-last/{stage}/{prompt}").estimate == 0.0, "4 does not"
            assert found.report.finding(f"peak/{stage}/{prompt}").estimate == 3 / 8
            difference = found.report.finding(f"early-minus-late/{stage}/{prompt}")
            assert difference.estimate == pytest.approx(1 / 3 - 2 / 4), "of ℓ 1, 2, 3 and of 4 to 7"
        assert found.report.finding(f"part-minus-entity/{stage}/early", "shuffled").estimate == 0.0
        assert found.report.finding(f"part-minus-entity/{stage}/later", "shuffled").estimate == pytest.approx(-1 / 2)
        with pytest.raises(KeyError):  # the part is never said, so that its curve has no centre
            found.report.finding(f"part-then-entity/{stage}", "shuffled")


def test_the_planted_headline_stands_beside_every_control(found: Done) -> None:
    assert found.report.finding("keyword/headline").estimate == 1.0
    for control in (*FOUR, "mean", "zero", "phrase-only", "text-only"):
        finding = found.report.finding("keyword/headline", control)
        assert finding.estimate == 1.0, control
        assert finding.stands
        assert finding.p is not None
        assert finding.p < 0.01
    assert stands(found.report)
    assert "The finding stands" in found.report.pages["page"]
    assert found.report.finding("bare-minus-carrier").estimate == -1.0, "nothing was planted without a carrier"
    assert found.report.finding("short-minus-full").estimate == -1.0
    for control in FOUR:
        assert found.report.finding("surprisal-gain", control).estimate == pytest.approx(2.0)


def test_planted_donors_never_hit(found: Done) -> None:
    keywords = keywords_by_index(found)
    shuffled = [row for row in rows_of(found, "fixed") if row.control == "shuffled"]
    assert len(shuffled) == 18 * N_LAYERS * 5 * 3
    assert not any(says(row, keywords[row.source_index]) for row in shuffled)
    assert any("like" in (row.text or "") for row in shuffled), "they say their own"
    curves = found.report.tables["curves"]
    chosen = curves[(curves.stage == "fixed") & (curves.prompt == PROMPTS[0]) & (curves.score == "keyword")]
    for kind in ("own", "adjusted"):
        curve = chosen[chosen.kind == kind].sort_values("source_layer").estimate
        assert curve.tolist() == [0, 0, 0, 1, 1, 1, 0, 0]


def test_the_walk_shows_where_the_entity_is_named(found: Done) -> None:
    walk = found.report.pages["walk"].splitlines()
    named = [line.split("|")[1].strip() for line in walk if "| **the entity** |" in line]
    assert named == ["3", "4", "5"]


def test_the_reference_gives_the_findings_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(design.QUICK, max_new_tokens=2, n_reported=12, n_choosing=12, n_surprisal=6, target_shares=(0.0,))
    monkeypatch.setattr(design, "QUICK", small)
    data, model = one_kind(tmp_path, 12), long_model(3)
    reports = [entity_resolution.run(model, data=data, quick=True, runner=runner) for runner in (Engine, Reference)]
    engine, reference = ([(f.name, f.control, f.estimate, f.low, f.high) for f in r.findings] for r in reports)
    assert [finding[:2] for finding in engine] == [finding[:2] for finding in reference]
    for one, other in zip(engine, reference, strict=True):
        assert one[2:] == pytest.approx(other[2:], abs=5e-3, nan_ok=True), one[0]
    assert [report.provenance["runner"] for report in reports] == ["engine", "reference"]
