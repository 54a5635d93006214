"""The resolution: options, bad sources among good ones, context limits, warnings."""

import re
from dataclasses import replace

import pytest

from conftest import tiny_model
from families import N_POSITIONS
from patchscopes import errors
from patchscopes.models import Model
from patchscopes.prompts import find_prompt, resolve_target, tokenize
from patchscopes.resolve import Resolved, resolve
from patchscopes.spec import Decoding, InspectionPrompt, Readout, Request, Source, Sweep

TEXT = "the cat of Spain"
PROMPT = find_prompt("the capital of {} is")
SWEEP = Sweep((Source(TEXT),), (PROMPT,), (1, 2))


def sources(*texts: str | Source) -> tuple[Source, ...]:
    return tuple(text if isinstance(text, Source) else Source(text) for text in texts)


def cells(resolved: Resolved) -> list[Request]:
    return [request for request in resolved.requests if request.control is None]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sources": ()}, "no source was given"),
        ({"prompts": ()}, "no inspection prompt was given"),
        ({"decoding": Decoding(0)}, "max_new_tokens is 0; it must be at least 1"),
        ({"decoding": Decoding(temperature=-0.1)}, "temperature is -0.1"),
        ({"decoding": Decoding(temperature=float("nan"))}, "temperature is nan"),
        ({"decoding": Decoding(stop=("a", ""))}, "a stop string is empty"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"n_samples": 2}, "2 samples would all be the same"),
        ({"n_samples": 2, "decoding": Decoding(temperature=1.0), "readout": Readout("next-token")}, "all be the same"),
        ({"draws": 0}, "draws is 0"),
        ({"readout": Readout("next-token", 0)}, "top_k is 0; it must be 1 to 317"),
        ({"readout": Readout("next-token", 318)}, "top_k is 318; it must be 1 to 317"),
        ({"expect": (" ",)}, "an expected answer is empty"),
        ({"sources": sources(Source(TEXT, expect=("",)))}, "an expected answer is empty"),
        ({"controls": ("zero", "zero")}, "a control is named twice"),
        ({"controls": ("Zero",)}, "unknown control 'Zero'; the controls are unpatched, self"),
        ({"controls": ("shuffle",)}, "unknown control 'shuffle'; .*, shuffled, mean, text-only, phrase-only"),
        ({"sources": sources(Source(TEXT, item=" "))}, "source 0: its item is empty; name it, or leave it out"),
        ({"sources": sources(TEXT, Source(TEXT, kind=""))}, "source 1: its kind is empty"),
    ],
)
def test_option_errors(llama: Model, change: dict[str, object], reason: str) -> None:
    with pytest.raises(errors.SpecError, match=reason):
        resolve(llama, replace(SWEEP, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [2.0, True, "5", None])
def test_what_is_hashed_must_be_a_plain_number(llama: Model, value: object) -> None:
    decoding = Decoding()
    object.__setattr__(decoding, "max_new_tokens", value)  # as outside of tests, where no type is checked
    with pytest.raises(errors.OptionError, match=f"max_new_tokens is {value!r}; it must be a whole number"):
        resolve(llama, replace(SWEEP, decoding=decoding))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "source 1 is empty"),
        (" \n\t", "source 1 is empty"),
        ("a \ud800", "source 1 is not UTF-8"),
        (Source("hello", at="cat"), "'cat' occurs 0 times"),
        (Source("cat cat", at="cat"), "'cat' occurs twice"),
        (Source("hello", at=1), "position 1 is out of range"),
        (Source("hello", at="re:("), "is no regular expression"),
        ("x" * 129, "source 1 has 129 tokens, beyond the model's context"),
    ],
)
def test_one_bad_source_among_good_ones_is_a_failed_request_in_its_place(
    llama: Model, bad: str | Source, reason: str
) -> None:
    resolved = resolve(llama, replace(SWEEP, sources=sources(TEXT, bad, "the cat"), controls=("text-only",)))
    statuses = [(request.source_index, request.status) for request in cells(resolved)]
    assert statuses == [(0, "ok"), (0, "ok"), (1, "failed"), (2, "ok"), (2, "ok")]
    failed = cells(resolved)[2]
    assert failed.cell is None
    assert failed.source == (bad.text if isinstance(bad, Source) else bad)
    assert re.search(reason, failed.reason or "")
    assert {request.source_index for request in resolved.requests if request.control} == {0, 2}


def test_a_single_bad_source_is_its_own_error(llama: Model) -> None:
    with pytest.raises(errors.PositionError, match="'dog' occurs 0 times"):
        resolve(llama, replace(SWEEP, at="dog"))


def test_all_sources_bad_is_an_error_with_the_reasons(llama: Model) -> None:
    many = sources("", Source("the cat", at="dog"), "a \ud800", *["the cat"] * 4)
    with pytest.raises(errors.SourceError, match="none of the 7 sources can be used") as caught:
        resolve(llama, replace(SWEEP, sources=many, at=99))
    message = str(caught.value)
    for reason in ("source 0 is empty", "'dog' occurs 0 times", "source 2 is not UTF-8", "position 99", "and 2 more"):
        assert reason in message


