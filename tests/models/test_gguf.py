"""Tiny .gguf files through `convert_gguf`: what comes out is what was written, and what would not be is refused."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from patchscopes.errors import ModelFilesError, OutputError, UnsupportedModelError
from patchscopes.models import gguf
from patchscopes.models.folders import hash_file, verify_files
from patchscopes.models.gguf import convert_gguf, gguf_folder
from patchscopes.models.gguf_header import read_header
from patchscopes.settings import Settings
from tiny_gguf import CHAT_TEMPLATE, Tiny, write_gguf

# What `convert_gguf` itself writes; the manifest is the business of whoever keeps the folder.
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def converted(tmp_path: Path, tiny: Tiny) -> tuple[Path, dict[str, Any]]:
    """The folder that a tiny file becomes, and the weights that were written."""
    folder = tmp_path / "out" / "folder"
    folder.mkdir(parents=True)
    weights = write_gguf(tmp_path / "tiny.gguf", tiny)
    convert_gguf(tmp_path / "tiny.gguf", folder)
    return folder, weights


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return converted(tmp_path_factory.mktemp("llama"), Tiny())


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return converted(tmp_path_factory.mktemp("gemma"), Tiny("gemma3"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_the_folder_is_complete_and_alone(llama: tuple[Path, Any]) -> None:
    assert {path.name for path in llama[0].iterdir()} == FILES
    assert list(llama[0].parent.iterdir()) == [llama[0]], "scratch files are left"


@pytest.mark.parametrize("tiny", [Tiny(), Tiny(tied=False), Tiny("gemma3")], ids=["llama", "untied", "gemma3"])
def test_every_weight_is_the_one_written(tmp_path: Path, tiny: Tiny) -> None:
    """To the bit: blocks dequantised, rows of q and k back in order, Gemma's norms minus one, the head tied."""
    folder, weights = converted(tmp_path, tiny)
    model = load(folder)
    state = model.state_dict()
    if tiny.tied:
        assert model.lm_head.weight is model.model.embed_tokens.weight
        state.pop("lm_head.weight")
    assert state.keys() == weights.keys()
    for name, expected in weights.items():
        np.testing.assert_array_equal(state[name].numpy(), expected, err_msg=name)


def test_tied_weights_are_written_once(llama: tuple[Path, Any]) -> None:
    n_bytes = sum(array.nbytes for array in llama[1].values())
    assert n_bytes < (llama[0] / "model.safetensors").stat().st_size < n_bytes + 10_000


