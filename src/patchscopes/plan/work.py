"""What a plan is made of, and what can be told of a cell without a model."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from patchscopes.spec import Cell, Ids, Mean, Neutral, Noise, Own, State, Vector

# Beyond so many rows, or tokens in one pass, nothing is gained (docs/performance.md).
MAX_ROWS = 480
MAX_TOKENS = 512
# What the head makes of a row at a time, and what is read of it.
HEAD_BYTES = 2 * 4 * 8192


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a plan needs to know of a model: sizes, and bytes per element of activations.

    `n_matrix_parameters` are those of blocks and head; `shares_prefix` says whether rows can attend to one prefix.
    """

    n_layers: int
    d_model: int
    d_vocab: int
    kv_bytes_per_token: int
    n_matrix_parameters: int
    itemsize: int
    shares_prefix: bool = True

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
    """Groups with the source passes and prompts that they need."""

    source_batches: tuple[tuple[SourcePass, ...], ...]
    prompts: tuple[Prompt, ...]
    groups: tuple[Group, ...]


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


def row_bytes(shape: ModelShape, own: int, run: int) -> int:
    """Bytes that one row takes at its peak: own keys and values, activations of the tokens that run, part of logits."""
    return shape.kv_bytes_per_token * own + 32 * shape.d_model * shape.itemsize * run + HEAD_BYTES
