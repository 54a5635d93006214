"""The frozen nouns: what is asked for, what is computed, and what comes back.

    Sweep      what the user asks for: sources × positions × ℓ × ℓ* × prompts × samples, and the controls
    Request    one row to be, resolved: ids and positions are known, phrases are gone
    Cell       the computation behind a request, and nothing else: what its identity hashes
    Result     what a Runner yields for one cell
    Row        a request and its result, as the user sees them

Layer ℓ is the residual stream after ℓ blocks, 0…n_layers (rule 1 of docs/semantics.md). Positions index the unpadded
tokens, BOS counted. Nothing here imports torch.
"""

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

SCHEMA = "patchscopes.rows/3"

Ids = tuple[int, ...]
Bos = Literal["auto", "always", "never"]
ReadoutKind = Literal["text", "next-token", "candidates"]
Status = Literal["ok", "inert", "failed", "skipped"]
FinishReason = Literal["eos", "length", "stop"]


@dataclass(frozen=True, slots=True)
class InspectionPrompt:
    """The text T that a state is written into; each `{}` marks a placeholder token.

    `name` is its library name, None for free text. `chat` renders `text` as a user's turn through the model's chat
    template, followed by `reply`, the beginning of the answer. A text without `{}` names its position by `at` (see
    `patchscopes.prompts.positions`). `mask` is a phrase whose tokens no later token can attend to.
    """

    text: str
    _: KW_ONLY
    name: str | None = None
    placeholder: str | None = None
    chat: bool = False
    reply: str = ""
    about: str = ""
    at: str | int | None = None
    mask: str | None = None

    @property
    def label(self) -> str:
        """What a row calls this prompt: its library name, else the text given."""
        return self.name or self.text


@dataclass(frozen=True, slots=True)
class Source:
    """A text to read a hidden state from.

    `at` names the position (see `patchscopes.prompts.positions`); None takes the call's. `expect` lists accepted
    answers, the first its usual form; empty takes the call's. `candidates` are the answers to score; empty takes the
    call's. `item` is what the text is about (None: an item of its own for every text) and `kind` what kind of thing
    that is: donors, for the controls `shuffled` and `mean`, are sources of other items and the same kind. `split` are
    pieces that make up `text`, each tokenised by itself; empty leaves the split into tokens to the tokenizer. `mask` is
    a phrase whose tokens no later token can attend to; None takes the call's. `prompt` is an inspection prompt of its
    own, or a text as the call takes one; None takes the call's.
    """

    text: str
    _: KW_ONLY
    at: str | int | None = None
    expect: tuple[str, ...] = ()
    item: str | None = None
    kind: str | None = None
    candidates: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    mask: str | None = None
    prompt: InspectionPrompt | str | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the residual stream: after `layer` blocks, 0 ≤ layer ≤ n_layers."""

    layer: int
    kind: Literal["resid"] = "resid"


@dataclass(frozen=True, slots=True, repr=False)
class State:
    """The hidden state of the source model's run on `ids` at `layer` and `position`.

    To the positions `masked`, all before `position`, no later token can attend; position ids stay.
    """

    ids: Ids
    position: int
    layer: int
    masked: tuple[int, ...] = ()

    def __repr__(self) -> str:
        # Identities hash this: what is not there is not named, so that states without masks keep theirs.
        masked = f", masked={self.masked!r}" if self.masked else ""
        return f"State(ids={self.ids!r}, position={self.position!r}, layer={self.layer!r}{masked})"


@dataclass(frozen=True, slots=True)
class Own:
    """A state of the target model's own run, which no mapping touches (control `self`, where the two differ)."""

    state: State


@dataclass(frozen=True, slots=True)
class Zero:
    """The zero vector (control `zero`); where there is a mapping, what that makes of it: its bias."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Isotropic noise with the norm of `like`, keyed by (seed, draw, ids, position, layer) of it (control `random`)."""

    like: State
    seed: int
    draw: int


