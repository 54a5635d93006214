"""Nearest tokens in the embedding space, beside a plain double loop; and what rows are compared."""

import math

import pytest
import torch

import families
from conftest import tiny_model
from odd_tokenizers import model_with
from patchscopes import neighbours, passes
from patchscopes.hooks import Places, capture
from patchscopes.models import Model
from patchscopes.neighbours import nearest_tokens
from patchscopes.passes import captured
from patchscopes.spec import State

TEXTS = ((17, 33, 60, 21), (52,), (80, 41, 27), (17, 33))


def states_of(model: Model) -> list[State]:
    return [State(ids, len(ids) - 1, layer) for ids in TEXTS for layer in (0, 1, model.n_layers)]


def layer_zero(model: Model, id: int, position: int) -> torch.Tensor:
    ids = torch.tensor([[5] * position + [id]])
    with capture(model, {0: Places((0,), (position,))}) as found:
        model.next_logits(ids)
    return found[0][0]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_row_is_what_enters_the_first_block_but_for_positions(family: str) -> None:
    model = tiny_model(family)
    ids = (3, 17, 60, 99)
    rows = model.embedded(torch.tensor(ids))
    entering = torch.stack([layer_zero(model, id, 2) for id in ids])
    if family in families.LEARNED_POSITIONS:
        place = entering - rows
        assert torch.allclose(place, place[:1].expand_as(place), atol=1e-5), "what is left is the position's alone"
        assert place.abs().max() > 1e-2
    else:
        assert torch.cosine_similarity(rows, entering).min() > 1 - 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen2", "opt-projected", "bloom"])
def test_as_a_double_loop_has_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK_TOKENS", 64)
    monkeypatch.setattr(neighbours, "CHUNK_STATES", 5)
    monkeypatch.setattr(passes, "TOKENS_AT_ONCE", 9)
    model = tiny_model(family)
    states = states_of(model)
    for state, found in zip(states, nearest_tokens(model, states, k=4), strict=True):
        with capture(model, {state.layer: Places((0,), (state.position,))}) as taken:
            model.next_logits(torch.tensor([state.ids]))
        vector = taken[state.layer][0].tolist()
        cosines = []
        for id in range(model.d_vocab):
            row = model.embedded(torch.tensor([id]))[0].tolist()
            dot = sum(a * b for a, b in zip(vector, row, strict=True))
            cosines.append((dot / (math.hypot(*vector) * math.hypot(*row)), id))
        best = sorted(cosines, reverse=True)[:4]
        assert [n.token_id for n in found] == [id for _, id in best]
        assert [n.cosine for n in found] == pytest.approx([cosine for cosine, _ in best], abs=1e-4)


def test_a_state_at_layer_0_is_nearest_to_its_own_token() -> None:
    model = tiny_model("gemma3")
    for ids in TEXTS:
        (found,) = nearest_tokens(model, [State(ids, len(ids) - 1, 0)], k=1)
        assert (found[0].token_id, found[0].cosine) == (ids[-1], pytest.approx(1, abs=1e-5))


def test_neighbours_do_not_hang_on_what_is_asked_for_beside(llama: Model) -> None:
    states = states_of(llama)
    together = nearest_tokens(llama, states)
    assert [nearest_tokens(llama, [state])[0][0].token_id for state in states] == [n[0].token_id for n in together]
    assert torch.allclose(captured(llama, states[::-1]), captured(llama, states).flip(0), atol=1e-5)
    assert nearest_tokens(llama, []) == []
    assert len(nearest_tokens(llama, states[:1], k=10_000)[0]) == llama.d_vocab, "no more than there are"


def test_names_show_the_space_before_a_word() -> None:
    for model, space in ((tiny_model("llama"), "Ġ"), (model_with("llama-2"), "▁"), (model_with("metaspace"), "▁")):
        id = model.tokenizer.convert_tokens_to_ids(f"{space}cat")
        (found,) = nearest_tokens(model, [State((9, id), 1, 0)], k=1)
        assert (found[0].token_id, found[0].token) == (id, " cat")
    padded = tiny_model("qwen2")
    last = padded.d_vocab - 1
    assert nearest_tokens(padded, [State((last,), 0, 0)], k=1)[0][0].token == f"[{last}]"
