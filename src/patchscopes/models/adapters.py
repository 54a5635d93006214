"""Adapters of peft (LoRA and the like) on disk: whose base they are for, what they are, and how they get into it."""

import hashlib
import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from patchscopes.errors import ModelFilesError, PatchscopesError, UnsupportedModelError
from patchscopes.foreign import explained, reason_of
from patchscopes.models.checks import names
from patchscopes.models.folders import hash_file
from patchscopes.models.places import ADAPTER_CONFIG
from patchscopes.models.wrapped import refuse_kind

WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in a folder: the name that it was asked for by, and the base that it was trained on, where it says."""

    name: str
    folder: Path
    base: str | None
    base_revision: str | None

    @property
    def has_tokenizer(self) -> bool:
        """Return whether it brings the tokenizer that it was trained with."""
        return any((self.folder / name).is_file() for name in TOKENIZER_FILES)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of its config and weights."""
        digest = hashlib.sha256()
        for name in (ADAPTER_CONFIG, WEIGHTS):
            digest.update(f"{name}|{hash_file(self.folder / name)}|".encode())
        return f"sha256:{digest.hexdigest()}"


def read_adapter(name: str, folder: Path) -> Adapter:
    """Return the adapter in `folder`, which holds adapter_config.json.

    Raises UnsupportedModelError where peft is not installed or its kind cannot be used, ModelFilesError where files are
    missing or damaged.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFilesError(
            f"{path} of the adapter {name} cannot be read: {error}. Get the adapter again."
        ) from error
    if not isinstance(config, dict):
        raise ModelFilesError(f"{path} of the adapter {name} is no JSON object. Get the adapter again.")
    base = config.get("base_model_name_or_path") or None
    if importlib.util.find_spec("peft") is None:
        raise _not_installed(name, base)
    if not (folder / WEIGHTS).is_file():
        pickled = (
            " (pickled weights are refused: adapter_model.bin)" if (folder / "adapter_model.bin").is_file() else ""
        )
        raise ModelFilesError(
            f"the adapter {name} (for the base {base}) lacks {WEIGHTS}{pickled}; get its files again, or save it with "
            "peft's save_pretrained."
        )
    return Adapter(name, folder, base, config.get("revision") or None)


def apply_adapter(hf: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Return `hf` with the adapter in it, as peft runs it: not merged, switched on.

    Raises ModelFilesError where the adapter does not fit, or has tensors that find no place or lacks some.
    """
    with explained(lambda error: _unfit(adapter, hf, error)), warnings.catch_warnings(), torch.random.fork_rng([]):
        # What peft asks of transformers in an old way is not the user's to mend.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            import peft  # noqa: PLC0415 (an extra, and slow to import)
        except ImportError as error:
            raise _not_installed(adapter.name, adapter.base, f" ({reason_of(error)})") from error

        config: Any = peft.PeftConfig.from_pretrained(str(adapter.folder))
        refuse_kind(adapter.name, config)
        wrapper: Any = peft.PeftModel(hf, config)
        result = wrapper.load_adapter(
            str(adapter.folder),
            "default",
            torch_device="cpu",
            key_mapping=getattr(hf, "_checkpoint_conversion_mapping", {}),
        )
    for verb, keys in (("has tensors that find no place", result.unexpected_keys), ("lacks", result.missing_keys)):
        if keys:
            raise ModelFilesError(
                f"the adapter {adapter.name} (for the base {adapter.base}) {verb} in {_called(hf)}: "
                f"{names(sorted(keys))}. Give the base that it was trained on: load(BASE, adapter=ADAPTER)."
            )
    base: PreTrainedModel = wrapper.get_base_model()
    return base.eval().requires_grad_(requires_grad=False)  # type: ignore[no-any-return]


def base_not_found(adapter: str, base: str, why: str) -> str:
    """Return what to say of a base that an adapter's config names and that is not to be had."""
    return (
        f"{adapter} is an adapter for the base {base!r}, which is not to be had: {why} If the base is elsewhere, give "
        f"it: load(BASE, adapter={adapter!r})."
    )


def joint_fingerprint(base: str, adapter: Adapter) -> str:
    """Return the fingerprint of a base and an adapter in it."""
    return f"sha256:{hashlib.sha256(f'{base}|{adapter.fingerprint}'.encode()).hexdigest()}"


def _not_installed(name: str, base: str | None, why: str = "") -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} is an adapter (for the base {base or 'that its config does not name'}), and adapters are loaded by "
        f"peft, which is not installed{why}: pip install 'patchscopes[peft]'. Or merge it into its base with peft "
        "(merge_and_unload), save that, and load the merged model."
    )


def _called(hf: PreTrainedModel) -> str:
    return str(getattr(hf.config, "_name_or_path", "") or hf.config.model_type)


def _unfit(adapter: Adapter, hf: PreTrainedModel, error: Exception) -> PatchscopesError:
    return ModelFilesError(
        f"the adapter {adapter.name} (for the base {adapter.base}) cannot be loaded into {_called(hf)}: "
        f"{type(error).__name__}: {reason_of(error)} Give the base that it was trained on (load(BASE, "
        "adapter=ADAPTER)), with its embedding resized where the adapter added tokens; or load both with peft and "
        "give the PeftModel."
    )
