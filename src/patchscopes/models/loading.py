"""A name → a Model. In this order: a registry name, a path (folder or .gguf file), a Hugging Face hub id."""

import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.errors import (
    DeviceError,
    ModelFilesError,
    OptionError,
    PatchscopesWarning,
    UnknownModelError,
    UnsupportedModelError,
)
from patchscopes.models.architectures import find_architecture, refuse_unsupported
from patchscopes.models.folders import hash_file, is_converted, manifest_of, verify_files
from patchscopes.models.gguf import gguf_folder
from patchscopes.models.hub import HubPlace, locate, not_known
from patchscopes.models.model import Model, memory_hash
from patchscopes.models.pull import pull
from patchscopes.models.quiet import quiet_transformers
from patchscopes.models.registry import REGISTRY
from patchscopes.settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load: revision of the hub, dtype and device by name, whether code that comes with the model may run."""

    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class _Where:
    """The name asked for, the folder or hub id that it stands for, and the commit."""

    name: str
    source: str
    place: HubPlace


def load_by_name(
    name: str,
    options: LoadOptions,
    settings: Settings,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    notify: Callable[[str], None] = lambda _: None,
    prove: Callable[[Model], None] = lambda _: None,
) -> Model:
    """Load `name`; a registry model that is not there yet is pulled first, and `notify` is told.

    `prove` looks at the model and raises where it will not do. Raises what it raises, UnknownModelError,
    ModelFilesError, UnsupportedModelError, DeviceError or PullError.
    """
    dtype, device = read_dtype(options.dtype), read_device(options.device)
    if name in REGISTRY:
        folder: Path | None = pull(name, settings, notify=notify)
    else:
        folder = _folder_at(Path(name).expanduser(), settings) if _is_path(name) else None
    weights = None if folder is None else partial(_hash_of, folder)
    place = locate(name, options.revision) if folder is None else HubPlace(None, local_only=True)
    where = _Where(name, name if folder is None else str(folder), place)
    # The hash of converted weights is checked at every load, while they are read: both wait for the disk.
    with ThreadPoolExecutor(1) as checker, quiet_transformers():
        checked = checker.submit(verify_files, folder) if folder is not None and is_converted(folder) else None
        try:
            hf, tokenizer = _from_pretrained(where, options, dtype, tokenizer)
            commit = getattr(hf.config, "_commit_hash", None)
            if weights is None and commit:
                weights = partial(str, f"commit:{commit}")
            hf.to(device)  # type: ignore[arg-type]
            model = _wrap(hf, tokenizer, id=name, revision=commit if folder is None else None, weights=weights)
            prove(model)
        finally:
            if checked is not None:
                checked.result()  # damage explains best what went wrong
    return model


def wrap_in_memory(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Model:
    """A Model around one that is already in memory (fine-tuned, quantised, sharded), as it is, with its tokenizer."""
    refuse_unsupported(hf.config, hf)
    name = str(getattr(hf.config, "_name_or_path", "") or hf.config.model_type)
    if tokenizer is None:
        raise OptionError(
            f"the model in memory ({name}) came without a tokenizer; give it: load(model, tokenizer=tokenizer)."
        )
    if hf.training:
        warnings.warn(
            f"{name} was in training mode, where dropout makes every run different; it is now in eval mode.",
            PatchscopesWarning,
            stacklevel=3,
        )
        hf.eval()
    return _wrap(hf, tokenizer, id=name, revision=None, weights=None)


def _wrap(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    id: str,
    revision: str | None,
    weights: Callable[[], str] | None,
) -> Model:
    if hf.get_output_embeddings() is None or getattr(hf, "generation_config", None) is None:
        raise UnsupportedModelError(
            f"{id} is a {type(hf).__name__}, which has no language-model head to generate with; load the causal "
            "language model (AutoModelForCausalLM)."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            f"the tokenizer of {id} is {type(tokenizer).__name__}, which gives no character offsets; phrases and "
            "placeholders need them. Use its fast version (tokenizer.json)."
        )
    fingerprint = weights or partial(memory_hash, hf)
    return Model(hf, tokenizer, find_architecture(hf), id=id, revision=revision, fingerprint=fingerprint)


def _from_pretrained(
    where: _Where, options: LoadOptions, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    common: dict[str, Any] = {
        "revision": where.place.revision,
        "local_files_only": where.place.local_only,
        "trust_remote_code": options.trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(where.source, **common)
        refuse_unsupported(config)
        # Safetensors only: a pickle can run code when it is read.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where.source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **common
        )
        hf, info = loaded
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(where.source, **common)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise _explained(error, where) from error
    name = where.name
    refuse_unsupported(hf.config, hf)
    absent = sorted({str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind]})
    if absent:
        raise ModelFilesError(
            f"{name} lacks weights that a {config.model_type} needs ({', '.join(absent[:3])}"
            f"{', …' if len(absent) > 3 else ''}), which would be random; get the model's files again."
        )
    return hf, tokenizer


def _explained(error: Exception, where: _Where) -> Exception:
    """What went wrong in transformers, said so that it can be mended."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if "trust_remote_code" in str(error):
        return UnsupportedModelError(
            f"{where.name} comes with code of its own, which is not run unless you ask for it: read that code, then "
            "load with trust_remote_code=True (--trust-remote-code)."
        )
    if Path(where.source).exists():
        return ModelFilesError(
            f"{where.name} cannot be loaded as a language model: {reason} Needed: a folder with config.json, "
            "safetensors weights and tokenizer.json, as `save_pretrained` writes it (pickled weights are refused)."
        )
    return UnknownModelError(not_known(where.name, reason))


def read_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name; DeviceError where there is none."""
    if name not in DTYPES:
        raise DeviceError(f"dtype {name!r} is not known; use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def read_device(name: str) -> torch.device:
    """The device of that name ("auto": a CUDA GPU where there is one, else the CPU); DeviceError where it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise DeviceError(
            f"device {name!r} is not there; here are {', '.join(there)}. Use one of them, or auto."
        ) from error
    return device


def _is_path(name: str) -> bool:
    """An existing path, or a name that can be nothing else."""
    if not name.strip():
        raise UnknownModelError("the model's name is empty; give a registry name, a path or a hub id.")
    try:
        exists = Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise UnknownModelError(f"{name[:80]!r} is neither a registry name nor a path: {error}.") from error
    return exists or name.startswith(("/", "./", "../", "~")) or name.endswith(".gguf")


def _folder_at(path: Path, settings: Settings) -> Path:
    if not path.exists():
        raise UnknownModelError(f"no such model path: {path}. Give a folder with config.json, or a .gguf file.")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UnknownModelError(f"{path} is a file, but no .gguf; give a .gguf file or a model's folder.")
        return gguf_folder(path, settings)
    if not (path / "config.json").is_file():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise ModelFilesError(
            f"{path} holds no model: config.json is missing (it holds {inside}). "
            "Give a folder as `save_pretrained` writes it."
        )
    return path


def _hash_of(folder: Path) -> str:
    """The recorded hash of converted weights, which loading has checked; else SHA-256 over the folder's weights.

    Those are what transformers loads by its names for them; a mapping that is kept beside them does not count.
    """
    if is_converted(folder):
        return f"sha256:{manifest_of(folder)['weights_sha256']}"
    digest = hashlib.sha256()
    for path in sorted({*folder.glob("model*.safetensors"), *folder.glob("adapter_model*.safetensors")}):
        digest.update(f"{path.name}|{hash_file(path)}|".encode())
    return f"sha256:{digest.hexdigest()}"
