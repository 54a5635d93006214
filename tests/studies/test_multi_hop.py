"""multi-hop on made-up relations: a planted repair is found; a guess, and one answer for all, are not."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from data_files import write
from multi_hop_cases import COUNTRIES, ENDING, NOWHERE, STONES, always, folder, guessing, planted
from patchscopes.errors import DataError
from patchscopes.plan import Plan
from patchscopes.spec import Result
from patchscopes.studies import multi_hop, setup
from patchscopes.studies.headline import NEEDED
from patchscopes.studies.multi_hop import design
from patchscopes.studies.multi_hop.design import METHODS, THOUGHTS
from patchscopes.studies.report import Report
from relation_cases import CAPITALS, of, relation
from study_cases import SPEED, Saying, long_model, text_of

FAILED = "logits not finite"
N_TYPES, N_KNOWN = 2, 2 * (len(COUNTRIES) - 1)


@dataclass(frozen=True)
class Done:
    out: Path
    report: Report
    told: list[str]
    runner: Saying

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text(encoding="utf-8"))

    @property
    def page(self) -> str:
        return (self.out / "page.md").read_text(encoding="utf-8")


# Of 8 layers the grid has ℓ 2, 5, 6, 8 and ℓ* 0, 1, 2, 4.
SMALL = replace(design.FULL, sources=(0.25, 0.63, 0.77, 1.0), targets=(0.0, 0.13, 0.23, 0.5))


@pytest.fixture(scope="module", autouse=True)
def small_and_not_timed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
        patch.setattr(design, "FULL", SMALL)
        yield


def done(path: Path, runner: Saying, **options: Any) -> Done:
    told: list[str] = []
    data = options.pop("data", None) or folder(path / "data")
    report = multi_hop.run(
        long_model(), data=data, out=path / "out", runner=lambda _: runner, tell=told.append, **options
    )
    return Done(path / "out", report, told, runner)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("found"), planted((5, 6), (1, 2), plain=COUNTRIES[:2]))


@pytest.fixture(scope="module")
def guessed(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("guessed"), guessing())


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("same"), always(CAPITALS[COUNTRIES[1]]))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_planted_is_found_at_a_placement_chosen_on_other_bridges(found: Done, method: str) -> None:
    places = {tuple(place) for place in found.summary["provenance"]["design"]["placements"][method]}
    assert places == {(5, 1)}, "the first of equals that are planted"
    hits = found.report.finding(f"chosen/{method}")
    assert (hits.estimate, hits.n_items, hits.n_subjects) == (1.0, 2 * N_KNOWN, len(COUNTRIES) - 1)
    for control in NEEDED:
        assert found.report.finding(f"chosen/{method}", control).stands, control
    assert found.report.finding(f"exists/{method}").estimate == 1.0
    assert found.report.finding(f"exists/{method}", "shuffled").low > 0.5
    assert "The finding stands" in found.page


@pytest.mark.parametrize("method", METHODS)
def test_the_gain_is_over_what_the_model_answers_as_text(found: Done, method: str) -> None:
    plain = 2 / (len(COUNTRIES) - 1)
    assert found.report.finding("text/plain").estimate == pytest.approx(plain)
    gain = found.report.finding(f"gain/{method}", "plain")
    assert gain.estimate == pytest.approx(1 - plain)
    # 9 of 11 bridges differ, all one way: 2 of 2⁹ flips. Of eight gains, the four over a thought are surer still.
    assert gain.p == pytest.approx(4 * 2 / 2**9)
    assert found.report.finding(f"repaired/{method}").n_items == 2 * N_KNOWN - 8
    assert found.report.finding(f"repaired/{method}").estimate == 1.0


@pytest.mark.parametrize("thought", THOUGHTS)
def test_what_a_thought_brings_is_told_beside_the_query_alone(found: Done, thought: str) -> None:
    """Two of 11 bridges are answered as text, and no query after a thought."""
    assert found.report.finding(f"text/{thought}").estimate == 0
    for without in ("plain", "plain-long"):
        loss = found.report.finding(f"thought/{thought}", without)
        assert loss.estimate == pytest.approx(-2 / (len(COUNTRIES) - 1)), without
        assert loss.estimate == -found.report.finding(f"text/{without}").estimate
        assert (loss.n_items, loss.n_subjects) == (2 * N_KNOWN, len(COUNTRIES) - 1)
        assert loss.p == 1.0, "two bridges one way, 2 of 2² flips, four times"
    assert "before the query 0.00" in found.page


def test_what_is_compared_for_both_methods_is_corrected_for_both(found: Done) -> None:
    """Rule 19: all of 11 bridges one way are 2 of 2¹¹ flips, of the 9 that fail as text 2 of 2⁹; each twice."""
    for name, n_bridges in (("exists", len(COUNTRIES) - 1), ("repaired", len(COUNTRIES) - 3)):
        for method in METHODS:
            beside = found.report.finding(f"{name}/{method}", "shuffled")
            assert beside.n_subjects == n_bridges
            assert beside.p == pytest.approx(2 * 2 / 2**n_bridges), (name, method)
            assert beside.about.endswith("; p: Holm over both methods")
    assert "over both methods where the paper's score" in found.page


def test_queries_end_as_the_model_is_best_asked(found: Done) -> None:
    queries = [query for _, query in found.summary["provenance"]["design"]["queries"]]
    assert len(queries) == 2 * N_KNOWN
    texts = {cell.target_ids for cell in found.runner.cells if cell.masked}
    tokenizer = long_model().tokenizer
    assert texts
    assert all(tokenizer.decode(list(ids)).endswith(ENDING) for ids in texts)
    assert "they end as this model is best asked" not in found.page
    assert "queries end as this model is best asked" in found.page


def test_everything_is_accounted_for(found: Done) -> None:
    excluded = {(e["reason"], e["kind"]): e["count"] for e in found.summary["excluded"]}
    unknown = [n for (reason, _), n in excluded.items() if "first hop" in reason]
    assert unknown == [2 * N_TYPES], "the stones of one country are not known"
    n_read = len(STONES) * N_TYPES
    left_out = sum(n for (_, kind), n in excluded.items() if kind == "query")
    assert len(found.report.tables["queries"]) + left_out == n_read
    assert not {query for _, query in found.summary["provenance"]["design"]["queries"] if STONES[query] == NOWHERE}
    assert found.summary["provenance"]["rows"]
    assert {"findings", "grid", "regions", "types", "queries", "excluded"} <= {
        p.stem for p in (found.out / "tables").iterdir()
    }
    for name in ("page.md", "walk.md", "summary.json"):
        assert (found.out / name).stat().st_size > 500
    assert any("at most" in line for line in found.told)


@pytest.mark.parametrize("method", METHODS)
def test_a_guess_is_no_finding(guessed: Done, method: str) -> None:
    """With 16 placements the paper's score is high, and no higher than with other states."""
    exists, left = guessed.report.finding(f"exists/{method}"), guessed.report.finding(f"exists/{method}", "shuffled")
    assert exists.estimate > 0.25
    assert left.low <= 0
    assert not all(guessed.report.finding(f"chosen/{method}", control).stands for control in NEEDED)
    assert "The finding does not stand" in guessed.page


