"""Config, weights and tokenizer through transformers, with one error of ours for whatever it raises or leaves out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.errors import (
    ModelFilesError,
    OutOfMemoryError,
    PatchscopesError,
    UnknownModelError,
    UnsupportedModelError,
)
from patchscopes.foreign import explained, is_memory, reason_of
from patchscopes.models.adapters import Adapter, apply_adapter, base_not_found
from patchscopes.models.architectures import find_architecture, refuse_unsupported
from patchscopes.models.checks import first_of, names
from patchscopes.models.hub import HubPlace, not_known
from patchscopes.models.leftovers import judge_leftovers, refuse_wrapped, warn_of_shards


@dataclass(frozen=True, slots=True)
class Where:
    """The name asked for, the folder or place on the hub that it stands for, and the name by which that is found.

    `base_of` is the adapter that was asked for, where this is the base that it names.
    """

    name: str
    folder: Path | None
    place: HubPlace
    asked: str
    base_of: str | None = None

    @property
    def source(self) -> str:
        """The folder or hub id that transformers is given."""
        return self.asked if self.folder is None else str(self.folder)


@dataclass(frozen=True, slots=True)
class How:
    """In which dtype, whether code that comes with the model may run, and the adapter that goes into it."""

    dtype: torch.dtype
    trust_remote_code: bool
    adapter: Adapter | None


def from_pretrained(
    where: Where, how: How, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer (the one given, or an adapter's own, or the model's).

    Raises UnknownModelError, ModelFilesError, UnsupportedModelError or OutOfMemoryError, for what transformers raises
    as well; a weight that is missing would be random, and one that is left over may be the difference.
    """
    common: dict[str, Any] = {
        "revision": where.place.revision,
        "local_files_only": where.place.local_only,
        "trust_remote_code": how.trust_remote_code,
    }
    with _reading(where, "config"):
        config = AutoConfig.from_pretrained(where.source, **common)
    refuse_unsupported(config)
    with _reading(where, "weights", _quantiser(config)):
        # Safetensors only: a pickle can run code when it is read. And no adapter: left to itself, transformers puts one
        # in that it finds beside the weights, where peft is installed, and reports on that alone.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where.source,
            config=config,
            dtype=how.dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # `_judge` refuses them, by name
            output_loading_info=True,
            adapter_kwargs={"subfolder": "no-adapter"},
            **common,
        )
    hf, info = loaded
    refuse_unsupported(hf.config, hf)
    quantiser = _quantiser(config)
    if quantiser is not None and getattr(hf, "hf_quantizer", None) is None:
        raise UnsupportedModelError(
            f"{where.name} is quantised ({quantiser}), in a way that transformers {transformers.__version__} does not "
            "know: it would read the numbers in the file as they stand. Use the model as it was before."
        )
    _judge(where.name, hf, info)
    if where.folder is not None:
        warn_of_shards(where.name, where.folder)
    if how.adapter is not None:
        hf = apply_adapter(hf, how.adapter)
    if tokenizer is None:
        own = how.adapter is not None and how.adapter.has_tokenizer
        source = str(how.adapter.folder) if how.adapter is not None and own else where.source
        with _reading(where, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, **common)
    return hf, tokenizer


def _judge(name: str, hf: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raise where weights are missing, of another shape, or left over, by what transformers says of the load."""
    absent = sorted({str(key) for key in info["missing_keys"]})
    refuse_wrapped(name, absent, info["unexpected_keys"])
    if info["mismatched_keys"]:
        shapes = [f"{key} is {tuple(file)}, not {tuple(model)}" for key, file, model in sorted(info["mismatched_keys"])]
        raise ModelFilesError(
            f"{name} cannot be loaded as a language model: its weights have other shapes than its config says "
            f"({names(shapes)}). Mend config.json, or get the model's files again."
        )
    if absent:
        left = sorted(info["unexpected_keys"])
        instead = f" It has others, which find no place: {names(left)}." if left else ""
        raise ModelFilesError(
            f"{name} lacks weights that a {hf.config.model_type} needs ({first_of(absent)}), which would be random, "
            f"{len(absent):,} in all; get the model's files again.{instead}"
        )
    judge_leftovers(name, hf, find_architecture(hf), info["unexpected_keys"])


def _quantiser(config: Any) -> str | None:
    """Return the name of the method by which a checkpoint is quantised, None where it is not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or "a method that its config does not name")


@contextmanager
def _reading(where: Where, part: str, quantiser: str | None = None) -> Iterator[None]:
    """Say what to do about what transformers raises while it reads a part of the model."""

    def explain(error: Exception) -> PatchscopesError:
        if "trust_remote_code" in str(error):
            return UnsupportedModelError(
                f"{where.name} comes with code of its own, which is not run unless you ask for it: read that code, "
                "then load with trust_remote_code=True (--trust-remote-code)."
            )
        if is_memory(error):
            return OutOfMemoryError(
                f"{where.name} does not fit in memory: {reason_of(error)} Free some, load in half precision "
                '(dtype="bfloat16", --dtype), or use a smaller model.'
            )
        return _explained(error, where, part, quantiser)

    with explained(explain):
        yield


def _explained(error: Exception, where: Where, part: str, quantiser: str | None) -> PatchscopesError:
    """Return the error that says what went wrong in transformers, and what to do."""
    name, reason = where.name, reason_of(error)
    if where.folder is None and isinstance(error, OSError):
        unknown = not_known(where.asked, reason)
        return UnknownModelError(
            unknown if where.base_of is None else base_not_found(where.base_of, where.asked, unknown)
        )
    if quantiser is not None:
        return UnsupportedModelError(
            f"{name} is quantised ({quantiser}), and its quantiser does not load it here: {reason} Install what it "
            "asks for, or use the model as it was before (or a .gguf file of it)."
        )
    if isinstance(error, ImportError):
        return UnsupportedModelError(
            f"{name} needs a package that is not installed here: {reason} Install it, and try again."
        )
    if part == "tokenizer":
        return ModelFilesError(
            f"the tokenizer of {name} cannot be read by tokenizers {tokenizers.__version__} and transformers "
            f"{transformers.__version__}: {reason} Needed: tokenizer.json and tokenizer_config.json as "
            "`save_pretrained` writes them; or give another: load(NAME, tokenizer=tokenizer)."
        )
    needed = (
        "a folder with config.json, safetensors weights and tokenizer.json, as `save_pretrained` writes it (pickled "
        "weights are refused)"
    )
    if where.folder is None:
        needed = "a decoder-only language model that this version of transformers knows, with safetensors weights"
    return ModelFilesError(f"{name} cannot be loaded as a language model: {reason} Needed: {needed}.")
