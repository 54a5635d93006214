"""Hooks: where they act, that they go away, and what blocks may take and return (rules 3 and 5)."""

import copy
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import families
from conftest import tiny_model
from patchscopes.hooks import Entry, LayerWrite, Places, called_by, capture, enter, patch, returns_tuples
from patchscopes.models import Model, wrap_in_memory

IDS = torch.tensor([[17, 33, 60, 21], [80, 41, 27, 50]])


def n_hooks(hf: nn.Module) -> int:
    """Hooks of ours that are registered: transformers leaves some of its own, once it was asked for hidden states."""
    registered = [hook for m in hf.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    functions = [hook.func if isinstance(hook, partial) else hook for hook in registered]
    return sum(function.__module__ == "patchscopes.hooks" for function in functions)


def test_hooks_stand_on_private_modules_and_go(llama: Model) -> None:
    places = {1: Places((0,), (1,)), 0: Places((0,), (0,))}
    with llama.running() as tree:
        with patch(llama, [write(2, (0,), (1,), 1.0)]), capture(llama, places):
            assert n_hooks(tree.hf) == 3
            assert n_hooks(llama.hf) == 0
        assert n_hooks(tree.hf) == 0


def test_a_model_that_cannot_be_copied_has_hooks_that_act_in_this_thread_alone() -> None:
    hf = copy.deepcopy(families.build("llama"))
    hf.forward = Opaque(hf.forward)  # type: ignore[method-assign]
    model, plain = wrap_in_memory(hf, families.tiny_tokenizer()), tiny_model("llama")
    with patch(plain, [write(2, (0,), (1,), 1.0)]):
        expected = plain.all_logits(IDS)
    elsewhere: list[Tensor] = []
    with patch(model, [write(2, (0,), (1,), 1.0)]):
        assert torch.equal(model.all_logits(IDS), expected)
        other = threading.Thread(target=lambda: elsewhere.append(hf(input_ids=IDS).logits))
        other.start()
        other.join()
        assert n_hooks(hf) == 1
    assert torch.equal(elsewhere[0], plain.all_logits(IDS))
    assert torch.equal(model.all_logits(IDS), plain.all_logits(IDS))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


class Opaque:
    """A forward that hides which module it is of."""

    def __init__(self, forward: Any) -> None:
        self.call = [forward]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call[0](*args, **kwargs)


def n_on(model: Model) -> int:
    """Hooks of ours that stand on the model itself, or stayed on a private tree of it."""
    with model.running() as tree:
        return n_hooks(model.hf) + n_hooks(tree.hf)


def write(layer: int, rows: tuple[int, ...], columns: tuple[int, ...], value: float) -> LayerWrite:
    d_model = tiny_model("llama").d_model
    return LayerWrite(layer, Places(rows, columns), torch.full((len(rows), d_model), value))


def everywhere(model: Model, layer: int) -> Tensor:
    """All states at `layer`, shape (row, column, d_model)."""
    places = Places((0,) * 4 + (1,) * 4, (0, 1, 2, 3) * 2)
    with capture(model, {layer: places}) as states:
        model.all_logits(IDS)
    return states[layer].view(2, 4, -1)


class CalledByKeyword(nn.Module):
    """A block that its model calls with the stream as a keyword."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *, hidden_states: Tensor, **options: Any) -> Any:
        return self.inner(hidden_states, **options)


class Adapter(nn.Module):
    """Calls what it holds by keyword, as some models call their blocks."""

    def __init__(self, block: CalledByKeyword) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, **options: Any) -> Any:
        return self.block(hidden_states=hidden_states, **options)


@pytest.fixture
def by_keyword() -> Model:
    hf = copy.deepcopy(families.build("llama"))
    layers: Any = hf.get_submodule("model.layers")
    blocks = [CalledByKeyword(block) for block in layers]
    for index, block in enumerate(blocks):
        layers[index] = Adapter(block)
    model = wrap_in_memory(hf, families.tiny_tokenizer())
    model.blocks = blocks
    return model


def test_a_block_that_is_called_by_keyword_is_read_and_written(by_keyword: Model) -> None:
    plain = tiny_model("llama")
    for layer in (0, 1):
        assert torch.equal(everywhere(by_keyword, layer), everywhere(plain, layer))
        with patch(plain, [write(layer, (0,), (2,), 0.5)]):
            expected = plain.all_logits(IDS)
        with patch(by_keyword, [write(layer, (0,), (2,), 0.5)]):
            assert torch.equal(by_keyword.all_logits(IDS), expected)
        assert not torch.allclose(expected, plain.all_logits(IDS))


class Talkative(nn.Module):
    """A block that returns its stream with company."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, str, None]:
        output = self.inner(*args, **kwargs)
        return (output[0] if isinstance(output, tuple) else output), "attention weights", None


def test_a_tuple_keeps_its_other_entries(llama: Model) -> None:
    block = Talkative(nn.Identity())
    stream = torch.zeros(1, 3, llama.d_model)
    with llama.running() as tree, llama.run_by(replace(tree, blocks=(block,))):
        with patch(llama, [write(1, (0,), (2,), 7.0)]):
            output = block(stream)
        with capture(llama, {1: Places((0,), (2,))}) as states:
            unpatched = block(stream)
    assert isinstance(output, tuple)
    assert output[1:] == ("attention weights", None)
    assert output[0][0, 2].eq(7).all()
    assert output[0][0, :2].eq(0).all()
    assert unpatched[0] is stream, "capturing replaces nothing"
    assert states[1].eq(0).all()
    assert stream.eq(0).all(), "nothing is written in place"


def test_the_other_arguments_of_block_1_stay_as_they_are(llama: Model) -> None:
    seen: list[tuple[int, list[str]]] = []

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((len(args), sorted(kwargs)))

    with llama.running() as tree:
        before = tree.blocks[0].register_forward_pre_hook(note, with_kwargs=True)
        llama.all_logits(IDS)
        before.remove()
        with patch(llama, [write(0, (0,), (1,), 1.0)]):
            after = tree.blocks[0].register_forward_pre_hook(note, with_kwargs=True)
            llama.all_logits(IDS)
            after.remove()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_nothing_stays_registered_after_an_exception(llama: Model, layer: int) -> None:
    assert n_on(llama) == 0
    with pytest.raises(KeyError), patch(llama, [write(layer, (0,), (1,), 1.0)]):
        raise KeyError
    with pytest.raises(KeyError), capture(llama, {layer: Places((0,), (1,)), 1: Places((0,), (0,))}):
        raise KeyError
    assert n_on(llama) == 0


def test_nothing_stays_registered_where_the_forward_pass_itself_fails(llama: Model) -> None:
    with pytest.raises(IndexError), patch(llama, [write(2, (0,), (99,), 1.0)]):
        llama.all_logits(IDS)
    assert n_on(llama) == 0


def test_nothing_stays_registered_where_a_later_layer_does_not_exist(llama: Model) -> None:
    with pytest.raises(IndexError), patch(llama, [write(1, (0,), (1,), 1.0), write(99, (0,), (1,), 1.0)]):
        pass
    with pytest.raises(IndexError), capture(llama, {1: Places((0,), (1,)), 99: Places((0,), (1,))}):
        pass
    assert n_on(llama) == 0


def test_each_row_is_written_at_its_own_place_and_layer(llama: Model) -> None:
    before = {layer: everywhere(llama, layer) for layer in (1, 3)}
    with patch(llama, [write(1, (0,), (2,), 0.1), write(3, (1,), (1,), 0.2)]):
        after = {layer: everywhere(llama, layer) for layer in (1, 3)}
    assert after[1][0, 2].eq(0.1).all()
    assert torch.equal(after[1][1], before[1][1]), "row 1 is not touched at layer 1"
    assert torch.equal(after[1][0, [0, 1, 3]], before[1][0, [0, 1, 3]])
    assert after[3][1, 1].eq(0.2).all()
    assert torch.equal(after[3][1, 0], before[3][1, 0])


def test_captured_states_are_copies(llama: Model) -> None:
    first = everywhere(llama, 2)
    kept = first.clone()
    everywhere(llama, 2).zero_()
    llama.all_logits(IDS)
    assert torch.equal(first, kept)
    assert not first.requires_grad


def test_a_capture_inside_a_patch_sees_what_was_written(llama: Model) -> None:
    places = Places((0,), (2,))
    for layer in (0, 2):
        with patch(llama, [write(layer, (0,), (2,), 0.5)]), capture(llama, {layer: places}) as states:
            llama.all_logits(IDS)
        assert states[layer].eq(0.5).all()


def test_the_same_place_twice_takes_the_later_write(llama: Model) -> None:
    with patch(llama, [write(2, (0,), (2,), 0.5), write(2, (0,), (2,), 0.25)]):
        assert everywhere(llama, 2)[0, 2].eq(0.25).all()


def test_no_capture_and_no_write_leave_the_model_alone(llama: Model) -> None:
    with patch(llama, []), capture(llama, {}) as states:
        assert n_on(llama) == 0
        llama.all_logits(IDS)
    assert states == {}


# ------------------------------------------------------------------------------------------------------ enter, replaced

ALONE = IDS[:1]


def states_of(model: Model) -> dict[int, Tensor]:
    """All states of the first text, by layer."""
    with capture(model, dict.fromkeys(range(model.n_layers + 1), Places((0,) * 4, (0, 1, 2, 3)))) as states:
        model.all_logits(ALONE)
    return states


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "falcon-alibi", "gemma3", "mixtral", "opt-post-norm"])
def test_rows_that_start_at_their_own_layers_are_as_plain_patched_runs(family: str) -> None:
    """Two rows that keep what the model embeds, then a row at each layer, the last above every block."""
    model = tiny_model(family)
    layers = range(model.n_layers + 1)
    states = states_of(model)
    vector = torch.linspace(-1, 1, model.d_model)
    stream = torch.stack([states[layer].clone() for layer in layers])
    stream[:, 2] = vector
    ids = ALONE.expand(2 + len(layers), -1)
    with enter(model, Entry([0, 0, *layers], stream, 2)):
        found = model.all_logits(ids)
    plain = model.all_logits(ALONE)[0]
    assert torch.allclose(found[:2], plain.expand(2, -1, -1), atol=1e-4)
    for row, layer in enumerate(layers, start=2):
        with patch(model, [LayerWrite(layer, Places((0,), (2,)), vector[None])]):
            assert torch.allclose(found[row], model.all_logits(ALONE)[0], atol=1e-4), layer
    assert torch.equal(model.all_logits(ALONE)[0], plain)


