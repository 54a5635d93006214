"""A Model: a causal language model and its tokenizer, with the few verbs that everything else is built from.

Axes: row (of a batch), column (padded), token (unpadded), d_model, d_vocab.
"""

import copy
import inspect as pyinspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchscopes.errors import ContextLengthError, OptionError, UnsupportedModelError
from patchscopes.foreign import running
from patchscopes.models.architectures import Architecture, rope_switch
from patchscopes.models.attached import Attached
from patchscopes.models.calm import calm
from patchscopes.models.checks import fault_of
from patchscopes.models.now import Now
from patchscopes.models.tree import Replacements, Tree, Trees
from patchscopes.models.watch import Change, Watch, brought_to

T = TypeVar("T")

UNBOUNDED = 1_000_000
# Of logits that copies of modules give, beside those of the modules themselves; and how long a text they run at first.
ALIKE, SHORT_TEXT = 1e-4, 7


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
        self._now = Now(hf, id, fingerprint)
        self._here = _Here()
        self._fault: str | None = None  # of a change: loading has refused what it was loaded with
        self._measure()

    def _measure(self) -> None:
        """Find blocks and sizes, which a change of the model may change."""
        self._measured = self._now.epoch
        self.blocks: Sequence[nn.Module] = tuple(self.hf.get_submodule(self.architecture.blocks).children())
        config = self.hf.config.get_text_config(decoder=True)
        self.n_layers = len(self.blocks)
        self.d_model = int(config.hidden_size)
        self.d_vocab = int(config.vocab_size)
        self.max_context = int(getattr(config, "max_position_embeddings", None) or UNBOUNDED)
        self.rope_switch = rope_switch(self.hf.config)
        self._takes = _parameters(self.hf)

    def __repr__(self) -> str:
        return (
            f"Model({self.id!r}, {self.architecture.family}, n_layers={self.n_layers}, d_model={self.d_model}, "
            f"{self.dtype_name}, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        embedding = self.hf.get_input_embeddings()
        weight = getattr(embedding, "weight", None)
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

    @property
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
        return self._now.fingerprint

    @property
    def weights(self) -> str:
        """The fingerprint, and behind it what a model as loaded does not have (see `identity`)."""
        return "|".join([self.fingerprint, *self._now.beside(self.variant)])

    @property
    def identity(self) -> str:
        """The fingerprint of the weights and a hash of the config that runs them, as part of a cell's identity.

        Behind them stands what a model as loaded does not have: a change of its structure, what is attached to it, and
        the name that the caller has given that (`variant`).
        """
        return self._now.identity(self.variant)

    @property
    def attached(self) -> tuple[Attached, ...]:
        """Hooks, forwards and modules of the caller's own, as they were when the model was last looked at."""
        return self._now.attached

    @property
    def unhashed(self) -> tuple[Attached, ...]:
        """What is attached and cannot be told from others in another process, unless `variant` names it."""
        return () if self.variant is not None else tuple(one for one in self.attached if not one.hashed)

    def called(self, variant: object) -> "Model":
        """Return the model under the name that the caller gives what is attached to it; itself where none is given."""
        if variant is None or variant == self.variant:
            return self
        if not isinstance(variant, str) or not variant.strip() or "|" in variant:
            raise OptionError(f"variant is {variant!r}; it must be a name without '|', such as \"steered\", or None.")
        other = copy.copy(self)
        other.variant = variant
        return other

    def current(self, *, content: bool = True) -> bool:
        """Look whether the model is what it was; where it is not, take it as it is by now and return False.

        Whatever was made of it before (functions that stand in, identities) is then made anew. Raises
        UnsupportedModelError where it cannot be run as it is.
        """
        # What was refused may have been mended in a way that only its content tells.
        same = self._now.current(content=content or self._fault is not None)
        if self._measured != self._now.epoch:
            self._follow()
        if self._fault is not None:
            raise UnsupportedModelError(self._fault)
        return same

    def running_attached(self) -> AbstractContextManager[None]:
        """Find out what of the things attached counts and records by itself, while the context runs them."""
        return self._now.running_attached()

    def ran(self) -> None:
        """Take note that a run has ended: what hooks count and record meanwhile changes nothing of how they act."""
        self._now.ran()

    def refresh(self) -> None:
        """Take the model as it is by now, whether or not a change is seen.

        For whoever has changed single values of weights in a way that leaves no trace, as through `.data`: such a
        change may lie between the samples that every call compares.
        """
        self._now.renew([Change("weights", "refresh() was called"), Change("structure", "refresh() was called")])
        self._follow()

    def _follow(self) -> None:
        self._measure()
        self._fault = fault_of(self.id, self.hf, self.architecture)

    def changes(self) -> list[Change]:
        """Return what differs from what the model was when it was last looked at; nothing where nothing does."""
        return self._now.changes()

    @property
    def watch(self) -> Watch:
        """The model as it was when it was last looked at."""
        return self._now.watch

    @property
    def epoch(self) -> int:
        """How often the model was taken anew, by whichever call."""
        return self._now.epoch

    @property
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
        """What a higher floor has made for this model and keeps until the model changes, made at first use."""
        made = self._now.made
        if kind not in made:
            made[kind] = make(self)
        kept: T = made[kind]
        return kept

    def found(self, kind: type[T]) -> T | None:
        """Return what is kept of this type, None where nothing is."""
        kept: T | None = self._now.made.get(kind)
        return kept

    def keep(self, thing: object) -> None:
        """Replace the cached value of this type."""
        self._now.made[type(thing)] = thing

    def trees(self, replacements: Replacements) -> Trees:
        """Return what lends private trees of the model, for as long as it is what it is."""
        trees = Trees(self.hf, self.blocks, replacements)
        self._now.trees.add(trees)
        return trees

    def is_private(self, n_tokens: int = 0) -> bool:
        """Return whether runs of texts of so many tokens have modules of their own; else they run the caller's."""
        plain = self.kept(PlainTrees, plain_trees)
        if self.attached and n_tokens > plain.n_tokens:
            plain = _compared(self, plain.trees, n_tokens)
            self.keep(plain)
        with plain.trees.lent() as tree:
            return tree.private

    @contextmanager
    def running(self) -> Iterator[Tree]:
        """Give the modules that passes of this thread run while the context is open.

        Those of `run_by`, where one is open; else a private tree of the model as it is.
        """
        if self._here.tree is not None:
            yield self._here.tree
            return
        with self.kept(PlainTrees, plain_trees).trees.lent() as tree, self.run_by(tree):
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
        """Provenance of the model (rule 22), as plain JSON; what is attached to it, where there is anything."""
        attached: dict[str, object] = {"attached": [str(one) for one in self.attached]} if self.attached else {}
        if self.variant is not None:
            attached["variant"] = self.variant
        return {
            "id": self.id,
            "revision": self.revision,
            "weights": self.fingerprint,
            "family": self.architecture.family,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "dtype": self.dtype_name,
            "device": str(self.device),
            **attached,
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
        with running(self.id):
            for path in (self.architecture.final_norm, self.architecture.project_out):
                module = self._submodule(path)
                states = states if module is None else module(states)
        return states

    @calm()
    def embedded(self, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Embeddings of tokens as they enter block 1, but for what depends on their place (learned positions).

        Scaled, projected and normed as the family does it; a scale that the config alone has (Granite's) is left out.
        """
        with running(self.id):
            rows: Tensor = self.hf.get_input_embeddings()(ids)
            module = self._submodule(self.architecture.embedded_by)
            return rows if module is None else module(rows)

    def scaled_logits(self, logits: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The head's output with the family's scale and softcap: what the model calls logits (rule 13)."""
        multiplier, divisor = self._scales()
        if multiplier is not None:
            logits = logits * multiplier
        if divisor is not None:
            logits = logits / divisor
        softcap = self.architecture.softcap
        cap = getattr(self.hf.config.get_text_config(decoder=True), softcap) if softcap else None
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    @property
    def scale_keeps_order(self) -> bool:
        """Return whether the largest output of the head is the largest logit, as it is unless a scale is negative."""
        return all(scale is None or scale > 0 for scale in self._scales())

    def _scales(self) -> list[Any]:
        """Return by what the model multiplies and divides logits: on itself where it has that, else in the config."""
        config, own = self.hf.config.get_text_config(decoder=True), self.hf.__dict__
        names = (self.architecture.logit_multiplier, self.architecture.logit_divisor)
        return [own.get(name, getattr(config, name)) if name else None for name in names]

    @property
    def unembed_width(self) -> int:
        """How wide is what enters the head: d_model, unless a projection stands before it (OPT)."""
        weight = getattr(self.hf.get_output_embeddings(), "weight", None)
        return int(weight.shape[-1]) if isinstance(weight, Tensor) else self.d_model

    @property
    def window(self) -> int | None:
        """How many tokens a sliding layer sees at most, its own among them; None where every layer sees all."""
        window = getattr(self.hf.config.get_text_config(decoder=True), "sliding_window", None)
        return int(window) if window else None

    @property
    def counts_mask(self) -> bool:
        """Return whether a token's place is counted from the attention mask (ALiBi): a mask moves later tokens."""
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


def _parameters(hf: nn.Module) -> frozenset[str]:
    """Return the arguments that a model's forward takes by name; of one that hands all on, those of its bases too."""
    found: set[str] = set()
    for forward in (hf.forward, *(vars(kind)["forward"] for kind in type(hf).__mro__ if "forward" in vars(kind))):
        parameters = pyinspect.signature(forward).parameters
        found |= parameters.keys()
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            break
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class PlainTrees:
    """Private trees in which nothing stands in; texts of `n_tokens` ran on them as on the caller's modules."""

    of_attached: ClassVar[bool] = True
    trees: Trees
    n_tokens: int = 0


def plain_trees(model: Model) -> PlainTrees:
    """Make a model's plain trees: the caller's own modules, where copies of them do not run as they do."""
    trees = model.trees(Replacements())
    return _compared(model, trees, SHORT_TEXT) if model.attached else PlainTrees(trees)


def _compared(model: Model, trees: Trees, n_tokens: int) -> PlainTrees:
    with trees.lent() as tree, model.running_attached():
        alike = not tree.private or all(_runs_alike(model, tree, length) for length in (n_tokens, 1))
    if not alike:
        trees.give_up()
    return PlainTrees(trees, n_tokens)


@calm()
def _runs_alike(model: Model, tree: Tree, n_tokens: int) -> bool:
    """Return whether a private tree gives what the caller's own modules give, for a text of so many tokens.

    What is attached may set attributes or hooks while it runs, which copies would not have.
    """
    ids = (torch.arange(n_tokens, dtype=torch.long, device=model.device)[None] * 37 + 5) % model.d_vocab
    own = model.forward_of(model.hf, Inputs(ids), "all").float()
    try:
        copied = model.forward_of(tree.hf, Inputs(ids), "all").float()
    except Exception:  # noqa: BLE001 (the model itself has just run, so only the copy is at fault)
        return False
    return torch.allclose(own, copied, rtol=ALIKE, atol=ALIKE, equal_nan=True)