def test_the_config_of_llama(llama: tuple[Path, Any]) -> None:
    config = json.loads((llama[0] / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5, "not the float32 nearest to it"
    assert config["rope_parameters"]["rope_theta"] == 5000.0
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["dtype"], config["tie_word_embeddings"]) == ("float32", True)
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & config.keys()
    generation = json.loads((llama[0] / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)


def test_the_config_of_gemma(gemma: tuple[Path, Any]) -> None:
    config = load(gemma[0]).config
    assert config.rms_norm_eps == 1e-5
    assert config.sliding_window == 8
    assert config.layer_types == ["sliding_attention", "sliding_attention"]
    assert config.rope_parameters["full_attention"]["rope_theta"] == 5000.0
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0


def test_digits_stand_apart_where_the_vocabulary_says_so(llama: tuple[Path, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama[0])
    assert tokens(tokenizer, "a  1") == ["a", "ĠĠ", "1"]
    assert tokens(tokenizer, " the 19") == ["Ġthe", "Ġ", "1", "9"]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "a  1", ["a", "Ġ", "Ġ", "1"]),
        ("gpt-2", "19", ["19"]),
        ("starcoder", "a  1", ["a", "ĠĠ", "1"]),
        ("starcoder", "19", ["1", "9"]),
        ("falcon", "2219", ["2", "2", "1", "9"]),
        ("falcon", "a-the", ["a", "-", "the"]),
        ("stablelm2", "19", ["1", "9"]),
        ("bloom", " the,cat", ["Ġthe", ",", "cat"]),
        ("qwen2", "e\u0301", ["Ã", "©"]),
        ("smollm", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path: Path, pre: str, text: str, expected: list[str]) -> None:
    folder, _ = converted(tmp_path, Tiny(pre=pre))
    assert tokens(AutoTokenizer.from_pretrained(folder), text) == expected


@pytest.mark.parametrize(("pre", "expected"), [("smollm", ["d", "o", "g"]), ("llama-bpe", ["dog"])])
def test_a_word_that_is_a_token_stays_whole_in_llama_3(tmp_path: Path, pre: str, expected: list[str]) -> None:
    folder, _ = converted(tmp_path, Tiny(pre=pre))
    assert tokens(AutoTokenizer.from_pretrained(folder), "dog") == expected


@pytest.mark.parametrize(("prefix", "expected"), [(True, ["<bos>", "▁cat"]), (False, ["<bos>", "cat"])])
def test_a_space_is_put_before_a_text_where_the_file_says(tmp_path: Path, prefix: bool, expected: list[str]) -> None:
    flag = {"tokenizer.ggml.add_space_prefix": prefix}
    folder, _ = converted(tmp_path, Tiny(sentencepiece=True, metadata=flag))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokens(tokenizer, "cat") == expected
    assert tokenizer.decode(tokenizer("cat")["input_ids"], skip_special_tokens=True) == "cat"


def test_a_way_to_split_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"splits text as 'esperanto' says"):
        converted(tmp_path, Tiny(pre="esperanto"))


def test_special_tokens_stay_special(llama: tuple[Path, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama[0])
    ids = tokenizer("<|im_start|>cat<think><|im_end|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "cat", "<think>", "<|im_end|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "cat<think>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert len(tokenizer) == 269


def test_text_comes_back_as_it_went_in(llama: tuple[Path, Any], gemma: tuple[Path, Any]) -> None:
    text = "the cat , the  19 . don 't"
    tokenizer = AutoTokenizer.from_pretrained(llama[0])
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokenizer = AutoTokenizer.from_pretrained(gemma[0])
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_chat_template_survives(llama: tuple[Path, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama[0])
    assert tokenizer.chat_template == CHAT_TEMPLATE
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "the cat"}], tokenize=False)
    assert rendered == "<|im_start|>user\nthe cat<|im_end|>\n"


@pytest.mark.parametrize(
    ("tiny", "expected"),
    [
        (Tiny(), ["Ġcat"]),
        (Tiny(metadata={"tokenizer.ggml.add_bos_token": True}), ["<|im_start|>", "Ġcat"]),
        (Tiny(metadata={"tokenizer.ggml.add_eos_token": True}), ["Ġcat", "<|im_end|>"]),
        (Tiny(metadata={"tokenizer.ggml.add_bos_token": None}), ["Ġcat"]),
        (Tiny(metadata={"tokenizer.ggml.add_bos_token": None}, pre="llama-bpe"), ["<|im_start|>", "Ġcat"]),
        (Tiny(pre="llama-bpe"), ["Ġcat"]),
        (Tiny("gemma3"), ["<bos>", "▁cat"]),
        (Tiny("gemma3", metadata={"tokenizer.ggml.add_bos_token": None}), ["<bos>", "▁cat"]),
        (Tiny("gemma3", metadata={"tokenizer.ggml.add_bos_token": False}), ["▁cat"]),
    ],
)
def test_tokens_are_added_where_the_file_says(tmp_path: Path, tiny: Tiny, expected: list[str]) -> None:
    folder, _ = converted(tmp_path, tiny)
    assert tokens(AutoTokenizer.from_pretrained(folder), " cat") == expected


def test_no_other_tokenizer_of_the_same_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "another"}')
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    folder, _ = converted(tmp_path, Tiny())
    assert AutoTokenizer.from_pretrained(folder).chat_template == CHAT_TEMPLATE