@dataclass(frozen=True, slots=True)
class Neutral:
    """The state of an unrelated neutral sentence, rescaled to the norm of `like` (control `random-state`)."""

    state: State
    like: State


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the states of other items (control `mean`).

    There may be hundreds in each of thousands of cells. So they are known by their digest, made once for each Mean:
    it compares, hashes and stands in the identity of a cell.
    """

    states: tuple[State, ...] = field(repr=False, compare=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        together = hashlib.sha256(b"".join(map(_state_digest, self.states)))
        object.__setattr__(self, "digest", together.hexdigest())


@lru_cache(maxsize=2**16)
def _state_digest(state: State) -> bytes:
    """32 bytes for each state, so that no two lists of states are alike when they stand behind each other."""
    return hashlib.sha256(repr(state).encode()).digest()


Vector = State | Own | Zero | Noise | Neutral | Mean


@dataclass(frozen=True, slots=True)
class Write:
    """Overwrite the states at `positions` of the target run, at `site`, with `vectors` (one per position)."""

    site: Site
    positions: tuple[int, ...]
    vectors: tuple[Vector, ...]
    mode: Literal["replace"] = "replace"


@dataclass(frozen=True, slots=True)
class Readout:
    """What is read from the patched run: text, the next token's `top_k`, or the log-probabilities of candidates."""

    kind: ReadoutKind = "text"
    top_k: int = 10


