"""What a checkpoint has and the model does not use: refused where it would change results, else warned of, by name.

Transformers leaves such tensors out with a line in its log. What it lists as ignorable for a class is ignorable here.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from transformers import PreTrainedModel

from patchscopes.errors import ModelFilesError, PatchscopesWarning
from patchscopes.models.architectures import Architecture
from patchscopes.models.checks import names

# Buffers that older versions of transformers saved and every version computes: causal masks, rotary frequencies.
COMPUTED = re.compile(r"(^|\.)((attn|attention|self_attention)\.(masked_)?bias|(original_)?inv_freq)$")
# Tensors of adapters that stand among a model's own, as peft names them.
ADAPTER = re.compile(
    r"(^|\.)(lora_\w+|ia3_l|hada_w\w+|oft_\w+|boft_\w+|vera_lambda_\w+|base_layer|modules_to_save)(\.|$)"
)
# What wrappers put into names, the wrapper, and how to save without.
WRAPPERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "_orig_mod.": ("torch.compile", "save the model inside: compiled._orig_mod.save_pretrained(FOLDER)"),
        "base_model.model.": ("peft", "save the model inside: peft_model.merge_and_unload().save_pretrained(FOLDER)"),
        "_fsdp_wrapped_module.": (
            "FSDP",
            "save the full state dict, with accelerator.unwrap_model or FSDP.state_dict_type",
        ),
        "_checkpoint_wrapped_module.": ("checkpoint_wrapper", "save the model as it was before it was wrapped"),
        "module.": (
            "DataParallel or DistributedDataParallel",
            "save the model inside: model.module.save_pretrained(FOLDER)",
        ),
    }
)


def refuse_wrapped(name: str, absent: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise ModelFilesError where the names of the weights are those of a wrapper, or of an adapter's layers."""
    keys, lacks = sorted(unexpected), set(absent)
    if not keys:
        return
    lora = [key for key in keys if ADAPTER.search(key)]
    if lora:
        raise ModelFilesError(
            f"the weights of {name} hold an adapter's tensors, which the model has no place for ({names(lora)}); "
            "without them it would be another model. Merge the adapter (peft_model.merge_and_unload()) and save that, "
            "or save the adapter by itself and give it: load(BASE, adapter=FOLDER)."
        )
    for part, (wrapper, remedy) in WRAPPERS.items():
        named = [key for key in keys if key.startswith(part) or f".{part}" in key]
        if lacks and named:
            raise ModelFilesError(
                f"the weights of {name} are named as {wrapper} wraps a model: {part!r} stands in {names(named)}. "
                f"Take {part!r} out of the names in the file, or {remedy}."
            )


def warn_of_shards(name: str, folder: Path) -> None:
    """Warn of shards in a folder that transformers does not read: it takes one file, else those that an index names."""
    index = folder / "model.safetensors.index.json"
    shards = {path.name for path in folder.glob("model-*-of-*.safetensors")}
    if shards and not (folder / "model.safetensors").is_file() and index.is_file():
        shards -= set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    if shards:
        warnings.warn(
            f"the folder of {name} holds shards of weights that are not read, beside those that are: "
            f"{names(sorted(shards))}. Take them away, or mend {index.name}.",
            PatchscopesWarning,
            stacklevel=2,
        )


def judge_leftovers(name: str, hf: PreTrainedModel, architecture: Architecture, unexpected: Iterable[str]) -> None:
    """Raise ModelFilesError for tensors of blocks, final norm, embedding or head that the model has no place for.

    Others (a value head, a vision tower) cannot change what the model computes, and are warned of.
    """
    left = sorted(key for key in unexpected if not COMPUTED.search(key))
    parts = _parts(hf, architecture)
    decisive = [key for key in left if key.startswith(parts)]
    if decisive:
        raise ModelFilesError(
            f"the weights of {name} hold tensors that a {hf.config.model_type} of this config has no place for "
            f"({names(decisive)}): without them it would be another model. Mend config.json (biases that it switches "
            "off, too few layers), or load the model with the code that it was made with, and give it: "
            "load(model, tokenizer=tokenizer)."
        )
    if left:
        warnings.warn(
            f"the weights of {name} hold tensors that a {hf.config.model_type} does not use, outside its blocks, "
            f"embedding and head; they are left out: {names(left)}.",
            PatchscopesWarning,
            stacklevel=2,
        )


def _parts(hf: PreTrainedModel, architecture: Architecture) -> tuple[str, ...]:
    """Return how the names of tensors begin that every text runs through, with the base model's prefix and without."""
    modules = {id(module): path for path, module in hf.named_modules()}
    ends = (hf.get_input_embeddings(), hf.get_output_embeddings())
    paths = [architecture.blocks, architecture.final_norm, architecture.project_out, architecture.embedded_by]
    paths += [modules.get(id(module)) for module in ends]
    given = {f"{path}." for path in paths if path}
    prefix = f"{hf.base_model_prefix}."
    return tuple(sorted(given | {path.removeprefix(prefix) for path in given}))
