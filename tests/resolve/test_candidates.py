"""Candidates: their ids as they continue a prompt, a row each, and what cannot be scored."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import families
import patchscopes as ps
from conftest import tiny_model
from families import N_POSITIONS
from odd_tokenizers import MAKERS, model_with
from patchscopes import errors
from patchscopes.models import Model, wrap_in_memory
from patchscopes.prompts import continuation, find_prompt, resolve_target, tokenize
from patchscopes.prompts.tokens import tokenize_rendered
from patchscopes.reference import Reference
from patchscopes.resolve import resolve
from patchscopes.spec import Cell, Decoding, InspectionPrompt, Readout, Row, Source, Sweep

PROMPT = find_prompt("the capital of {} is")
SWEEP = Sweep(
    (Source("the cat of Spain"),),
    (PROMPT,),
    (1, 2),
    readout=Readout("candidates"),
    candidates=("hello", "the cat", "Syria"),
)


def alone_logprob(reference: Reference, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """The log-probability of an answer behind a prompt in which nothing is written."""
    cell = Cell("", "float32", tuple(prompt), None, Readout("candidates"), Decoding(), candidates=(tuple(answer),))
    (logprob,) = reference.run_cell(cell).logprobs or ()
    return logprob


def inspect(model: Model, *arguments: object, **options: object) -> ps.Results:
    options = {"prompt": PROMPT, "readout": "candidates", "candidates": ["hello", "the cat", "Syria"], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PatchscopesWarning)
        return ps.inspect(model, *arguments, **options)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- continuations


def test_the_ids_of_a_candidate_are_those_behind_the_prompt_and_one_space(llama: Model) -> None:
    prompt = tokenize(llama, "the capital of Spain is")
    assert continuation(llama, prompt, "hello", chat=False) == tuple(llama.tokenizer(" hello")["input_ids"])
    both = continuation(llama, prompt, "the cat", chat=False)
    assert (*prompt.ids, *both) == tokenize(llama, "the capital of Spain is the cat").ids
    assert len(both) == 2


@pytest.mark.parametrize("space", [" ", "\n"])
def test_a_prompt_that_ends_in_a_space_is_refused_even_where_its_tokens_stay(llama: Model, space: str) -> None:
    prompt = tokenize(llama, f"the cat is{space}")
    assert tokenize(llama, f"{prompt.text} hello").ids[: len(prompt)] == prompt.ids
    with pytest.raises(errors.CandidateError, match="End the prompt without a space"):
        continuation(llama, prompt, "hello", chat=False)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_prompt_and_candidate_are_the_joined_text_for_every_tokenizer(kind: str) -> None:
    model = model_with(kind)
    prompt = tokenize(model, "the cat is")
    try:
        ids = continuation(model, prompt, "hello", chat=False)
    except errors.CandidateError:
        assert tokenize(model, "the cat is hello").ids[: len(prompt)] != prompt.ids
    else:
        assert (*prompt.ids, *ids) == tokenize(model, "the cat is hello").ids
        assert ids


@pytest.fixture
def joining() -> Model:
    """A tokenizer that knows no words: "the" and " cat" are tokens, and so is "the cat"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<eos>"], initial_alphabet=["x", "Ġ"]
    )
    tokenizer.train_from_iterator(["the"] * 90 + [" cat"] * 90 + ["the cat"] * 30, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)
    return wrap_in_memory(families.build("llama"), fast)


def test_a_candidate_that_changes_the_prompts_own_tokens_is_refused(joining: Model) -> None:
    prompt = tokenize(joining, "the")
    with pytest.raises(errors.CandidateError, match=r"candidate 'cat' does not continue 'the'.*own tokens change"):
        continuation(joining, prompt, "cat", chat=False)
    assert len(continuation(joining, prompt, "xx", chat=False)) == 3
    with pytest.raises(errors.CandidateError, match="End the prompt without a space"):
        inspect(joining, "cat x", prompt="{} the", candidates=["cat"])


def test_a_text_only_row_whose_tokens_would_change_is_a_failed_row_beside_good_ones(joining: Model) -> None:
    """The inspection prompt's own placeholder goes with the candidate; the end of a source does not."""
    results = inspect(
        joining, ["x the", "xx"], prompt="cat {}", candidates=["cat"], source_layers=1, controls=("text-only",)
    )
    assert [(row.control, row.source_index, row.status) for row in results] == [
        (None, 0, "ok"), (None, 1, "ok"), ("text-only", 0, "failed"), ("text-only", 1, "ok"),
    ]  # fmt: skip
    assert "does not continue" in (results[2].reason or "")
    assert (results[2].candidate, results[2].logprob, results[2].rank) == ("cat", None, None)


