"""Parts of next-token by hand: what is dealt, which words are drawn, what is counted; a real run on a tiny model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import next_token_cases
import oracle
from families import tiny_tokenizer
from next_token_cases import next_of, passage, planted, prose, unfitted
from patchscopes.data import Passage, load_prose
from patchscopes.engine import Engine
from patchscopes.errors import MappingError, OptionError
from patchscopes.mappings import Mapping, Mappings
from patchscopes.prompts import resolve_target, tokenize
from patchscopes.spec import TopToken
from patchscopes.studies import next_token, setup
from patchscopes.studies.next_token import design, findings, fits, passages, prompts
from patchscopes.studies.next_token.pairs import spread
from patchscopes.studies.next_token.readings import Readings, read
from patchscopes.studies.next_token.walkthrough import typical
from patchscopes.studies.report import Report
from patchscopes.studies.setup import Setup
from study_cases import SPEED, long_hf, long_model

LARGE = passages.Amount(n_places=10_000, n_passages=10_000, n_fit=10**9)


@pytest.fixture(scope="module", autouse=True)
def no_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
        yield


def some(n_sections: int = 8, n: int = 5) -> list[Passage]:
    return [Passage(passage(section, k), f"s{section}") for section in range(n_sections) for k in range(n)]


# ------------------------------------------------------------------------------------------------ places


def test_no_section_is_fitted_on_and_reported() -> None:
    given = some()
    dealt = passages.deal(long_model(), given, LARGE, seed=0)
    fit = {one.section for one in dealt.fit}
    read_ = {place.section for place in dealt.places}
    assert fit
    assert read_
    assert not fit & read_
    assert fit | read_ == {one.section for one in given}
    assert not dealt.excluded
    assert len(dealt.fit) + len({place.passage for place in dealt.places}) == len(given)
    other = passages.deal(long_model(), given, LARGE, seed=1)
    assert {one.section for one in other.fit} != fit


def test_places_are_positions_with_context_before_and_a_token_after() -> None:
    model, whole = long_model(), {one.text for one in some()}
    places = passages.deal(model, some(), LARGE, seed=0).places
    by_passage: dict[str, list[passages.Place]] = {}
    for place in places:
        by_passage.setdefault(place.passage, []).append(place)
    for found in by_passage.values():
        (text,) = {place.text for place in found}
        (full,) = (one for one in whole if one.startswith(text))
        tokens = tokenize(model, full)
        assert sorted(place.position for place in found) == list(range(4, len(tokens) - 1)), "all of them, none twice"
        for place in found:
            assert place.token == tokens.tokens[place.position]
            assert place.before == tokens.text_until(place.position)
            assert tokenize(model, text).ids == tokens.ids[: len(tokenize(model, text))]
        assert len(tokenize(model, text)) == len(tokens) - 1, "cut behind the last place"


def test_every_passage_has_a_place_before_any_has_two() -> None:
    n = len({place.passage for place in passages.deal(long_model(), some(), LARGE, seed=0).places})
    for n_places in (n - 2, n, n + 3, 2 * n + 1):
        dealt = passages.deal(long_model(), some(), replace(LARGE, n_places=n_places), seed=0)
        counts = [sum(place.passage == name for place in dealt.places) for name in {p.passage for p in dealt.places}]
        assert len(dealt.places) == n_places
        assert max(counts) - min(counts) <= 1
        assert len(counts) == min(n, n_places)
        reasons = [one.reason for one in dealt.excluded]
        assert reasons == [passages.NOT_READ] * (n - len(counts))
    fewer = passages.deal(long_model(), some(), replace(LARGE, n_passages=12, n_places=30), seed=0)
    assert len({place.passage for place in fewer.places}) == 12


def test_a_place_hangs_on_the_text_and_the_seed_alone() -> None:
    def drawn(given: list[Passage], seed: int = 0) -> dict[str, int]:
        dealt = passages.deal(long_model(), given, replace(LARGE, n_places=12, n_passages=12), seed=seed)
        return {place.before[:20]: place.position for place in dealt.places}

    first, more = drawn(some()), drawn([*some(), *(Passage(passage("x", k), "s9") for k in range(5))])
    both = set(first) & set(more)
    assert both
    assert all(first[text] == more[text] for text in both)
    assert len(set(first.values())) > 6, "at random"
    assert drawn(some(), 1) != first


def test_special_tokens_and_the_first_ones_are_never_read() -> None:
    given = [Passage(f"{k} a <user> {passage(k)}", f"s{k % 8}") for k in range(40)]
    places = passages.deal(long_model(), given, LARGE, seed=0).places
    assert {place.token for place in places} & set("abcdefgh")
    assert all("<user>" not in place.token for place in places)
    assert min(place.position for place in places) == passages.MIN_POSITION
    assert max(place.position for place in places) <= passages.MAX_POSITION


def test_a_cut_that_would_change_the_tokens_before_it_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that ends in the middle of a word may be split otherwise; then the whole passage is read."""
    real = passages.tokenize
    whole = {one.text for one in some()}

    def other_when_cut(model: object, text: str, **options: object) -> object:
        found = real(model, text, **options)  # type: ignore[arg-type]
        return found if text in whole else replace(found, ids=(0, *found.ids[1:]))

    monkeypatch.setattr(passages, "tokenize", other_when_cut)
    places = passages.deal(long_model(), some(), replace(LARGE, n_places=20), seed=0).places
    assert {place.text for place in places} <= whole


