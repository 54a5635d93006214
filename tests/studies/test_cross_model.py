"""cross-model on two tiny models: what is planted is found, and nothing else; all is accounted for; it goes on."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import oracle
import patchscopes
from cross_cases import (
    SMALL,
    Interrupted,
    at,
    known,
    other_family,
    planned,
    prose,
    relations,
    source_model,
    source_says,
    target_model,
    target_reads,
)
from patchscopes.data import DataSet, Passage, load_prose
from patchscopes.errors import DataError, MappingError, OptionError, PatchscopesError
from patchscopes.mappings import Mappings, Transfer
from patchscopes.models import Model
from patchscopes.studies import cross_model, setup
from patchscopes.studies.cross_model import design, maps, study
from patchscopes.studies.cross_model.names import asked_names, sentences
from patchscopes.studies.cross_model.openings import Texts, deal
from patchscopes.studies.headline import NEEDED
from patchscopes.studies.report import Report
from study_cases import SPEED

# Of the small grid: ℓ 0, 1, 3 and ℓ* 0, 2, 6.
TOKENS_AT, HEAD_AT, FACTS_AT = (3, 2), (1, 6), (1, 2)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
        patch.setattr(design, "QUICK", SMALL)
        patch.setattr(study, "load_relations", relations)
        yield


@dataclass(frozen=True)
class Done:
    out: Path
    report: Report
    told: list[str]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text(encoding="utf-8"))


def done(path: Path, runner: Callable[..., Any], **options: Any) -> Done:
    told: list[str] = []
    given = {"target_model": target_model(), "data": prose(path / "prose"), "out": path / "out", **options}
    report = cross_model.run(source_model(), quick=True, runner=runner, tell=told.append, **given)
    return Done(path / "out", report, told)


def planted() -> Callable[..., Any]:
    def tokens(transfer: Transfer, cell: Any, state: Any) -> bool:
        return at("ridge", [TOKENS_AT])(transfer, cell, state) or at("affine", [HEAD_AT])(transfer, cell, state)

    return planned(tokens, at("affine", [FACTS_AT]))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("found"), planted())


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("null"), planned(), out=None)


def test_planted_next_tokens_are_found_at_the_placement_that_has_them(found: Done) -> None:
    placements = found.summary["provenance"]["design"]["placements"]
    assert placements["inside"] == ["ridge 3 → 2"]
    assert placements["head"] == ["affine 1 → 6"]
    for name in ("next-token/inside", "next-token/head"):
        own = found.report.finding(name)
        assert own.estimate == 1.0
        assert own.n_subjects == len(found.report.tables["passages"])
        for control in (*NEEDED, "zero", "mean"):
            beside = found.report.finding(name, control)
            assert beside.stands, (name, control)
            assert beside.p is not None
            assert beside.p < 0.05
    assert found.report.finding("next-token/affine").estimate < 0.5, "planted in ridge maps alone"


def test_next_tokens_by_hand_from_the_stored_rows(found: Done) -> None:
    """Equal tokens minus the mean of five donors', with plain loops over the rows on disk."""
    rows = list(patchscopes.open_run(found.out / "runs" / "next" / "ridge"))
    left, tokens = [], []
    for row in rows:
        if row.control is None and (row.source_layer, row.target_layer) == TOKENS_AT:
            wanted = source_says(str(row.source))
            donors = [
                other for other in rows
                if other.control == "shuffled" and other.source_index == row.source_index
                and (other.source_layer, other.target_layer) == TOKENS_AT
            ]  # fmt: skip
            assert len(donors) == 5
            assert f" {str(row.text).strip()}" == wanted
            left.append(1 - np.mean([f" {str(other.text).strip()}" == wanted for other in donors]))
            tokens.append(wanted)
    assert found.report.finding("next-token/inside", "shuffled").estimate == pytest.approx(np.mean(left))
    assert 0.6 < np.mean(left) < 0.95, "donors share tokens by chance"
    assert "<eos>" not in tokens


