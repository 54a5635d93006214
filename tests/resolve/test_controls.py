"""Controls (rule 16): what they write, what they are keyed by, and what the text of a source is."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tokenizers import processors

from conftest import tiny_model
from odd_tokenizers import model_with
from patchscopes.errors import PositionError
from patchscopes.models import Model, wrap_in_memory
from patchscopes.prompts import find_prompt, resolve_positions, tokenize
from patchscopes.resolve import CONTROLS, resolve
from patchscopes.resolve.controls import neutral_places
from patchscopes.resolve.grid import Point
from patchscopes.resolve.neutral import NEUTRAL_SENTENCES
from patchscopes.rng import philox
from patchscopes.spec import Neutral, Noise, Request, Source, State, Sweep
from patchscopes.vectors import gaussian

PROMPT = find_prompt("the capital of {} is")
SWEEP = Sweep((Source("the cat of Spain"),), (PROMPT,), (0, 2, 4), controls=("random-state",))


def point_at(model: Model, text: str, at: str | int, *, bos: str = "auto") -> Point:
    tokenized = tokenize(model, text, bos=bos)  # type: ignore[arg-type]
    return Point(0, tokenized, resolve_positions(model, tokenized, at)[0], ())


def controls(model: Model, name: str, sweep: Sweep) -> Iterator[Request]:
    return (request for request in resolve(model, replace(sweep, controls=(name,))).requests if request.control)


def neutrals(model: Model, sweep: Sweep) -> list[Neutral]:
    cells = [request.cell for request in controls(model, "random-state", sweep)]
    return [v for cell in cells if cell and cell.write for v in cell.write.vectors if isinstance(v, Neutral)]


def test_there_are_enough_neutral_sentences_and_all_differ() -> None:
    assert len(set(NEUTRAL_SENTENCES)) == len(NEUTRAL_SENTENCES) >= 32
    assert len({sentence.casefold().split()[-1] for sentence in NEUTRAL_SENTENCES}) > 20, "the last words vary"


def test_neutral_sentences_name_nobody_and_no_place() -> None:
    for sentence in NEUTRAL_SENTENCES:
        assert sentence.isascii()
        assert re.fullmatch(r"[A-Z][a-z ,]+\.", sentence), "one capital letter: no names; no digits"
        assert len(sentence.split()) >= 6


@pytest.mark.parametrize("add_bos", [False, True])
def test_places_are_never_at_position_0_nor_special(add_bos: bool) -> None:
    model = tiny_model("llama", add_bos=add_bos)
    places = neutral_places(model, "auto")
    assert len(set(places)) == len(places)
    assert len({ids for ids, _ in places}) == len(NEUTRAL_SENTENCES), "every sentence is in play"
    assert all(1 <= position < len(ids) for ids, position in places)
    special = set(model.tokenizer.all_special_ids)
    assert all(ids[position] not in special for ids, position in places)
    assert {ids[0] == model.tokenizer.bos_token_id for ids, _ in places} == {add_bos}


def test_a_second_special_token_before_the_text_is_no_place() -> None:
    tokenizer = copy.deepcopy(tiny_model("llama").tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> <user> $A", special_tokens=[("<bos>", 0), ("<user>", 3)]
    )
    places = neutral_places(wrap_in_memory(tiny_model("llama").hf, tokenizer), "auto")
    assert min(position for _, position in places) == 2


def test_places_follow_the_sweeps_bos() -> None:
    model = tiny_model("llama")
    always = neutrals(model, replace(SWEEP, bos="always"))
    assert {vector.state.ids[0] for vector in always} == {model.tokenizer.bos_token_id}


def test_one_draw_is_one_place_at_every_layer_and_its_like_is_the_cells_state(llama: Model) -> None:
    found = neutrals(llama, SWEEP)
    assert len({(vector.state.ids, vector.state.position) for vector in found}) == 1
    assert [vector.state.layer for vector in found] == [0, 2, 4] == [vector.like.layer for vector in found]
    assert {vector.like.ids for vector in found} == {tokenize(llama, "the cat of Spain").ids}


def test_draws_sources_positions_and_seeds_have_places_of_their_own(llama: Model) -> None:
    def places(sweep: Sweep) -> list[tuple[tuple[int, ...], int]]:
        return [(vector.state.ids, vector.state.position) for vector in neutrals(llama, sweep)]

    one = replace(SWEEP, source_layers=(1,))
    drawn = places(replace(one, draws=20))
    assert len(set(drawn)) > 15
    assert places(replace(one, draws=3)) == drawn[:3], "more draws do not change the first ones"
    assert places(replace(one, seed=1, draws=3)) != drawn[:3]
    assert places(replace(one, at=1, draws=3)) != drawn[:3]
    both = replace(one, sources=(Source("hello"), *one.sources), draws=3)
    assert places(both)[3:] == drawn[:3], "nor does another source beside it"


def test_random_is_keyed_by_seed_and_draw(llama: Model) -> None:
    found = [r.cell.write.vectors[0] for r in controls(llama, "random", replace(SWEEP, draws=2, seed=7))
             if r.cell and r.cell.write]  # fmt: skip
    assert {(v.seed, v.draw) for v in found if isinstance(v, Noise)} == {(7, 0), (7, 1)}


def test_k_placeholders_get_the_same_vector(llama: Model) -> None:
    sweep = replace(SWEEP, prompts=(find_prompt("{} of {} is"),))
    for name in ("random", "random-state", "zero"):
        for request in controls(llama, name, sweep):
            assert request.cell is not None
            assert request.cell.write is not None
            assert len(request.cell.write.vectors) == 2
            assert len(set(request.cell.write.vectors)) == 1


def test_self_writes_each_placeholders_own_state(llama: Model) -> None:
    sweep = replace(SWEEP, prompts=(find_prompt("{} of {} is"),))
    for request in controls(llama, "self", sweep):
        assert request.cell is not None
        assert request.cell.write is not None
        layer = request.cell.write.site.layer
        assert request.cell.write.vectors == tuple(State(request.cell.target_ids, p, layer) for p in (0, 2))
        assert (request.source, request.source_layer, request.target_layer) == (None, None, layer)


def test_target_layers_of_a_product_are_controlled_once_each(llama: Model) -> None:
    sweep = replace(SWEEP, target_layers=(3, 1))
    assert [request.target_layer for request in controls(llama, "zero", sweep)] == [3, 1]


@pytest.mark.parametrize(
    ("text", "at", "bos", "expected"),
    [
        ("the cat of Spain is", "cat", "auto", "the cat"),
        ("the cat of Spain is", "cat", "always", "the cat"),
        ("the cathedral is", 1, "auto", "the ca"),
        ("  the cat", -1, "auto", "the cat"),
        ("<user>the cat<eos> of", "cat", "auto", "the cat"),
        ("<user>the cat<eos> of", "of", "auto", "the cat of"),
        ("<user>the cat<eos> of", "of", "always", "the cat of"),
        ("<user><user>", -1, "auto", ""),
        ("the <pad>", -1, "auto", "the"),
        ("the 😀", 2, "auto", "the 😀"),
        ("cat", 0, "always", ""),
    ],
)
def test_the_text_of_a_point_is_the_source_up_to_its_token(
    llama: Model, text: str, at: str | int, bos: str, expected: str
) -> None:
    assert point_at(llama, text, at, bos=bos).text == expected


def test_an_unknown_character_is_a_part_of_the_text() -> None:
    assert point_at(model_with("metaspace"), "the é cat", "cat").text == "the é cat"


def test_text_only_retokenises_the_text_in_the_prompt(llama: Model) -> None:
    sweep = replace(SWEEP, sources=(Source("hello {} cathedral", at=4),), prompts=(find_prompt("{}; {} is"),))
    (request,) = controls(llama, "text-only", sweep)
    assert request.cell is not None
    text = point_at(llama, "hello {} cathedral", 4).text
    assert "{}" in text, "the source's own braces are text"
    assert request.cell.target_ids == tokenize(llama, f"{text}; {text} is").ids
    assert request.cell.write is None
    assert request.target_positions == ()


@pytest.mark.parametrize(
    ("text", "at", "bos", "expected"),
    [
        ("the capital of Spain is", "capital of Spain", "auto", ["capital of Spain"]),
        ("the capital of Spain is", "span:capital of Spain", "auto", ["capital of Spain"] * 3),
        ("the cat of the cat", "the cat#2", "auto", ["the cat"]),
        ("the cat of 3", "text:3", "auto", ["3"]),
        ("the capital of Spain is", r"re:of \w+ ?", "auto", None),
        ("the capital of Spain is", r"re: of \w+", "auto", ["of Spain"]),
        ("the capital of Spain is", r"span:re:of \w+", "auto", ["of Spain"] * 2),
        ("the capital of Spain is", "last", "auto", ["is"]),
        ("the cat of Spain", 1, "auto", ["cat"]),
        ("the cat of", "all", "auto", ["the", "cat", "of"]),
        ("the cat", "all", "always", ["", "the", "cat"]),
        ("<user>the cat<eos> of", "all", "auto", ["", "the", "cat", "", "of"]),
        ("the<eos> cat", "span:the<eos> cat", "auto", ["the cat"] * 3),
    ],
)
def test_the_phrase_of_a_point_is_what_marks_it(
    llama: Model, text: str, at: str | int, bos: str, expected: list[str] | None
) -> None:
    sweep = replace(SWEEP, sources=(Source(text, at=at),), bos=bos, controls=("phrase-only",))  # type: ignore[arg-type]
    if expected is None:
        with pytest.raises(PositionError):
            resolve(llama, sweep)
        return
    rows = list(controls(llama, "phrase-only", sweep))
    assert len(rows) == len(expected)
    for row, phrase in zip(rows, expected, strict=True):
        if not phrase:
            assert (row.status, row.cell) == ("failed", None)
            assert (row.reason or "").startswith("no text is marked by token")
            continue
        assert row.cell is not None
        assert row.cell.write is None
        assert row.cell.target_ids == tokenize(llama, f"the capital of {phrase} is", bos=bos).ids  # type: ignore[arg-type]


def test_phrase_only_stands_at_every_placeholder_once_a_prompt_however_many_layers(llama: Model) -> None:
    source = Source("hello {} of Spain", at="{} of Spain")
    sweep = replace(SWEEP, sources=(source,), prompts=(PROMPT, find_prompt("{}; {} is")), draws=3)
    one, two = controls(llama, "phrase-only", sweep)
    assert one.cell is not None
    assert two.cell is not None
    assert two.cell.target_ids == tokenize(llama, "{} of Spain; {} of Spain is").ids
    assert (one.source_index, one.position, one.source_layer, one.target_layer) == (0, 5, None, None)


def test_text_only_beyond_the_context_is_a_failed_row(llama: Model) -> None:
    long = Source("the cat " * 60)
    (request,) = controls(llama, "text-only", replace(SWEEP, sources=(long,)))
    assert (request.status, request.cell) == ("failed", None)
    assert "beyond the model's context (128)" in (request.reason or "")


def test_every_control_of_rule_16_is_there_in_this_order() -> None:
    assert list(CONTROLS) == [
        "unpatched", "self", "zero", "random", "random-state", "shuffled", "mean", "text-only", "phrase-only"
    ]  # fmt: skip


def test_philox_streams_are_the_same_on_every_machine() -> None:
    """Digits from the first version: a change of key or generator would silently change every control."""
    state = State((1, 2, 3), 1, 2)
    assert gaussian(Noise(state, 0, 0), 3).tolist() == pytest.approx([2.0450435, -0.5145333, 0.9453866], abs=1e-6)
    assert [int(philox("random-state", 0, draw, (1, 2, 3), 1).integers(1000)) for draw in range(4)] == [
        286,
        794,
        314,
        659,
    ]
    assert float(philox("sample", 7, "ab", 3).random()) == pytest.approx(0.9202814930972911, abs=1e-15)


def test_philox_does_not_hang_on_the_process() -> None:
    """Python's own hash differs from process to process; nothing here may go by it."""
    code = "from patchscopes.rng import philox; print(philox('a', 1, (2, 3)).integers(10**9))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert seen == {f"{philox('a', 1, (2, 3)).integers(10**9)}\n"}
