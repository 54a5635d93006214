"""next-token on made-up prose: everything is accounted for, a planted signal is found, and no other."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import next_token_cases
import patchscopes
from families import tiny_tokenizer
from next_token_cases import (
    LETTERS,
    N_FILES,
    N_PASSAGES,
    OTHER,
    PLAIN,
    PLANTED,
    RIGHT,
    WRONG,
    Told,
    guessing,
    next_of,
    passage,
    planted,
    prose,
    unfitted,
)
from patchscopes.analysis import comparisons, intervals
from patchscopes.errors import DataError
from patchscopes.spec import Cell, State
from patchscopes.studies import next_token, setup
from patchscopes.studies.next_token import design, study
from patchscopes.studies.next_token.design import CONTROLS, FITTED, IDENTITY, LENSES, METHODS
from patchscopes.studies.next_token.readings import LEAKED
from patchscopes.studies.report import Report
from study_cases import SPEED, long_model

HIDDEN = 7  # ℓ from 1 to 7, of 8 blocks
WRITTEN = ("random", "random-state", "shuffled", "mean")


SMALL = replace(
    design.QUICK, n_places=30, n_passages=15, n_controlled=12, n_coarse=2, n_paired=6, n_paired_layers=2, n_draws=2
)


@dataclass(frozen=True)
class Done:
    out: Path
    report: Report
    told: list[str]
    runner: Told

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text(encoding="utf-8"))

    def page(self, name: str) -> str:
        return (self.out / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def no_timing_and_no_fits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
        patch.setattr(study, "fitting_s", lambda _: 30.0)
        patch.setattr(study, "fit_lenses", unfitted)
        patch.setattr(design, "QUICK", SMALL)
        patch.setattr(intervals, "N_RESAMPLES", 400)  # a report has some 400 intervals and 200 tests
        patch.setattr(comparisons, "N_PERMUTATIONS", 999)
        yield


def done(path: Path, runner: Told, **options: Any) -> Done:
    told: list[str] = []
    given = {"quick": True, "out": path / "out", **options}
    report = next_token.run(long_model(), data=prose(path / "data"), runner=runner, tell=told.append, **given)
    return Done(path / "out", report, told, runner)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("found"), planted())


@pytest.fixture(scope="module")
def guessed(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("guessed"), guessing())


def curve(report: Report, method: str, score: str = "precision") -> dict[int, float]:
    table = report.tables["curves"]
    some = table[(table.method == method) & (table.score == score)]
    return dict(zip(some.source_layer, some.estimate, strict=True))


def test_what_is_planted_is_what_the_curves_show(found: Done) -> None:
    for method, layers in PLANTED.items():
        assert curve(found.report, method) == {layer: float(layer in layers) for layer in range(8)}, method
        expected = {layer: RIGHT if layer in layers else WRONG for layer in range(8)}
        assert curve(found.report, method, "under-source") == expected
        assert curve(found.report, method, "under-patched") == {layer: nats + 1 for layer, nats in expected.items()}
        depth = found.report.finding(f"precision/{method}")
        assert depth.estimate == pytest.approx(len(layers) / HIDDEN), "without ℓ 0"
        assert depth.n_items == len(found.report.tables["places"])
        nats = found.report.finding(f"under-source/{method}").estimate
        assert nats == pytest.approx((len(layers) * RIGHT + (HIDDEN - len(layers)) * WRONG) / HIDDEN)


def test_from_which_layer_on_a_method_is_right_half_of_the_time(found: Done) -> None:
    half = {method: found.report.finding(f"half/{method}") for method in METHODS}
    assert [half[method].estimate for method in METHODS] == [5, 6, 7, 7, 6], "for good: maps are right at 1 and 2 too"
    assert (half["token-identity"].low, half["token-identity"].high) == (5, 5)
    early = {method: found.report.finding(f"early/{method}").estimate for method in METHODS}
    assert early == {m: len({1, 2} & layers) / 2 for m, layers in PLANTED.items()}, "a quarter of 8 blocks: ℓ 1 and 2"


def test_token_identity_beside_each_lens(found: Done) -> None:
    for prompt in IDENTITY:
        for lens in LENSES:
            ahead = found.report.finding(f"precision-ahead/{prompt}", lens)
            expected = (len(PLANTED[prompt]) - len(PLANTED[lens])) / HIDDEN
            assert ahead.estimate == pytest.approx(expected), (prompt, lens)
            saved = found.report.finding(f"under-source-ahead/{prompt}", lens)
            assert saved.estimate == pytest.approx(expected * (WRONG - RIGHT)), "above 0 is better there as well"
            table = found.report.tables["ahead"]
            some = table[(table.prompt == prompt) & (table.lens == lens) & (table.score == "precision")]
            by_layer = dict(zip(some.source_layer, some.estimate, strict=True))
            own, other = PLANTED[prompt], PLANTED[lens]
            assert by_layer == {layer: (layer in own) - float(layer in other) for layer in range(1, 8)}
            certain = set(some[some.p < 0.05].source_layer)
            assert certain == own ^ other, "and nowhere else"


def test_layers_are_chosen_on_other_folds(found: Done) -> None:
    fixed = {lens: found.report.finding("most-ahead/token-identity", lens).estimate for lens in LENSES}
    assert fixed == {"logit-lens": 1, "affine": 1, "tuned-lens": 1}
    behind = {lens: found.report.finding("most-behind/token-identity", lens).estimate for lens in LENSES}
    assert behind == {"logit-lens": 0, "affine": -1, "tuned-lens": -1}
    assert "chose, 5;" in found.report.finding("most-ahead/token-identity", "affine").about


def test_comparisons_of_a_family_are_corrected(found: Done) -> None:
    """Rule 19. All passages on one side are p = 2 / 1,000 here, times two prompts and three lenses, times two sides."""
    ahead = found.report.finding("precision-ahead/token-identity", "logit-lens")
    assert ahead.p == pytest.approx(6 * 2e-3)
    chosen = found.report.finding("most-ahead/token-identity", "affine")
    assert chosen.p == pytest.approx(12 * 2e-3)


def test_a_method_stands_beside_every_control_where_it_is_right(found: Done) -> None:
    layers = set(found.summary["provenance"]["design"]["control_layers"])
    right = {method for method in METHODS if PLANTED[method] & layers}
    assert right == set(METHODS) - {"logit-lens"}, "which is right at ℓ 7 alone, that has no controls"
    for method in METHODS:
        for control in CONTROLS:
            stands = found.report.finding(f"controlled/{method}", control).stands
            assert stands == (method in right), (method, control)
    page = found.page("page")
    listed = "unpatched, random, random-state, shuffled, mean and zero"
    assert page.count(f"The finding stands: the interval is above 0 beside each of {listed}.") == 2
    table = found.report.tables["controls"]
    assert set(table.control) == {"cell", *CONTROLS}
    random = table[(table.control == "random") & (table.score == "precision")]
    assert set(random.estimate) == {0.0}, "noise says “x”, which no source says next"
    unpatched = table[(table.control.isin(["unpatched", "zero"])) & (table.score == "under-patched")]
    assert set(unpatched.estimate) == {PLAIN}
    assert not ((table.control == "zero") & (table.score == "under-source")).any()


def test_shuffled_states_by_hand_from_the_stored_rows(found: Done) -> None:
    """Token identity minus shuffled, with plain loops over the rows on disk: a mean over ℓ, then over draws."""
    rows = list(patchscopes.open_run(found.out / "runs" / "controls" / "token-identity"))
    main = list(patchscopes.open_run(found.out / "runs" / "main" / "token-identity"))
    fixed = "cat -> cat\n1135 -> 1135\nhello -> hello\n{}"
    layers = found.summary["provenance"]["design"]["control_layers"]
    fixed_rows = [row for row in rows if row.prompt == "token-identity" and row.control == "shuffled"]
    by_place: dict[tuple[str, int], list[float]] = {}
    for row in fixed_rows:
        by_place.setdefault((str(row.source), int(row.position or 0)), []).append(float(row.text == row.source_next))
    assert {len(hits) for hits in by_place.values()} == {5 * len(layers)}
    differences = []
    for (text, position), hits in by_place.items():
        own = [
            row.text == row.source_next
            for row in main
            if (row.source, row.position, row.control) == (text, position, None)
            and row.prompt == "token-identity"
            and row.source_layer in layers
        ]
        assert len(own) == len(layers)
        differences.append(sum(own) / len(own) - sum(hits) / len(hits))
    finding = found.report.finding("controlled/token-identity", "shuffled")
    assert finding.estimate == pytest.approx(np.mean(differences))
    assert fixed == "cat -> cat\n1135 -> 1135\nhello -> hello\n{}"


def test_donors_are_other_passages(found: Done) -> None:
    """Two places of a passage are one item: neither is the other's donor."""
    texts = {}
    for _, cell in found.runner.cells:
        vector = cell.write.vectors[0] if cell.write else None
        if isinstance(vector, State) and cell.compare and vector.ids != cell.compare.ids:
            texts[cell.compare.ids] = texts.get(cell.compare.ids, set()) | {vector.ids}
    assert texts
    assert all(ids not in donors for ids, donors in texts.items())