def test_as_many_positions_are_fitted_on_as_are_asked_for() -> None:
    lengths = {one.text: len(tokenize(long_model(), one.text)) - 1 for one in some()}
    dealt = passages.deal(long_model(), some(), replace(LARGE, n_fit=500), seed=0)
    held = [lengths[one.text] for one in dealt.fit]
    assert sum(held) >= 500 > sum(held) - max(held)
    assert {one.reason for one in dealt.excluded} == {passages.NOT_FITTED}


# ------------------------------------------------------------------------------------------------ prompts


def test_words_are_one_token_in_both_places_and_stand_in_no_passage() -> None:
    model = long_model()
    words = prompts.words_of(model, 10, draw=0, like=["the country is a capital"], unlike=["Hello, CAT!"], seed=0)
    assert set(words[:3]) == {"the", "country", "capital"}, "first those that texts have"
    assert not {"cat", "hello"} & {word.casefold() for word in words}
    assert len({word.casefold() for word in words}) == len(words)
    for word in words:
        prompt = prompts.identity_prompt([word, "cat"])
        assert resolve_target(model, prompt, bos="auto").tokenized.tokens.count(f" {word}") == 1
        assert resolve_target(model, prompt, bos="auto").tokenized.tokens[0] == word
    assert not {"pit", "pain"} & set(words), "of one token, behind a space of their own"
    other = prompts.words_of(model, 10, draw=1, like=[], unlike=[], seed=0)
    assert other != prompts.words_of(model, 10, draw=2, like=[], unlike=[], seed=0)
    with pytest.raises(OptionError, match="words of letters, and none of one token that the passages have not"):
        prompts.words_of(model, 3, draw=0, like=[], unlike=[" ".join(words), " ".join(other), "cat hello"], seed=0)


def test_a_prompt_of_k_pairs_has_the_first_k_words() -> None:
    assert prompts.identity_prompt(["one", "two"]).text == "one -> one\ntwo -> two\n{}"
    assert prompts.identity_prompt(["one"]).placeholder == "?"
    assert prompts.FIXED.text == "cat -> cat\n1135 -> 1135\nhello -> hello\n{}"


def test_what_can_be_copied_is_any_token_of_a_prompt() -> None:
    pieces = prompts.pieces_of(long_model(), prompts.identity_prompt(["cat", "Spain"]))
    assert pieces == {"cat", "->", "spain", "\n", "?"}
    assert [prompts.folded_token(token) for token in (" Cat", "\n", " ")] == ["cat", "\n", " "]


