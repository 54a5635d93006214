"""Logits and tokens → what a row shows (rules 10, 11 and 13)."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from conftest import tiny_model
from families import EOS_ID
from patchscopes.models import Model
from patchscopes.readouts import Writing, candidates_result, choose, draw, next_token_results, token_text, top2_gap
from patchscopes.spec import Cell, Decoding, Readout, Result

CELL = Cell("m", "float32", (1, 2), None, Readout(), Decoding(4))


def ids_of(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text)["input_ids"])


def written(model: Model, tokens: list[int], *, new: int = 50, stop: tuple[str, ...] = ()) -> Result:
    """The result of a text that takes `tokens` until it ends."""
    decoding = Decoding(new, eos_ids=tuple(model.eos_ids), stop=stop)
    writing = Writing(model, replace(CELL, decoding=decoding))
    for n, token in enumerate(tokens, 1):
        if writing.add(token):
            assert n == len(writing.token_ids)
            return writing.result(3)
    raise AssertionError("the text did not end")


def test_a_text_ends_at_eos_which_is_kept_as_an_id_and_not_shown(llama: Model) -> None:
    tokens = [*ids_of(llama, "the cat"), EOS_ID, 99]
    result = written(llama, tokens)
    assert (result.index, result.text, result.finish_reason) == (3, "the cat", "eos")
    assert result.token_ids == tuple(tokens[:3])


def test_an_eos_that_is_an_ordinary_token_is_not_shown_either() -> None:
    model = tiny_model("gemma3")
    ordinary = max(model.eos_ids)
    assert ordinary not in model.tokenizer.all_special_ids
    result = written(model, [*ids_of(model, "the cat"), ordinary])
    assert (result.text, result.finish_reason) == ("the cat", "eos")


def test_an_eos_of_the_model_ends_no_cell_that_has_another(llama: Model) -> None:
    writing = Writing(llama, replace(CELL, decoding=Decoding(2, eos_ids=(99,))))
    assert not writing.add(EOS_ID)
    assert writing.add(99)
    assert writing.result(0).token_ids == (EOS_ID, 99)


def test_logits_that_are_not_finite_are_a_failure_of_that_row_alone(llama: Model) -> None:
    logits = torch.zeros(4, llama.d_vocab)
    logits[1, 3], logits[2, 5], logits[3] = math.nan, math.inf, -math.inf
    for temperature in (0.0, 1.0):
        cell = replace(CELL, decoding=Decoding(temperature=temperature))
        assert [choose(row, cell, 0) is None for row in logits] == [False, True, True, True]
    read = next_token_results(llama, logits, [replace(CELL, readout=Readout("next-token", 2))] * 4, range(4))
    assert [result.failure is None for result in read] == [True, False, False, False]
    assert all((r.text, r.token_ids, r.finish_reason, r.top) == (None, None, None, None) for r in read[1:])
    writing = Writing(llama, CELL)
    assert writing.add(None)
    failed = writing.result(7)
    assert (failed.index, failed.text, failed.token_ids, failed.finish_reason) == (7, None, None, None)
    assert "not finite" in (failed.failure or "")


def test_eos_at_once_is_an_empty_text(llama: Model) -> None:
    result = written(llama, [EOS_ID])
    assert (result.text, result.token_ids, result.finish_reason) == ("", (EOS_ID,), "eos")


def test_eos_wins_over_length_and_stop_over_length(llama: Model) -> None:
    assert written(llama, [EOS_ID], new=1).finish_reason == "eos"
    assert written(llama, ids_of(llama, " cat"), new=1, stop=("cat",)).finish_reason == "stop"
    assert written(llama, ids_of(llama, " cat"), new=1).finish_reason == "length"


def test_a_stop_string_may_run_over_tokens_and_is_cut_off(llama: Model) -> None:
    tokens = ids_of(llama, "the cat of Spain")
    result = written(llama, tokens, stop=("t of",))
    assert (result.text, result.finish_reason) == ("the ca", "stop")
    assert result.token_ids == tuple(tokens[:3]), "no token after the one that completes it"


def test_the_first_of_several_stop_strings_cuts(llama: Model) -> None:
    assert written(llama, ids_of(llama, "the capital"), stop=("pital", "cap", "zz")).text == "the "


def test_special_tokens_are_no_part_of_a_text_or_of_a_stop_string(llama: Model) -> None:
    cat, hello = ids_of(llama, "cat"), ids_of(llama, "hello")
    special = llama.tokenizer.convert_tokens_to_ids("<user>")
    result = written(llama, [*cat, special, *hello, 99], stop=("cathello",))
    assert (result.text, result.finish_reason) == ("", "stop")


def test_a_character_in_the_making_is_no_match(llama: Model) -> None:
    tokens = ids_of(llama, "é cat")
    result = written(llama, tokens, stop=("é",))
    assert (result.text, len(result.token_ids)) == ("", 2)


def test_spaces_are_as_the_model_wrote_them(llama: Model) -> None:
    text = " the  cat ; hello ?"
    tokens = ids_of(llama, text)
    assert written(llama, tokens, new=len(tokens)).text == text


def test_top_k_is_sorted_and_each_cell_has_its_own_k(llama: Model) -> None:
    logits = torch.randn(2, llama.d_vocab, generator=torch.Generator().manual_seed(0))
    cells = [replace(CELL, readout=Readout("next-token", k)) for k in (2, llama.d_vocab)]
    few, all_ = next_token_results(llama, logits, cells, [7, 8])
    assert few.top is not None
    assert all_.top is not None
    assert (few.index, len(few.top), len(all_.top)) == (7, 2, llama.d_vocab)
    assert (few.text, few.token_ids) == (few.top[0].token, (few.top[0].token_id,))
    assert few.finish_reason == "length"
    assert sum(math.exp(top.logprob) for top in all_.top) == pytest.approx(1, abs=1e-5)
    assert [top.logprob for top in all_.top] == sorted((top.logprob for top in all_.top), reverse=True)


def test_entropy_is_in_nats_and_finite_where_a_token_is_impossible(llama: Model) -> None:
    n = llama.d_vocab
    cell = replace(CELL, readout=Readout("next-token", 3))
    flat = torch.zeros(1, n)
    certain = torch.full((1, n), -math.inf)
    certain[0, 5] = 0.0
    two = certain.clone()
    two[0, 6] = 0.0
    found = [next_token_results(llama, logits, [cell], [0])[0].entropy for logits in (flat, certain, two)]
    assert found == pytest.approx([math.log(n), 0, math.log(2)], abs=1e-5)


def test_logprobs_are_computed_in_float32(llama: Model) -> None:
    logits = torch.zeros(1, llama.d_vocab, dtype=torch.bfloat16)
    top = next_token_results(llama, logits, [replace(CELL, readout=Readout("next-token", 1))], [0])[0].top
    assert top is not None
    assert top[0].logprob == pytest.approx(-math.log(llama.d_vocab), abs=1e-5)


def test_greedy_takes_the_largest_and_the_first_of_equals(llama: Model) -> None:
    assert choose(torch.tensor([0.0, 3.0, 3.0, 1.0]), CELL, 0) == 1
    assert choose(torch.tensor([5.0, 3.0, 3.0, 1.0]), CELL, 0) == 0


def sampled(logits: torch.Tensor, temperature: float, n: int = 200) -> list[int]:
    decoding = Decoding(4, temperature=temperature)
    return [draw(logits, replace(CELL, decoding=decoding, sample=i), 0) for i in range(n)]


def test_samples_follow_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([math.log(0.7), math.log(0.2), math.log(0.1), -math.inf])
    counts = torch.bincount(torch.tensor(sampled(logits, 1.0, 2000)), minlength=4) / 2000
    assert counts.tolist() == pytest.approx([0.7, 0.2, 0.1, 0], abs=0.04)
    assert set(sampled(logits, 1e-3)) == {0}
    hot = torch.bincount(torch.tensor(sampled(logits, 1e6, 2000)), minlength=4) / 2000
    assert hot.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.04)


def test_an_impossible_token_is_never_drawn_first_or_last() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf])
    assert set(sampled(logits, 1.0)) == {1}


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.499, 1), (0.501, 2), (1 - 2**-53, 2)])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(
    monkeypatch: pytest.MonkeyPatch, uniform: float, token: int
) -> None:
    fixed = SimpleNamespace(random=lambda: uniform)
    monkeypatch.setattr("patchscopes.readouts.philox", lambda *_: fixed)
    assert set(sampled(torch.tensor([-math.inf, 0.0, 0.0, -math.inf]), 1.0, 2)) == {token}


def test_a_draw_depends_on_cell_seed_and_step_alone() -> None:
    logits = torch.zeros(300)
    cell = replace(CELL, decoding=Decoding(4, temperature=1.0))
    first = draw(logits, cell, 0)
    assert choose(logits, cell, 0) == first, "choose draws where there is a temperature, and is greedy where not"
    assert choose(logits, CELL, 0) == 0
    others = [
        draw(logits, cell, 1),
        draw(logits, replace(cell, decoding=Decoding(4, temperature=1.0, seed=1)), 0),
        draw(logits, replace(cell, sample=1), 0),
    ]
    assert first not in others
    assert draw(logits, replace(cell, candidates=((1,),)), 0) == first, "what the identity leaves out changes nothing"


def test_candidates_with_a_sum_that_is_no_number_fail_and_impossible_ones_do_not() -> None:
    assert candidates_result([-1.5, -math.inf], 4) == Result(4, None, None, None, logprobs=(-1.5, -math.inf))
    failed = candidates_result([-1.5, math.nan], 4)
    assert (failed.index, failed.logprobs) == (4, None)
    assert "not finite" in (failed.failure or "")


def test_a_row_of_the_head_without_a_token_is_named() -> None:
    model = tiny_model("qwen2")
    assert model.d_vocab > len(model.tokenizer)
    assert token_text(model, model.d_vocab - 1) == f"<no token {model.d_vocab - 1}>"


def test_a_part_of_a_character_is_shown_as_its_vocabulary_entry(llama: Model) -> None:
    first, second = ids_of(llama, "é")
    assert [token_text(llama, first), token_text(llama, second)] == ["Ã", "©"]
    assert token_text(llama, ids_of(llama, " cat")[0]) == " cat"
    assert token_text(llama, EOS_ID) == "<eos>"


def test_the_gap_of_the_two_highest() -> None:
    assert top2_gap(torch.tensor([1.0, 4.0, 2.5])) == 1.5
    assert top2_gap(torch.tensor([1.0, 4.0, 4.0])) == 0
    assert top2_gap(torch.tensor([1.0, -math.inf, -math.inf])) == math.inf