def test_a_block_runs_no_row_that_enters_above_it(llama: Model) -> None:
    sizes: list[int] = []
    returns_tuples(llama)  # which needs a pass of its own, once

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        sizes.append(len(args[0] if args else kwargs["hidden_states"]))

    stream = torch.zeros(5, 4, llama.d_model)
    with llama.running() as tree:
        handles = [block.self_attn.register_forward_pre_hook(note, with_kwargs=True) for block in tree.blocks]  # type: ignore[operator,union-attr]
        with enter(llama, Entry([0, 1, 1, 3, 4], stream)):
            llama.all_logits(ALONE.expand(5, -1))
        with enter(llama, Entry([3, 3], stream[:2])):
            llama.all_logits(IDS)
        with enter(llama, Entry([0, 0], stream[:1], 1)):
            llama.all_logits(IDS)
        for handle in handles:
            handle.remove()
    assert sizes == [1, 3, 3, 4, 2, 2, 2, 2, 2], "blocks 1 to 4; block 4 alone; all, from layer 0"


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("before", [True, False], ids=["pre-hook", "hook"])
def test_a_callers_hook_on_a_block_meets_each_row_that_runs_it_once(place: int, before: bool) -> None:
    """Rows that wait have met it already, with the prompt that they start from, or never will."""
    hf = copy.deepcopy(families.build("llama"))
    if before:
        hf.get_submodule(f"model.layers.{place}").register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    else:
        hf.get_submodule(f"model.layers.{place}").register_forward_hook(lambda _, __, output: output * 1.5)
    model = wrap_in_memory(hf, families.tiny_tokenizer())
    layers = range(model.n_layers + 1)
    states = states_of(model)
    vector = torch.linspace(-1, 1, model.d_model)
    stream = torch.stack([states[layer].clone() for layer in layers])
    stream[:, 2] = vector
    with enter(model, Entry([0, 0, *layers], stream, 2)):
        found = model.all_logits(ALONE.expand(2 + len(layers), -1))
    assert torch.allclose(found[0], model.all_logits(ALONE)[0], atol=1e-4)
    for row, layer in enumerate(layers, start=2):
        with patch(model, [LayerWrite(layer, Places((0,), (2,)), vector[None])]):
            assert torch.allclose(found[row], model.all_logits(ALONE)[0], atol=1e-4), layer