def test_a_chats_candidate_continues_the_rendered_prompt() -> None:
    model = tiny_model("llama", add_bos=True)
    target = resolve_target(model, InspectionPrompt("{} is", chat=True, reply="the"))
    ids = continuation(model, target.tokenized, "cat", chat=True)
    assert (*target.tokenized.ids, *ids) == tokenize_rendered(model, f"{target.tokenized.text} cat").ids
    assert ids == tuple(model.tokenizer(" cat", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("bos", ["always", "never"])
def test_a_bos_that_is_asked_for_is_the_prompts_and_not_the_candidates(llama: Model, bos: str) -> None:
    prompt = tokenize(llama, "the capital", bos=bos)  # type: ignore[arg-type]
    ids = continuation(llama, prompt, "cat", chat=False, bos=bos)  # type: ignore[arg-type]
    assert ids == tuple(llama.tokenizer(" cat")["input_ids"])


# ----------------------------------------------------------------------------------------------------------- resolution


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"candidates": ()}, "needs candidates"),
        ({"readout": Readout("text")}, "readout 'text' does not score them"),
        ({"candidates": ("a", " ")}, "a candidate is empty"),
        ({"candidates": ("a", "b", "a")}, "candidate 'a' is named twice"),
        ({"n_samples": 2}, "samples"),
    ],
)
def test_option_errors(llama: Model, change: dict[str, object], reason: str) -> None:
    with pytest.raises(errors.OptionError, match=reason):
        resolve(llama, replace(SWEEP, **change))  # type: ignore[arg-type]


def test_each_cell_is_one_request_for_each_candidate_in_their_order(llama: Model) -> None:
    requests = resolve(llama, SWEEP).requests
    assert [(r.source_layer, r.candidate, r.candidate_index) for r in requests] == [
        (layer, candidate, k) for layer in (1, 2) for k, candidate in enumerate(SWEEP.candidates)
    ]
    assert len({r.cell for r in requests}) == 2, "all candidates of a cell are one computation"
    (baseline,) = {r.baseline for r in requests}
    assert baseline is not None
    assert baseline.write is None
    assert all(r.cell is not None and r.cell.candidates == baseline.candidates for r in requests)


def test_the_longest_candidate_must_fit_the_context(llama: Model) -> None:
    target = resolve_target(llama, PROMPT)
    room = N_POSITIONS - len(target.tokenized)
    fits, over = " ".join(["cat"] * room), " ".join(["cat"] * (room + 1))
    resolve(llama, replace(SWEEP, candidates=("hello", fits)))
    with pytest.raises(errors.ContextLengthError, match=r"inspection prompt 'the capital of \{\} is' has"):
        resolve(llama, replace(SWEEP, candidates=("hello", over)))


def test_what_cannot_be_scored_in_a_text_only_row_is_a_failed_row(llama: Model) -> None:
    """The source's own text may end so that a candidate does not continue it, or be too long."""
    long = Source(" ".join(["cat"] * 100))
    sweep = replace(SWEEP, sources=(*SWEEP.sources, long), controls=("text-only",), candidates=("hello", "cat " * 25))
    sweep = replace(sweep, candidates=tuple(candidate.strip() for candidate in sweep.candidates))
    requests = [r for r in resolve(llama, sweep).requests if r.control == "text-only"]
    assert [r.status for r in requests] == ["ok", "ok", "failed", "failed"]
    assert all("beyond the model's context" in (r.reason or "") for r in requests[2:])
    assert [r.candidate for r in requests] == [*sweep.candidates] * 2


def by_cell(results: ps.Results) -> dict[tuple[object, ...], list[Row]]:
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in results:
        key = (row.control, row.source_index, row.source_layer, row.target_layer, row.prompt, row.draw)
        found.setdefault(key, []).append(row)
    return found


