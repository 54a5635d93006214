"""The engine's other ways give what its usual ones do: without kernels, packing, a shared prefix; in other dtypes; and
whatever stands in memory that is not written yet."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import families
from cells import AMPLE, NEW_TOKENS, fresh, grid, oracle_run, state_cell
from conftest import tiny_model
from patchscopes import kernels
from patchscopes.compute import compute_of, linear
from patchscopes.engine import Engine
from patchscopes.kernels import ops
from patchscopes.kernels.native import Native
from patchscopes.kv import copy_prefixes, sharing
from patchscopes.models import Model, wrap_in_memory
from patchscopes.plan import Budget
from patchscopes.reference import Reference
from patchscopes.run import run_cells

# Rotary, grouped heads, windows, softcap; learned positions; ALiBi, which copies anyway; experts.
FAMILIES = ["llama", "gpt2", "gemma2", "gemma3", "mistral", "bloom", "falcon-alibi", "opt-post-norm", "mixtral"]


def check(family: str, model: Model, max_rows: int = 480) -> None:
    """The engine on `model` equals the oracle on every pair of layers."""
    cells = grid(family)
    for index, result in enumerate(run_cells(model, Engine(model), cells, Budget(AMPLE, max_rows))):
        assert oracle_run(family, index).agrees_with(result.token_ids), (index, cells[index])
    n = model.n_layers
    read = [state_cell(model, k % 3, k % 4, (k, k), "next-token") for k in range(n + 1)]
    for cell, result in zip(read, run_cells(model, Engine(model), read, Budget(AMPLE, max_rows)), strict=True):
        expected = Reference(tiny_model(family)).run_cell(cell)
        assert result.top is not None
        assert expected.top is not None
        found, wanted = ([top.logprob for top in one] for one in (result.top, expected.top))
        assert found == pytest.approx(wanted, abs=1e-3)
        assert result.entropy == pytest.approx(expected.entropy, abs=1e-3)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Native(None, "switched off")
    monkeypatch.setattr(ops, "native", lambda: nothing)
    monkeypatch.setattr(kernels, "native", lambda: nothing)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_kernels(no_kernels: None, family: str) -> None:
    model = fresh(family)
    check(family, model)
    assert not {type(module).__name__ for module in compute_of(model).forwards} - {"Linear", "Conv1D"}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_kernels_and_packed_weights(monkeypatch: pytest.MonkeyPatch, no_kernels: None, family: str) -> None:
    monkeypatch.setattr(linear, "available", lambda: False)
    model = fresh(family)
    check(family, model, max_rows=5)
    assert compute_of(model).forwards == {}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in families.ALIBI])
def test_with_prefixes_that_are_copied(family: str) -> None:
    model = fresh(family)
    assert sharing(model) == "shared"
    copy_prefixes(model)
    check(family, model)
    check(family, model, max_rows=5)


def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What memory may hold that was used before."""

    def made(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max // 2)

    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["usual", "no kernels", "copied"])
def test_memory_that_is_not_written_yet_does_not_show(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, family: str, way: str
) -> None:
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    for name in ("empty_like", "empty"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    if way == "no kernels":
        request.getfixturevalue("no_kernels")
    model = fresh(family)
    if way == "copied":
        copy_prefixes(model)
    check(family, model, max_rows=7)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_mostly_agrees(family: str, dtype: torch.dtype) -> None:
    """Rounding may part two runners in bf16 and fp16 (rule 9): a first token rarely, and no cell fails."""
    model = wrap_in_memory(copy.deepcopy(families.build(family)).to(dtype), families.tiny_tokenizer())
    cells = [
        state_cell(model, (a + b) % 3, a % 4, (a, b)) for a in range(model.n_layers) for b in range(model.n_layers)
    ]
    fast = run_cells(model, Engine(model), cells, Budget(AMPLE))
    slow = run_cells(model, Reference(model), cells, Budget(AMPLE))
    assert all(result.failure is None and result.token_ids for result in fast)
    same = [a.token_ids[0] == b.token_ids[0] for a, b in zip(fast, slow, strict=True) if a.token_ids and b.token_ids]
    assert len(same) == len(cells)
    assert sum(same) >= 0.8 * len(same)
    read = [state_cell(model, 0, 0, (layer, layer), "next-token") for layer in range(model.n_layers)]
    for result in run_cells(model, Engine(model), read, Budget(AMPLE)):
        assert result.failure is None
        assert result.top is not None
        assert result.top[0].logprob <= 0


def test_new_tokens_are_as_many_as_the_oracle_ran() -> None:
    """What all of these compare with was run as long as they are."""
    assert {cell.decoding.max_new_tokens for cell in grid("llama")} == {NEW_TOKENS}
