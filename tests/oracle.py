"""What a Patchscope is, done the obvious slow way on plain Hugging Face hooks; the engine is compared with this.

    patchscope      capture one state, then greedy decoding without a KV cache: the whole sequence is run again for
                    every new token, and the write is made again in each of those runs
    hook_generate   the official way: one source pass, then one cached `generate` whose prefill is written to
    readout         layer n_layers to logits by the model's own final norm, head, softcap and scale

Layer ℓ is the residual stream after ℓ blocks, 0…n_layers (rule 1 of docs/semantics.md). Every run here is one row,
unpadded. Nothing here imports the package, so that a mistake in it cannot be repeated here.

Axes: layer 0…n_layers; position, an index of the unpadded tokens; write, one place that is written to; step, one
generated token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

NEAR_TIE = 1e-4

BLOCKS = {
    "bloom": "transformer.h",
    "cohere": "model.layers",
    "falcon": "transformer.h",
    "gemma2": "model.layers",
    "gemma3_text": "model.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "gptj": "transformer.h",
    "granite": "model.layers",
    "llama": "model.layers",
    "mistral": "model.layers",
    "mixtral": "model.layers",
    "olmo2": "model.layers",
    "opt": "model.decoder.layers",
    "phi3": "model.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
    "qwen3_moe": "model.layers",
    "stablelm": "model.layers",
    "starcoder2": "model.layers",
}

_FINAL_NORM = {
    "bloom": "transformer.ln_f",
    "falcon": "transformer.ln_f",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "gptj": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a state is read: after `layer` blocks, at `position` of `ids`. No other token sees those at `masked`."""

    ids: Sequence[int]
    position: int
    layer: int
    masked: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of several states."""

    sources: Sequence[Source]


@dataclass(frozen=True, slots=True)
class Target:
    """Where it is written: after `layer` blocks, at each of `positions` of the inspection prompt `ids`.

    No other token sees those at `masked`.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    layer: int
    masked: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A greedy run. `token_ids` include EOS; `gaps` are the differences of the two highest logits, one per step."""

    token_ids: tuple[int, ...]
    gaps: tuple[float, ...]
    logits: Float[Tensor, "step d_vocab"]
    finish_reason: Literal["eos", "length"]

    @property
    def first_logits(self) -> Float[Tensor, " d_vocab"]:
        """The next-token logits at the end of the inspection prompt."""
        return self.logits[0]

    @property
    def last_logits(self) -> Float[Tensor, " d_vocab"]:
        """The logits that gave the last token."""
        return self.logits[-1]

    @property
    def n_comparable(self) -> int:
        """How many leading tokens another implementation must reproduce: those before the first near-tie (rule 9)."""
        return next((step for step, gap in enumerate(self.gaps) if gap < NEAR_TIE), len(self.gaps))

    def agrees_with(self, token_ids: Sequence[int]) -> bool:
        """Whether `token_ids` are this run's, as far as they may be compared."""
        n = self.n_comparable
        if n == len(self.token_ids):
            return tuple(token_ids) == self.token_ids
        return tuple(token_ids[:n]) == self.token_ids[:n]


# One state or vector, one for each position, or none: the prompt as it is.
What = Source | Mean | Float[Tensor, " d_model"] | Float[Tensor, "write d_model"] | None


@torch.no_grad()
def patchscope(
    model: PreTrainedModel,
    what: What,
    target: Target,
    *,
    max_new_tokens: int,
    source_model: PreTrainedModel | None = None,
) -> Run:
    """Write `what` into `model`'s run on `target` and decode greedily until EOS or `max_new_tokens`.

    A Source, or each of a Mean, is read from `source_model`, or from `model` where that is None. None as `what` writes
    nothing.
    """
    vectors = _vectors(source_model or model, what)
    eos_ids = eos_ids_of(model)
    ids, rows = list(target.ids), []
    reason: Literal["eos", "length"] = "length"
    for _ in range(max_new_tokens):
        with _write(model, target, vectors):
            rows.append(model(**_inputs(model, ids, target.masked), use_cache=False).logits[0, -1].float())
        ids.append(int(rows[-1].argmax()))
        if ids[-1] in eos_ids:
            reason = "eos"
            break
    logits = torch.stack(rows)
    best = logits.topk(2, dim=-1).values
    gaps = tuple((best[:, 0] - best[:, 1]).tolist())
    return Run(tuple(ids[len(target.ids) :]), gaps, logits, reason)


