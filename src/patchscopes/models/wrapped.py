"""The transformers model in what was handed to `load`: itself, or inside what torch.compile or peft put around it."""

import sys
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.errors import OptionError, UnsupportedModelError

# Where wrappers keep the model: DataParallel and engines, pipelines, trl's value heads, nnsight.
INSIDE = ("module", "model", "pretrained_model", "_model", "hf_model", "_orig_mod")
# Kinds of adapter that need their wrapper at each call, and why that cannot be patched.
REFUSED_KINDS = {
    "ADAPTION_PROMPT": "puts trained tokens before every text inside its attention layers",
    "POLY": "chooses among its adapters by the number of a task, which each call must give",
    "XLORA": "mixes its adapters anew for each text, by a first pass over it",
}


def unwrapped(given: object) -> PreTrainedModel:
    """Return the transformers model that `given` is, or that torch.compile or peft has wrapped in it.

    Raises OptionError, with the call that would do, for anything else; UnsupportedModelError for a kind of adapter that
    works through its wrapper.
    """
    while not isinstance(given, PreTrainedModel):
        inner = _inside(given)
        if inner is None:
            raise OptionError(_advice(given))
        given = inner
    return given


def refuse_kind(name: str, config: Any) -> None:
    """Raise UnsupportedModelError where a peft config is of a kind that a model cannot have without its wrapper."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    why = REFUSED_KINDS.get(kind)
    if getattr(config, "is_prompt_learning", False):
        why = "puts trained virtual tokens before every text, which are no positions of it"
    elif getattr(config, "alora_invocation_tokens", None):
        why = "acts only behind its invocation tokens, which its wrapper looks for in each text"
    if why is not None:
        raise UnsupportedModelError(
            f"the adapter of {name} is of the kind {kind}, which {why}; states would not be those of the text. Use an "
            "adapter that changes weights (LoRA and the like), or merge it."
        )


def check_tokenizer(tokenizer: object) -> None:
    """Raise OptionError where what was given as `tokenizer` is none of transformers."""
    if tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    inner = getattr(tokenizer, "tokenizer", None)
    if isinstance(inner, PreTrainedTokenizerBase):
        remedy = "a processor has one: tokenizer=processor.tokenizer"
    elif type(tokenizer).__module__.partition(".")[0] == "tokenizers":
        remedy = "wrap it: tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer)"
    else:
        remedy = "give one of transformers: tokenizer=AutoTokenizer.from_pretrained(NAME)"
    raise OptionError(f"the tokenizer given is a {type(tokenizer).__name__}, which is none; {remedy}.")


def _inside(given: object) -> object | None:
    """Return what torch.compile or peft has wrapped, None where `given` is neither's."""
    if type(given).__name__ == "OptimizedModule":
        inner: object = getattr(given, "_orig_mod", None)
        return inner
    peft: Any = sys.modules.get("peft")  # whoever hands over a model of peft has imported it
    if peft is None:
        return None
    if isinstance(given, peft.PeftModel | peft.PeftMixedModel):
        wrapper: Any = given
        active = wrapper.active_adapter
        for adapter in [active] if isinstance(active, str) else active:
            refuse_kind("the model in memory", wrapper.peft_config[adapter])
        found: object = wrapper.base_model.model
        return found
    return None


def _advice(given: object) -> str:
    kind = type(given).__name__
    said = f"load() was given a {kind}; it takes a name, a path or a transformers model with a language-model head."
    if isinstance(given, type):
        return f"load() was given the class {given.__name__}; give a model: {given.__name__}.from_pretrained(…)."
    for name in INSIDE:
        inner = getattr(given, name, None)
        if isinstance(inner, PreTrainedModel):
            tokenizer = "x.tokenizer" if hasattr(given, "tokenizer") else "tokenizer"
            return f"{said} This one holds such a model; with x for the {kind}: load(x.{name}, tokenizer={tokenizer})."
    return said