def test_agreement_by_layer_pair_by_hand_from_the_stored_rows(found: Done) -> None:
    """Beside it that of others' states and of the bias, each through the same map."""
    table = found.report.tables["next-tokens"]
    said: dict[tuple[str, int, int, str], list[bool]] = {}
    for kind in ("affine", "ridge", "orthogonal"):
        rows = list(patchscopes.open_run(found.out / "runs" / "next" / kind))
        wanted = {row.source_index: source_says(str(row.source)) for row in rows if row.control is None}
        for row in rows:
            if row.control not in (None, "shuffled", "zero"):
                continue
            for token in [wanted[row.source_index]] if row.control != "zero" else wanted.values():
                place = kind, row.source_layer, row.target_layer, row.control or "own"
                said.setdefault(place, []).append(f" {str(row.text).strip()}" == token)  # type: ignore[arg-type]
    assert len(said) == 3 * len(table) == 3 * 3 * 9
    for line in table.itertuples():
        for name in ("own", "shuffled", "zero"):
            by_hand = np.mean(said[line.kind, line.source_layer, line.target_layer, name])
            assert getattr(line, name) == pytest.approx(by_hand), (line, name)
    assert table.own.between(0.05, 0.5).any(), "by chance, where nothing is planted"


def test_what_the_text_itself_tells_stands_beside_it(found: Done) -> None:
    passages = found.report.tables["passages"]
    reads = np.mean([target_reads(text) == source_says(text) for text in passages.text])
    assert found.report.finding("next-token/target-reads").estimate == pytest.approx(reads)
    assert found.report.finding("next-token/inside", "the text itself").estimate == pytest.approx(1 - reads)
    assert 0.2 < reads < 0.8
    assert list(passages.source_says) == [source_says(text) for text in passages.text]


@pytest.mark.parametrize(("name", "table", "targets"), [
    ("next-token/inside", "next-tokens", (0, 2)), ("next-token/head", "next-tokens", (6,)),
    ("facts/all", "facts", (0, 2)),
])  # fmt: skip
def test_the_token_alone_stands_beside_it(found: Done, null: Done, name: str, table: str, targets: tuple[int]) -> None:
    """At ℓ 0, where nothing is planted, through whichever map does best on other folds: never above the best of all."""
    for done in (found, null):
        own, left = done.report.finding(name), done.report.finding(name, "the token alone (ℓ = 0)")
        lines = done.report.tables[table]
        of_tokens = lines[(lines.source_layer == 0) & lines.target_layer.isin(targets)]
        assert of_tokens.own.min() - 1e-9 <= own.estimate - left.estimate <= of_tokens.own.max() + 1e-9
        assert left.stands == (done is found)


def test_where_both_models_differ_it_is_told_whose_token_the_state_brings(found: Done, null: Done) -> None:
    """Planted states bring the source's own; by chance, either's."""
    for done in (found, null):
        passages = done.report.tables["passages"]
        apart = passages[passages.source_says.str.strip() != passages.target_reads.str.strip()]
        assert 4 < len(apart) < len(passages)
        for where in ("inside", "head"):
            name, says = f"next-token/differing-{where}", apart[f"{where}_says"].str.strip()
            own, left = done.report.finding(name), done.report.finding(name, "the target's own reading")
            assert own.n_items == len(apart)
            assert own.estimate == pytest.approx((says == apart.source_says.str.strip()).mean())
            assert own.estimate - left.estimate == pytest.approx((says == apart.target_reads.str.strip()).mean())
    assert found.report.finding("next-token/differing-inside").estimate == 1.0
    assert found.report.finding("next-token/differing-inside", "the target's own reading").estimate == 1.0
    assert not null.report.finding("next-token/differing-inside", "the target's own reading").stands
    assert "says another next token: written below the last layer" in (found.out / "page.md").read_text()


def test_the_best_of_many_stands_beside_the_best_of_others_states(null: Done) -> None:
    """It is inflated, and with other states it is as high."""
    best, left = null.report.finding("next-token/best"), null.report.finding("next-token/best", "shuffled")
    one = null.report.finding("next-token/inside")
    assert best.estimate > one.estimate + 0.3
    assert left.low <= 0 <= left.high


