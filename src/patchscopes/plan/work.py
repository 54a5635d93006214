"""What a plan is made of, and what can be told of a cell without a model."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from patchscopes.spec import Cell, Ids, Mean, Neutral, Noise, Own, State, Vector

# Beyond so many rows, or tokens in one pass, nothing is gained (docs/performance.md).
MAX_ROWS = 480
MAX_TOKENS = 512
# Rows whose whole logits are held at once, where a draw needs them.
DRAWN_AT_ONCE = 64
# Bytes of one logit: as it is made, in float32, scaled, and what PyTorch's own operations make on the way to sums.
LOGIT_BYTES = 32
DRAWN_LOGIT_BYTES = 8  # parts of the vocabulary, and all of it
# Bytes of one of the k likeliest tokens, in tensors and as a result; of a candidate's first token.
TOP_BYTES = 400
CANDIDATE_BYTES = 64


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a plan needs to know of a model: sizes, and bytes per element of activations.

    `n_matrix_parameters` are those of blocks and head; `shares_prefix` says whether rows can attend to one prefix.
    `head_columns` are the logits of a row that are made at once. `row_pair_bytes` and `text_pair_bytes` are what
    attention makes for each pair of a token that runs and one that it may see: scores, over all heads, and masks; of
    rows, and of whole texts, which run by the model's own attention.
    """

    n_layers: int
    d_model: int
    d_vocab: int
    kv_bytes_per_token: int
    n_matrix_parameters: int
    itemsize: int
    shares_prefix: bool = True
    head_columns: int = 2048
    row_pair_bytes: int = 0
    text_pair_bytes: int = 0

    @property
    def head_bytes(self) -> int:
        """Bytes that the head makes of one row at a time, and what is read of it."""
        return LOGIT_BYTES * self.head_columns

    @property
    def head_parameters(self) -> int:
        """Parameters of the head's matrix."""
        return self.d_model * self.d_vocab

    @property
    def block_parameters(self) -> float:
        """Matrix parameters of one block."""
        return (self.n_matrix_parameters - self.head_parameters) / self.n_layers


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what runs at once: bytes of everything beside the weights; rows."""

    memory_bytes: int
    max_rows: int = MAX_ROWS


Side = Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class SourcePass:
    """One forward pass over `ids`, in the model of that side, that captures every (layer, position) in `states`.

    To positions `masked` no later token attends.
    """

    ids: Ids
    states: tuple[State, ...]
    masked: tuple[int, ...] = ()
    side: Side = "source"


class Text(NamedTuple):
    """The tokens of a prompt that anything else can depend on, with the positions that they have in it.

    What is masked is seen by nothing later, so that it need not be there: all but the last token, which is read.
    """

    ids: Ids
    positions: tuple[int, ...]


PromptKey = tuple[Ids, tuple[int, ...]]  # the ids of an inspection prompt, and what of it is masked


@dataclass(frozen=True, slots=True)
class Prompt:
    """An inspection prompt to run once: of its text, the tokens from `start` on are read at `layers`.

    `start` is the first placeholder, counted in the `Text`.
    """

    ids: Ids
    start: int
    layers: tuple[int, ...]
    masked: tuple[int, ...] = ()

    @property
    def key(self) -> PromptKey:
        """What the prompt is known by."""
        return self.ids, self.masked


@dataclass(frozen=True, slots=True)
class Group:
    """Cells that run together, in the order in which they start; entries index Plan.cells.

    All of them begin with `prefix`, which is kept once. At most `n_rows` run at once, `n_started` start at once, and
    each has room for `capacity` tokens of its own.
    """

    cells: tuple[int, ...]
    prefix: Ids
    n_rows: int
    n_started: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Wave:
    """Groups with the source passes and prompts that they need; of prompts, so many tokens run in one pass."""

    source_batches: tuple[tuple[SourcePass, ...], ...]
    prompts: tuple[Prompt, ...]
    groups: tuple[Group, ...]
    prompt_tokens: int = MAX_TOKENS


def states_of(vector: Vector) -> tuple[State, ...]:
    """The hidden states that a vector is made from."""
    match vector:
        case State():
            return (vector,)
        case Own(state=state):
            return (state,)
        case Noise(like=like):
            return (like,)
        case Neutral(state=state, like=like):
            return (state, like)
        case Mean(states=states):
            return states
        case _:
            return ()


@lru_cache(maxsize=4096)
def text(ids: Ids, masked: tuple[int, ...]) -> Text:
    """What runs of a prompt with these positions masked."""
    hidden = set(masked) - {len(ids) - 1}
    positions = tuple(position for position in range(len(ids)) if position not in hidden)
    return Text(tuple(ids[position] for position in positions), positions)


def text_of(cell: Cell) -> Text:
    """The tokens of the cell's prompt that run."""
    return text(cell.target_ids, cell.masked)


def n_run(cell: Cell) -> int:
    """How many they are."""
    return len(cell.target_ids) if not cell.masked else len(text_of(cell).ids)


def reads_masked(cell: Cell) -> bool:
    """Whether the token that is read is masked: it runs, and nothing behind it sees it."""
    return cell.read_position in cell.masked