def test_surprisals_beside_controls(found: Done) -> None:
    saved = found.report.finding("under-source-saved/token-identity", "random")
    layers = found.summary["provenance"]["design"]["control_layers"]
    own = np.mean([RIGHT if layer in PLANTED["token-identity"] else WRONG for layer in layers])
    assert saved.estimate == pytest.approx(OTHER - own)
    floor = found.report.finding("under-patched-saved/token-identity", "unpatched")
    assert floor.estimate == pytest.approx(PLAIN - (own + 1))
    with pytest.raises(KeyError):
        found.report.finding("under-source-saved/token-identity", "zero")


def test_guesses_do_not_stand_and_are_nowhere_ahead(guessed: Done) -> None:
    """One of four tokens by chance: right as often as with any other state, and as often by a lens."""
    for method in METHODS:
        shuffled = guessed.report.finding(f"controlled/{method}", "shuffled")
        assert shuffled.low <= 0 <= shuffled.high, method
    assert "**The finding does not stand**" in guessed.page("page")
    ahead = [f for f in guessed.report.findings if f.name.partition("/")[0] in ("precision-ahead", "most-ahead")]
    assert len(ahead) == 12
    assert min(finding.p or 0.0 for finding in ahead) > 0.05
    table = guessed.report.tables["ahead"]
    assert (table.p > 0.05).all()
    more = [guessed.report.finding(name, "fewer").p or 0.0 for name in ("pairs-added", "pairs-doubled")]
    assert min(more) > 0.05