def test_planted_facts_are_found_and_told_by_who_knows_them(found: Done) -> None:
    report = found.report
    assert found.summary["provenance"]["design"]["placements"]["facts"] == ["affine 1 → 2"]
    assert report.finding("facts/all").estimate == 1.0
    for control in (*NEEDED, "zero", "mean", "the most frequent answer"):
        assert report.finding("facts/all", control).stands, control
    items = report.tables["items"]
    assert report.finding("facts/both").n_items == int(items.source_knows.sum())
    assert report.finding("facts/target").n_items == int((~items.source_knows).sum()) == 6, "three of each relation"
    assert [known(source_model(), subject) for subject in items.subject] == list(items.source_knows)
    assert all(known(target_model(), subject) for subject in items.subject)
    capital = report.finding("facts/country capital", "shuffled")
    assert capital.estimate == 1.0, "no two countries share a capital"
    assert capital.p == pytest.approx(2 * 2 / 2 ** len(items[items.relation == "country capital"]), rel=0.1)
    assert 0.3 < report.finding("facts/country language", "shuffled").estimate < 1.0, "languages are shared"
    for control in ("shuffled", "the most frequent answer"):  # rule 19; all subjects one way are 2 of 2ⁿ flips
        for which, times in (("both", 4), ("target", 2)):  # two groups, each beside two controls
            group = report.finding(f"facts/{which}", control)
            assert group.p == pytest.approx(times * 2 / 2**group.n_subjects), (which, control)
            assert "; p: Holm over both groups of facts" in group.about
    assert report.finding("facts/best", "shuffled").p == pytest.approx(2 * 2 / 10_000), "one of two best-ofs"


def test_nothing_planted_does_not_stand(null: Done) -> None:
    for name in ("next-token/inside", "next-token/head", "facts/all"):
        assert not all(null.report.finding(name, control).stands for control in NEEDED), name
    assert null.report.finding("facts/all").estimate == 0.0
    page = null.report.pages["page"]
    assert page.count("**The finding does not stand**") == 3
    assert page.count("no more, as far as can be told, than “unpatched”") == 3
    assert page.count("**Beside the bias alone it does not stand**") == 3
    assert "more than any control does" not in page


def test_the_page_says_what_stands(found: Done) -> None:
    page = found.report.pages["page"]
    assert page.count("The finding stands") == 3
    assert page.count("more than any control does") == 3
    assert "Chosen most often: ridge 3 → 2" in page
    assert "Beside the bias alone it does not" not in page
    assert "{" not in page


def test_what_is_left_out_stands_with_what_it_was_left_out_of(found: Done) -> None:
    _, left = found.report.pages["page"].split("## What was left out\n")
    _, *parts = re.split("Of the prose:|Of the facts and the sentences about names:|By the design:", left)
    prose, facts, by_design = ([line for line in part.splitlines() if line] for part in parts)
    reasons = Counter((e.kind == "passage", e.reason) for e in found.report.excluded)
    short = "- short.txt: no passage is left"
    assert prose == [*(f"- {n} × {reason}" for (of_prose, reason), n in reasons.items() if of_prose), short]
    assert facts == [f"- {n} × {reason}" for (of_prose, reason), n in reasons.items() if not of_prose]
    assert [f"- {note}" for note in found.summary["notes"]] == [short, *by_design]


def dealt(data: DataSet[Passage]) -> Texts:
    models, shares = (source_model(), target_model()), (SMALL.compared, SMALL.held_out, SMALL.fitted)
    return deal(models, data, shares, n_most=SMALL.n_passages, fewest=10, seed=0)


