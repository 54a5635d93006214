"""A .gguf file → a folder that transformers loads at once: float32 safetensors, config and tokenizer.

Transformers reads GGUF, but slowly at every load, and not all of it. It is read once here, what transformers is known
to lose is put right (`DIALECTS`), and what it cannot read faithfully is refused: a hidden state of a model that is
almost the right one would be believed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any
from unittest import mock

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast

from patchscopes.errors import ModelFilesError, OutOfMemoryError, PatchscopesError, UnsupportedModelError
from patchscopes.foreign import explained, is_memory, reason_of
from patchscopes.models.architectures import refuse_unsupported
from patchscopes.models.folders import hash_file, make_folder, require_space
from patchscopes.models.gguf_header import GgufHeader, copy_gguf, read_header
from patchscopes.models.quiet import quiet_transformers
from patchscopes.settings import Settings

# Kept beside the weights: config, tokenizer (33 MB where there are 262 144 tokens), and air.
OTHER_FILES_BYTES = 100_000_000

# Metadata that is long, that only the tokenizer needs, and that transformers' reader takes apart element by element:
# 20 of the 24 s that SmolLM2-135M takes. Models are read from a copy without it.
VOCABULARY_KEYS = frozenset(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges"))

# Names of tensors that carry a state from token to token; such models are refused (see `architectures`).
RECURRENT_TENSORS = (".ssm_", ".shortconv.", ".time_mix_")


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the model in the GGUF file `path` into the existing `folder`: weights in float32, configs, tokenizer.

    `AutoModelForCausalLM.from_pretrained(folder)` then gives exactly the values that the file's blocks stand for.
    Temporarily needs the size of the file beside `folder`. Raises ModelFilesError where the file is damaged,
    UnsupportedModelError where it holds what transformers does not read (faithfully), OSError where writing fails.
    """
    header = read_header(path)
    _refuse_unfaithful(header)
    n_values = sum(tensor.n_values for tensor in header.tensors)
    require_space(folder, 4 * n_values + path.stat().st_size + OTHER_FILES_BYTES)
    reading, temporary = explained(partial(_unconverted, header)), TemporaryDirectory(dir=folder.parent)
    with reading, quiet_transformers(), _remembering_names(), temporary as scratch:
        _convert_tokenizer(header, Path(scratch), folder)
        model = _read_model(header, Path(scratch))
        _refuse_unread(header, model)
        _save_model(model, folder)


def _unconverted(header: GgufHeader, error: Exception) -> PatchscopesError:
    if isinstance(error, OSError):
        raise error  # of the disk, which whoever keeps the folder tells
    if is_memory(error):
        return OutOfMemoryError(f"{header.path.name} does not fit in memory: {reason_of(error)} Use a smaller model.")
    return UnsupportedModelError(
        f"{header.path.name} (architecture {header.architecture}) cannot be converted by transformers "
        f"{transformers.__version__}: {reason_of(error)}. Use the original model, as a folder with safetensors or a "
        "hub id."
    )


def gguf_folder(path: Path, settings: Settings) -> Path:
    """The converted folder of a .gguf file, kept in `settings.home/gguf/<SHA-256 of the file>`; made at first use.

    Raises as `convert_gguf` does, and OutputError where `settings.home` cannot be written.
    """
    try:
        header = read_header(path)
        digest = hash_file(path)
    except OSError as error:
        raise ModelFilesError(
            f"{path} cannot be read: {error.strerror}. Give a .gguf file that you can read."
        ) from error

    def recipe(_: Path, folder: Path) -> Mapping[str, object]:
        convert_gguf(path, folder)
        licence = header.metadata.get("general.license")
        return {"name": path.name, "licence": licence, "source": {"gguf_sha256": digest}}

    return make_folder(settings.home / "gguf" / digest, settings.home, recipe)


# ------------------------------------------------------------------------------------------------------------- weights


