"""Refuse, in words, a model that cannot be run as it is: its blocks, its weights, how it is quantised.

The self-check would fail on most of these models too, but by a number that does not say what is wrong.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchscopes.errors import UnsupportedModelError
from patchscopes.models.architectures import Architecture

# How many names a message lists.
NAMED = 3


def names(found: Iterable[str]) -> str:
    """Return the first few of `found`, and how many there are where that is more: "12 in all: a, b, c, …"."""
    every = list(found)
    return first_of(every) if len(every) <= NAMED else f"{len(every):,} in all: {first_of(every)}"


def first_of(found: Sequence[str]) -> str:
    """Return the first few of `found`, and "…" where there are more."""
    return ", ".join(found[:NAMED]) + (", …" if len(found) > NAMED else "")


def refuse_unsound(name: str, hf: PreTrainedModel, architecture: Architecture) -> None:
    """Raise UnsupportedModelError where blocks, quantisation or weights of `hf` are such that rows would be wrong."""
    _refuse_sizes(name, hf)
    _refuse_blocks(name, hf, architecture)
    _refuse_dynamic(name, hf)
    refuse_weights(name, hf)


def fault_of(name: str, hf: PreTrainedModel, architecture: Architecture) -> str | None:
    """Return why a model that has changed cannot be run as it is, None where it can."""
    try:
        refuse_unsound(name, hf, architecture)
    except UnsupportedModelError as error:
        return str(error)
    return None


def refuse_weights(name: str, hf: PreTrainedModel) -> None:
    """Raise UnsupportedModelError where weights are elsewhere, empty, or not finite numbers; a pass over the weights.

    A weight on the meta device is fine where a hook of accelerate brings it when its module runs.
    """
    weights = list(hf.named_parameters())
    empty = [path for path, weight in weights if weight.numel() == 0]
    if empty:
        raise UnsupportedModelError(
            f"weights of {name} have size 0 ({names(empty)}): they are spread over processes, as DeepSpeed's ZeRO-3 "
            "and FSDP do it. Gather the weights (save the model whole, or load it without ZeRO-3), then load it here."
        )
    brought = _brought(hf)
    away = [path for path, weight in weights if weight.device.type == "meta" and path.rpartition(".")[0] not in brought]
    if away:
        raise UnsupportedModelError(
            f"weights of {name} are on the meta device, where they have no values, and nothing brings them when they "
            f"are needed ({names(away)}). Load the model's weights (from_pretrained), or offload with accelerate."
        )
    wrong = [path for path, weight in weights if not _is_finite(weight)]
    if wrong:
        raise UnsupportedModelError(
            f"weights of {name} hold NaN or infinity ({names(wrong)}), so its states mean nothing. The training may "
            "have diverged, or the numbers do not fit the dtype; use an earlier checkpoint, or float32."
        )


def _refuse_sizes(name: str, hf: PreTrainedModel) -> None:
    config = hf.config.get_text_config(decoder=True)
    absent = [key for key in ("hidden_size", "vocab_size", "num_attention_heads") if getattr(config, key, None) is None]
    if absent:
        raise UnsupportedModelError(
            f"the config of {name} ({hf.config.model_type}) does not say {names(absent)}, which a decoder-only "
            "language model needs. Use a model whose config says it, or set it in config.json."
        )
    head = hf.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.numel() and head.weight.shape[0] != config.vocab_size:
        raise UnsupportedModelError(
            f"the head of {name} has {head.weight.shape[0]:,} rows, and its config says vocab_size = "
            f"{config.vocab_size:,}. Set vocab_size, or resize with hf.resize_token_embeddings({head.weight.shape[0]})."
        )


def _refuse_blocks(name: str, hf: PreTrainedModel, architecture: Architecture) -> None:
    """Refuse blocks that the KV cache would confuse: it is indexed by the `layer_idx` that a block carries."""
    path, listed = architecture.blocks, hf.get_submodule(architecture.blocks)
    # Not `children()`, which gives a module that stands at two places once.
    blocks = list(listed) if isinstance(listed, nn.ModuleList) else list(listed.children())
    first_at: dict[int, int] = {}
    twice = [(first_at[id(b)], i) for i, b in enumerate(blocks) if first_at.setdefault(id(b), i) != i]
    if twice:
        first, second = twice[0]
        raise UnsupportedModelError(
            f"{name} has one block at two places ({path}.{first} and {path}.{second} are the same object), so both "
            "would write their keys and values to one place of the cache. Give each place a block of its own: "
            "copy.deepcopy(block), with layer_idx set to its place."
        )
    for index, block in enumerate(blocks):
        for inner, module in block.named_modules():
            said = module.__dict__.get("layer_idx")
            if isinstance(said, int) and said != index:
                raise UnsupportedModelError(
                    f"block {index} of {name} says that it is block {said} ({path}.{index}{'.' * bool(inner)}{inner}"
                    f".layer_idx = {said}): blocks were cut, moved or repeated. The KV cache goes by layer_idx; set it "
                    "to each block's place, and num_hidden_layers and layer_types of the config to the blocks."
                )
    n_said = getattr(hf.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if isinstance(n_said, int) and n_said < len(blocks):
        raise UnsupportedModelError(
            f"{name} has {len(blocks)} blocks ({path}) and its config says num_hidden_layers = {n_said}, so that the "
            f"last {len(blocks) - n_said} may not run. Set num_hidden_layers to {len(blocks)}, or cut the blocks."
        )


def _refuse_dynamic(name: str, hf: PreTrainedModel) -> None:
    """Refuse activations that are quantised by the range of a whole batch: a row's numbers depend on its neighbours."""
    dynamic = [path for path, module in hf.named_modules() if "quantized.dynamic" in type(module).__module__]
    if dynamic:
        raise UnsupportedModelError(
            f"{name} quantises activations while it runs, by the range of the whole batch ({names(dynamic)}: "
            "torch.ao.quantization.quantize_dynamic), so a text's states depend on the texts that run beside it. Load "
            "the model as it was before, or quantise weights alone (bitsandbytes, GPTQ, AWQ)."
        )


def _brought(hf: PreTrainedModel) -> set[str]:
    """Return the paths of modules whose weights a hook of accelerate brings when they run."""
    found: set[str] = set()
    for path, module in hf.named_modules():
        offloads = [hook for hook in _hooks_of(module) if getattr(hook, "offload", False)]
        if any(getattr(hook, "place_submodules", False) for hook in offloads):
            found |= {f"{path}.{inner}".strip(".") for inner, _ in module.named_modules()}
        elif offloads:
            found.add(path)
    return found


def _hooks_of(module: nn.Module) -> Iterator[object]:
    hook = module.__dict__.get("_hf_hook")
    yield from getattr(hook, "hooks", (hook,))


def _is_finite(weight: Tensor) -> bool:
    """Return whether a weight's numbers are finite; integers are, and so is what is elsewhere."""
    if not weight.is_floating_point() or weight.device.type == "meta":
        return True
    with torch.no_grad():
        # A sum takes no memory. It is not finite where a number is not; the reverse is only likely.
        total = weight.sum(dtype=torch.float32) if weight.dtype.itemsize > 1 else weight.float().sum()
        return bool(torch.isfinite(total)) or bool(torch.isfinite(weight.float()).all())
