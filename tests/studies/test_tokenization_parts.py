"""The parts of tokenization: matched strata, slopes, typos, odd splits, forms, and the score of detokenisation."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import tiny_model
from odd_tokenizers import model_with
from patchscopes.data import Entity, load_entities
from patchscopes.models import Model
from patchscopes.neighbours import captured, nearest_tokens
from patchscopes.prompts import tokenize
from patchscopes.spec import State
from patchscopes.studies.entities import FEWEST, Parts
from patchscopes.studies.setup import Setup
from patchscopes.studies.tokenization import forms
from patchscopes.studies.tokenization.design import TOO_FEW, Design, enough
from patchscopes.studies.tokenization.detokenised import Detokenised, detokenise, other_words
from patchscopes.studies.tokenization.forms import NotFormedError, another_split, drawn_cut, form_of, typo
from patchscopes.studies.tokenization.matched import matched_difference, partners, slope
from small_entities import written


def named(name: str, kind: str = "place") -> Entity:
    return Entity(name, kind, 1, "", ("zebra",))


# -------------------------------------------------------------------------------------------------------------- matched

STRATA = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
SINGLE = [True, True, False, False, False, True, False, False, True, True]
VALUES = [1.0, 0.5, 0.0, 0.5, 0.25, 0.0, 1.0, 1.0, 9.0, 9.0]


def test_the_difference_is_that_of_strata_weighted_by_pairs() -> None:
    found = matched_difference(VALUES, SINGLE, STRATA, seed=0)
    in_a, in_b = 0.75 - 0.25, 0.0 - 1.0
    assert found.interval.estimate == pytest.approx((2 * in_a + 1 * in_b) / 3)
    assert (found.n_pairs, found.items, found.alone) == (3, tuple(range(8)), (8, 9))
    assert math.isnan(found.interval.low), "three pairs are too few for an interval"


def test_popularity_alone_is_no_difference_of_kinds() -> None:
    """Single names are mostly of the popular stratum, and popular names score 1: matched, nothing is left."""
    strata = ["popular"] * 20 + ["rare"] * 20
    single = [True] * 16 + [False] * 4 + [True] * 4 + [False] * 16
    values = [1.0] * 20 + [0.0] * 20
    found = matched_difference(values, single, strata, seed=0)
    assert found.interval.estimate == 0
    assert found.p == 1
    assert found.n_pairs == 8
    alike = matched_difference([1.0] * 40, single, strata, seed=0).interval
    assert alike.estimate == 0
    assert math.isnan(alike.low), "names that are all alike give no interval"


def test_a_difference_of_kinds_is_found_and_not_by_chance() -> None:
    strata = ["a"] * 10 + ["b"] * 10
    single = [True, False] * 10
    found = matched_difference([float(kind) for kind in single], single, strata, seed=0)
    assert found.interval.estimate == 1
    assert math.isnan(found.interval.low), "where no draw differs from another there is no interval"
    assert found.p < 0.001
    opposite = matched_difference([float(not kind) for kind in single], single, strata, seed=0)
    assert (opposite.interval.estimate, opposite.p) == (-1, pytest.approx(found.p, abs=0.001))


def test_p_is_that_of_all_ways_to_deal_the_kinds_within_strata() -> None:
    values, single, strata = [1.0, 0.0, 0.0, 1.0, 0.0], [True, False, False, True, False], ["a"] * 3 + ["b"] * 2
    # 3 · 2 deals: stratum a differs by 1 in one of three, −1/2 in two; b by ±1; weights are 1 and 1.
    totals = [abs((a + b) / 2) for a in (1, -0.5, -0.5) for b in (1, -1)]
    exact = np.mean([total >= 1 for total in totals])
    assert matched_difference(values, single, strata, seed=1).p == pytest.approx(exact, abs=0.02)


def test_few_pairs_have_no_interval() -> None:
    """Draws that lose one of a pair do not count, so that one pair, or four, would seem certain."""
    values, single = [0.25, 0.75] * 4 + [0.5, 0.75], [True, False] * 5
    four = matched_difference(values[:8], single[:8], ["a", "a", "b", "b"] * 2, seed=0)
    assert (four.n_pairs, four.interval.estimate) == (4, -0.5)
    assert math.isnan(four.interval.low)
    five = matched_difference(values, single, ["a", "a", "b", "b"] * 2 + ["b", "b"], seed=0)
    assert five.n_pairs == 5
    assert five.interval.low < five.interval.estimate < five.interval.high


def test_without_partners_there_is_nothing_to_compare() -> None:
    found = matched_difference([1.0, 0.0], [True, False], ["a", "b"], seed=0)
    assert math.isnan(found.interval.estimate)
    assert (found.n_pairs, found.items, found.alone) == (0, (), (0, 1))
    assert partners(SINGLE, STRATA) == (tuple(range(8)), (8, 9))


def test_slopes() -> None:
    x = np.array([1, 1, 2, 3, 3, 4])
    line = slope(0.5 - 0.1 * x, x, seed=0)
    assert (line.estimate, line.low, line.high) == pytest.approx((-0.1, -0.1, -0.1))
    tiers = [1, 1, 1, 2, 2, 2]
    by_tier = np.array([1.0, 1, 1, 0, 0, 0])
    assert slope(by_tier, x, seed=0).estimate < -0.2, "longer names are the rarer ones"
    assert slope(by_tier, x, seed=0, within=tiers).estimate == pytest.approx(0), "and that is all"
    assert math.isnan(slope([0.0, 1, 0], [2, 2, 2], seed=0).estimate)
    flat = slope([0.0] * 6, x, seed=0)
    assert flat.estimate == 0
    assert math.isnan(flat.low)
    noisy = slope(np.random.default_rng(0).random(60), np.arange(60) % 4, seed=0)
    assert noisy.low < noisy.estimate < noisy.high
    assert noisy.low < 0 < noisy.high


# ---------------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("name", ["Diana, Princess of Wales", "Brno", "O'Neill", "Zoë Moore", "The Beatles"])
def test_a_typo_swaps_two_inner_letters_that_differ(name: str) -> None:
    for seed in range(20):
        found = typo(name, seed)
        (at, then) = [k for k, (a, b) in enumerate(zip(name, found, strict=True)) if a != b]
        assert then == at + 1
        assert (found[at], found[then]) == (name[then], name[at])
        assert name[at - 1].isalpha(), "never the first letter of a word"
        assert name[then + 1 : then + 2].isalpha(), "never the last one"
    assert typo(name, 1) == typo(name, 1)
    assert len({typo("Diana, Princess of Wales", seed) for seed in range(20)}) > 3


@pytest.mark.parametrize("name", ["U2", "Abe", "The Cat", "Noon", "1984", ""])
def test_no_typo_where_no_word_has_two_different_inner_letters(name: str) -> None:
    with pytest.raises(NotFormedError, match="inner letters"):
        typo(name, 0)


def test_a_cut_is_inside_the_first_word_and_at_no_end_of_a_token() -> None:
    cuts = {drawn_cut("Paris Hilton", {2, 5, 12}, seed) for seed in range(60)}
    assert cuts == {1, 3, 4}
    for name, ends in (("A Tale", set()), ("Ab", {1}), ("?!", set())):
        with pytest.raises(NotFormedError, match="no place"):
            drawn_cut(name, ends, 0)


@pytest.mark.parametrize("kind", ["byte-level", "trimmed", "llama-2", "gemma"])
def test_an_odd_split_is_another_one_of_the_same_text(kind: str) -> None:
    model = tiny_model("llama") if kind == "byte-level" else model_with(kind)
    plain, odd = (
        form_of(model, named("Spain hello"), "plain", seed=1),
        another_split(model, named("Spain hello"), "odd-split", seed=1),
    )
    assert plain.n_tokens == 2
    assert odd.n_tokens > 2
    assert odd.source.text == plain.source.text
    assert "".join(odd.source.split) == plain.source.text
    cut = len(odd.source.split[0])
    assert plain.start < cut < plain.start + len("Spain")
    assert cut in {end for _, end in odd.tokenized.spans}
    assert cut not in {end for _, end in plain.tokenized.spans}
    assert odd.tokenized.spans[odd.positions[-1]][1] == len(plain.source.text), "read at the name's end"


def test_forms_of_a_name(llama: Model) -> None:
    spain = named("Spain")
    plain = form_of(llama, spain, "plain", seed=0)
    assert plain.ids == tokenize(llama, " Spain").ids
    assert plain.source.text.endswith("about Spain")
    close = another_split(llama, spain, "no-space", seed=0)
    assert close.source.text.endswith("(Spain")
    assert close.ids == tokenize(llama, "Spain").ids != plain.ids
    assert form_of(llama, spain, "spaced", seed=0).ids == plain.ids
    assert another_split(llama, spain, "upper", seed=0).source.text.endswith("about SPAIN")
    assert another_split(llama, spain, "lower", seed=0).said == "spain"
    for form in forms.FORMS:
        made = another_split(llama, spain, form, seed=0)
        assert made.ids != form_of(llama, spain, forms.FORMS[form], seed=0).ids
        assert made.source.item == "Spain"
        assert made.source.kind == "place"


def test_a_form_with_the_same_tokens_is_none(llama: Model) -> None:
    with pytest.raises(NotFormedError, match="do not change"):
        another_split(llama, named("hello"), "lower", seed=0)


@pytest.mark.parametrize("form", ["plain", "odd-split", "upper"])
def test_a_name_that_stands_in_the_carrier_too_is_formed_at_the_end(llama: Model, form: str) -> None:
    made = form_of(llama, named("talking"), form, seed=0)
    assert made.said.lower() == "talking"
    assert made.tokenized.text[made.start :] == made.said
    assert made.positions[-1] == len(made.tokenized) - 1


def test_a_name_whose_first_token_takes_in_what_stands_before_it_has_no_such_form(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(forms.CARRIERS, "no-space", "they talked about !{}")
    with pytest.raises(NotFormedError, match="takes in"):
        form_of(llama, named("; Spain"), "no-space", seed=0)
    assert form_of(llama, named("Spain"), "no-space", seed=0).said == "Spain"


# ---------------------------------------------------------------------------------------------------------------- parts


def test_everyone_is_dealt_once(tmp_path: Path) -> None:
    everyone = load_entities(written(tmp_path)).items
    parts = Parts.deal(everyone, n_choosing=30, n_reported=None, seed=0)
    names = [entity.name for entity in (*parts.choosing, *parts.reported)] + [e.item for e in parts.excluded]
    assert sorted(names) == sorted(entity.name for entity in everyone)
    assert parts.seen == len(everyone)
    few = Parts.deal(everyone, n_choosing=6, n_reported=12, seed=0)
    assert [len(few.choosing), len(few.reported)] == [2 * FEWEST, 2 * FEWEST]
    assert Parts.deal(everyone, n_choosing=30, n_reported=None, seed=1).choosing != parts.choosing
    lonely = [e for e in everyone if e.type == "person"][: 2 * FEWEST - 1]
    alone = Parts.deal(lonely, n_choosing=30, n_reported=None, seed=0)
    assert (alone.choosing, alone.reported, len(alone.excluded)) == ((), (), len(lonely))


def test_a_form_that_a_type_has_too_seldom_is_left_out_with_a_reason(llama: Model) -> None:
    make = partial(another_split, llama, form="lower", seed=0)
    persons = [named(f"Spain {k}", "person") for k in range(FEWEST)]
    places = [named(f"Wales {k}") for k in range(FEWEST - 1)] + [named("hello")]
    kept, excluded = enough([*persons, *places], make, ": lower")
    assert [form.entity for form in kept] == persons
    assert Counter(e.reason for e in excluded) == {TOO_FEW: FEWEST - 1, forms.UNCHANGED: 1}
    assert {e.item for e in excluded} == {f"{place.name}: lower" for place in places}
    again = enough([*persons[:-1], named("SPAIN 0".title(), "person")], make, "")
    assert again[0] == (), "two names that become one text are one donor"


# ------------------------------------------------------------------------------------------------------- detokenisation


def test_a_word_is_looked_for_at_its_last_piece_and_by_its_own_token(tmp_path: Path) -> None:
    model = tiny_model("llama")
    design = Design.of(Setup.of(model, {"quick": True}), load_entities(written(tmp_path)).items)
    found = detokenise(design, k=25)
    assert len(found.words) > 2
    assert found.plain[:, 0].all(), "a word that was not split is nearest to itself where it enters"
    assert found.split.any()
    assert not found.split.all()
    for word, row in zip(found.words, found.split, strict=True):
        assert tokenize(model, f" {word.text}").ids == (word.token_id,)
        ids, position = word.split
        assert word.token_id not in ids
        for layer in found.layers:
            (nearest,) = nearest_tokens(model, [State(ids, position, layer)], k=25)
            assert row[layer] == (word.token_id in {neighbour.token_id for neighbour in nearest})
    firsts = [next((layer for layer in found.layers if row[layer]), None) for row in found.split]
    assert found.first == firsts
    for k, layer in enumerate(found.layers):
        split, plain = (
            captured(model, [State(*place, layer) for place in places])
            for places in ([word.split for word in found.words], [word.plain for word in found.words])
        )
        for n, one in enumerate(split - split.mean(0)):
            cosines = [float(torch.cosine_similarity(one, other, dim=0)) for other in plain - plain.mean(0)]
            assert found.recognised[n, k] == (cosines.index(max(cosines)) == n)
    assert found.recognised.any()
    assert not found.recognised.all()
    assert found.others.shape == (len(found.words), min(5, len(found.words) - 1), len(found.layers))


def test_without_a_word_there_is_nothing_to_find(tmp_path: Path) -> None:
    design = Design.of(Setup.of(tiny_model("llama"), {"quick": True}), load_entities(written(tmp_path)).items)
    none = replace(design, forms={**design.forms, "odd-split": ()})
    found = detokenise(none)
    assert found.words == ()
    assert {exclusion.item for exclusion in found.excluded} == {f"{n.entity.name}: detokenisation" for n in none.names}
    assert found.split.shape == found.recognised.shape == (0, 4)
    assert found.first == found.first_recognised == []


def test_what_is_near_at_layer_0_no_block_has_made() -> None:
    there = np.array([[True, False, True], [True, False, False]])
    none = np.zeros((2, 0, 3), dtype=bool)
    made = Detokenised((), (), (0, 1, 2), split=there, plain=there, others=none, recognised=~there)
    assert made.first == [2, None]
    assert made.first_recognised == [1, 1]


def test_other_words_are_never_the_word_itself() -> None:
    own = [11, 22, 33, 44, 55, 66, 77]
    drawn = other_words(own, seed=0)
    assert drawn.shape == (7, 5)
    for id, row in zip(own, drawn.tolist(), strict=True):
        assert id not in row
        assert len(set(row)) == 5
        assert set(row) < set(own)
    assert other_words(own[::-1], seed=0).shape == (7, 5)
    assert other_words([11], seed=0).shape == (1, 0)
    assert not np.array_equal(other_words(own, seed=0), other_words(own, seed=1))
