"""States of whole texts, beside one pass of each text alone and the model's own logits."""

import copy

import pytest
import torch

import changes
import families
import oracle
from conftest import tiny_model
from patchscopes.errors import ModelChangedError, OptionError
from patchscopes.hooks import Places, capture
from patchscopes.models import Model, wrap_in_memory
from patchscopes.passes import captured, text_states
from patchscopes.spec import Ids, State

TEXTS: tuple[Ids, ...] = ((17, 33, 60, 21, 8), (52,), (80, 41, 27), (17, 33), (9, 9, 9, 70, 31, 44, 12))


def alone(model: Model, ids: Ids, layer: int) -> torch.Tensor:
    with capture(model, {layer: Places((0,) * len(ids), tuple(range(len(ids))))}) as found:
        model.next_logits(torch.tensor([ids]))
    return found[layer]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_texts_states_are_those_of_its_own_pass(family: str) -> None:
    model = tiny_model(family)
    layers = (0, 1, model.n_layers)
    found = {text.index: text for text in text_states(model, TEXTS, layers, tokens_at_once=9)}
    assert sorted(found) == list(range(len(TEXTS)))
    for index, ids in enumerate(TEXTS):
        text = found[index]
        assert text.ids == ids
        assert sorted(text.states) == sorted(layers)
        for layer in layers:
            assert torch.allclose(text.states[layer], alone(model, ids, layer), atol=2e-4, rtol=1e-4)
        logits = model.all_logits(torch.tensor([ids]))[0]
        head = model.hf.get_output_embeddings()
        assert torch.allclose(model.scaled_logits(head(text.head_input)), logits, atol=1e-3)
        assert torch.allclose(model.unembed(text.states[model.n_layers]), logits, atol=1e-3), "before the final norm"


def test_batches_do_not_show_and_short_texts_come_first(llama: Model) -> None:
    together = list(text_states(llama, TEXTS, (2,)))
    one_by_one = list(text_states(llama, TEXTS, (2,), tokens_at_once=1))
    assert [text.index for text in together] == [text.index for text in one_by_one] == [1, 3, 2, 0, 4]
    for a, b in zip(together, one_by_one, strict=True):
        assert torch.allclose(a.states[2], b.states[2], atol=1e-5)
    assert list(text_states(llama, (), (2,))) == []
    assert next(iter(text_states(llama, TEXTS, ()))).states == {}


def test_single_states_are_in_the_order_given(llama: Model) -> None:
    states = [State(ids, len(ids) - 1, layer) for layer in (3, 0) for ids in (*TEXTS, TEXTS[0])]
    found = captured(llama, states)
    for state, vector in zip(states, found, strict=True):
        assert torch.allclose(vector, alone(llama, state.ids, state.layer)[state.position], atol=1e-5)
    assert captured(llama, []).shape == (0, llama.d_model)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_masked_state_is_that_of_its_mask(family: str) -> None:
    model, hf, ids = tiny_model(family), families.build(family), TEXTS[4]
    states = [State(ids, 6, 2, masked) for masked in ((), (0, 1), (1, 4))]  # gemma3's window is shorter
    found = captured(model, states)
    for state, vector in zip(states, found, strict=True):
        assert torch.allclose(vector, oracle.states(hf, ids, state.masked)[2, 6], atol=2e-4, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    with pytest.raises(OptionError, match="ALiBi"):
        captured(tiny_model("bloom"), states)


def own() -> Model:
    return wrap_in_memory(copy.deepcopy(families.build("llama")), families.tiny_tokenizer())


def test_states_are_of_the_model_as_it_is_by_then() -> None:
    model = own()
    before = captured(model, [State(TEXTS[0], 2, 3)])
    model.hf.get_submodule("model.layers.1.mlp.up_proj").weight.data.neg_()  # type: ignore[operator,union-attr]
    for found in (captured(model, [State(TEXTS[0], 2, 3)])[0], next(text_states(model, TEXTS[:1], (3,))).states[3][2]):
        assert torch.allclose(found, alone(model, TEXTS[0], 3)[2], atol=1e-4)
        assert not torch.allclose(found, before[0], atol=1e-2)


def test_a_model_that_changes_between_two_texts_is_told() -> None:
    model = own()
    states = text_states(model, TEXTS, (1,), tokens_at_once=1)
    next(states)
    model.hf.get_submodule("model.layers.1.mlp.up_proj").weight.data.neg_()  # type: ignore[operator,union-attr]
    with pytest.raises(ModelChangedError, match=r"changed while its states were read.*up_proj"):
        list(states)


def test_what_does_not_bear_batches_is_read_a_text_at_a_time() -> None:
    model = own()
    model.hf.get_submodule("model.layers.1").register_forward_hook(changes.third_column)
    found = {text.index: text for text in text_states(model, TEXTS, (3,))}
    for index, ids in enumerate(TEXTS):
        assert torch.equal(found[index].states[3], alone(model, ids, 3)), index