def _read_model(header: GgufHeader, scratch: Path) -> PreTrainedModel:
    """The model with its weights dequantised to float32. Raises UnsupportedModelError where a weight is not there."""
    copy_gguf(header, scratch / "model.gguf", without=VOCABULARY_KEYS)
    config = AutoConfig.from_pretrained(scratch, gguf_file="model.gguf")
    refuse_unsupported(config)
    # Transformers counts the vocabulary, which the copy is without.
    config.vocab_size = header.n_vocab
    # `dequantize`: where its kernels are installed, transformers would keep blocks, and compute otherwise.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        scratch,
        gguf_file="model.gguf",
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    model, info = loaded
    missing = sorted(set(info["missing_keys"]) | {str(name) for name in info["mismatched_keys"]})
    if missing:
        raise UnsupportedModelError(
            f"{header.path.name} lacks {len(missing)} weights of a {config.model_type} model, or has them in other "
            f"shapes ({', '.join(missing[:3])}); they would be random. Use the original model, as a folder or hub id."
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save through a model that was never quantised: one that comes from GGUF refuses to be saved."""
    config = deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    # One file, whatever the size, as the manifest expects.
    plain.save_pretrained(folder, max_shard_size=2**60)
    # The file's own name for the model, which no loader reads.
    _tidy_json(folder / "config.json", without=("_name_or_path", "_model_name_or_path"))
    _tidy_json(folder / "generation_config.json", without=("_from_model_config",))


def _tidy_json(path: Path, *, without: tuple[str, ...], **values: str) -> None:
    content = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key not in without}
    tidied = _shortened({**content, **values})
    path.write_text(json.dumps(tidied, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _shortened(value: object) -> object:
    """`value` with each float that is a float32 written as such: GGUF turns an ε of 1e-05 into 9.999999747378752e-06.

    The float32 is the same, and so are the results in float32; the original config is had again.
    """
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _refuse_unfaithful(header: GgufHeader) -> None:
    """Refuse what transformers would read without a complaint, and wrongly."""
    names = [tensor.name for tensor in header.tensors]
    if any(part in name for name in names for part in RECURRENT_TENSORS):
        raise UnsupportedModelError(
            f"{header.path.name} (architecture {header.architecture}) is a state-space or hybrid model, whose state is "
            "more than keys and values. It is refused until that is supported; use an attention-only decoder."
        )
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    factors = [name for name in names if name.startswith(("rope_freqs.", "rope_factors_"))]
    # Transformers rebuilds the scaling for this architecture only.
    if (scaling != "none" and header.architecture != "gpt-oss") or factors:
        what = factors[0] if factors else f"rope.scaling.type {scaling!r}"
        raise UnsupportedModelError(
            f"{header.path.name} scales its rotary positions ({what}), which transformers "
            f"{transformers.__version__} does not read from GGUF: every hidden state would be slightly wrong. "
            "Use the original model, as a folder with safetensors or a hub id."
        )


def _refuse_unread(header: GgufHeader, model: PreTrainedModel) -> None:
    """Refuse a file of which transformers left something unread (biases, say): it holds more values than the model."""
    tied = set(model.all_tied_weights_keys)
    n_model = sum(tensor.numel() for name, tensor in model.state_dict().items() if name not in tied)
    # Some files repeat the embedding as the head that it is tied to.
    n_file = sum(t.n_values for t in header.tensors if not (t.name == "output.weight" and "lm_head.weight" in tied))
    if n_file != n_model:
        raise UnsupportedModelError(
            f"{header.path.name} holds {n_file} values, and the {model.config.model_type} model that transformers "
            f"{transformers.__version__} makes of it {n_model}: some would be lost. "
            "Use the original model, as a folder with safetensors or a hub id."
        )


# ----------------------------------------------------------------------------------------------------------- tokenizer


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a value of `tokenizer.ggml.pre` says about a byte-level vocabulary and transformers does not put back.

    `ignore_merges`: a word that is a token stays whole, whatever its merges. `adds_bos` holds where the file is silent.
    """

    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer] | None = None
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    ignore_merges: bool = False
    adds_bos: bool = False