# ------------------------------------------------------------------------------------------------ the design


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> tuple[design.Design, design.Design]:
    data = load_prose(prose(tmp_path_factory.mktemp("thirty"), n_passages=8))
    full, quick = (design.Design.of(Setup.of(long_model(30), {"quick": quick}), data) for quick in (False, True))
    return full, quick


def test_layers_of_a_deep_model(thirty: tuple[design.Design, design.Design]) -> None:
    full, quick = thirty
    assert full.layers == tuple(range(30))
    assert [full.layers[k] for k in full.early] == [1, 2, 3, 4, 5, 6, 7]
    assert full.coarse == (2, 5, 9, 12, 15, 18, 21, 25, 28)
    assert full.paired_layers == (3, 9, 15, 21, 27)
    assert (len(quick.layers), quick.layers[0]) == (10, 0)
    assert max(quick.layers) < 30
    assert set(quick.coarse) | set(quick.paired_layers) <= set(quick.layers) - {0}
    assert [quick.layers[k] for k in quick.early] == [2, 5]
    assert len(full.places) == 1150, "several of a passage, where there are few"


def test_every_control_of_rule_16_that_needs_a_state_is_run(thirty: tuple[design.Design, design.Design]) -> None:
    for one in thirty:
        controlled = [stage for stage in one.stages() if stage.name.startswith("controls/")]
        assert {stage.name for stage in controlled} == {
            "controls/token-identity", "controls/logit-lens", "controls/affine", "controls/tuned-lens",
        }  # fmt: skip
        for stage in controlled:
            assert set(stage.sweep.controls) == {"unpatched", "random", "random-state", "shuffled", "mean", "zero"}
            assert stage.sweep.draws == 5
        for stage in one.stages():
            lens = stage.name.rpartition("/")[2] in design.LENSES
            assert stage.sweep.target_layers == ((30,) if lens else None), stage.name
            assert stage.sweep.readout.kind == "next-token"


def test_a_small_vocabulary_has_fewer_pairs(thirty: tuple[design.Design, design.Design]) -> None:
    few = replace(thirty[0], words=(("cat", "hello"), ("cat", "hello", "Spain")))
    assert sorted(few.pair_prompts) == [(1, 0), (2, 0), (3, 1)], "the same prompt twice is one prompt"
    texts = [prompt.text for prompt in few.pair_prompts.values()]
    assert len(set(texts)) == len(texts) == 3
    from patchscopes.studies.next_token.study import _notes

    assert any("the vocabulary has 2 words" in note for note in _notes(few))
    enough = replace(thirty[0], words=(tuple("abcdefghij"),) * 3)
    assert not any("the vocabulary has" in note for note in _notes(enough))


def test_a_model_of_two_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has 2 layers; this study needs a model with 3"):
        next_token.run(long_model(2), data=prose(tmp_path))


# ------------------------------------------------------------------------------------------------ scores


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> Readings:
    data = load_prose(prose(tmp_path_factory.mktemp("readings")))
    with pytest.MonkeyPatch.context() as patch:
        small = replace(design.QUICK, n_places=30, n_passages=15, n_controlled=8, n_coarse=2)
        patch.setattr(design, "QUICK", small)
        made = design.Design.of(Setup.of(long_model(), {"quick": True, "runner": planted()}), data)
    return read(made, unfitted(made))


def test_the_most_frequent_next_token_of_the_other_folds(readings: Readings) -> None:
    n = len(readings.items)
    common = replace(readings, next_tokens=tuple("b" if k % 3 else "c" for k in range(n)))
    assert findings.majority(common).tolist() == [float(bool(k % 3)) for k in range(n)]
    unlike = replace(readings, next_tokens=tuple(f"t{k}" for k in range(n)))
    assert findings.majority(unlike).sum() == 0, "no fold's own token is its majority"