@pytest.fixture
def talkative() -> Iterator[None]:
    """Transformers at a verbosity that it does not have by itself."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    yield
    transformers_logging.set_verbosity(level)


@pytest.mark.usefixtures("talkative")
def test_transformers_is_silent_and_left_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def manners() -> tuple[int, bool]:
        return transformers_logging.get_verbosity(), bool(transformers_logging.is_progress_bar_enabled())

    before = manners()
    assert before == (transformers_logging.INFO, True)
    converted(tmp_path, Tiny())
    assert capfd.readouterr() == ("", "")
    assert manners() == before


@pytest.mark.usefixtures("talkative")
def test_transformers_is_left_as_it_was_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError):
        converted(tmp_path, Tiny(without=("blk.1.ffn_up.weight",)))
    assert transformers_logging.get_verbosity() == transformers_logging.INFO
    assert bool(transformers_logging.is_progress_bar_enabled())


@pytest.mark.parametrize("kept", [0, 3, 20, 24, 100, 3000, 0.1, 0.5, -1])
def test_a_truncated_file_is_damaged(tmp_path: Path, settings: Settings, kept: float) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ModelFilesError, match=r"tiny\.gguf cannot be read as GGUF: .*\. Download or copy it again"):
        gguf_folder(path, settings)
    assert not settings.home.exists()


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"GGML", r"begins with b'GGML'"),
        (4, struct.pack("<I", 1), "GGUF version 1"),
        (4, struct.pack(">I", 3), "little-endian"),
        (16, struct.pack("<Q", 2**60), "header cannot be read"),
        (24, struct.pack("<Q", 2**63), "header cannot be read"),
        (32, b"\xff\xff", "header cannot be read"),
    ],
)
def test_a_header_that_makes_no_sense_is_damaged(tmp_path: Path, offset: int, value: bytes, reason: str) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ModelFilesError, match=reason):
        read_header(path)


@pytest.mark.parametrize(
    ("tiny", "reason"),
    [
        (
            Tiny(name_of_architecture="granite"),
            r"architecture granite\) cannot be converted by transformers 5\.",
        ),
        (Tiny(without=("blk.1.ffn_up.weight",)), r"lacks 1 weights of a llama model.*mlp\.up_proj\.weight"),
        (Tiny(extra={"blk.0.attn_q.bias": (64,)}), r"holds \d+ values, and the llama model .* some would be lost"),
        (Tiny(extra={"blk.0.ssm_a": (64,)}), "state-space or hybrid"),
        (Tiny(extra={"rope_freqs.weight": (8,)}), r"scales its rotary positions \(rope_freqs\.weight\)"),
        (Tiny(metadata={"llama.rope.scaling.type": "yarn"}), r"scales its rotary positions \(rope.scaling.type 'yarn'"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, tiny: Tiny, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        converted(tmp_path, tiny)
    assert not list((tmp_path / "out" / "folder").glob("*.safetensors"))


def test_a_path_is_converted_once(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    folder = gguf_folder(path, settings)
    assert folder == settings.home / "gguf" / hash_file(path)
    assert {path.name for path in folder.iterdir()} == FILES | {"patchscopes.json"}
    verify_files(folder)
    manifest = json.loads((folder / "patchscopes.json").read_text())
    assert (manifest["name"], manifest["licence"]) == ("tiny.gguf", "apache-2.0")
    assert str(tmp_path) not in json.dumps(manifest)

    monkeypatch.setattr(gguf, "convert_gguf", None)
    renamed = path.rename(tmp_path / "other.gguf")
    assert gguf_folder(renamed, settings) == folder, "the same content is the same model"


def test_another_file_is_another_model(tmp_path: Path, settings: Settings) -> None:
    write_gguf(tmp_path / "a.gguf", Tiny(seed=1))
    write_gguf(tmp_path / "b.gguf", Tiny(seed=2))
    first, second = (gguf_folder(tmp_path / name, settings) for name in ("a.gguf", "b.gguf"))
    assert first != second
    assert not torch.equal(load(first).model.norm.weight, load(second).model.norm.weight)


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, settings: Settings) -> None:
    write_gguf(tmp_path / "tiny.gguf", Tiny(without=("blk.1.ffn_up.weight",)))
    with pytest.raises(UnsupportedModelError):
        gguf_folder(tmp_path / "tiny.gguf", settings)
    assert not (settings.home / "gguf").exists()
    assert not any((settings.home / "tmp").iterdir())


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(OutputError, match="Set PATCHSCOPES_HOME"):
        gguf_folder(tmp_path / "tiny.gguf", Settings(home=tmp_path / "tiny.gguf"))


def test_a_file_that_cannot_be_read(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(ModelFilesError, match=r"absent\.gguf cannot be read: No such file"):
        gguf_folder(tmp_path / "absent.gguf", settings)