@torch.no_grad()
def hook_generate(model: PreTrainedModel, what: What, target: Target, *, max_new_tokens: int) -> tuple[int, ...]:
    """The official way: at most one source pass, then one cached `generate`; its new token ids, EOS included."""
    vectors = _vectors(model, what)
    inputs = _inputs(model, target.ids)
    with _write(model, target, vectors):
        output = model.generate(**inputs, do_sample=False, use_cache=True, max_new_tokens=max_new_tokens)
    return tuple(output[0, len(target.ids) :].tolist())


@torch.no_grad()
def states(
    model: PreTrainedModel, ids: Sequence[int], masked: Sequence[int] = ()
) -> Float[Tensor, "layer position d_model"]:
    """The residual stream of one run at every layer: block 1's input, then each block's output."""
    blocks, seen = blocks_of(model), []

    def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    def after(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(after) for block in blocks]
    try:
        model(**_inputs(model, ids, masked), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen)


@torch.no_grad()
def readout(model: PreTrainedModel, state: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of a state at layer n_layers: final norm, projection, head, then scale or softcap, where there is one."""
    kind = model.config.model_type
    norm = model.get_submodule(_FINAL_NORM.get(kind, "model.norm")) if _has_final_norm(model) else nn.Identity()
    project = getattr(model.model.decoder, "project_out", None) if kind == "opt" else None
    normed = norm(state)
    logits = model.get_output_embeddings()(project(normed) if project is not None else normed)
    if kind == "granite":
        return logits / model.config.logits_scaling
    if kind == "cohere":
        return logits * model.config.logit_scale
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's blocks, in order."""
    blocks = model.get_submodule(BLOCKS[model.config.model_type])
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def eos_ids_of(model: PreTrainedModel) -> frozenset[int]:
    """The ids that end a text: none, one or several, as `generation_config` has them."""
    eos = model.generation_config.eos_token_id
    return frozenset(() if eos is None else [eos] if isinstance(eos, int) else eos)


def _has_final_norm(model: PreTrainedModel) -> bool:
    """Every supported model but OPT-350m has one."""
    return model.config.model_type != "opt" or model.config.do_layer_norm_before


def _inputs(model: PreTrainedModel, ids: Sequence[int], masked: Sequence[int] = ()) -> dict[str, Tensor]:
    """One unpadded row. The mask is given because some models warn of a generated <pad> without one.

    Where tokens are masked it says for each query which keys it sees, itself always among them.
    """
    row = torch.tensor([list(ids)], device=model.device)
    if not masked:
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}
    n = len(ids)
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    seen[:, list(masked)] = False
    seen |= torch.eye(n, dtype=torch.bool)
    near = torch.ones(n, n, dtype=torch.bool).triu(1 - (getattr(model.config, "sliding_window", None) or n))
    full, sliding = (
        torch.zeros(1, 1, n, n).masked_fill(~some, torch.finfo(torch.float32).min) for some in (seen, seen & near)
    )
    kinds = set(getattr(model.config, "layer_types", None) or ())
    both = {"full_attention": full, "sliding_attention": sliding}
    mask = both if len(kinds) > 1 else sliding
    return {"input_ids": row, "attention_mask": mask, "position_ids": torch.arange(n)[None]}


def _vectors(model: PreTrainedModel, what: What) -> Tensor | None:
    if isinstance(what, Source):
        return states(model, what.ids, what.masked)[what.layer, what.position]
    if isinstance(what, Mean):
        total = sum(states(model, source.ids)[source.layer, source.position].double() for source in what.sources)
        assert isinstance(total, Tensor)
        return (total / len(what.sources)).float()
    return what


@contextmanager
def _write(model: PreTrainedModel, target: Target, vectors: Tensor | None) -> Iterator[None]:
    """While open, the first forward of `model` has `vectors` at `target`; later ones are left alone.

    The first forward of a cached `generate` is its prefill, however many tokens it has. Without a cache every forward
    holds the positions, so this is opened anew around each.
    """
    if vectors is None:
        yield
        return
    phase = "prefill"

    def write(hidden: Tensor) -> Tensor:
        nonlocal phase
        if phase == "decode":
            return hidden
        phase = "decode"
        hidden = hidden.clone()
        hidden[0, list(target.positions)] = vectors.to(hidden)
        return hidden

    handle = _register(blocks_of(model), target.layer, write)
    try:
        yield
    finally:
        handle.remove()


def _register(blocks: nn.ModuleList, layer: int, write: Callable[[Tensor], Tensor]) -> Any:
    """Put `write` between block `layer` and the next: on block 1's input for layer 0, else on block ℓ's output."""

    def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (write(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": write(kwargs["hidden_states"])}

    def after(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return (write(output[0]), *output[1:]) if isinstance(output, tuple) else write(output)

    if layer == 0:
        return blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    return blocks[layer - 1].register_forward_hook(after)