@pytest.mark.parametrize("runner", ["engine", "reference"])
def test_rows_hold_what_the_write_adds_to_each_candidate(llama: Model, runner: str) -> None:
    results = inspect(llama, "the cat of Spain", controls=("unpatched", "zero", "random", "text-only"), runner=runner)
    prompt = tokenize(llama, "the capital of x is")
    answers = [continuation(llama, prompt, candidate, chat=False) for candidate in SWEEP.candidates]
    reference = Reference(llama)
    plain = [alone_logprob(reference, prompt.ids, answer) for answer in answers]
    for (control, *_), rows in by_cell(results).items():
        assert [row.candidate for row in rows] == list(SWEEP.candidates)
        if rows[0].status != "ok":
            assert {row.status for row in rows} == {"inert"}
            continue
        assert sorted(row.rank or 0 for row in rows) == [1, 2, 3]
        likeliest = max(rows, key=lambda row: row.logprob or 0)
        assert likeliest.rank == 1
        for row, answer, without in zip(rows, answers, plain, strict=True):
            assert row.logprob is not None
            assert row.token_ids == answer
            assert row.logprob_minus_unpatched == pytest.approx(row.logprob - without, abs=1e-3)
            if control == "unpatched":
                assert row.logprob_minus_unpatched == 0


def test_what_nothing_asked_for_is_compared_with_and_not_shown(llama: Model) -> None:
    results = inspect(llama, "the cat of Spain", source_layers=2, controls=())
    assert len(results) == 3
    assert all(row.logprob_minus_unpatched not in (None, 0) for row in results)
    inspection = ps.prepare(
        llama, "the cat of Spain", prompt=PROMPT, readout="candidates", candidates="hello", source_layers=2, controls=()
    )
    assert len(inspection.plan.cells) == 2, "the cell, and the prompt as it is"


def test_each_prompt_is_compared_with_itself(llama: Model) -> None:
    results = inspect(llama, "the cat of Spain", prompt=[PROMPT, "cat {} is"], source_layers=1, controls=("unpatched",))
    plain = {(row.prompt, row.candidate): row.logprob for row in results if row.control == "unpatched"}
    for row in results:
        without = plain[row.prompt, row.candidate]
        assert row.logprob is not None
        assert without is not None
        assert row.logprob_minus_unpatched == pytest.approx(row.logprob - without, abs=1e-6)


def test_equal_cells_of_two_sources_are_scored_once(llama: Model) -> None:
    options = {"prompt": PROMPT, "readout": "candidates", "candidates": ["hello", "the cat"], "source_layers": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PatchscopesWarning)
        inspection = ps.prepare(llama, ["the cat", "the cat"], controls=(), **options)  # type: ignore[arg-type]
    assert len(inspection.plan.cells) == 2
    rows = list(inspection.results())
    assert [(row.source_index, row.candidate) for row in rows] == [
        (0, "hello"), (0, "the cat"), (1, "hello"), (1, "the cat"),
    ]  # fmt: skip
    assert [row.logprob for row in rows[:2]] == [row.logprob for row in rows[2:]]


def test_expected_answers_are_matched_with_the_candidate(llama: Model) -> None:
    rows = inspect(llama, "the cat of Spain", source_layers=1, expect=["Hello", "Syria"], controls=())
    assert [row.expected for row in rows] == [True, False, True]


# ----------------------------------------------------------------------------------------- candidates of a source's own

CONTROLLED = ("unpatched", "zero", "shuffled", "text-only")
OWN = (
    Source("the cat of Spain", candidates=("hello", "the cat")),
    Source("go to Wales", candidates=("Syria",)),
    Source("the capital"),
    Source("say hello", candidates=("the cat", "hello")),
)


def test_a_source_is_scored_by_its_own_candidates_else_the_calls(llama: Model) -> None:
    requests = resolve(llama, replace(SWEEP, sources=OWN, source_layers=(1,))).requests
    assert [(r.source_index, r.candidate) for r in requests] == [
        (0, "hello"), (0, "the cat"), (1, "Syria"), (2, "hello"), (2, "the cat"), (2, "Syria"), (3, "the cat"),
        (3, "hello"),
    ]  # fmt: skip
    for request in requests:
        assert request.cell is not None
        assert request.baseline is not None
        assert request.baseline.candidates == request.cell.candidates
        assert len(request.cell.candidates) == len(request.candidates)


