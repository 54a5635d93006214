"""A name → a Model. In this order: a registry name, a path (folder or .gguf file), a Hugging Face hub id."""

import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.errors import (
    DeviceError,
    ModelError,
    OptionError,
    PatchscopesError,
    PatchscopesWarning,
    UnsupportedModelError,
)
from patchscopes.foreign import explained, reason_of
from patchscopes.models.adapters import Adapter, base_not_found, joint_fingerprint, read_adapter
from patchscopes.models.architectures import find_architecture, refuse_unsupported
from patchscopes.models.checks import refuse_unsound
from patchscopes.models.folders import hash_file, is_converted, manifest_of, verify_files
from patchscopes.models.hub import HubPlace, fetch_adapter, locate
from patchscopes.models.model import Model
from patchscopes.models.now import memory_hash
from patchscopes.models.places import ADAPTER_CONFIG, folder_at, has_weights, is_path
from patchscopes.models.pretrained import How, Where, from_pretrained
from patchscopes.models.pull import pull
from patchscopes.models.quiet import quiet_transformers
from patchscopes.models.registry import REGISTRY
from patchscopes.models.wrapped import unwrapped
from patchscopes.settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load: revision of the hub, dtype and device by name, whether code that comes with the model may run.

    `adapter` is a path or hub id of an adapter that peft has saved, which goes into the model.
    """

    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    device: str = "auto"
    adapter: str | None = None


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

    The name of an adapter loads its base, with the adapter in it. `prove` looks at the model and raises where it will
    not do. Raises what it raises, UnknownModelError, ModelFilesError, UnsupportedModelError, DeviceError, PullError or
    OutOfMemoryError.
    """
    dtype, device = read_dtype(options.dtype), read_device(options.device)
    where, adapter = _find(name, options, settings, notify)
    folder = where.folder
    # The hash of converted weights is checked at every load, while they are read: both wait for the disk.
    with ThreadPoolExecutor(1) as checker, quiet_transformers():
        checked = checker.submit(verify_files, folder) if folder is not None and is_converted(folder) else None
        try:
            how = How(dtype, trust_remote_code=options.trust_remote_code, adapter=adapter)
            hf, tokenizer = from_pretrained(where, how, tokenizer)
            weights, revision = _fingerprint(where, hf, adapter), _commit(hf) if folder is None else None
            with explained(partial(_not_moved, where.name, device)):
                hf.to(device)  # type: ignore[arg-type]
            with explained(partial(_unreadable, where.name, hf)):
                model = _wrap(hf, tokenizer, id=where.name, revision=revision, weights=weights)
            prove(model)
        finally:
            if checked is not None:
                checked.result()  # damage explains best what went wrong
    return model


def wrap_in_memory(given: object, tokenizer: PreTrainedTokenizerBase | None) -> Model:
    """Return a Model around one in memory (fine-tuned, quantised, sharded, compiled, of peft) with its tokenizer.

    Raises OptionError where `given` is no model of transformers, or the tokenizer is missing.
    """
    hf = unwrapped(given)
    name = str(getattr(hf.config, "_name_or_path", "") or hf.config.model_type)
    with explained(partial(_unreadable, name, hf)):
        refuse_unsupported(hf.config, hf)
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
    with explained(partial(_unreadable, name, hf)):
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
    architecture = find_architecture(hf)
    refuse_unsound(id, hf, architecture)
    fingerprint = weights or partial(memory_hash, hf)
    return Model(hf, tokenizer, architecture, id=id, revision=revision, fingerprint=fingerprint)


# ---------------------------------------------------------------------------------------------------- where things are


def _find(
    name: str, options: LoadOptions, settings: Settings, notify: Callable[[str], None]
) -> tuple[Where, Adapter | None]:
    """Return where the model of that name is, and the adapter that goes into it: the one given, or the name's own."""
    where = _where(name, options.revision, settings, notify)
    if options.adapter is not None:
        if not _is_adapter(where) or _has_weights(where):
            adapter = _adapter_named(options.adapter, settings)
            return replace(where, name=f"{name} + {options.adapter}"), adapter
        raise OptionError(
            f"{name} is an adapter itself, and another is given ({options.adapter}); give the base: "
            "load(BASE, adapter=ADAPTER)."
        )
    if not _is_adapter(where):
        return where, None
    adapter = read_adapter(name, where.folder or fetch_adapter(name, where.place))
    if _has_weights(where):
        return where, adapter
    return _base_of(adapter, settings, notify), adapter


