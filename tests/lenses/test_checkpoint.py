"""Published tuned lenses, written here in their form: what they read is right, and what does not fit is refused."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import families
from conftest import tiny_model
from patchscopes.errors import MappingError
from patchscopes.lenses import lens_logits, load_tuned_lens, unembed_hash
from patchscopes.mappings import Mapping, Mappings, Side
from patchscopes.models import Model, wrap_in_memory

N, D = 4, 32


def translators() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(D, D) for _ in range(N)])


def published(folder: Path, model: Model, state: Any = None, **config: Any) -> Path:
    """A lens as tuned-lens 0.2 saves it."""
    folder.mkdir(exist_ok=True)
    written = {
        "base_model_name_or_path": "tiny",
        "d_model": D,
        "num_hidden_layers": N,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": unembed_hash(model),
        "lens_type": "linear_tuned_lens",
    }
    (folder / "config.json").write_text(json.dumps(written | config))
    torch.save(translators().state_dict() if state is None else state, folder / "params.pt")
    return folder


def test_translator_i_is_added_to_the_stream_after_i_blocks(llama: Model, tmp_path: Path) -> None:
    lens = load_tuned_lens(published(tmp_path / "lens", llama), llama)
    assert lens.kind == "tuned"
    assert lens.pairs == tuple((layer, N) for layer in range(N))
    states = torch.randn(5, D)
    for layer, translator in enumerate(translators()):
        with torch.no_grad():
            expected = llama.unembed(states + translator(states))
        assert torch.allclose(lens_logits(llama, lens, layer, states), expected, atol=1e-4)
    assert torch.allclose(lens_logits(llama, lens, N, states), llama.unembed(states))
    assert lens.fitted["published"]["base_model_name_or_path"] == "tiny"
    assert lens[0, N].quality is None


def test_one_that_was_loaded_is_kept_like_any_other(llama: Model, tmp_path: Path) -> None:
    lens = load_tuned_lens(published(tmp_path / "lens", llama), llama)
    lens.save(tmp_path / "lens.safetensors")
    assert load_tuned_lens(tmp_path / "lens.safetensors", llama).digest == lens.digest


def test_the_hash_is_of_the_matrix_as_numpy_prints_it(llama: Model) -> None:
    """Whatever the program prints otherwise. It sees six rows and columns, to one decimal, and nothing else."""
    matrix = llama.hf.get_output_embeddings().weight.numpy()
    expected = hashlib.sha256(np.array_str(matrix, precision=1).encode()).hexdigest()
    with np.printoptions(edgeitems=5, threshold=7, linewidth=200, suppress=True):
        assert unembed_hash(llama) == expected
    assert unembed_hash(tiny_model("mistral")) != expected
    changed = wrap_in_memory(copy.deepcopy(llama.hf), families.tiny_tokenizer())
    weight = changed.hf.get_output_embeddings().weight
    weight[7, 7] += 3
    assert unembed_hash(changed) == expected
    weight[1, 1] += 3
    assert unembed_hash(changed) != expected


def states_without(*names: str, **more: Tensor) -> dict[str, Tensor]:
    state = dict(translators().state_dict())
    return {name: value for name, value in state.items() if name not in names} | more


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"d_model": 31}, "trained for tiny with d_model 31; llama in float32 has 32"),
        ({"num_hidden_layers": 12}, "with layers 12; llama in float32 has 4"),
        ({"unembed_hash": "00ff"}, "with the unembedding hash 00ff; llama in float32 has"),
        ({"unembed_hash": None}, "has no unembed_hash, so that nothing tells which model"),
        ({"lens_type": "mlp"}, "of the type 'mlp'"),
    ],
)
def test_lenses_of_other_models_are_refused(llama: Model, tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(MappingError, match=said):
        load_tuned_lens(published(tmp_path / "lens", llama, **config), llama)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (states_without("2.bias"), r"has no 2\.bias; the lens of a model with 4 layers"),
        (states_without("0.weight"), r"has no 0\.weight"),
        (states_without(**{"1.bias": torch.zeros(31)}), r"1\.bias in .* has the shape \(31,\); it must be \(32,\)"),
        (states_without(**{"4.bias": torch.zeros(32)}), r"holds 4\.bias, which no linear translator of 4 layers has"),
        (states_without(**{"1.bias": torch.full((32,), torch.nan)}), "not finite"),
        ([torch.zeros(2)], "no dictionary of tensors"),
    ],
)
def test_incomplete_lenses_are_refused(llama: Model, tmp_path: Path, state: Any, said: str) -> None:
    with pytest.raises(MappingError, match=said):
        load_tuned_lens(published(tmp_path / "lens", llama, state), llama)


def test_files_that_are_no_lens_are_refused(llama: Model, tmp_path: Path) -> None:
    with pytest.raises(
        MappingError, match=r"has no config\.json and no params\.pt; a published tuned lens is a folder"
    ):
        load_tuned_lens(tmp_path, llama)
    folder = published(tmp_path / "lens", llama)
    (folder / "params.pt").write_bytes(b"not a tensor")
    with pytest.raises(MappingError, match=r"params\.pt cannot be read as tensors"):
        load_tuned_lens(folder, llama)
    torch.save({"0.weight": nn.Linear(2, 2)}, folder / "params.pt")  # a pickle that would run code
    with pytest.raises(MappingError, match=r"params\.pt cannot be read as tensors"):
        load_tuned_lens(folder, llama)
    (folder / "config.json").write_text("{")
    with pytest.raises(MappingError, match=r"config\.json cannot be read as JSON"):
        load_tuned_lens(folder, llama)
    with pytest.raises(MappingError, match="cannot be read as mappings"):
        load_tuned_lens(tmp_path / "nothing.safetensors", llama)


def test_mappings_that_are_no_lens_are_refused(llama: Model, tmp_path: Path) -> None:
    side, f = Side.of(llama), Mapping(torch.eye(D), torch.zeros(D))
    Mappings("affine", side, side, {(1, 3): f, (1, 4): f}).save(tmp_path / "f.safetensors")
    with pytest.raises(
        MappingError, match=r"no lens: it has \(ℓ, ℓ\*\) = \(1, 3\), and a lens leads to the last layer, 4"
    ):
        load_tuned_lens(tmp_path / "f.safetensors", llama)
    Mappings("affine", side, side, {(1, 4): f}).save(tmp_path / "g.safetensors")
    assert load_tuned_lens(tmp_path / "g.safetensors", llama).kind == "affine"
    with pytest.raises(MappingError, match="fitted for the source model llama with the weights"):
        load_tuned_lens(tmp_path / "g.safetensors", tiny_model("mistral"))
