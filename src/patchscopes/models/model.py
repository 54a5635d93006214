"""A Model: a causal language model and its tokenizer, with the few verbs that everything else is built from.

Axes: row (of a batch), column (padded), token (unpadded), d_model, d_vocab.
"""

import copy
import hashlib
import inspect as pyinspect
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.errors import ContextLengthError, OptionError, UnsupportedModelError
from patchscopes.models.architectures import Architecture, rope_switch
from patchscopes.models.attached import Attached, Hasher, attached
from patchscopes.models.calm import calm
from patchscopes.models.checks import refuse_weights
from patchscopes.models.tree import Replacements, Tree, Trees
from patchscopes.models.watch import Change, Watch, brought_to, tensors

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
        self.variant: str | None = None
        self.epoch = 0
        self._fingerprint = fingerprint
        self._structure: str | None = None
        self._here = _Here()
        self.blocks: Sequence[nn.Module] = self._find_blocks()
        self._watch = Watch(hf)
        self.attached: tuple[Attached, ...] = attached(hf)
        config = hf.config.get_text_config(decoder=True)
        self.n_layers = len(self.blocks)
        self.d_model = int(config.hidden_size)
        self.d_vocab = int(config.vocab_size)
        self.max_context = int(getattr(config, "max_position_embeddings", None) or UNBOUNDED)
        self.rope_switch = rope_switch(hf.config)
        self._takes = frozenset(pyinspect.signature(hf.forward).parameters)
        self._kept: dict[type, Any] = {}
        self._strings: dict[str, str] = {}
        self._plain: Trees | None = None

    def __repr__(self) -> str:
        return (
            f"Model({self.id!r}, {self.architecture.family}, n_layers={self.n_layers}, d_model={self.d_model}, "
            f"{self.dtype_name}, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        embedding = self.hf.get_input_embeddings()
        weight = embedding.weight
        if not isinstance(weight, Tensor):
            return self.hf.device
        return brought_to(embedding) if weight.device.type == "meta" else weight.device

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

    @property
    def fingerprint(self) -> str:
        """What the weights are: "sha256:…" of files or tensors, or "commit:…" of a hub.

        A hash is computed at first use (about 1 GB/s) and kept until weights change.
        """
        return self._hashed("fingerprint", self._fingerprint)

    @property
    def identity(self) -> str:
        """The fingerprint of the weights and a hash of the config that runs them, as part of a cell's identity.

        Behind them stands what a model as loaded does not have: a change of its structure, what is attached to it, and
        the name that the caller has given that (`variant`).
        """
        return self._hashed("identity", self._identity)

    def _identity(self) -> str:
        config = self.hf.config.get_text_config(decoder=True).to_dict()
        decisive = {key: value for key, value in config.items() if key not in INDECISIVE}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()
        parts = [self.fingerprint, f"config:{digest[:16]}"]
        if self._structure is not None:
            parts.append(f"structure:{self._structure}")
        named = [one for one in self.attached if one.hashed or self.variant is None]
        if named:
            told = "|".join(f"{one.what} {one.path} {one.name} {one.digest}" for one in named)
            parts.append(f"attached:{hashlib.sha256(told.encode()).hexdigest()[:16]}")
        if self.variant is not None:
            parts.append(f"variant:{self.variant}")
        return "|".join(parts)

    @property
    def unhashed(self) -> tuple[Attached, ...]:
        """What is attached and cannot be told from others in another process, unless `variant` names it."""
        return () if self.variant is not None else tuple(one for one in self.attached if not one.hashed)

    def _hashed(self, name: str, make: Callable[[], str]) -> str:
        if name not in self._strings:
            self._strings[name] = make()
        return self._strings[name]

    def current(self, *, content: bool = True) -> bool:
        """Look whether the model is what it was; where it is not, take it as it is by now and return False.

        Whatever was made of it before (functions that stand in, identities) is then made anew. Raises
        UnsupportedModelError where it cannot be run as it is.
        """
        changes = self._watch.changes(content=content)
        if changes:
            self._renew(changes)
        self._refuse_training()
        before, self.attached = self.attached, attached(self.hf)
        if self.attached != before:
            self._strings.pop("identity", None)
        return not changes and self.attached == before

    def called(self, variant: str | None) -> "Model":
        """Return the model under the name that the caller gives what is attached to it; itself where none is given."""
        if variant is None or variant == self.variant:
            return self
        if not str(variant).strip() or "|" in str(variant):
            raise OptionError(f"variant is {variant!r}; it must be a name without '|', such as \"steered\", or None.")
        other = copy.copy(self)
        other.variant, other._strings = variant, {}
        return other

    def refresh(self) -> None:
        """Take the model as it is by now, whether or not a change is seen.

        For whoever has changed single values of weights in a way that leaves no trace, as through `.data`: such a
        change may lie between the samples that every call compares.
        """
        self._renew([Change("weights", "refresh() was called")])
        self.attached = attached(self.hf)

    def changes(self) -> list[Change]:
        """Return what differs from what the model was when it was last looked at; nothing where nothing does."""
        return self._watch.changes(attributes=False)

    @property
    def watch(self) -> Watch:
        """The model as it was when it was last looked at."""
        return self._watch

    def _renew(self, changes: Sequence[Change]) -> None:
        kinds = {change.kind for change in changes}
        if "weights" in kinds:
            refuse_weights(self.id, self.hf)
        before, self._watch = self._watch, Watch(self.hf)
        if self._structure is None and "structure" in kinds:
            self._as_loaded = _digest(before)
        if "structure" in kinds:
            now = _digest(self._watch)
            self._structure = None if now == self._as_loaded else now
        if "weights" in kinds:
            self._fingerprint = partial(memory_hash, self.hf)
        self._strings, self._kept = {}, {}
        self.blocks, self._plain = self._find_blocks(), None
        self.n_layers = len(self.blocks)
        self.epoch += 1

    def _refuse_training(self) -> None:
        """Raise UnsupportedModelError where a module is in training mode: dropout would make every run different."""
        if self._watch.training:
            raise UnsupportedModelError(
                f"{self.id} is in training mode ({len(self._watch.training):,} modules, such as "
                f"{self._watch.training[-1]}), where dropout makes every run different; call eval() on the model, and "
                "train() again afterwards."
            )

    def _find_blocks(self) -> tuple[nn.Module, ...]:
        return tuple(self.hf.get_submodule(self.architecture.blocks).children())

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
        """Replace the cached value of this type."""
        self._kept[type(thing)] = thing

    @contextmanager
    def running(self) -> Iterator[Tree]:
        """Give the modules that passes of this thread run while the context is open.

        Those of `run_by`, where one is open; else a private tree of the model as it is.
        """
        if self._here.tree is not None:
            yield self._here.tree
            return
        if self._plain is None:
            self._plain = Trees(self.hf, self.blocks, Replacements())
        with self._plain.lent() as tree, self.run_by(tree):
            yield tree

    @contextmanager
    def run_by(self, tree: Tree) -> Iterator[None]:
        """While open, passes of this thread run the modules of `tree`."""
        before, self._here.tree = self._here.tree, tree
        try:
            yield
        finally:
            self._here.tree = before

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

    @calm()
    def next_logits(self, ids: Int[Tensor, "row column"]) -> Float[Tensor, "row d_vocab"]:
        """Run the model's own forward on unpadded `ids`; the logits after the last column, in float32 (rule 13)."""
        return self.forward(Inputs(ids), "last")[:, -1].float()

    @calm()
    def all_logits(self, ids: Int[Tensor, "row column"]) -> Float[Tensor, "row column d_vocab"]:
        """Logits at every position of unpadded `ids`, in float32."""
        return self.forward(Inputs(ids), "all").float()

    @calm()
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

    @calm()
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

    @calm()
    def forward(self, inputs: Inputs, columns: Columns) -> Float[Tensor, "row column d_vocab"]:
        """The model's own forward, with logits for all columns, or for the last alone where the model can do so."""
        with self.running() as tree:
            return self.forward_of(tree.hf, inputs, columns)

    def forward_of(self, hf: nn.Module, inputs: Inputs, columns: Columns) -> Float[Tensor, "row column d_vocab"]:
        """Call `hf`, the model or what runs as it, and return its logits."""
        options: dict[str, Any] = {"input_ids": inputs.ids, "use_cache": inputs.cache is not None, "return_dict": True}
        if inputs.mask is not None:
            options["attention_mask"] = inputs.mask
        # BLOOM takes no position ids: its ALiBi counts the mask.
        if inputs.position_ids is not None and "position_ids" in self._takes:
            options["position_ids"] = inputs.position_ids
        if inputs.cache is not None:
            options["cache"] = inputs.cache
        if columns == "last" and "logits_to_keep" in self._takes:
            options["logits_to_keep"] = 1
        logits: Tensor = hf(**options).logits
        return logits

    def _submodule(self, path: str | None) -> nn.Module | None:
        """The module at `path`, None where this checkpoint has none (OPT keeps None for an absent projection)."""
        if path is None:
            return None
        parent, _, name = path.rpartition(".")
        module = getattr(self.hf.get_submodule(parent), name, None)
        return module if isinstance(module, nn.Module) else None


class _Here(threading.local):
    """What this thread runs a model by, where it is not its own modules."""

    tree: Tree | None = None


def _digest(watch: Watch) -> str:
    """A digest of the structure that was seen: classes and plain attributes, by path."""
    hasher = Hasher()
    for path, kind, values in watch.describe():
        hasher.add((path, kind, sorted(values)))
        for name in sorted(values):
            hasher.add(values[name])
    return hasher.digest()


def memory_hash(hf: PreTrainedModel) -> str:
    """Return the fingerprint of weights that are in memory, wherever from: "sha256:…" over all tensors."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in hf.state_dict().items()}
    elsewhere = {name for name, tensor in state.items() if tensor.device.type == "meta"}
    if elsewhere:
        state |= {path: tensor for path, tensor in tensors(hf) if path in elsewhere}
    return f"sha256:{hash_tensors(state)}"


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