def test_more_pairs_by_hand(tmp_path: Path) -> None:
    """Right with three pairs at every ℓ, with one at ℓ 2 alone. The tiny vocabulary has no words for ten."""
    newline = tiny_tokenizer().encode("\n")[0]

    def says(_: str, state: State, cell: Cell) -> int | None:
        n_pairs = cell.target_ids.count(newline)
        right = n_pairs == 3 or state.layer == 8 or (n_pairs == 1 and state.layer == 2)
        return next_of(state.ids, state.position) if right else None

    made = done(tmp_path, Told(says))
    assert made.summary["provenance"]["design"]["pair_layers"] == [2, 6]
    hits = {f.name: f.estimate for f in made.report.findings if f.name.startswith("pairs/") and f.control is None}
    assert hits == {"pairs/1": 0.5, "pairs/3": 1.0}
    assert made.report.finding("pairs-added", "fewer").estimate == pytest.approx(0.5)
    assert made.report.finding("pairs-doubled", "fewer").estimate == pytest.approx(0.5 / np.log2(3))
    table = made.report.tables["pairs"]
    assert [len(str(words).split()) for words in table.words] == list(table.pairs)
    assert set(table.draw) == {0, 1}
    assert "draws that are alike count once" in made.page("page")


def test_every_passage_and_place_is_accounted_for(found: Done) -> None:
    excluded = Counter(e.kind for e in found.report.excluded)
    made = found.summary["provenance"]["design"]
    assert made["n_passages"] + made["n_fit_passages"] + excluded["passage"] == N_FILES * N_PASSAGES
    places = found.report.tables["places"]
    assert len(places) == made["n_places"]
    assert places.left_out.isna().sum() == found.report.finding("precision/affine").n_items
    assert sum(entry["count"] for entry in found.summary["excluded"]) == len(found.report.excluded)
    assert len(found.report.tables["excluded"]) == len(found.report.excluded)