def _where(name: str, revision: str | None, settings: Settings, notify: Callable[[str], None]) -> Where:
    if name in REGISTRY:
        return Where(name, pull(name, settings, notify=notify), HubPlace(None, local_only=True), name)
    if is_path(name):
        return Where(name, folder_at(Path(name).expanduser(), settings), HubPlace(None, local_only=True), name)
    return Where(name, None, locate(name, revision), name)


def _is_adapter(where: Where) -> bool:
    return ADAPTER_CONFIG in where.place.files if where.folder is None else (where.folder / ADAPTER_CONFIG).is_file()


def _has_weights(where: Where) -> bool:
    """Return whether a model's own weights are there too, so that an adapter beside them is one in that model."""
    if where.folder is not None:
        return has_weights(where.folder)
    return any(file.startswith("model") and file.endswith(".safetensors") for file in where.place.files)


def _adapter_named(name: str, settings: Settings) -> Adapter:
    """Return the adapter of that path or hub id."""
    where = _where(name, None, settings, lambda _: None)
    if not _is_adapter(where):
        at = name if where.folder is not None else f"the hub's {name}"
        raise OptionError(
            f"adapter={name!r}: {at} holds no {ADAPTER_CONFIG}, so it is no adapter that peft has saved; a model by "
            "itself is given as the model."
        )
    return read_adapter(name, where.folder or fetch_adapter(name, where.place))


def _base_of(adapter: Adapter, settings: Settings, notify: Callable[[str], None]) -> Where:
    """Return where the base is that an adapter names, called by the adapter's name, which was asked for."""
    if adapter.base is None:
        raise OptionError(
            f"the adapter {adapter.name} does not say which base it is for; give it: "
            f"load(BASE, adapter={adapter.name!r})."
        )
    try:
        found = _where(adapter.base, adapter.base_revision, settings, notify)
    except ModelError as error:
        raise type(error)(base_not_found(adapter.name, adapter.base, str(error))) from error
    return replace(found, name=adapter.name, base_of=adapter.name)


# --------------------------------------------------------------------------------------------------- what it is


def _fingerprint(where: Where, hf: PreTrainedModel, adapter: Adapter | None) -> Callable[[], str]:
    """Return what makes the fingerprint: of files, a commit, else the tensors; and of the files of an adapter."""
    commit = _commit(hf)
    if where.folder is not None:
        weights = partial(_hash_of, where.folder)
    else:
        weights = partial(str, f"commit:{commit}") if commit else partial(memory_hash, hf)
    if adapter is None or adapter.folder == where.folder:
        return weights
    return lambda: joint_fingerprint(weights(), adapter)


def _commit(hf: PreTrainedModel) -> str | None:
    commit: str | None = getattr(hf.config, "_commit_hash", None)
    return commit


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


# -------------------------------------------------------------------------------------------------- dtypes and devices


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
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise DeviceError(
            f"device {name!r} is not there; here are {', '.join(there)}. Use one of them, or auto."
        ) from error
    return device


def _not_moved(name: str, device: torch.device, error: Exception) -> PatchscopesError:
    return DeviceError(
        f"{name} cannot be moved to {device}: {reason_of(error)} Give another device, or load the model with "
        "transformers, where it fits, and give it: load(model, tokenizer=tokenizer)."
    )


def _unreadable(name: str, hf: PreTrainedModel, error: Exception) -> PatchscopesError:
    return UnsupportedModelError(
        f"{name} is a {type(hf).__name__}, which does not tell its parts as a causal language model does: "
        f"{type(error).__name__}: {reason_of(error)} Use one that AutoModelForCausalLM loads."
    )