def test_a_bad_prompt_is_an_error_whatever_the_sources(llama: Model) -> None:
    for prompt, reason in (
        (InspectionPrompt("a \ud800 {}"), "not UTF-8"),
        (InspectionPrompt("cat {}", placeholder="\ud800"), "not UTF-8"),
        (InspectionPrompt("cat {}", reply="\ud800"), "not UTF-8"),
        (InspectionPrompt("cat {};", placeholder="!"), "merges"),
    ):
        with pytest.raises(errors.SpecError, match=reason):
            resolve(llama, replace(SWEEP, prompts=(PROMPT, prompt), sources=sources(TEXT, "")))


@pytest.mark.parametrize(("kind", "new_tokens"), [("text", 20), ("next-token", 1)])
def test_a_prompt_and_its_new_tokens_fill_the_context_and_no_more(llama: Model, kind: str, new_tokens: int) -> None:
    base = len(resolve_target(llama, find_prompt("{}")).tokenized)
    for spare, fits in ((0, True), (-1, False)):
        prompt = find_prompt("{}" + ";" * (N_POSITIONS - new_tokens - base - spare))
        sweep = replace(SWEEP, prompts=(prompt,), readout=Readout(kind))  # type: ignore[arg-type]
        if fits:
            (first, *_) = cells(resolve(llama, sweep))
            assert first.cell is not None
            assert len(first.cell.target_ids) + first.cell.new_tokens == N_POSITIONS
            continue
        with pytest.raises(errors.ContextLengthError, match=r"129 in all, beyond the model's context \(128\)"):
            resolve(llama, sweep)


def test_a_source_fills_the_context_and_no_more(llama: Model) -> None:
    full = Source(";" * N_POSITIONS)
    assert len(tokenize(llama, full.text)) == N_POSITIONS
    resolved = resolve(llama, replace(SWEEP, sources=(full,)))
    assert {request.position for request in cells(resolved)} == {N_POSITIONS - 1}
    with pytest.raises(errors.ContextLengthError, match="source 0 has 129 tokens"):
        resolve(llama, replace(SWEEP, sources=sources(";" * (N_POSITIONS + 1))))
    with pytest.raises(errors.ContextLengthError, match="source 0 has 129 tokens"):
        resolve(llama, replace(SWEEP, sources=(full,), bos="always"))


def test_the_sources_own_position_and_answers_win(llama: Model) -> None:
    given = sources(Source(TEXT, at=0, expect=("Madrid",)), TEXT)
    resolved = resolve(llama, replace(SWEEP, sources=given, at=1, expect=("Rome",), controls=("unpatched",)))
    assert [(r.position, r.expect) for r in cells(resolved)] == [(0, ("Madrid",))] * 2 + [(1, ("Rome",))] * 2
    (unpatched,) = [request for request in resolved.requests if request.control]
    assert unpatched.expect == (), "no answer is expected of all"


def test_order_is_source_position_layers_prompt_sample(llama: Model) -> None:
    sweep = replace(
        SWEEP,
        sources=sources(TEXT, "the cat"),
        prompts=(PROMPT, find_prompt("cat {}")),
        at="all",
        source_layers=(2, 0),
        target_layers=(3, 1),
        n_samples=2,
        decoding=Decoding(temperature=1.0),
    )
    prompts = (PROMPT.text, "cat {}")
    keys = [
        (
            r.source_index,
            r.position,
            -(r.source_layer or 0),
            -(r.target_layer or 0),
            prompts.index(r.prompt or ""),
            r.sample,
        )
        for r in cells(resolve(llama, sweep))
    ]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) == (4 + 2) * 2 * 2 * 2 * 2


def test_warnings_name_the_flag_and_the_source(llama: Model) -> None:
    resolved = resolve(llama, replace(SWEEP, sources=sources("cat", TEXT), prompts=(find_prompt("{} is"),)))
    sink, target_sink = resolved.warnings
    assert "'cat'" in sink
    assert TEXT not in sink
    assert "target-sink" in target_sink
    assert [r.flags for r in cells(resolved)] == [("sink", "target-sink")] * 2 + [("target-sink",)] * 2
    with_bos = resolve(llama, replace(SWEEP, sources=sources("cat"), prompts=(find_prompt("{} is"),), bos="always"))
    assert with_bos.warnings == ()


def test_a_special_token_that_is_read_is_flagged() -> None:
    model = tiny_model("llama", add_bos=True)
    resolved = resolve(model, replace(SWEEP, sources=sources("cat<eos>"), at="all", source_layers=(1,)))
    assert [request.flags for request in cells(resolved)] == [("special",), (), ("special",)]


def test_inert_cells_keep_their_cell_and_say_why(llama: Model) -> None:
    n = llama.n_layers
    sweep = replace(SWEEP, source_layers=(n,), prompts=(PROMPT, find_prompt("cat {}")), controls=("zero", "random"))
    for request in resolve(llama, sweep).requests:
        assert request.status == ("inert" if request.prompt == PROMPT.text else "ok")
        assert request.cell is not None
        assert (request.reason is None) == (request.status == "ok")


def test_the_same_source_twice_is_two_requests_of_one_cell(llama: Model) -> None:
    first, second = cells(resolve(llama, replace(SWEEP, sources=sources(TEXT, TEXT), source_layers=(1,))))
    assert (first.source_index, second.source_index) == (0, 1)
    assert first.cell is not None
    assert first.cell == second.cell
