"""What tests of studies share: a tiny model with room for long prompts, made-up entities, and runners with a plan."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import families
from data_files import write
from patchscopes.models import Model, wrap_in_memory
from patchscopes.plan import Plan, Speed
from patchscopes.spec import Cell, Ids, Result, State

CARRIER = "All of them were talking about "
N_LAYERS = 8
SPEED = Speed(1e-3, 1e-5, 1e-4, 1e-4, 1e-2, 1e-4)  # of no machine: studies time the model, which takes a second

_STARTS = (
    "bal", "cor", "dun", "fen", "gil", "hob", "jum", "kel", "lor", "mip", "nar", "pov", "ruk", "sil", "tam", "vex",
)  # fmt: skip
# Words that the tiny model says, and `babble`. Each entity has one of them among its keywords.
SPOKEN = ("hello", "cat", "Spain", "Wales", "capital", "1135")
KINDS = ("person", "place", "work")
N_PER_KIND = 16


@cache
def long_model(n_layers: int = N_LAYERS, seed: int = 7) -> Model:
    """A tiny random Llama whose context holds the library's prompts in single bytes."""
    return wrap_in_memory(long_hf(n_layers, seed), families.tiny_tokenizer())


@cache
def long_hf(n_layers: int = N_LAYERS, seed: int = 7) -> hf.PreTrainedModel:
    """The same as transformers has it."""
    config = hf.LlamaConfig(
        vocab_size=len(families.tiny_tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=n_layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=families.BOS_ID,
        eos_token_id=None, pad_token_id=families.PAD_ID,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    families._draw_weights(model, torch.Generator().manual_seed(seed), 1.75)
    return model


def made_up(n_per_kind: int = N_PER_KIND) -> list[dict[str, Any]]:
    """Entities of three kinds: half with a misleading part and a shorter form; each with a keyword of its own."""
    entries = []
    for number, kind in enumerate(KINDS):
        for k in range(n_per_kind):
            stem = f"{_STARTS[k]}{'aeo'[number]}"
            entry = {
                "name": f"Ombra {stem.title()}",
                "type": kind,
                "tier": 1 + k % 3,
                "description": f"A {kind} by the name of nothing, {stem}like.",
                "keywords": [f"{stem}like", SPOKEN[(k * 5 + number) % len(SPOKEN)]],
                "type_keywords": ["a sort of thing"],
                "where": "an atlas of nowhere",
            }
            if k % 2 == 0:
                entry |= {"part": "Ombra", "part_keywords": ["shadow"], "bare": stem.title()}
            entries.append(entry)
    return entries


def broken() -> list[dict[str, Any]]:
    """Five that loading leaves out, one that an inspection prompt speaks of, and two of a kind with too few."""
    whole = made_up(1)[0]
    good = {key: value for key, value in whole.items() if key not in ("part", "part_keywords", "bare")}
    return [
        {**good, "name": "Nobody", "type": "ghost"},
        {**good, "name": "Nowhere", "tier": 9},
        {**good, "name": "Mute", "keywords": []},
        {**good, "name": "Echo Hall", "keywords": ["echo"]},
        whole,
        {**good, "name": "Leaky", "keywords": ["Middle East"]},
        {**good, "name": "Fair One", "type": "event"},
        {**good, "name": "Fair Two", "type": "event"},
    ]


def data_file(folder: Path, *, n_per_kind: int = N_PER_KIND, more: Sequence[dict[str, Any]] = ()) -> Path:
    """A file of made-up entities, and `more`."""
    return write(folder / "entities.json", [*made_up(n_per_kind), *more])


def one_kind(folder: Path, n: int = N_PER_KIND) -> Path:
    """A file of `n` made-up entities of one kind: as few as a study can do with are 12."""
    return write(folder / "entities.json", [entry for entry in made_up(n) if entry["type"] == KINDS[0]])


def text_of(ids: Sequence[int]) -> str:
    """The text of a source prompt."""
    return str(families.tiny_tokenizer().decode(list(ids)))


class Saying:
    """A Runner that runs no model: `say` gives a cell's text, `score` the ln p of a candidate's ids."""

    def __init__(self, say: Callable[[Cell], str], score: Callable[[Cell, Ids], float]) -> None:
        self.say, self.score = say, score
        self.cells: list[Cell] = []

    def run(self, plan: Plan) -> Iterator[Result]:
        """A text or log-probabilities for each cell."""
        for index, cell in enumerate(plan.cells):
            self.cells.append(cell)
            if cell.readout.kind == "candidates":
                found = tuple(self.score(cell, ids) for ids in cell.candidates)
                yield Result(index, None, None, None, logprobs=found)
            else:
                text = self.say(cell)
                yield Result(index, text, tuple(families.tiny_tokenizer().encode(text)), "length")


def babbling(salt: str) -> Saying:
    """Two words that a hash of the cell picks: what is said depends on the write, but knows nothing of the entity."""

    def drawn(cell: Cell) -> bytes:
        return hashlib.sha256((salt + cell.identity()).encode()).digest()

    def say(cell: Cell) -> str:
        return f": {SPOKEN[drawn(cell)[0] % len(SPOKEN)]} and {SPOKEN[drawn(cell)[1] % len(SPOKEN)]}"

    return Saying(say, lambda cell, ids: -(1 + drawn(cell)[2] / 256) * (1 + sum(ids) % 7))


def planted(entries: Sequence[dict[str, Any]], layers: Sequence[int]) -> Saying:
    """The entity's own keyword wherever its own state at one of `layers` is written, else nothing of use.

    There its description has ln p −1, every other candidate −3.
    """
    own = {CARRIER + entry["name"]: entry for entry in entries}

    def found(cell: Cell) -> dict[str, Any] | None:
        vector = cell.write.vectors[0] if cell.write else None
        return own.get(text_of(vector.ids)) if isinstance(vector, State) and vector.layer in layers else None

    def say(cell: Cell) -> str:
        entry = found(cell)
        return f": {entry['keywords'][0]}" if entry else ": nothing at all"

    def score(cell: Cell, ids: Ids) -> float:
        entry = found(cell)
        return -1.0 if entry and text_of(ids).strip() == entry["description"] else -3.0

    return Saying(say, score)


class Failing(Saying):
    """Babble that breaks for the states of two entities."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(babbling("a").say, babbling("a").score)
        self.names = names

    def run(self, plan: Plan) -> Iterator[Result]:
        for result in super().run(plan):
            vector = getattr(plan.cells[result.index].write, "vectors", (None,))[0]
            own = isinstance(vector, State) and text_of(vector.ids).endswith(self.names)
            yield Result(result.index, None, None, None, failure="logits not finite\nat step 3") if own else result