def test_a_second_run_runs_nothing_and_says_the_same(found: Done) -> None:
    again = planted()
    report = next_token.run(
        long_model(), data=found.out.parent / "data", out=found.out, runner=again, quick=True
    )  # fmt: skip
    assert {cell.readout.kind for _, cell in again.cells} == {"candidates"}, "of unpatched and zero, which are not kept"
    assert len(again.cells) < 100
    assert numbers(report) == numbers(found.report)
    assert report.pages["page"] == found.report.pages["page"]


def numbers(report: Report) -> list[tuple[object, ...]]:
    return [(f.name, f.control, f.estimate, f.low, f.high, f.n_items, f.p) for f in report.findings]


class Dying(Told):
    """Is killed after so many cells."""

    def __init__(self, n: int) -> None:
        super().__init__(planted().says)
        self.left = n

    def result(self, index: int, lens: str, cell: Cell) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().result(index, lens, cell)


def test_a_killed_run_goes_on_and_comes_to_the_same(found: Done, tmp_path: Path) -> None:
    n_cells = sum(cell.readout.kind != "candidates" for _, cell in found.runner.cells)
    for n in (10, n_cells // 2):
        with pytest.raises(KeyboardInterrupt):
            done(tmp_path / str(n), Dying(n))
        assert not (tmp_path / str(n) / "out" / "summary.json").exists()
        rest = planted()
        report = done(tmp_path / str(n), rest).report
        ran = sum(cell.readout.kind != "candidates" for _, cell in rest.cells)
        assert n_cells - n <= ran < n_cells, "what was closed is not run again"
        assert numbers(report) == numbers(found.report)


def test_the_cost_is_told_first_and_is_no_less_than_what_is_run(found: Done) -> None:
    assert "mappings to fit (30 s)" in found.told[0]
    announced = int(found.told[0].split("stages, ")[1].split(" cells")[0].replace(",", ""))
    ran = sum(cell.readout.kind != "candidates" for _, cell in found.runner.cells)
    biases = sum(len(found.summary["provenance"]["design"]["control_layers"]) - 1 for _ in FITTED)
    assert announced + biases == ran, "a map makes a zero of its own at every ℓ"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not there|no such|cannot be read|No such"),
        ({"a.csv": "x"}, "holds no data: no"),
        ({"a.txt": "Too short."}, "has no passage of prose"),
        (
            {f"{k}.txt": passage(k) for k in range(8)},
            "of 8 passages 3 are to be reported, and 3 have a position from 4",
        ),
        ({f"{k}.txt": passage(k) for k in range(3)}, "3 passages are in 3 sections, of which . are to fit maps on"),
        ({"a.txt": passage(1)}, "cannot be split into 2 parts"),
    ],
)
def test_too_little_text_is_refused_with_the_figures(tmp_path: Path, files: dict[str, str], message: str) -> None:
    runner, told = planted(), []
    for name, text in files.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    with pytest.raises(DataError, match=message):
        next_token.run(
            long_model(), data=tmp_path / "data", out=tmp_path / "out", runner=runner, quick=True, tell=told.append
        )
    assert (runner.cells, told, (tmp_path / "out").exists()) == ([], [], False)


