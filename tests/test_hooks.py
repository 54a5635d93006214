"""Hooks: where they act, that they go away, and what blocks may take and return (rules 3 and 5)."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import families
from conftest import tiny_model
from patchscopes.hooks import Entry, LayerWrite, Places, capture, enter, patch, replaced, returns_tuples
from patchscopes.models import Model, wrap_in_memory

IDS = torch.tensor([[17, 33, 60, 21], [80, 41, 27, 50]])


def n_hooks(model: Model) -> int:
    """Hooks of ours that are registered: transformers leaves some of its own, once it was asked for hidden states."""
    registered = [
        hook for m in model.hf.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    functions = [hook.func if isinstance(hook, partial) else hook for hook in registered]
    return sum(function.__module__ == "patchscopes.hooks" for function in functions)


def test_a_hook_that_stays_would_be_counted(llama: Model) -> None:
    with patch(llama, [write(2, (0,), (1,), 1.0)]), capture(llama, {1: Places((0,), (1,)), 0: Places((0,), (0,))}):
        assert n_hooks(llama) == 3
    assert n_hooks(llama) == 0


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
    model = wrap_in_memory(copy.deepcopy(families.build("llama")), families.tiny_tokenizer())
    layers = model.hf.get_submodule("model.layers")
    blocks = [CalledByKeyword(block) for block in layers.children()]
    for index, block in enumerate(blocks):
        layers[index] = Adapter(block)  # type: ignore[index]
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
    blocks, llama_blocks = (block,), llama.blocks
    stream = torch.zeros(1, 3, llama.d_model)
    llama.blocks = blocks
    try:
        with patch(llama, [write(1, (0,), (2,), 7.0)]):
            output = block(stream)
        with capture(llama, {1: Places((0,), (2,))}) as states:
            unpatched = block(stream)
    finally:
        llama.blocks = llama_blocks
    assert isinstance(output, tuple)
    assert output[1:] == ("attention weights", None)
    assert output[0][0, 2].eq(7).all()
    assert output[0][0, :2].eq(0).all()
    assert unpatched[0] is stream, "capturing replaces nothing"
    assert states[1].eq(0).all()
    assert stream.eq(0).all(), "nothing is written in place"


def test_the_other_arguments_of_block_1_stay_as_they_are(llama: Model) -> None:
    seen: list[tuple[int, list[str]]] = []
    before = llama.blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((len(args), sorted(kwargs))), with_kwargs=True
    )
    llama.all_logits(IDS)
    before.remove()
    with patch(llama, [write(0, (0,), (1,), 1.0)]):
        after = llama.blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((len(args), sorted(kwargs))), with_kwargs=True
        )
        llama.all_logits(IDS)
        after.remove()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_nothing_stays_registered_after_an_exception(llama: Model, layer: int) -> None:
    assert n_hooks(llama) == 0
    with pytest.raises(KeyError), patch(llama, [write(layer, (0,), (1,), 1.0)]):
        raise KeyError
    with pytest.raises(KeyError), capture(llama, {layer: Places((0,), (1,)), 1: Places((0,), (0,))}):
        raise KeyError
    assert n_hooks(llama) == 0


def test_nothing_stays_registered_where_the_forward_pass_itself_fails(llama: Model) -> None:
    with pytest.raises(IndexError), patch(llama, [write(2, (0,), (99,), 1.0)]):
        llama.all_logits(IDS)
    assert n_hooks(llama) == 0


def test_nothing_stays_registered_where_a_later_layer_does_not_exist(llama: Model) -> None:
    with pytest.raises(IndexError), patch(llama, [write(1, (0,), (1,), 1.0), write(99, (0,), (1,), 1.0)]):
        pass
    with pytest.raises(IndexError), capture(llama, {1: Places((0,), (1,)), 99: Places((0,), (1,))}):
        pass
    assert n_hooks(llama) == 0


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
        assert n_hooks(llama) == 0
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
    handles = [
        block.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
        )
        for block in llama.blocks
    ]
    stream = torch.zeros(5, 4, llama.d_model)
    with enter(llama, Entry([0, 1, 1, 3, 4], stream)):
        llama.all_logits(ALONE.expand(5, -1))
    with enter(llama, Entry([3, 3], stream[:2])):
        llama.all_logits(IDS)
    with enter(llama, Entry([0, 0], stream[:1], 1)):
        llama.all_logits(IDS)
    for handle in handles:
        handle.remove()
    assert sizes == [1, 3, 3, 4, 2, 2, 2, 2, 2], "blocks 1 to 4; block 4 alone; all, from layer 0"


def test_blocks_are_themselves_again_after_entering_whatever_happens(llama: Model) -> None:
    before = [dict(block.__dict__) for block in llama.blocks]
    entry = Entry([1, 2], torch.zeros(2, 4, llama.d_model))
    with enter(llama, entry):
        assert "forward" in llama.blocks[0].__dict__
    with pytest.raises(KeyError), enter(llama, entry):
        raise KeyError
    with pytest.raises(RuntimeError), enter(llama, Entry([1, 2], torch.zeros(2, 3, llama.d_model))):
        llama.all_logits(IDS)
    assert [dict(block.__dict__) for block in llama.blocks] == before
    assert n_hooks(llama) == 0


def test_a_replaced_module_runs_by_the_function_and_gets_back_what_it_had() -> None:
    plain, own = nn.Linear(2, 2), nn.Linear(2, 2)
    of_its_own = lambda x: x + 5  # noqa: E731
    own.forward = of_its_own  # type: ignore[method-assign]
    x = torch.ones(1, 2)
    expected = plain(x)
    with replaced({plain: lambda x: x * 2, own: lambda x: x * 3}):
        assert plain(x).eq(2).all()
        assert own(x).eq(3).all()
        with replaced({plain: lambda x: x * 7}):
            assert plain(x).eq(7).all()
        assert plain(x).eq(2).all(), "the outer one is back"
    assert torch.equal(plain(x), expected)
    assert "forward" not in plain.__dict__
    assert own.forward is of_its_own
    with pytest.raises(KeyError), replaced({plain: lambda x: x * 2, own: lambda x: x * 3}):
        raise KeyError
    assert torch.equal(plain(x), expected)
    assert own(x).eq(6).all()


def test_the_blocks_of_a_replaced_model_enter_by_what_replaced_them(llama: Model) -> None:
    """`enter` inside `replaced`: rows run by the function that stands in, and all of it goes away."""
    block, scale = llama.blocks[1], 0.0

    def halved(stream: Tensor, *_: Any, **__: Any) -> Tensor:
        return stream * scale

    stream = torch.ones(2, 4, llama.d_model)
    with (
        replaced({block: halved}),
        enter(llama, Entry([1, 2], stream)),
        capture(llama, {2: Places((0, 1), (3, 3))}) as at,
    ):
        llama.all_logits(IDS)
    assert at[2][0].eq(0).all(), "the first row ran through block 2"
    assert at[2][1].eq(1).all(), "the second begins above it"
    assert "forward" not in block.__dict__


@pytest.mark.parametrize(("family", "tuples"), [("llama", False), ("gpt2", False), ("bloom", True), ("falcon", True)])
def test_what_blocks_return_is_found_by_a_pass(family: str, tuples: bool) -> None:
    model = wrap_in_memory(families.build(family), families.tiny_tokenizer())
    assert returns_tuples(model) == tuples
    assert n_hooks(model) == 0