def test_controls_without_a_source_have_rows_for_each_set_once(llama: Model) -> None:
    sweep = replace(SWEEP, sources=OWN, source_layers=(1, 2), controls=("unpatched", "zero"))
    requests = resolve(llama, sweep).requests
    each = [("hello", 2), ("the cat", 2), ("Syria", 1), ("hello", 3), ("the cat", 3), ("Syria", 3)]
    assert [(r.candidate, len(r.candidates)) for r in requests if r.control == "unpatched"] == each
    zero = [(r.target_layer, r.candidate, len(r.candidates)) for r in requests if r.control == "zero"]
    assert zero == [(layer, *one) for layer in (1, 2) for one in each]
    unused = replace(sweep, sources=(OWN[0], OWN[3]), candidates=())
    assert [r.candidate for r in resolve(llama, unused).requests if r.control == "unpatched"] == ["hello", "the cat"]


@pytest.mark.parametrize("runner", ["engine", "reference"])
def test_rows_beside_are_of_the_items_candidates_and_their_own_baseline(llama: Model, runner: str) -> None:
    results = inspect(llama, OWN, candidates=["Syria", "hello"], source_layers=1, controls=CONTROLLED, runner=runner)
    reference = Reference(llama)
    prompt = tokenize(llama, "the capital of x is")
    for row in results:
        assert row.candidate is not None
        assert row.logprob is not None
        answer = continuation(llama, prompt, row.candidate, chat=False)
        without = alone_logprob(reference, prompt.ids, answer)
        assert row.logprob_minus_unpatched == pytest.approx(row.logprob - without, abs=1e-3)
        if row.source_index is not None:
            assert row.candidate in (OWN[row.source_index].candidates or ("Syria", "hello"))
    assert {len(rows) for key, rows in by_cell(results).items() if key[:2] == ("shuffled", 1)} == {1}
    cells = {row.cell: row for row in results if row.source_index == 0 and row.control is None}
    assert len(cells) == 1


def test_a_donors_state_is_scored_with_the_items_candidates(llama: Model) -> None:
    options = {"candidates": (), "source_layers": 2, "controls": ("shuffled",)}
    both = inspect(llama, [Source(s.text, candidates=("hello", "the cat")) for s in OWN], **options)
    own = {row.source_index: row.cell for row in both if row.control is None}
    drawn = {row.source_index: row.cell for row in both if row.control == "shuffled"}
    assert all(drawn[index] in own.values() and drawn[index] != own[index] for index in own)
    sources = [replace(s, candidates=("hello", "the cat") if index == 0 else ("Syria",)) for index, s in enumerate(OWN)]
    (first, second, *_) = [row for row in inspect(llama, sources, **options) if row.control == "shuffled"]
    same = [row for row in both if row.control == "shuffled"][:2]
    assert [first.candidate, second.candidate] == ["hello", "the cat"]
    assert [first.logprob, second.logprob] == pytest.approx([row.logprob for row in same], abs=1e-4)


@pytest.mark.parametrize(
    ("sources", "candidates", "said"),
    [
        (
            OWN,
            (),
            r"source 2 \('the capital'\) has no candidates, and the call has none.*3 of 4 sources have their own",
        ),
        ((Source("cat"), Source("x", candidates=("a", " "))), ("b",), "^source 1: a candidate is empty; give at least"),
        ((Source("x", candidates=("a", "b", "a")),), (), "^source 0: candidate 'a' is named twice; name each once"),
    ],
)
def test_what_is_wrong_with_a_sources_candidates(
    llama: Model, sources: tuple[Source, ...], candidates: tuple[str, ...], said: str
) -> None:
    with pytest.raises(errors.OptionError, match=said):
        inspect(llama, sources, candidates=candidates, readout=None)


def test_candidates_of_a_source_choose_the_readout_and_no_other_takes_them(llama: Model) -> None:
    rows = inspect(llama, Source("cat", candidates=(" hello ",)), candidates=(), readout=None, source_layers=1)
    assert {row.candidate for row in rows} == {"hello"}, "outer spaces are dropped, as of the call's"
    with pytest.raises(errors.OptionError, match="source 0 has candidates, and readout 'text' does not score them"):
        inspect(llama, Source("cat", candidates=("hello",)), candidates=(), readout="text")


def test_a_failed_source_has_a_row_for_each_of_its_candidates(llama: Model) -> None:
    bad = Source("the cat", at="Wales", candidates=("Syria", "hello"))
    rows = [row for row in inspect(llama, [bad, "the cat"], source_layers=1) if row.status == "failed"]
    assert [row.candidate for row in rows] == ["Syria", "hello"]