def placeholder(cell: Cell) -> int:
    """Where in the text the first placeholder is: what stands before it is the prefix. 0 where nothing is written."""
    if cell.write is None:
        return 0
    first = min(cell.write.positions)
    return first if not cell.masked else text_of(cell).positions.index(first)


def gapless(cell: Cell, n: int) -> bool:
    """Whether the first `n` tokens of the text are the first of the prompt."""
    return not cell.masked or min(cell.masked) >= n


def layer_of(cell: Cell) -> int:
    """Where a cell's rows start: ℓ*, or 0 where nothing is written."""
    return cell.write.site.layer if cell.write is not None else 0


def suffix_of(cell: Cell, n_shared: int) -> int:
    """How many tokens of its prompt a row runs itself, where `n_shared` of them are shared."""
    return n_run(cell) - (n_shared if cell.write is None else placeholder(cell))


def own_tokens(cell: Cell) -> int:
    """Tokens that a row takes in behind its prompt, at the most."""
    if cell.readout.kind == "candidates":
        return max(len(ids) for ids in cell.candidates) - 1
    return cell.new_tokens - 1


def longest_text(cells: Iterable[Cell]) -> int:
    """Return the length of the longest text that cells run, in tokens: prompts with what comes behind, and sources."""
    return max((length for cell in cells for length in _lengths(cell)), default=0)


def _lengths(cell: Cell) -> Iterator[int]:
    yield len(cell.target_ids) + cell.more_tokens
    yield from (len(state.ids) for vector in (cell.write.vectors if cell.write else ()) for state in states_of(vector))
    if cell.compare is not None:
        yield len(cell.compare.ids)


def kv_bytes(shape: ModelShape, n_tokens: int) -> int:
    """Return the bytes of the keys and values of so many tokens."""
    return shape.kv_bytes_per_token * n_tokens


def row_bytes(shape: ModelShape, seen: int, run: int) -> int:
    """Return what a pass makes of one row: activations and scores of the tokens that run, `seen` by them; logits."""
    return _run_bytes(shape, seen, run) + shape.head_bytes


def _run_bytes(shape: ModelShape, seen: int, run: int) -> int:
    # Where prefixes are copied, a block's keys and values are gathered and put together once more for its attention.
    gathered = 0 if shape.shares_prefix else 4 * kv_bytes(shape, seen) // shape.n_layers
    return _activation_bytes(shape, run) + shape.row_pair_bytes * run * seen + gathered


def text_bytes(shape: ModelShape, n_tokens: int) -> int:
    """Return what a pass makes of one whole text: keys and values, activations, scores; it gives no logits."""
    return kv_bytes(shape, n_tokens) + _activation_bytes(shape, n_tokens) + shape.text_pair_bytes * n_tokens**2


def _activation_bytes(shape: ModelShape, run: int) -> int:
    return 32 * shape.d_model * shape.itemsize * run


class GroupBytes(NamedTuple):
    """What a group's rows take, each at its peak.

    `kept` is a row's own keys and values, `started` what its first pass makes, `decoded` what each later one makes.
    `drawn` comes on top for up to DRAWN_AT_ONCE rows, and `fixed` once. At most `start_at_once` rows start together.
    """

    start_at_once: int
    kept: int
    started: int
    decoded: int
    drawn: int
    fixed: int

    @classmethod
    def of(cls, shape: ModelShape, cells: Sequence[Cell], suffix: int, n_shared: int, capacity: int) -> "GroupBytes":
        """Count those of `cells`, of one kind, which run `suffix` tokens first, at most, and share what is before."""
        kept, seen, fixed, drawn, read = kv_bytes(shape, capacity), n_shared + capacity, 0, 0, 0
        kind = cells[0].readout.kind
        if kind == "next-token":
            read = TOP_BYTES * max(cell.readout.top_k for cell in cells)
        elif kind == "candidates":
            read = CANDIDATE_BYTES * max(len(cell.candidates) for cell in cells)
        elif any(cell.decoding.temperature > 0 for cell in cells):
            drawn = DRAWN_LOGIT_BYTES * shape.d_vocab
        started, decoded = (row_bytes(shape, seen, run) + read for run in (suffix, 1))
        if kind == "candidates":
            # Answers run beside the rows that they follow, two tokens for each row, or the longest of them alone.
            kept, started, decoded = 3 * kept, 3 * started, 3 * decoded
            fixed = _run_bytes(shape, seen, max(0, max(map(own_tokens, cells)) - 2))
        return cls(max(1, MAX_TOKENS // suffix), kept, started, decoded, drawn, fixed)

    def of_rows(self, n_rows: int) -> int:
        """Return the bytes of `n_rows` at their peak."""
        made = max(min(n_rows, self.start_at_once) * self.started, n_rows * self.decoded)
        return n_rows * self.kept + made + min(n_rows, DRAWN_AT_ONCE) * self.drawn + self.fixed

    def rows_in(self, available: int, at_most: int) -> int:
        """Return how many rows have room, 0 to `at_most`."""
        return bisect_right(range(1, at_most + 1), available, key=self.of_rows)