def test_every_passage_and_fact_is_an_item_or_left_out_with_a_reason(found: Done) -> None:
    data = load_prose(found.out.parent / "prose")
    excluded = found.report.excluded
    counts = Counter(exclusion.reason for exclusion in excluded)
    assert counts["the source's own next token is a special one, or none"] > 0
    n_passages = sum(exclusion.kind == "passage" for exclusion in excluded)
    texts = dealt(data)
    assert len(found.report.tables["passages"]) + n_passages + len(texts.fit) + len(texts.held_out) == data.n_read
    n_facts = sum(len(relation.facts) for relation in relations().items if relation.name in SMALL.relations)
    own = {e.item for e in relations().excluded}
    of_facts = [e for e in excluded if e.kind == "sample" and e.item not in own]
    assert len(found.report.tables["items"]) + len(of_facts) == n_facts
    assert len(found.report.tables["excluded"]) == len(excluded)
    listed = {(entry["reason"], entry["kind"]): entry["count"] for entry in found.summary["excluded"]}
    assert sum(listed.values()) == len(excluded)


def test_no_section_and_no_name_is_both_fitted_on_and_asked(found: Done) -> None:
    data = load_prose(found.out.parent / "prose")
    texts = dealt(data)
    openings = {opening.section for opening in texts.openings}
    fitted, held_out = ({passage.section for passage in part} for part in (texts.fit, texts.held_out))
    assert openings
    assert len(openings | fitted | held_out) == len(openings) + len(fitted) + len(held_out)
    names = asked_names(relations().items, 0)
    about, _ = sentences(relations().items, names, 60, 0)
    assert len(about) == 60
    subjects = set(found.report.tables["items"].subject)
    assert not [s for s in about if any(subject in s.text for subject in subjects)]
    carriers = {relation.carrier.split("{}")[0] for relation in relations().items}
    assert not [s for s in about if any(s.text.startswith(carrier) for carrier in carriers)]


def test_all_files_are_written_and_the_cost_is_told_first(found: Done) -> None:
    assert {path.name for path in found.out.iterdir()} == {
        "summary.json", "page.md", "walk.md", "runs", "tables", "figures", "mappings",
    }  # fmt: skip
    names = {"findings", "maps", "next-tokens", "passages", "facts", "items", "relations", "excluded"}
    assert {path.name for path in (found.out / "tables").iterdir()} == {
        f"{name}.{end}" for name in names for end in ("csv", "parquet")
    }
    figures = {"maps", "next-tokens", "next-token-controls", "next-token-head-controls", "facts", "fact-controls",
               "relations"}  # fmt: skip
    assert {path.stem for path in (found.out / "figures").iterdir()} == figures
    assert found.told[0].startswith("at most ")
    assert " cells and mappings to fit (" in found.told[0]
    assert found.told[1].startswith("fitting maps: 9 pairs of layers, ")
    assert found.told[2].startswith("stage reads/source")
    made = found.summary["provenance"]
    assert made["target"]["weights"] == target_model().describe()["weights"]
    assert made["design"]["maps"]["affine"]["target"]["weights"] == target_model().fingerprint


def test_announced_is_no_less_than_what_is_run(found: Done) -> None:
    announced = int(found.told[0].split("stages, ")[1].split(" cells")[0].replace(",", ""))
    ran = sum(
        len({row.cell for row in patchscopes.open_run(folder.parent)})
        for folder in (found.out / "runs").rglob("manifest.json")
    )
    assert 0 < ran <= announced


def test_the_walk_shows_a_passage_and_a_subject_beside_the_bias(found: Done) -> None:
    walk = (found.out / "walk.md").read_text(encoding="utf-8")
    assert "chosen on other passages was 3 → 2" in walk
    assert "chosen on other subjects was 1 → 2" in walk
    rows = [line for line in walk.splitlines() if line.startswith("| 3 → 2 |")]
    token = walk.split("goes on with “")[1].split("”")[0]
    assert f"| 3 → 2 | “{token}” |" in rows[0]
    assert "the bias alone | another state | the mean of others" in walk
    assert sum(line.startswith("| 1 → 2 |") for line in walk.splitlines()) == 1 + 1, "once in each table"


