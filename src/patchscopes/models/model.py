"""A Model: a causal language model and its tokenizer, with the few verbs that everything else is built from.

Axes: row (of a batch), column (padded), token (unpadded), d_model, d_vocab.
"""

import hashlib
import inspect as pyinspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.errors import ContextLengthError, OptionError, UnsupportedModelError
from patchscopes.models.architectures import Architecture, rope_switch

T = TypeVar("T")

UNBOUNDED = 1_000_000
# Of a config: where it was read, and by what, and what cells record themselves.
INDECISIVE = frozenset(
    {"_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "eos_token_id"}
)


Columns = Literal["last", "all"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a forward pass runs. `mask` covers what is cached and what is run; padding stands on the left."""

    ids: Int[Tensor, "row column"]
    mask: Int[Tensor, "row context"] | None = None
    position_ids: Int[Tensor, "row column"] | None = None
    cache: object | None = None


class Model:
    """A decoder-only language model whose residual stream can be read and written.

    Attributes: `id` (the name it was asked for by), `revision` (of the hub, where it has one), `hf` and `tokenizer`
    (as transformers made them), `n_layers`, `d_model`, `d_vocab`, `max_context` (tokens), `architecture`.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        architecture: Architecture,
        *,
        id: str,
        revision: str | None,
        fingerprint: Callable[[], str],
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.id = id
        self.revision = revision
        self._fingerprint = fingerprint
        blocks = hf.get_submodule(architecture.blocks)
        self.blocks: Sequence[nn.Module] = tuple(blocks.children())
        config = hf.config.get_text_config(decoder=True)
        self.n_layers = len(self.blocks)
        self.d_model = int(config.hidden_size)
        self.d_vocab = int(config.vocab_size)
        self.max_context = int(getattr(config, "max_position_embeddings", None) or UNBOUNDED)
        self.rope_switch = rope_switch(hf.config)
        self._takes = frozenset(pyinspect.signature(hf.forward).parameters)
        self._kept: dict[type, Any] = {}

    def __repr__(self) -> str:
        return (
            f"Model({self.id!r}, {self.architecture.family}, n_layers={self.n_layers}, d_model={self.d_model}, "
            f"{self.dtype_name}, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        weight = self.hf.get_input_embeddings().weight
        return weight.device if isinstance(weight, Tensor) else self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.hf.dtype

    @property
    def dtype_name(self) -> str:
        """The dtype as users write it: "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text: the generation config's, else the config's, as `generate` has it."""
        for place in (self.hf.generation_config, self.hf.config):
            ids = getattr(place, "eos_token_id", None)
            if ids is not None:
                return frozenset([ids] if isinstance(ids, int) else ids)
        return frozenset()

    @property
    def max_text(self) -> int:
        """How long a text may be, in tokens, to be read like any shorter one: within the context, and rule 15."""
        return self.max_context if self.rope_switch is None else min(self.max_context, self.rope_switch)

    @cached_property
    def fingerprint(self) -> str:
        """What the weights are: "sha256:…" of files or tensors, or "commit:…" of a hub.

        A hash is computed at first use (about 1 GB/s) and kept.
        """
        return self._fingerprint()

    @cached_property
    def identity(self) -> str:
        """The fingerprint of the weights and a hash of the config that runs them, as part of a cell's identity."""
        config = self.hf.config.get_text_config(decoder=True).to_dict()
        decisive = {key: value for key, value in config.items() if key not in INDECISIVE}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()
        return f"{self.fingerprint}|config:{digest[:16]}"

    @cached_property
    def n_matrix_parameters(self) -> int:
        """Parameters used in matrix products per token: blocks and head (for the cost of a plan)."""
        in_blocks = sum(p.numel() for block in self.blocks for p in block.parameters() if p.dim() >= 2)
        return in_blocks + self.d_model * self.d_vocab

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token keeps, over all layers (an upper bound where heads vary)."""
        config = self.hf.config.get_text_config(decoder=True)
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        d_head = int(getattr(config, "head_dim", None) or self.d_model // heads)
        return 2 * self.n_layers * kv_heads * d_head * self.dtype.itemsize

    def kept(self, kind: type[T], make: "Callable[[Model], T]") -> T:
        """What a higher floor has made for this model and keeps as long as the model lives, made at first use."""
        if kind not in self._kept:
            self._kept[kind] = make(self)
        kept: T = self._kept[kind]
        return kept

    def keep(self, thing: object) -> None:
        """Keep `thing` in the stead of what `kept` has of its kind."""
        self._kept[type(thing)] = thing

    def describe(self) -> dict[str, object]:
        """Provenance of the model (rule 22), as plain JSON."""
        return {
            "id": self.id,
            "revision": self.revision,
            "weights": self.fingerprint,
            "family": self.architecture.family,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "dtype": self.dtype_name,
            "device": str(self.device),
        }

    @torch.no_grad()
    def next_logits(self, ids: Int[Tensor, "row column"]) -> Float[Tensor, "row d_vocab"]:
        """Run the model's own forward on unpadded `ids`; the logits after the last column, in float32 (rule 13)."""
        return self.forward(Inputs(ids), "last")[:, -1].float()

    @torch.no_grad()
    def all_logits(self, ids: Int[Tensor, "row column"]) -> Float[Tensor, "row column d_vocab"]:
        """Logits at every position of unpadded `ids`, in float32."""
        return self.forward(Inputs(ids), "all").float()

    @torch.no_grad()
    def unembed(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Read residual states through the model's own final norm, head, scale and softcap (rule 13), in float32."""
        head = self.hf.get_output_embeddings()
        return self.scaled_logits(head(self.head_input(states))).float()

    def head_input(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_head_in"]:
        """Residual states as they enter the head: through the final norm, and a projection where there is one."""
        for path in (self.architecture.final_norm, self.architecture.project_out):
            module = self._submodule(path)
            states = states if module is None else module(states)
        return states

    @torch.no_grad()
    def embedded(self, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Embeddings of tokens as they enter block 1, but for what depends on their place (learned positions).

        Scaled, projected and normed as the family does it; a scale that the config alone has (Granite's) is left out.
        """
        rows: Tensor = self.hf.get_input_embeddings()(ids)
        module = self._submodule(self.architecture.embedded_by)
        return rows if module is None else module(rows)

    def scaled_logits(self, logits: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The head's output with the family's scale and softcap: what the model calls logits (rule 13)."""
        architecture = self.architecture
        config = self.hf.config.get_text_config(decoder=True)
        if architecture.logit_multiplier:
            logits = logits * getattr(config, architecture.logit_multiplier)
        if architecture.logit_divisor:
            logits = logits / getattr(config, architecture.logit_divisor)
        cap = getattr(config, architecture.softcap) if architecture.softcap else None
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @property
    def unembed_width(self) -> int:
        """How wide is what enters the head: d_model, unless a projection stands before it (OPT)."""
        weight = getattr(self.hf.get_output_embeddings(), "weight", None)
        return int(weight.shape[-1]) if isinstance(weight, Tensor) else self.d_model

    @cached_property
    def window(self) -> int | None:
        """How many tokens a sliding layer sees at most, its own among them; None where every layer sees all."""
        window = getattr(self.hf.config.get_text_config(decoder=True), "sliding_window", None)
        return int(window) if window else None

    @property
    def counts_mask(self) -> bool:
        """Whether a token's place is counted from the attention mask (ALiBi), so that a mask moves later tokens."""
        config = self.hf.config.get_text_config(decoder=True)
        return "position_ids" not in self._takes or bool(getattr(config, "alibi", False))

    def check_length(self, n_tokens: int, new_tokens: int, what: str, *, masked: bool = False) -> None:
        """Raise ContextLengthError where a text and its new tokens are more than the model can hold (rule 15).

        `what` is how a message calls it. One that is `masked` must stay within what a sliding layer sees.
        """
        total, window = n_tokens + new_tokens, self.window
        said = f"{what} has {n_tokens:,} tokens"
        said += f" and {new_tokens:,} new ones are asked for: {total:,} in all" if new_tokens else ""
        if total > self.max_text:
            switches = "the length at which this model changes its rotary frequencies"
            why = "the model's context" if self.max_text == self.max_context else switches
            fewer = " or ask for fewer new tokens" if new_tokens else ""
            raise ContextLengthError(f"{said}, beyond {why} ({self.max_text:,}). Shorten the text{fewer}.")
        if masked and window is not None and total > window:
            raise ContextLengthError(
                f"{said}; it is masked, and sliding layers of {self.id} see {window:,}: masks are supported within one "
                "window; shorten it."
            )

    def check_masks(self) -> None:
        """Raise OptionError where a mask would move what stands behind it: rule of `docs/semantics.md`, masks."""
        if self.counts_mask:
            raise OptionError(
                f"{self.id} ({self.architecture.family}) counts a token's place from its attention mask (ALiBi), so "
                "that masked positions would move all later ones; masks need a model with position ids."
            )

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm between the last block and the head, where there is one."""
        return self._submodule(self.architecture.final_norm)

    @torch.no_grad()
    def forward(self, inputs: Inputs, columns: Columns) -> Float[Tensor, "row column d_vocab"]:
        """The model's own forward, with logits for all columns, or for the last alone where the model can do so."""
        options: dict[str, Any] = {"input_ids": inputs.ids, "use_cache": inputs.cache is not None}
        if inputs.mask is not None:
            options["attention_mask"] = inputs.mask
        # BLOOM takes no position ids: its ALiBi counts the mask.
        if inputs.position_ids is not None and "position_ids" in self._takes:
            options["position_ids"] = inputs.position_ids
        if inputs.cache is not None:
            options["cache"] = inputs.cache
        if columns == "last" and "logits_to_keep" in self._takes:
            options["logits_to_keep"] = 1
        logits: Tensor = self.hf(**options).logits
        return logits

    def _submodule(self, path: str | None) -> nn.Module | None:
        """The module at `path`, None where this checkpoint has none (OPT keeps None for an absent projection)."""
        if path is None:
            return None
        parent, _, name = path.rpartition(".")
        module = getattr(self.hf.get_submodule(parent), name, None)
        return module if isinstance(module, nn.Module) else None


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.device.type == "meta":
            raise UnsupportedModelError(
                f"weights of the model in memory are elsewhere ({name} is on the meta device), so it cannot be told "
                "from others; load it without offloading to disk."
            )
        digest.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
