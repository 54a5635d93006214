"""Models that cannot be run as they are: refused with the reason, before any number could be believed."""

import copy
import re
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

import families
import patchscopes as ps
from conftest import tiny_model
from patchscopes import errors
from patchscopes.models.checks import first_of, names, refuse_weights

TOKENIZER = families.tiny_tokenizer()
BLOCKS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "gpt-neox": "gpt_neox.layers",
}


def own(family: str = "llama") -> Any:
    return copy.deepcopy(families.build(family))


def refused(hf: Any) -> str:
    with pytest.raises(errors.UnsupportedModelError) as caught:
        ps.load(hf, tokenizer=TOKENIZER)
    return str(caught.value)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_family_is_refused(family: str) -> None:
    assert tiny_model(family).n_layers == families.n_layers_of(family)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers(value: float, dtype: torch.dtype) -> None:
    hf = own().to(dtype)
    hf.model.layers[2].mlp.down_proj.weight.data[3, 5] = value
    hf.model.norm.weight.data[1] = value
    message = refused(hf)
    assert "NaN or infinity (model.layers.2.mlp.down_proj.weight, model.norm.weight)" in message


def test_large_weights_are_numbers() -> None:
    """Their sum is not: a quick look at it must not have the last word."""
    hf = own()
    hf.model.norm.weight.data.fill_(torch.finfo(torch.float32).max)
    refuse_weights("tiny", hf)


def test_weights_of_size_0_as_zero_3_leaves_them() -> None:
    hf = own()
    for module in hf.model.layers[1].modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    message = refused(hf)
    assert "size 0 (7 in all: model.layers.1.self_attn.q_proj.weight, " in message
    assert "ZeRO-3" in message


def test_weights_on_meta_that_nothing_brings() -> None:
    hf = own()
    hf.model.layers[0].mlp.to("meta")
    message = refused(hf)
    assert "on the meta device" in message
    assert "model.layers.0.mlp.gate_proj.weight" in message


def test_weights_that_a_hook_brings_are_fine() -> None:
    hf = own()
    accelerate.cpu_offload(hf, execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in hf.parameters()} == {"meta"}
    refuse_weights("tiny", hf)
    accelerate.hooks.remove_hook_from_submodules(hf.model.layers[3].mlp)
    hf.model.layers[3].mlp.to("meta")
    with pytest.raises(errors.UnsupportedModelError, match=r"model.layers.3.mlp.gate_proj.weight"):
        refuse_weights("tiny", hf)


@pytest.mark.parametrize("family", BLOCKS)
def test_one_block_at_two_places(family: str) -> None:
    hf = own(family)
    blocks = hf.get_submodule(BLOCKS[family])
    blocks[2] = blocks[1]
    message = refused(hf)
    assert f"{BLOCKS[family]}.1 and {BLOCKS[family]}.2 are the same object" in message


@pytest.mark.parametrize("family", BLOCKS)
def test_blocks_cut_with_a_stale_index(family: str) -> None:
    hf = own(family)
    blocks = hf.get_submodule(BLOCKS[family])
    del blocks[0]
    hf.config.num_hidden_layers -= 1
    message = refused(hf)
    assert "block 0 of" in message
    assert "layer_idx = 1" in message


def test_blocks_cut_and_numbered_anew_are_right() -> None:
    hf = own()
    del hf.model.layers[0]
    hf.config.num_hidden_layers = 3
    for index, block in enumerate(hf.model.layers):
        block.self_attn.layer_idx = index
    model = ps.load(hf, tokenizer=TOKENIZER)
    options: dict[str, Any] = {"prompt": "x {} ->", "max_new_tokens": 4, "controls": ()}
    found = [[row.text for row in ps.inspect(model, "the cat", runner=r, **options)] for r in ("engine", "reference")]
    assert model.n_layers == 3
    assert found[0] == found[1]


def test_the_last_blocks_cut_away_need_no_new_index() -> None:
    hf = own()
    del hf.model.layers[2:]
    model = ps.load(hf, tokenizer=TOKENIZER)
    options: dict[str, Any] = {"prompt": "x {} ->", "max_new_tokens": 4, "controls": ()}
    found = [[row.text for row in ps.inspect(model, "the cat", runner=r, **options)] for r in ("engine", "reference")]
    assert model.n_layers == 2
    assert found[0] == found[1]


def test_more_blocks_than_the_config_says() -> None:
    hf = own()
    block = copy.deepcopy(hf.model.layers[3])
    block.self_attn.layer_idx = 4
    hf.model.layers.append(block)
    assert "has 5 blocks (model.layers) and its config says num_hidden_layers = 4" in refused(hf)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_activations_quantised_by_the_batch() -> None:
    hf = torch.ao.quantization.quantize_dynamic(own(), {nn.Linear}, dtype=torch.qint8)  # type: ignore[attr-defined]
    message = refused(hf)
    assert "by the range of the whole batch" in message
    assert "model.layers.0.self_attn.q_proj" in message


def test_a_head_of_another_size_than_the_config_says() -> None:
    hf = own()
    hf.config.vocab_size += 3
    assert re.search(r"head of llama has (\d+) rows.*resize_token_embeddings\(\1\)", refused(hf))


def test_a_config_that_does_not_say_how_wide_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = own()
    del hf.config.__dict__["hidden_size"]
    monkeypatch.setattr(type(hf.config), "hidden_size", None)
    assert "does not say hidden_size" in refused(hf)


def test_names_are_few_and_counted() -> None:
    assert (names("ab"), first_of("ab")) == ("a, b", "a, b")
    assert (names("abcde"), first_of("abcde")) == ("5 in all: a, b, c, …", "a, b, c, …")