def test_held_out_quality_by_hand_from_states_of_both_models(found: Done) -> None:
    """1 − Σ‖y − (xW + b)‖² / Σ‖y − ȳ‖² with plain loops, on the prose that nothing was fitted on."""
    kept = Mappings.load(found.out / "mappings" / "affine.safetensors")
    assert kept.pairs == tuple((a, b) for a in (0, 1, 3) for b in (0, 2, 6))
    table = found.report.tables["maps"].set_index(["kind", "source_layer", "target_layer"])
    texts = dealt(load_prose(found.out.parent / "prose")).held_out
    for layer, star in (TOKENS_AT, FACTS_AT):
        x, y = [], []
        for passage in texts:
            ids = source_model().tokenizer(passage.text)["input_ids"]  # the target has the same tokenizer
            first = [k for k in range(1, len(ids)) if ids[k] not in source_model().tokenizer.all_special_ids]
            first = [k for k in first if covers_a_character_of_its_own(passage.text, k)]
            x.append(oracle.states(source_model().hf, ids)[layer, first].double().numpy())
            y.append(oracle.states(target_model().hf, ids)[star, first].double().numpy())
        a, b = np.concatenate(x), np.concatenate(y)
        mapping = kept[layer, star]
        wrong = b - (a @ mapping.weight.double().numpy() + mapping.bias.double().numpy())
        of_dimension = 1 - (wrong**2).sum(axis=0) / ((b - b.mean(axis=0)) ** 2).sum(axis=0)
        line = table.loc[("affine", layer, star)]
        assert line.n_held_out == len(a) > 300
        assert line.r2 == pytest.approx(1 - (wrong**2).sum() / ((b - b.mean(axis=0)) ** 2).sum(), abs=1e-4)
        assert line.r2_median == pytest.approx(sorted(of_dimension)[15], abs=1e-4), "the lower of 32"


def covers_a_character_of_its_own(text: str, position: int) -> bool:
    """Whether the token there is about something else than space."""
    start, end = source_model().tokenizer(text, return_offsets_mapping=True)["offset_mapping"][position]
    return bool(text[start:end].strip())


def asdict(finding: Any) -> list[Any]:
    return [str(getattr(finding, name)) for name in ("name", "control", "estimate", "low", "high", "n_items", "p")]