def _digits_apart() -> pre_tokenizers.PreTokenizer:
    """Every digit by itself, before words are split: two spaces before a digit are one token then."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2_words()])


def _gpt2_words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _falcon() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            _gpt2_words(),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _bloom() -> pre_tokenizers.PreTokenizer:
    return _split(" ?[^(\\s|[.,!?…\u3002\uff0c\u3001\u0964\u06d4\u060c])]+")


def _stablelm2() -> pre_tokenizers.PreTokenizer:
    return _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_DIGITS_APART = Dialect(pre_tokenizer=_digits_apart)
_LLAMA3 = Dialect(ignore_merges=True, adds_bos=True)

# What the original tokenizers do, for the values of `tokenizer.ggml.pre` whose architectures transformers reads.
DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "smollm": _DIGITS_APART,
        "starcoder": _DIGITS_APART,
        "refact": _DIGITS_APART,
        "codeshell": _DIGITS_APART,
        "falcon": Dialect(pre_tokenizer=_falcon),
        "bloom": Dialect(pre_tokenizer=_bloom),
        "stablelm2": Dialect(pre_tokenizer=_stablelm2),
        "qwen2": Dialect(normalizer=normalizers.NFC),
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "llama-bpe": _LLAMA3,
        "tekken": _LLAMA3,
    }
)

# Split as GPT-2 splits, which is what transformers falls back to.
GPT2_DIALECTS = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"})


def _convert_tokenizer(header: GgufHeader, scratch: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, the chat template inside.

    Raises UnsupportedModelError where text would be split in another way than the model was trained with.
    """
    metadata = header.metadata
    kind, pre = metadata.get("tokenizer.ggml.model"), str(metadata.get("tokenizer.ggml.pre", "default"))
    dialect = DIALECTS.get(pre, Dialect()) if kind == "gpt2" else Dialect(adds_bos=kind == "llama")
    # A file of its own: read in place, the tokenizer.json of another model in the same folder would win.
    copy_gguf(header, scratch / "tokenizer.gguf", with_tensors=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        scratch, gguf_file="tokenizer.gguf", add_bos_token=dialect.adds_bos
    )
    backend = tokenizer.backend_tokenizer
    if dialect.pre_tokenizer is not None:
        backend.pre_tokenizer = dialect.pre_tokenizer()
    elif isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) and pre not in GPT2_DIALECTS:
        raise UnsupportedModelError(
            f"{header.path.name} splits text as {pre!r} says (tokenizer.ggml.pre), which is not known here; its tokens "
            "would be other ones than the model was trained with. Use the original model, as a folder or hub id."
        )
    if dialect.normalizer is not None:
        backend.normalizer = dialect.normalizer()
    if dialect.ignore_merges:
        backend.model.ignore_merges = True
    if kind == "llama" and metadata.get("tokenizer.ggml.add_space_prefix") is False:
        _drop_space_prefix(tokenizer)
    if len(tokenizer) > header.n_vocab:
        raise UnsupportedModelError(
            f"{header.path.name} gives a tokenizer of {len(tokenizer)} tokens to a model of {header.n_vocab}. "
            "Use the original model, as a folder or hub id."
        )
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    _tidy_json(
        folder / "tokenizer_config.json",
        without=("is_local", "local_files_only", "model_max_length"),
        tokenizer_class="PreTrainedTokenizerFast",
    )


def _drop_space_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    """Sentencepiece without the space that transformers always puts before a text."""
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


# --------------------------------------------------------------------------------------------- manners of transformers


@contextmanager
def _remembering_names() -> Iterator[None]:
    """Transformers makes one and the same table of tensor names for every submodule, 5 of 7 s; let it be made once."""
    with mock.patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)):
        yield