@dataclass(frozen=True, slots=True)
class Decoding:
    """How text is generated: until one of `eos_ids`, a `stop` string (cut off the text), or `max_new_tokens`.

    `temperature` 0 is greedy (rule 10).
    """

    max_new_tokens: int = 20
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    eos_ids: Ids = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One computation. Two cells with equal identities have equal results, so each identity runs once.

    `model` is the identity of the one that runs the inspection prompt, the target; `source_model` that of the one whose
    states are written, None where it is the same or none is. `mapping` is the digest of f, None for none. `masked` are
    positions of `target_ids` that no later token can attend to. `candidates` are the answers' token ids, as they
    continue the inspection prompt; empty for other readouts. `compare` is the last-layer state of the source run, whose
    next-token distribution the readout "next-token" is compared with (rule 14).
    """

    model: str
    dtype: str
    target_ids: Ids
    write: Write | None
    readout: Readout
    decoding: Decoding
    sample: int = 0
    candidates: tuple[Ids, ...] = ()
    source_model: str | None = None
    mapping: str | None = None
    masked: tuple[int, ...] = ()
    compare: State | None = None

    def identity(self) -> str:
        """A SHA-256 prefix (32 hex digits) of exactly what changes the result; never of batch size or order."""
        greedy = self.decoding.temperature == 0
        readout: object = self.readout
        decoding: object = None
        if self.readout.kind == "text":
            readout = "text"
            decoding = replace(self.decoding, seed=0) if greedy else self.decoding
        elif self.readout.kind == "candidates":
            readout = ("candidates", self.candidates)
        sample = None if decoding is None or greedy else self.sample
        # The repr of frozen dataclasses names every field and kind of vector, so that no two specifications are alike.
        write = "None" if self.write is None else _written(self.write)
        parts = (repr(self.model), repr(self.dtype), _text(self.target_ids), write, repr(readout), repr(decoding))
        decisive = f"({', '.join(parts)}, {sample!r}{self._more()})"
        return hashlib.sha256(decisive.encode()).hexdigest()[:32]

    def _more(self) -> str:
        """What few cells have, by its name; nothing for all others."""
        names = ("source_model", "mapping", "masked", "compare")
        return "".join(f", {name}={value!r}" for name in names if (value := getattr(self, name)))

    @property
    def read_position(self) -> int:
        """The position whose next token is read: the end of the inspection prompt."""
        return len(self.target_ids) - 1

    @property
    def more_tokens(self) -> int:
        """How many tokens may come behind the prompt: new ones, or those of the longest candidate."""
        return max(map(len, self.candidates), default=self.new_tokens)

    @property
    def new_tokens(self) -> int:
        """How many tokens this cell may generate, at the most."""
        return self.decoding.max_new_tokens if self.readout.kind == "text" else 1


@lru_cache(maxsize=8192)
def _text(value: Hashable) -> str:
    """The repr of ids or vectors, which many cells have in common."""
    return repr(value)


def _written(write: Write) -> str:
    """The repr of a Write, from parts that many have in common."""
    parts = f"site={write.site!r}, positions={write.positions!r}, vectors={_text(write.vectors)}, mode={write.mode!r}"
    return f"Write({parts})"


class TopToken(NamedTuple):
    """One candidate for the next token; `logprob` in nats."""

    token: str
    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a Runner yields for the cell at `index` of its Plan; where that failed, `failure` says why.

    `logprobs` holds, per candidate, the sum of its tokens' log-probabilities. `gaps` holds, per step, the difference
    between the two highest logits: below 1e-4 a step is a near-tie and what follows is not compared between runners
    (rule 9). Only the reference records it. `source_top` is the likeliest next token of the source's own run, where the
    cell compares with it; the two surprisals are those of rule 14, in nats.
    """

    index: int
    text: str | None
    token_ids: Ids | None
    finish_reason: FinishReason | None
    top: tuple[TopToken, ...] | None = None
    entropy: float | None = None
    logprobs: tuple[float, ...] | None = None
    gaps: tuple[float, ...] = ()
    failure: str | None = None
    source_top: TopToken | None = None
    surprisal_under_source: float | None = None
    surprisal_under_patched: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One row to be. `cell` is None where nothing can be run: `status` and `reason` then say why.

    With readout "candidates", the requests of one cell ask for one candidate each: number `candidate_index` of its
    `candidates`, compared with the same of `baseline`, the prompt without a write.
    """

    prompt: str | None
    cell: Cell | None
    source: str | None = None
    source_index: int | None = None
    position: int | None = None
    token: str | None = None
    source_layer: int | None = None
    target_layer: int | None = None
    target_positions: tuple[int, ...] = ()
    control: str | None = None
    draw: int = 0
    sample: int = 0
    expect: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    status: Status = "ok"
    reason: str | None = None
    candidates: tuple[str, ...] = ()
    candidate: str | None = None
    candidate_index: int | None = None
    baseline: Cell | None = None
    mapping: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of Results: one cell or control, with everything needed to tell what it is.

    `source_layer` and `target_layer` are ℓ and ℓ*; `control` is None for the cell itself; `entropy` and all
    log-probabilities are in nats. Of a `candidate`: `logprob` is the sum over its tokens, `logprob_minus_unpatched`
    what the write adds to it, `rank` its place among the candidates of its cell (1 is the likeliest; ties share the
    worse), `answer_surprisal` −logprob (rule 14); `token_ids` are the candidate's, and `text` is None. Of a next token:
    `source_next` is the likeliest next token of the source's own run at the position that is read, `agrees` whether it
    is also that of the patched run, `surprisal_under_source` −ln p_source(the likeliest of the patched run) and
    `surprisal_under_patched` −ln p_patched(`source_next`). `model` is the one that states are read from,
    `target_model` the one that they are written into, `mapping` the f between. Unless `status` is "ok", `text`,
    `token_ids` and `finish_reason` are None and `reason` says why (rule 21).
    """

    cell: str | None
    source: str | None
    source_index: int | None
    position: int | None
    token: str | None
    source_layer: int | None
    target_layer: int | None
    target_positions: tuple[int, ...]
    prompt: str | None
    control: str | None
    draw: int
    sample: int
    text: str | None
    token_ids: Ids | None
    finish_reason: FinishReason | None
    top: tuple[TopToken, ...] | None
    entropy: float | None
    candidate: str | None
    logprob: float | None
    logprob_per_token: float | None
    logprob_minus_unpatched: float | None
    rank: int | None
    answer_surprisal: float | None
    source_next: str | None
    agrees: bool | None
    surprisal_under_source: float | None
    surprisal_under_patched: float | None
    expected: bool | None
    flags: tuple[str, ...]
    status: Status
    reason: str | None
    model: str
    target_model: str
    mapping: str | None
    seed: int
    schema: str = SCHEMA


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is asked for: a finite product, still unresolved (phrases, "all", library names looked up already).

    `source_layers` are ℓ; `target_layers` None pairs (ℓ, ℓ), anything else is the product. `candidates` are the answers
    that readout "candidates" scores, where a source has none of its own. `mask` is a phrase of the sources (see
    `Source`). `target_model` is the identity of the model that is written into, `mapping` the digest of f: None where
    states stay in their model, as they are.
    """

    sources: tuple[Source, ...]
    prompts: tuple[InspectionPrompt, ...]
    source_layers: tuple[int, ...]
    _: KW_ONLY
    target_layers: tuple[int, ...] | None = None
    at: str | int = "last"
    readout: Readout = field(default_factory=Readout)
    decoding: Decoding = field(default_factory=Decoding)
    candidates: tuple[str, ...] = ()
    n_samples: int = 1
    controls: tuple[str, ...] = ()
    draws: int = 1
    expect: tuple[str, ...] = ()
    bos: Bos = "auto"
    seed: int = 0
    mask: str | None = None
    target_model: str | None = None
    mapping: str | None = None

    def layer_pairs(self) -> Iterable[tuple[int, int]]:
        """Every (ℓ, ℓ*), in the order of Results."""
        if self.target_layers is None:
            return [(layer, layer) for layer in self.source_layers]
        return [(source, target) for source in self.source_layers for target in self.target_layers]