def test_blocks_are_themselves_again_after_entering_whatever_happens(llama: Model) -> None:
    entry = Entry([1, 2], torch.zeros(2, 4, llama.d_model))
    with llama.running() as tree:
        before = [dict(block.__dict__) for block in tree.blocks]
        with enter(llama, entry):
            assert tree.blocks[0].__dict__["_compiled_call_impl"] is not None
        with pytest.raises(KeyError), enter(llama, entry):
            raise KeyError
        with pytest.raises(RuntimeError), enter(llama, Entry([1, 2], torch.zeros(2, 3, llama.d_model))):
            llama.all_logits(IDS)
        assert [dict(block.__dict__) for block in tree.blocks] == before
    assert n_on(llama) == 0


def test_a_module_is_called_by_the_function_and_then_by_itself_again() -> None:
    plain = nn.Linear(2, 2)
    met: list[str] = []
    plain.register_forward_hook(lambda *_: met.append("hook"))
    x = torch.ones(1, 2)
    expected = plain(x)
    with called_by({plain: lambda x: x * 2}):
        assert plain(x).eq(2).all()
        with called_by({plain: lambda x: x * 7}):
            assert plain(x).eq(7).all()
        assert plain(x).eq(2).all(), "the outer one is back"
    assert met == ["hook"], "hooks are left to the function"
    assert torch.equal(plain(x), expected)
    with pytest.raises(KeyError), called_by({plain: lambda x: x * 2}):
        raise KeyError
    assert torch.equal(plain(x), expected)


@pytest.mark.parametrize(("family", "tuples"), [("llama", False), ("gpt2", False), ("bloom", True), ("falcon", True)])
def test_what_blocks_return_is_found_by_a_pass(family: str, tuples: bool) -> None:
    model = wrap_in_memory(families.build(family), families.tiny_tokenizer())
    assert returns_tuples(model) == tuples
    assert n_on(model) == 0