@pytest.mark.parametrize("method", METHODS)
def test_one_answer_for_all_is_a_prior(same: Done, method: str) -> None:
    assert same.report.finding(f"prior/{method}").estimate == 1.0
    assert same.report.finding(f"prior-among-answered/{method}").estimate == 1.0
    assert same.report.finding(f"chosen/{method}", "shuffled").estimate == 0.0
    regions = same.report.tables["regions"]
    assert (regions[regions.method == method].usual == 1.0).all()
    assert (regions[regions.method == method].usual_among_hits == 1.0).all()


def test_what_differs_by_query_is_no_prior(found: Done) -> None:
    for method in METHODS:
        assert found.report.finding(f"prior/{method}").estimate < 0.3
    regions = found.report.tables["regions"].set_index(["method", "read", "written"])
    assert regions.loc[("back-patching", "late", "early"), "hits"] > 0
    assert regions.loc[("back-patching", "early", "early"), "hits"] == 0
    counted = regions.groupby("method").n_placements.sum()
    assert set(counted) == {len(found.report.tables["grid"]) // 2}


def test_a_run_that_was_done_is_not_done_again(found: Done) -> None:
    n = len(found.runner.cells)
    again = multi_hop.run(long_model(), data=found.out.parent / "data", out=found.out, runner=lambda _: found.runner)
    assert list(again.findings) == list(found.report.findings)
    new = [cell for cell in found.runner.cells[n:] if cell.readout.kind != "candidates"]
    assert not new, "all but the walk's contrasts is kept"


def test_quick_runs_fewer(tmp_path: Path) -> None:
    quick = done(tmp_path, planted((4,), (1,)), quick=True)
    assert len(quick.report.tables["queries"]) == design.QUICK.n_queries < 2 * N_KNOWN
    assert quick.summary["provenance"]["quick"] is True
    assert len(quick.report.tables["grid"]) < 2 * len(SMALL.sources) * len(SMALL.targets)


class Failing(Saying):
    """What is planted; texts that nothing is written into fail where `fails` says so."""

    def __init__(self, fails: Callable[[str], bool]) -> None:
        super().__init__(planted((5, 6), (1, 2)).say, lambda cell, ids: -1.0)
        self.fails = fails

    def run(self, plan: Plan) -> Iterator[Result]:
        for result in super().run(plan):
            cell = plan.cells[result.index]
            fails = cell.write is None and not cell.masked and self.fails(text_of(cell.target_ids))
            yield Result(result.index, None, None, None, failure=f"{FAILED}\nat step 3") if fails else result


def test_a_text_that_fails_is_no_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query without one of its results is left out of all, with the reason: of a hop, or of the query as text."""
    monkeypatch.setattr(design, "FULL", replace(SMALL, sources=(0.63,), targets=(0.13,)))
    old, new, other = (next(s for s, c in STONES.items() if c == COUNTRIES[k] and w in s)
                       for k, w in ((0, "Old"), (0, "New"), (3, "Old")))  # fmt: skip
    fails = {
        f"The land of {old}",  # both queries of the stone; with an ending, the hop is not known
        f"The capital of {COUNTRIES[1]}{ENDING}",  # of both its stones
        f"The capital of the land of {other}{ENDING}",
        f"The largest city of the land of {new}. {design.COT}",
    }
    report = done(tmp_path, Failing(fails.__contains__)).report
    left = {e.item for e in report.excluded if e.reason == FAILED}
    both = [stone for stone, country in STONES.items() if country == COUNTRIES[1]]
    assert {name.rpartition(": ")[2] for name in left} == {old, new, other, *both}
    assert len(left) == sum(e.reason == FAILED for e in report.excluded) == 2 + 2 + 1 + 1
    for name in ("text/plain", "text/cot-after", "chosen/two-prompts", "repaired/back-patching"):
        assert report.finding(name).n_items == len(report.tables["queries"]) == 2 * N_KNOWN - len(left), name
    assert sum("first hop" in e.reason for e in report.excluded) == 2 * N_TYPES, "the stones of one country, as before"


def test_too_few_that_are_left_are_refused_with_the_reason(tmp_path: Path) -> None:
    few = rf"{2 * N_KNOWN} queries that are run, 0 over 0 bridges have all .*{{'{FAILED}': {2 * N_KNOWN}}}"
    with pytest.raises(DataError, match=few):
        done(tmp_path, Failing(lambda text: text.endswith(design.COT)))


def test_too_little_is_refused_with_the_figures(tmp_path: Path) -> None:
    data = tmp_path / "apart"
    write(data / "a.json", relation("a", "The a of {}", of(CAPITALS)))
    write(data / "b.json", relation("b", "The b of {}", of(CAPITALS)))
    with pytest.raises(DataError, match="no two of the 2 relations can be composed"):
        done(tmp_path, planted((4,), (1,)), data=data)
    ignorant = Saying(lambda cell: " nothing", lambda cell, ids: -1.0)
    with pytest.raises(DataError, match=r"knows both hops of 0 queries over 0 bridges.*first hop from text': 48"):
        done(tmp_path / "ignorant", ignorant)


def test_what_it_costs_is_reckoned_on_types_that_have_donors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query more than the first type has would leave the second with one, which no other state stands beside."""
    monkeypatch.setattr(design, "FULL", replace(SMALL, n_queries=len(STONES) + 1))
    with pytest.raises(DataError, match="knows both hops of 0 queries"):
        done(tmp_path, Saying(lambda cell: " nothing", lambda cell, ids: -1.0))