class Failing(Told):
    """Fails for one donor's state in the stead of the first place's, through the affine map alone."""

    def __init__(self) -> None:
        super().__init__(planted().says)
        self.first: State | None = None

    def result(self, index: int, lens: str, cell: Cell) -> Any:
        found = super().result(index, lens, cell)
        vector = cell.write.vectors[0] if cell.write else None
        if lens == "affine" and isinstance(vector, State) and cell.compare and vector.ids != cell.compare.ids:
            self.first = self.first or cell.compare
            if cell.compare == self.first:
                return replace(found, text=None, failure="logits not finite\nmore")
        return found


def test_what_fails_is_left_out_of_everything_and_counted(tmp_path: Path) -> None:
    """A place without its control by one method is no place for the others either: comparisons stay paired."""
    report = done(tmp_path, Failing(), out=None).report
    assert [(e.reason, e.kind) for e in report.excluded if e.kind != "passage"] == [("logits not finite", "position")]
    places = report.tables["places"]
    assert (places.left_out == "logits not finite\nmore").sum() == 1
    for name in ("precision/token-identity", "half/tuned-lens", "majority"):
        assert report.finding(name).n_items == len(places) - 1
    assert report.finding("controlled/token-identity").n_items == SMALL.n_controlled - 1


def test_what_can_be_copied_is_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 18: sources that go on with "hello", or with a word of a random prompt."""
    cat = tiny_tokenizer().encode("cat")[0]
    monkeypatch.setattr(next_token_cases, "LETTERS", (*LETTERS[:5], cat))
    report = done(tmp_path, planted(), out=None).report
    places = report.tables["places"]
    leaked = places[places.next == "cat"]
    assert 2 <= len(leaked) <= len(places) / 2
    assert set(leaked.left_out) == {LEAKED}
    assert report.finding("precision/affine").n_items == len(places) - len(leaked)
    assert report.finding("precision/affine").estimate == pytest.approx(3 / 7)


def test_infinite_surprisals_count_for_precision_alone(tmp_path: Path) -> None:
    first: list[State] = []

    def infinite(state: State) -> bool:
        first[:] = first or [state]
        return (state.ids, state.position) == (first[0].ids, first[0].position)

    report = done(tmp_path, planted(infinite=infinite), out=None).report
    n = report.finding("precision/affine").n_items
    assert n == len(report.tables["places"])
    lost = [e for e in report.excluded if e.kind == "surprisal"]
    assert len(lost) >= 1
    assert report.finding("under-source/affine").n_items == n - len(lost)
    assert np.isfinite(report.finding("under-patched/affine").estimate)


def test_the_walk_shows_a_typical_place_beside_its_controls(found: Done) -> None:
    walk = found.page("walk")
    lines = {line.split(" | ")[0].strip("| "): line for line in walk.splitlines() if line.startswith("| ")}
    assert lines["5"].split(" | ")[1].startswith("**"), "token identity is right at ℓ 5"
    assert not lines["5"].split(" | ")[2].startswith("**")
    assert "unpatched “x”, random “x”" in walk
    assert "typical, not the best" in walk


def test_all_is_written(found: Done) -> None:
    for name in ("findings", "curves", "ahead", "controls", "pairs", "maps", "places", "excluded"):
        assert (found.out / "tables" / f"{name}.csv").is_file()
        assert (found.out / "tables" / f"{name}.parquet").is_file()
    for name in ("precision", "surprisals", "ahead", "controls", "said", "pairs"):
        assert (found.out / "figures" / f"{name}.png").stat().st_size > 1000
        assert (found.out / "figures" / f"{name}.svg").is_file()
    assert "(figures/surprisals.png)" in found.page("page")
    made = found.summary["provenance"]
    assert made["design"]["maps"]["tuned-lens"]["kind"] == "tuned"
    assert made["design"]["prompts"]["token-identity"] == "cat -> cat\n1135 -> 1135\nhello -> hello\n{}"
    assert {entry["name"] for entry in found.summary["findings"]} >= {"majority", "repeated", "half/tuned-lens"}