def test_killed_and_taken_up_again_it_says_the_same(
    found: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with the maps and the rows that were kept."""
    left = [1000]

    def breaking(given: Model | Transfer) -> Interrupted:
        plan = planted()(given)
        runner = Interrupted(plan.transfer, plan.tokens, plan.facts)
        runner.left = left
        return runner

    with pytest.raises(KeyboardInterrupt):
        done(tmp_path, breaking)
    assert not (tmp_path / "out" / "summary.json").exists()
    n_kept = sum(len(pd.read_parquet(shard)) for shard in (tmp_path / "out" / "runs").rglob("*.parquet"))
    assert n_kept > 500
    monkeypatch.setattr(maps, "fit_several", lambda *_, **__: pytest.fail("fitted again"))
    report = done(tmp_path, planted()).report
    assert report.provenance["rows_kept"] >= n_kept
    assert [asdict(f) for f in report.findings] == [asdict(f) for f in found.report.findings]


# ------------------------------------------------------------------------------------------------------ what is refused


def test_without_a_target_model_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="into another model, and target_model is None: give one from load"):
        cross_model.run(source_model(), quick=True)
    with pytest.raises(OptionError, match=r"reads and writes within one model; target_model \(.*\) is for cross-model"):
        setup.Setup.of(source_model(), {"target_model": target_model()})


def test_maps_of_other_weights_are_refused_with_both_hashes(found: Done, tmp_path: Path) -> None:
    shutil.copytree(found.out.parent, tmp_path / "copy")
    before = (tmp_path / "copy" / "out" / "mappings" / "affine.safetensors").read_bytes()
    other = target_model(5)
    said = f"fitted for the target model .* with the weights {target_model().fingerprint}; .* has {other.fingerprint}"
    with pytest.raises(MappingError, match=said):
        done(tmp_path / "copy", planted(), target_model=other)
    assert (tmp_path / "copy" / "out" / "mappings" / "affine.safetensors").read_bytes() == before, "and stay"


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ({"a.txt": "One passage of prose with rather more than eight words in it."}, DataError,
         r"1 passages in 1 sections cannot be split into 3 parts"),
        ({f"{k}.txt": f"The passage number {k} has no more than these few words in all." for k in range(9)},
         DataError, r"\d passages of .* can be compared, and 10 are needed: of 9 passages \d were dealt"),
        ({f"{k}.txt": f"A {'слово ' * 30}{'слон ' * k}." for k in range(30)}, MappingError,
         r"agree at \d+ of \d{3,} positions of \d+ passages, and at none where a text could end \(\{'no token 8 to 48"),
    ],
)  # fmt: skip
def test_text_that_is_too_short_or_never_agrees_is_refused_with_figures(
    files: dict[str, str], error: type[PatchscopesError], said: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    target = other_family() if error is MappingError else target_model()
    with pytest.raises(error, match=said):
        cross_model.run(source_model(), target_model=target, data=tmp_path, quick=True, runner=planned())


def test_text_too_short_to_fit_on_is_refused_with_how_much_it_takes() -> None:
    few = [Passage(f"A cat of Spain {k}.", f"section {k}") for k in range(4)]
    plan = design.Design.of(setup.Setup.across(source_model(), {"target_model": target_model(), "quick": True}))
    with pytest.raises(
        MappingError, match=r"\d\d positions in 3 texts are too few .* affine from 32 .* at least 33 .* 66"
    ):
        maps.fitted_maps(plan, few, few)


# ----------------------------------------------------------------------------------------------------------- the engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """By the engine itself, on models of two families that know nothing."""
    path = tmp_path_factory.mktemp("engine")
    data = prose(path / "prose", n_files=16)  # of what the source says at random, one in three is a token of both
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(design, "QUICK", replace(SMALL, n_passages=45, relations=SMALL.relations[:1], n_asked=7))
        report = cross_model.run(source_model(), target_model=other_family(), quick=True, data=data, out=path / "out")
    return Done(path / "out", report, [])


def test_two_families_with_two_tokenisers_run_through(engine: Done) -> None:
    """No facts are reported, and the page says so."""
    report = engine.report
    assert report.finding("next-token/inside").n_items >= 10
    assert not [f for f in report.findings if f.name.startswith("facts")]
    assert "Facts: none are reported" in report.pages["page"]
    assert any("no facts are reported" in note for note in report.notes)
    mappings = Mappings.load(engine.out / "mappings" / "ridge.safetensors")
    assert (mappings.source.d_model, mappings.target.d_model) == (32, 40)
    rows = patchscopes.open_run(engine.out / "runs" / "next" / "ridge")
    assert {row.status for row in rows} == {"ok"}
    by_pair = {(row.source_layer, row.target_layer): row.mapping for row in rows if row.control == "zero"}
    assert by_pair == {pair: mappings.label(pair) for pair in mappings.pairs}


def test_what_the_target_says_is_what_plain_hooks_say(engine: Done) -> None:
    """A state read by hooks, times W plus b, written by hooks; the bias alone for zero."""
    mappings = Mappings.load(engine.out / "mappings" / "affine.safetensors")
    source, target = source_model(), other_family()
    prompt = target.tokenizer("cat -> cat\n1135 -> 1135\nhello -> hello\n?")["input_ids"]
    n, compared = 0, set()
    for row in patchscopes.open_run(engine.out / "runs" / "next" / "affine"):
        if row.control not in (None, "zero") or (row.source_index or 0) > 2:
            continue
        assert row.source_layer is not None
        assert row.target_layer is not None
        mapping = mappings[row.source_layer, row.target_layer]
        vector = mapping.bias.float()
        if row.control is None:
            ids = source.tokenizer(str(row.source))["input_ids"]
            vector = oracle.states(source.hf, ids)[row.source_layer, -1] @ mapping.weight.float() + vector
        where = oracle.Target(prompt, [len(prompt) - 1], row.target_layer)
        ran = oracle.patchscope(target.hf, vector, where, max_new_tokens=1)
        assert ran.agrees_with(row.token_ids), row
        n, compared = n + 1, compared | {row.token_ids}
    assert n == 3 * 9 + 9
    assert len(compared) > 3, "what is said depends on what is written"
