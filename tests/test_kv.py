"""Keys and values: a prefix computed once, copied under rows of unequal length; rows that leave."""

import pytest
import torch

from conftest import tiny_model
from patchscopes.kv import Prefix, Rows, build_prefix
from patchscopes.layout import Layout
from patchscopes.models import Model

CPU = torch.device("cpu")
IDS = (17, 33, 60, 21, 45, 70, 19)


def run(model: Model, rows: Rows, layout: Layout) -> torch.Tensor:
    return model.next_logits(
        layout.ids(CPU), mask=layout.mask(CPU), position_ids=layout.position_ids(CPU), cache=rows.cache
    )


def test_an_empty_prefix_is_legal_and_runs_nothing(llama: Model) -> None:
    ran: list[int] = []
    handle = llama.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    prefix = build_prefix(llama, ())
    handle.remove()
    assert (prefix, ran) == (Prefix((), (), ()), [])
    rows = Rows.on_prefixes([prefix] * 2, [0, 0], width=0, capacity=len(IDS), n_layers=llama.n_layers)
    assert rows.width == 0
    logits = run(llama, rows, Layout([IDS, IDS[:4]], len(IDS), len(IDS)))
    alone = torch.stack([llama.next_logits(torch.tensor([ids]))[0] for ids in (IDS, IDS[:4])])
    assert torch.allclose(logits, alone, atol=1e-4)


def test_a_prefix_has_a_pair_per_block_and_a_column_per_token(llama: Model) -> None:
    prefix = build_prefix(llama, IDS[:3])
    assert len(prefix.keys) == len(prefix.values) == llama.n_layers
    assert {tuple(keys.shape) for keys in (*prefix.keys, *prefix.values)} == {(1, 2, 3, 8)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom", "mistral"])
def test_neighbours_with_different_prefixes_and_lengths_are_as_alone(family: str) -> None:
    model = tiny_model(family)
    first, second, none = build_prefix(model, IDS[:5]), build_prefix(model, (80, 41)), build_prefix(model, ())
    texts = [IDS, (*IDS[:5], 99), (80, 41, 27, 50), (*IDS[:3], 98), (30,)]
    prefixes = [first, first, second, first, none]
    layout = Layout(texts, width=7, run=3)
    cached = [layout.cached(row) for row in range(5)]
    assert cached == [4, 3, 1, 1, 0], "shorter rows run a part of their prefix again"
    rows = Rows.on_prefixes(prefixes, cached, width=4, capacity=7, n_layers=model.n_layers)
    logits = run(model, rows, layout)
    alone = torch.stack([model.next_logits(torch.tensor([ids]))[0] for ids in texts])
    assert torch.allclose(logits, alone, atol=1e-4)


def test_padding_is_zero_and_never_memory_of_before(llama: Model) -> None:
    prefix = build_prefix(llama, IDS[:4])
    rows = Rows.on_prefixes([prefix, prefix], [4, 2], width=4, capacity=9, n_layers=llama.n_layers)
    for keys, values in rows.filled():
        for tensor, whole in ((keys, prefix.keys), (values, prefix.values)):
            assert tensor.shape[2] == 4
            assert torch.equal(tensor[1, :, :2], torch.zeros_like(tensor[1, :, :2]))
            assert tensor[1, :, 2:].abs().min() > 0
            assert any(torch.equal(tensor[0], w[0]) for w in whole)
            assert any(torch.equal(tensor[1, :, 2:], w[0, :, :2]) for w in whole)


def test_a_prefix_is_not_changed_by_the_rows_on_it(llama: Model) -> None:
    prefix = build_prefix(llama, IDS[:4])
    before = [tensor.clone() for tensor in (*prefix.keys, *prefix.values)]
    rows = Rows.on_prefixes([prefix] * 2, [4, 4], width=4, capacity=7, n_layers=llama.n_layers)
    run(llama, rows, Layout([IDS, (*IDS[:4], 1, 2, 3)], 7, 3))
    rows.keep([1])
    assert all(torch.equal(a, b) for a, b in zip(before, (*prefix.keys, *prefix.values), strict=True))


def test_rows_that_leave_do_not_show_in_those_that_stay(llama: Model) -> None:
    texts = [IDS, (80, 41, 27, 50, 5, 6, 7), tuple(reversed(IDS))]
    rows = Rows(llama.n_layers, capacity=9)
    layout = Layout(texts, 7, 7)
    run(llama, rows, layout)
    rows.keep([2, 0])
    assert rows.width == 7
    step = llama.next_logits(
        torch.tensor([[11], [12]]),
        mask=torch.ones(2, 8, dtype=torch.long),
        position_ids=torch.tensor([[7], [7]]),
        cache=rows.cache,
    )
    alone = [llama.next_logits(torch.tensor([[*texts[row], token]]))[0] for row, token in ((2, 11), (0, 12))]
    assert torch.allclose(step, torch.stack(alone), atol=1e-4)
    assert rows.width == 8


def test_keeping_rows_before_anything_ran_is_nothing(llama: Model) -> None:
    rows = Rows(llama.n_layers, capacity=3)
    rows.keep([0])
    assert rows.width == 0


def test_more_columns_than_room_are_an_error_and_no_silence(llama: Model) -> None:
    rows = Rows(llama.n_layers, capacity=3)
    with pytest.raises(RuntimeError):
        run(llama, rows, Layout([IDS[:4]], 4, 4))
