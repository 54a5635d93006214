"""Keys and values: of prompts, run once; of rows beside a shared prefix; rows that leave, and copies of them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import patchscopes
from conftest import tiny_model
from patchscopes.compute import compute_of
from patchscopes.forward import Span, forward
from patchscopes.kv import KeysValues, Rows, copy_prefixes, recorded, recording_cache, sharing
from patchscopes.models import Inputs, Model, wrap_in_memory

IDS = (17, 33, 60, 21, 45, 70, 19)
# Rotary with a window and without, learned positions, soft-capped scores; and those that copy their prefixes.
SHARED = ["llama", "gpt2", "gemma2", "gemma3", "mistral", "gpt-neox", "granite"]
COPIED = ["bloom", "falcon", "falcon-alibi"]


def recording(model: Model, ids: Sequence[int]) -> KeysValues:
    cache = recording_cache(model)
    model.forward(Inputs(torch.tensor([ids]), cache=cache), "last")
    return recorded(cache, 0)


def rows_on(model: Model, prefix: Sequence[int], n_rows: int, capacity: int) -> Rows:
    """Rows that begin with `prefix`, shared or copied as the model has it."""
    keys_values = recording(model, prefix)
    if sharing(model) == "shared":
        rows = Rows(model, n_rows=n_rows, capacity=capacity, shared=keys_values.shared(len(prefix)))
        rows.add([0] * n_rows)
        return rows
    rows = Rows(model, n_rows=n_rows, capacity=capacity + len(prefix))
    rows.add([len(prefix)] * n_rows)
    rows.put(range(n_rows), 0, keys_values, slice(0, len(prefix)))
    return rows


def run(model: Model, rows: Rows, ids: Sequence[Sequence[int]], start: int = 0) -> Tensor:
    """Logits after the last of `ids`, which rows `start` and on run behind what they have."""
    compute = compute_of(model)
    x = forward(compute, rows, Span(start, len(ids)), torch.tensor(ids))
    return compute.head.logits(x[:, 0])


def alone(model: Model, *texts: Sequence[int]) -> Tensor:
    return torch.cat([model.next_logits(torch.tensor([text])) for text in texts])


@pytest.mark.parametrize("family", [*SHARED, *COPIED])
def test_rows_on_one_prefix_with_lengths_of_their_own_are_as_alone(family: str) -> None:
    """Rows start at different times, so that each has its own length; then all of them run together."""
    model = tiny_model(family)
    rows = rows_on(model, IDS[:3], 4, 6)
    run(model, rows, [(45, 70)], 1)
    run(model, rows, [(11, 12), (13, 14)], 2)
    run(model, rows, [(15,)], 3)
    n = rows.lengths[0]
    assert (rows.lengths - n).tolist() == [0, 2, 2, 3]
    found = run(model, rows, [(50, 51), (52, 53), (54, 55), (56, 57)])
    own = ((50, 51), (45, 70, 52, 53), (11, 12, 54, 55), (13, 14, 15, 56, 57))
    assert torch.allclose(found, alone(model, *[(*IDS[:3], *text) for text in own]), atol=1e-4)


@pytest.mark.parametrize("family", SHARED)
@pytest.mark.parametrize("n_prefix", [0, 1, 6])
def test_prefixes_of_any_length(family: str, n_prefix: int) -> None:
    model = tiny_model(family)
    rows = Rows(model, n_rows=2, capacity=7, shared=recording(model, IDS).shared(n_prefix) if n_prefix else ())
    rows.add([0, 0])
    assert rows.n_shared == n_prefix
    found = run(model, rows, [IDS[n_prefix:], IDS[n_prefix:]])
    assert torch.allclose(found, alone(model, IDS, IDS), atol=1e-4)


def test_a_recording_has_a_pair_per_block_and_every_token_sliding_or_not() -> None:
    model = tiny_model("mistral")
    keys_values = recording(model, IDS)
    assert len(keys_values) == len(IDS), "more than the window of 4"
    assert len(keys_values.keys) == len(keys_values.values) == model.n_layers
    assert {tuple(part.shape) for part in (*keys_values.keys, *keys_values.values)} == {(2, 7, 8)}
    assert len(KeysValues((), ())) == 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_rows_that_leave_do_not_show_in_those_that_stay_or_come(family: str) -> None:
    model = tiny_model(family)
    rows = rows_on(model, IDS[:3], 4, 8)
    run(model, rows, [(21, 45), (22, 46), (23, 47), (24, 48)])
    run(model, rows, [(61,), (62,)], 2)
    assert rows.keep([1, 3]) == [3, 1], "the last moves into the place of the first that leaves"
    assert len(rows) == 2
    own = [(24, 48, 62), (22, 46)]
    found = run(model, rows, [(90,), (91,)])
    assert torch.allclose(found, alone(model, (*IDS[:3], *own[0], 90), (*IDS[:3], *own[1], 91)), atol=1e-4)
    # A new row takes the place of one that has left, with what that one had still in the buffers.
    n_copied = 0 if rows.n_shared else 3
    rows.add([n_copied])
    rows.put([2], 0, recording(model, IDS[:3]), slice(0, n_copied))
    assert torch.allclose(run(model, rows, [(30, 31)], 2), alone(model, (*IDS[:3], 30, 31)), atol=1e-4)


@pytest.mark.parametrize("kept", [[], [0], [3], [0, 1, 2, 3], [1, 2, 3], [0, 3], [2]])
def test_keeping_says_which_row_stands_where(llama: Model, kept: list[int]) -> None:
    rows = rows_on(llama, IDS[:3], 4, 8)
    texts = [(21, 45), (22, 46), (23, 47), (24, 48)]
    run(llama, rows, texts)
    order = rows.keep(kept)
    assert sorted(order) == kept
    assert len(rows) == len(kept)
    assert all(row == to for to, row in enumerate(order) if row < len(kept)), "no row moves that need not"
    if kept:
        found = run(llama, rows, [(90,)] * len(kept))
        assert torch.allclose(found, alone(llama, *[(*IDS[:3], *texts[row], 90) for row in order]), atol=1e-4)


def test_keeping_rows_before_anything_ran_is_nothing(llama: Model) -> None:
    rows = Rows(llama, n_rows=3, capacity=3)
    assert rows.keep([]) == []
    rows.add([0, 0])
    assert rows.keep([1]) == [1]
    assert len(rows) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_copies_go_their_own_ways_and_leave_the_original(family: str) -> None:
    model = tiny_model(family)
    rows = rows_on(model, IDS[:3], 2, 4)
    run(model, rows, [(21, 45), (22, 46)])
    run(model, rows, [(62,)], 1)
    copies = rows.copied(torch.tensor([1, 0, 1]), extra=2)
    own = [(22, 46, 62), (21, 45), (22, 46, 62)]
    found = run(model, copies, [(70, 71), (72, 73), (74, 75)])
    texts = [(*IDS[:3], *mine, *more) for mine, more in zip(own, ((70, 71), (72, 73), (74, 75)), strict=True)]
    assert torch.allclose(found, alone(model, *texts), atol=1e-4)
    found = run(model, rows, [(90,), (91,)])
    assert torch.allclose(found, alone(model, (*IDS[:3], 21, 45, 90), (*IDS[:3], 22, 46, 62, 91)), atol=1e-4)


def test_a_prefix_is_not_changed_by_the_rows_on_it(llama: Model) -> None:
    keys_values = recording(llama, IDS[:4])
    shared = keys_values.shared(4)
    before = [part.clone() for block in shared for part in (block.keys, block.values)]
    rows = Rows(llama, n_rows=2, capacity=7, shared=shared)
    rows.add([0, 0])
    run(llama, rows, [(1, 2), (3, 4)])
    rows.keep([1])
    run(llama, rows, [(5,)])
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, [part for block in shared for part in (block.keys, block.values)], strict=True)
    )


@pytest.mark.parametrize("family", [*SHARED, *COPIED])
def test_how_prefixes_are_kept_is_found_by_the_model(family: str) -> None:
    assert sharing(tiny_model(family)) == ("copied" if family in COPIED else "shared")


def test_a_model_may_be_told_to_copy_its_prefixes(llama: Model) -> None:
    model = wrap_in_memory(llama.hf, llama.tokenizer)
    copy_prefixes(model)
    assert (sharing(model), sharing(llama)) == ("copied", "shared")
    rows = rows_on(model, IDS[:3], 2, 6)
    assert rows.n_shared == 0
    found = run(model, rows, [(21, 45), (22, 46)])
    assert torch.allclose(found, alone(llama, (*IDS[:3], 21, 45), (*IDS[:3], 22, 46)), atol=1e-4)


def test_the_models_own_attention_is_back_after_a_pass_whatever_happens(llama: Model) -> None:
    before = llama.hf.config._attn_implementation
    rows = rows_on(llama, IDS[:3], 1, 6)
    with compute_of(llama).installed(), llama.running() as tree:
        with rows.running(0, 1, 1):
            assert tree.configs[0]._attn_implementation == "patchscopes"
            assert llama.hf.config._attn_implementation == before, "the caller's own is never touched"
        with pytest.raises(KeyError), rows.running(0, 1, 1):
            raise KeyError
        assert tree.configs[0]._attn_implementation == before
    assert rows.lengths.tolist() == [1], "a pass that failed has added nothing"


@pytest.mark.parametrize(
    "options",
    [
        {"s_aux": torch.zeros(4)},
        {"position_bias": torch.zeros(1)},
        {"is_causal": False},
    ],
    ids=["sinks", "a bias", "not causal"],
)
def test_attention_of_a_kind_not_known_is_refused_and_not_left_out(llama: Model, options: dict[str, object]) -> None:
    rows = rows_on(llama, IDS[:3], 1, 6)
    q, k = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 1, 8)
    attention = llama.blocks[0].self_attn
    with pytest.raises(NotImplementedError, match="cannot share a prefix"):
        rows.attention(attention, q, k, k, **options)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="a mask of its own"):
        rows.attention(attention, q, k, k, torch.ones(1))  # type: ignore[arg-type]
    rows.attention(attention, q, k, k, scaling=None, dropout=0.0, is_causal=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_more_tokens_than_room_are_an_error_and_no_silence(family: str) -> None:
    model = tiny_model(family)
    rows = Rows(model, n_rows=2, capacity=3)
    rows.add([0, 0])
    with pytest.raises(AssertionError):
        run(model, rows, [(1, 2, 3, 4), (5, 6, 7, 8)])
    with pytest.raises(AssertionError):
        rows.add([1])


OVERFULL = """
from conftest import tiny_model
from patchscopes.kv import Rows
model = tiny_model("llama")
def said(call):
    try:
        call()
    except AssertionError as error:
        return str(error)
def run(rows, columns):
    with rows.running(0, 2, columns):
        pass
rows = Rows(model, n_rows=2, capacity=3)
rows.add([0, 2])
print(said(lambda: run(rows, 2)))
print(said(lambda: rows.add([0])))
print(said(lambda: Rows(model, n_rows=1, capacity=3).add([4])))
print(said(lambda: Rows(model, n_rows=1, capacity=3).add([-1])))
print(said(lambda: run(rows, 1)))
"""


def test_more_tokens_than_room_are_an_error_without_assertions_too() -> None:
    paths = (str(Path(patchscopes.__file__).parents[1]), str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-O", "-c", OVERFULL]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert found[0] == "2 own tokens and 2 more, in buffers of 3"
    assert found[1] == "2 rows and 1 more, in 2 of 3 tokens"
    assert found[2] == found[3] == "0 rows and 1 more, in 1 of 3 tokens"
    assert found[4] == "None", "and what just fits runs"
