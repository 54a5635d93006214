"""Where each family keeps its parts: one table of paths and names, and the search by structure for families outside it.

An `Architecture` says where the blocks, the final norm and the head are, and what the family does to the head's output
before it calls it logits. Nothing here is trusted blindly: `patchscopes.selfcheck` proves each claim on the weights at
hand, at every load.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from patchscopes.errors import UnsupportedModelError

ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})
NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm", "layer_norm")
# Rotary frequencies that depend on the total length: a cell must not cross the switch (rule 15).
LENGTH_DEPENDENT_ROPE = frozenset({"longrope", "dynamic"})


@dataclass(frozen=True, slots=True)
class Architecture:
    """Paths from the causal language model to its parts; config attributes that change the head's output.

    `logit_multiplier` and `logit_divisor` name config attributes; `softcap` names the one of tanh soft-capping.
    `project_out` is a linear map between final norm and head (OPT), relative to the parent of the blocks. `embedded_by`
    is what a token's embedding passes on its way into block 1 (OPT's projection, BLOOM's norm).
    """

    family: str
    blocks: str
    final_norm: str | None
    head: str = "lm_head"
    project_out: str | None = None
    embedded_by: str | None = None
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    softcap: str | None = None
    needs_bos: bool = False


def _llama_like(family: str) -> Architecture:
    return Architecture(family, "model.layers", "model.norm")


def _gpt_like(family: str) -> Architecture:
    return Architecture(family, "transformer.h", "transformer.ln_f")


TABLE: Mapping[str, Architecture] = MappingProxyType(
    {
        entry.family: entry
        for entry in (
            _llama_like("llama"),
            _llama_like("mistral"),
            _llama_like("mixtral"),
            _llama_like("qwen2"),
            _llama_like("qwen3"),
            _llama_like("qwen3_moe"),
            *(
                replace(_llama_like(family), softcap="final_logit_softcapping", needs_bos=True)
                for family in ("gemma2", "gemma3_text")
            ),
            _llama_like("phi3"),
            _llama_like("stablelm"),
            _llama_like("olmo2"),
            _llama_like("starcoder2"),
            replace(_llama_like("granite"), logit_divisor="logits_scaling"),
            replace(_llama_like("cohere"), logit_multiplier="logit_scale"),
            _gpt_like("gpt2"),
            _gpt_like("gptj"),
            _gpt_like("falcon"),
            replace(_gpt_like("bloom"), embedded_by="transformer.word_embeddings_layernorm"),
            Architecture("gpt_neox", "gpt_neox.layers", "gpt_neox.final_layer_norm", head="embed_out"),
            Architecture(
                "opt",
                "model.decoder.layers",
                "model.decoder.final_layer_norm",
                project_out="model.decoder.project_out",
                embedded_by="model.decoder.project_in",
            ),
        )
    }
)


def refuse_unsupported(config: PretrainedConfig, hf: PreTrainedModel | None = None) -> None:
    """Raise UnsupportedModelError, with the reason, for kinds of model whose states mean something else (rule 15)."""
    text = config.get_text_config(decoder=True)
    kind = getattr(config, "model_type", "unknown")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{kind} is an encoder-decoder model; Patchscopes need a decoder-only language model "
            "(one stream of hidden states that each token reads from the left)."
        )
    if getattr(text, "is_decoder", None) is False and hasattr(text, "type_vocab_size"):
        raise UnsupportedModelError(
            f"{kind} is an encoder: every token sees every other, so a state cannot be read out by going on with the "
            "text. Use a decoder-only language model."
        )
    others = sorted(set(getattr(text, "layer_types", None) or ()) - ATTENTION_KINDS)
    if others or (hf is not None and getattr(hf, "_is_stateful", False)):
        what = f"layers of kind {', '.join(others)}" if others else "a recurrent state"
        raise UnsupportedModelError(
            f"{kind} is a state-space or hybrid model ({what}): what it carries between tokens is not only keys and "
            "values, so a shared prefix is not sound. It is refused until that is supported; use an attention-only "
            "decoder."
        )


def find_architecture(hf: PreTrainedModel) -> Architecture:
    """The table's entry for `hf`, else one found by structure. The self-check has the last word on either."""
    kind = hf.config.model_type
    if kind in TABLE and _resolves(hf, TABLE[kind].blocks):
        return TABLE[kind]
    return by_structure(hf)


def by_structure(hf: PreTrainedModel) -> Architecture:
    """Find blocks, final norm and head of a model outside the table.

    The blocks are the one ModuleList with as many entries as the config has layers; the norm is the parent's child of
    a usual name; what the family does to logits is taken from the usual config names and proved by the self-check.
    """
    config = hf.config.get_text_config(decoder=True)
    n_layers = getattr(config, "num_hidden_layers", None)
    found = [
        name
        for name, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and ".experts" not in name
    ]
    head = next((name for name, module in hf.named_modules() if module is hf.get_output_embeddings()), None)
    if len(found) != 1 or head is None:
        raise UnsupportedModelError(
            f"{hf.config.model_type} is not in the architecture table, and its structure does not tell: "
            f"{len(found)} module lists of {n_layers} entries ({', '.join(found) or 'none'}), "
            f"head {head or 'not found'}. Add it to patchscopes/models/architectures.py (see CONTRIBUTING.md)."
        )
    parent = found[0].rpartition(".")[0]
    norms = [name for name in NORM_NAMES if isinstance(getattr(hf.get_submodule(parent), name, None), nn.Module)]
    return Architecture(
        family=hf.config.model_type,
        blocks=found[0],
        final_norm=f"{parent}.{norms[0]}" if norms else None,
        head=head,
        logit_multiplier="logit_scale" if getattr(config, "logit_scale", None) else None,
        logit_divisor="logits_scaling" if getattr(config, "logits_scaling", None) else None,
        softcap="final_logit_softcapping" if getattr(config, "final_logit_softcapping", None) else None,
        needs_bos=hf.config.model_type.startswith("gemma"),
    )


def rope_switch(config: PretrainedConfig) -> int | None:
    """The total length beyond which rotary frequencies change, None where they never do (rule 15)."""
    text = config.get_text_config(decoder=True)
    for parameters in _rope_parameters(text):
        if parameters.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            original = parameters.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            return int(original or text.max_position_embeddings)
    return None


def _rope_parameters(config: PretrainedConfig) -> Iterator[Mapping[str, Any]]:
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    yield from nested or [parameters]


def _resolves(hf: PreTrainedModel, path: str) -> bool:
    try:
        return isinstance(hf.get_submodule(path), nn.ModuleList)
    except AttributeError:
        return False