def test_the_token_once_more(readings: Readings) -> None:
    places = readings.design.places
    again = tuple(place.token.upper() if k < 3 else "?!" for k, place in enumerate(places))
    found = {f.name: f for f in findings._baselines(replace(readings, next_tokens=again))}
    assert found["repeated"].estimate == pytest.approx(3 / len(places))


def test_what_a_prompt_says_by_itself_is_compared_by_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens have one text here, as halves of a character have; the sources say one of two, the prompts the first.

    Cells are compared by token, so what stands beside them is too.
    """
    first, second = (tiny_tokenizer().encode(letter)[0] for letter in "xb")
    monkeypatch.setattr(next_token_cases, "LETTERS", (first, second))
    monkeypatch.setattr(next_token_cases, "_top", lambda token: TopToken("\ufffd", token, -0.1))
    small = replace(design.QUICK, n_places=12, n_passages=12, n_controlled=10, n_coarse=1)
    monkeypatch.setattr(design, "QUICK", small)
    made = design.Design.of(
        Setup.of(long_model(), {"quick": True, "runner": planted()}), load_prose(prose(tmp_path / "prose"))
    )
    found = read(made, unfitted(made))
    says = [
        next_of(tokenize(long_model(), made.places[k].before).ids, made.places[k].position) for k in made.controlled
    ]
    assert set(says) == {first, second}
    for method in ("token-identity", "affine"):
        for control in ("unpatched", "zero"):
            precision = found.methods[method].beside[control]["precision"][made.controlled]
            assert precision[:, 0].tolist() == [float(token == first) for token in says], (method, control)


def test_the_typical_place_is_the_one_nearest_to_the_mean(readings: Readings) -> None:
    own = readings.methods["token-identity"]
    precision = own.scores["precision"].copy()
    precision[:] = 0
    far, near = readings.controlled[0], readings.controlled[2]
    precision[far, :] = 1
    precision[near, 1] = 1
    changed = replace(own, scores={**own.scores, "precision": precision})
    made = replace(readings, methods={**readings.methods, "token-identity": changed})
    mean = precision[readings.items][:, 1:].mean()
    assert abs(precision[near, 1:].mean() - mean) > mean, "here zero is nearer"
    assert typical(made) not in (far, near)
    precision[readings.items[1::2], 2] = 1
    assert precision[typical(made), 1:].sum() == 1


def test_prompts_of_one_number_of_pairs_lie_so_far_apart() -> None:
    table = pd.DataFrame({"pairs": [1, 1, 1, 2, 2], "estimate": [0.1, 0.4, 0.2, 0.5, 0.6]})
    assert spread(table) == pytest.approx((0.3 + 0.1) / 2)


# ------------------------------------------------------------------------------------------------ a real run


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path, list[str]]:
    path, told = tmp_path_factory.mktemp("real"), []
    with pytest.MonkeyPatch.context() as patch:
        small = replace(
            design.QUICK, n_places=16, n_passages=14, n_controlled=6, n_coarse=1, n_paired=6, n_paired_layers=1
        )
        patch.setattr(design, "QUICK", small)
        report = next_token.run(
            long_model(3), data=prose(path / "data"), out=path / "out", runner=Engine, quick=True, tell=told.append
        )
    return report, path / "out", told


def test_a_real_run_says_what_plain_hooks_say(real: tuple[Report, Path, list[str]]) -> None:
    """Every method at every ℓ, of some places, by the oracle: none of the package but the maps and the places."""
    report, out, _ = real
    hf, model, n = long_hf(3, 7), long_model(3), 3
    maps = {name: Mappings.load(out / "mappings" / f"{name}.safetensors") for name in ("affine", "tuned-lens")}
    prompt = tokenize(model, "cat -> cat\n1135 -> 1135\nhello -> hello\n?").ids
    words = report.provenance["design"]["prompts"]["token-identity-random"]
    random = tokenize(model, words.replace("{}", "?")).ids
    places = report.tables["places"]
    for place in places.head(5).itertuples():
        ids = tokenize(model, place.before).ids
        assert len(ids) == place.position + 1
        states = oracle.states(hf, ids)
        own = int(oracle.readout(hf, states[n, -1]).argmax())
        for name in design.METHODS:
            hits = []
            for layer in (1, 2):
                state = states[layer, -1]
                if name in maps:
                    state = maps[name][layer, n](state)
                if name in design.LENSES:
                    said = int(oracle.readout(hf, state).argmax())
                else:
                    target = prompt if name == "token-identity" else random
                    at = oracle.Target(target, (len(target) - 1,), layer)
                    said = int(oracle.patchscope(hf, state, at, max_new_tokens=1).first_logits.argmax())
                hits.append(said == own)
            assert places.loc[place.Index, name] == pytest.approx(np.mean(hits)), (place.Index, name)


def test_a_real_run_keeps_its_maps_and_does_not_fit_again(real: tuple[Report, Path, list[str]]) -> None:
    report, out, told = real
    assert "and mappings to fit (" in told[0]
    maps = report.provenance["design"]["maps"]
    assert {name: made["kind"] for name, made in maps.items()} == {"affine": "affine", "tuned-lens": "tuned"}
    assert maps["affine"]["digest"] != maps["tuned-lens"]["digest"]
    table = report.tables["maps"]
    assert table[table.lens == "affine"].r2.notna().all()
    tuned = table[table.lens == "tuned-lens"]
    assert tuned[["kl", "kl_logit_lens", "kl_affine"]].notna().all(axis=None)
    assert table[table.lens == "affine"].kl.isna().all()
    assert set(table.source_layer) == {0, 1, 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "_affine", pytest.fail)
        patch.setattr(fits, "_tuned", pytest.fail)
        made = replaced_design(report, out)
        assert {name: m and m.digest for name, m in fits.fit_lenses(made).items()} == {
            "logit-lens": None, "affine": maps["affine"]["digest"], "tuned-lens": maps["tuned-lens"]["digest"],
        }  # fmt: skip


def replaced_design(report: Report, out: Path) -> design.Design:
    """The design of a run before, made again."""
    return design.Design.of(Setup.of(long_model(3), {"quick": True, "out": out}), load_prose(out.parent / "data"))


def test_other_text_or_another_seed_is_another_fit(thirty: tuple[design.Design, design.Design]) -> None:
    one = thirty[0]
    other = replace(one, dealt=replace(one.dealt, fit=one.dealt.fit[:-1]))
    seeded = replace(one, setup=replace(one.setup, seed=1))
    keys = [str(fits._key(made, name)) for made in (one, other, seeded, thirty[1]) for name in design.FITTED]
    assert len(set(keys)) == len(keys)
    assert fits._key(one, "affine") == fits._key(replace(one), "affine")


def test_too_little_text_for_a_map_is_told_before_anything_runs(tmp_path: Path) -> None:
    data = prose(tmp_path / "data")
    told: list[str] = []
    runner = planted()
    with pytest.MonkeyPatch.context() as patch:
        whole = design.Design.of
        patch.setattr(design.Design, "of", lambda made, found: short(whole(made, found)))
        with pytest.raises(MappingError, match=r"are too few for a map of kind affine from 32 dimensions"):
            next_token.run(long_model(3), data=data, out=tmp_path / "out", runner=runner, quick=True, tell=told.append)
    assert (runner.cells, told, (tmp_path / "out").exists()) == ([], [], False)


def short(made: design.Design) -> design.Design:
    """With three letters of each passage to fit on."""
    fit = tuple(replace(one, text=one.text[:3]) for one in made.dealt.fit)
    return replace(made, dealt=replace(made.dealt, fit=fit))


def test_maps_differ_by_layer(real: tuple[Report, Path, list[str]]) -> None:
    _, out, _ = real
    for name in ("affine", "tuned-lens"):
        found = Mappings.load(out / "mappings" / f"{name}.safetensors")
        first, second = (found[layer, 3] for layer in (1, 2))
        assert isinstance(first, Mapping)
        assert not torch.equal(first.weight, second.weight)
