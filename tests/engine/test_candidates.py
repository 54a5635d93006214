"""Scores of given answers: the engine's are the reference's, and those of a computation that knows neither."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import families
import oracle
from cells import AMPLE, PROMPTS, SOURCES, fresh, make_cell, state_cell
from conftest import tiny_model
from patchscopes.compute import head
from patchscopes.engine import Engine
from patchscopes.kv import copy_prefixes
from patchscopes.models import Model
from patchscopes.plan import Budget
from patchscopes.reference import Reference
from patchscopes.run import run_cells
from patchscopes.spec import Cell, Ids, State

# One to four tokens, some that begin alike, one that is another's beginning, one twice the same token.
ANSWERS: tuple[Ids, ...] = ((31, 64, 22), (31,), (31, 65), (90, 35, 23, 61), (44, 44), (12,))


def scored(model: Model, source: int, prompt: int, layers: tuple[int, int], answers: Sequence[Ids] = ANSWERS) -> Cell:
    return replace(state_cell(model, source, prompt, layers, "candidates"), candidates=tuple(answers))


def cells_of(family: str) -> list[Cell]:
    """Every ℓ*, sources and prompts in turn, cells with other answers among them, and one that writes nothing."""
    model = tiny_model(family)
    n = model.n_layers + 1
    cells = [scored(model, k % 3, k % 4, ((2 * k) % n, k % n), ANSWERS[: 1 + k % 6]) for k in range(2 * n)]
    for ids, _ in PROMPTS[:2]:
        cells.append(replace(make_cell(model, None, ids, "candidates"), candidates=ANSWERS))
    return cells


def by_hand(family: str, cell: Cell) -> list[float]:
    """Token by token: the oracle's run of the prompt and of what is already there of the answer."""
    what, target = None, oracle.Target(cell.target_ids, (), 0)
    if cell.write is not None:
        state = cell.write.vectors[0]
        assert isinstance(state, State)
        what = oracle.Source(state.ids, state.position, state.layer)
        target = oracle.Target(cell.target_ids, cell.write.positions, cell.write.site.layer)
    sums = []
    for answer in cell.candidates:
        total = 0.0
        for k, token in enumerate(answer):
            longer = oracle.Target((*target.ids, *answer[:k]), target.positions, target.layer)
            run = oracle.patchscope(families.build(family), what, longer, max_new_tokens=1)
            total += float(run.first_logits.double().log_softmax(-1)[token])
        sums.append(total)
    return sums


def check(family: str, model: Model, max_rows: int = 480) -> None:
    cells = cells_of(family)
    fast = run_cells(model, Engine(model), cells, Budget(AMPLE, max_rows))
    slow = run_cells(tiny_model(family), Reference(tiny_model(family)), cells, Budget(AMPLE))
    for cell, a, b in zip(cells, fast, slow, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3), cell
        assert a.logprobs is not None
        assert len(a.logprobs) == len(cell.candidates)
        assert (a.text, a.token_ids, a.finish_reason, a.top, a.failure) == (None, None, None, None, None)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("max_rows", [3, 480])
def test_the_engine_scores_as_the_reference(family: str, max_rows: int) -> None:
    check(family, tiny_model(family), max_rows)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "cohere"])
def test_scores_are_sums_over_tokens(family: str) -> None:
    for cell in cells_of(family)[::3]:
        (found,) = run_cells(tiny_model(family), Engine(tiny_model(family)), [cell], Budget(AMPLE))
        assert found.logprobs == pytest.approx(by_hand(family, cell), abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_with_prefixes_that_are_copied(family: str) -> None:
    model = fresh(family)
    copy_prefixes(model)
    check(family, model)


def test_with_a_vocabulary_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 40)
    check("gemma2", fresh("gemma2"))


def test_the_last_layer_is_scored_too(llama: Model) -> None:
    """A row that enters above every block: its own keys are all the prompt's."""
    n = llama.n_layers
    cell = scored(llama, 0, 2, (n, n))
    (found,) = run_cells(llama, Engine(llama), [cell], Budget(AMPLE))
    assert found.logprobs == pytest.approx(by_hand("llama", cell), abs=1e-3)


def test_a_row_whose_logits_are_no_numbers_fails_alone(monkeypatch: pytest.MonkeyPatch, llama: Model) -> None:
    cells = [scored(llama, 0, 0, (1, 1)), scored(llama, 0, 0, (2, 1))]
    original = head.Head.logprobs
    calls = [0]

    def spoiled(self: head.Head, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        found = original(self, x, tokens)
        if calls[0] == 0:
            found[1] = float("nan")
        calls[0] += 1
        return found

    monkeypatch.setattr(head.Head, "logprobs", spoiled)
    good, bad = run_cells(llama, Engine(llama), cells, Budget(AMPLE))
    assert good.logprobs is not None
    assert bad.logprobs is None
    assert "not finite" in (bad.failure or "")


def test_the_order_of_answers_and_what_is_beside_them_does_not_show(llama: Model) -> None:
    forth = scored(llama, 0, 0, (2, 1))
    back = replace(forth, candidates=ANSWERS[::-1])
    alone = [replace(forth, candidates=(answer,)) for answer in ANSWERS]
    a, b, *single = run_cells(llama, Engine(llama), [forth, back, *alone], Budget(AMPLE, 4))
    assert a.logprobs is not None
    assert b.logprobs is not None
    assert a.logprobs == pytest.approx(b.logprobs[::-1], abs=1e-4)
    assert a.logprobs == pytest.approx([one.logprobs[0] for one in single if one.logprobs], abs=1e-4)


def test_sources_are_those_of_the_other_tests() -> None:
    assert len(SOURCES) == 3
    assert len(PROMPTS) == 4
