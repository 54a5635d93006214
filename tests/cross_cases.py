"""What tests of cross-model share: two tiny models, prose in a folder, and runners with a plan."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import families
from odd_tokenizers import MAKERS, shipped
from patchscopes.data import DataSet, Relation, load_prose, load_relations
from patchscopes.mappings import Transfer
from patchscopes.models import Model, wrap_in_memory
from patchscopes.plan import Plan
from patchscopes.spec import Cell, Result, State
from patchscopes.studies.cross_model import design
from study_cases import Saying, long_hf, long_model, text_of

TOKENS = (" cat", " hello", " Spain", " Wales", " capital")
SMALL = replace(
    design.QUICK,
    compared=0.5, held_out=0.2, fitted=0.3, n_sentences=60, n_passages=18,
    relations=("country capital", "country language"), n_asked=24, n_both=6, n_target_only=3, max_new_tokens=4,
)  # fmt: skip
IDENTITY = "cat -> cat"


def source_model() -> Model:
    """M: 8 layers, of which the small grid reads 0, 1 and 3."""
    return long_model(8)


@cache
def target_model(seed: int = 3) -> Model:
    """M*: other weights, 6 layers, of which it writes at 0, 2 and 6; the same tokenizer, so that a runner can read."""
    return wrap_in_memory(long_hf(6, seed), families.tiny_tokenizer())


@cache
def other_family() -> Model:
    """Another family, width and tokenizer, of 4 layers, of which the small grid writes at 0, 1 and 4."""
    return wrap_in_memory(families.build("qwen3"), shipped(MAKERS["trimmed"]()))


@cache
def relations() -> DataSet[Relation]:
    """Our own relations, read once."""
    return load_relations()


@cache
def some_prose() -> tuple[str, ...]:
    """Passages that are not long."""
    texts = (passage.text for passage in load_prose().items)
    return tuple(text for text in texts if 120 < len(text) < 200 and text.isascii() and "{}" not in text)


def prose(folder: Path, *, n_files: int = 10, n_each: int = 6) -> Path:
    """Passages of a folder, a section a file, and a file that has none."""
    passages = some_prose()
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n_files):
        some = passages[k * n_each : (k + 1) * n_each]
        (folder / f"{k:02}.txt").write_text("\n\n".join(some) + "\n", encoding="utf-8")
    (folder / "short.txt").write_text("Too short.\n", encoding="utf-8")
    return folder


def drawn(text: str, n: int) -> int:
    return hashlib.sha256(text.encode()).digest()[0] % n


def source_says(text: str) -> str:
    """The source's own next token of a text; for one in nine it is the end."""
    return "<eos>" if drawn("end" + text, 9) == 0 else TOKENS[drawn(text, len(TOKENS))]


def target_reads(text: str) -> str:
    """What the target says next when it reads the text itself: the same for about half."""
    return source_says(text) if drawn("half" + text, 2) else " ->"


@cache
def answers() -> dict[str, dict[str, str]]:
    """By the beginning of a prompt, the object of each subject."""
    chosen = [relation for relation in relations().items if relation.name in SMALL.relations]
    return {
        relation.prompt_templates[0].replace("{}", ""): {fact.subject: fact.object for fact in relation.facts}
        for relation in chosen
    }


def known(model: Model, subject: str) -> bool:
    """Whether the model gives a subject's object from text: the target three of four, the source two of three."""
    return drawn("target" + subject, 4) > 0 if model is not source_model() else drawn("source" + subject, 3) > 0


Knows = Callable[[Transfer, Cell, State], bool]  # whether this state, written there, says what is its own


def nowhere(*_: object) -> bool:
    return False


def at(kind: str, pairs: Sequence[tuple[int, int]]) -> Knows:
    """The states read and written at `pairs` through maps of `kind`."""

    def knows(transfer: Transfer, cell: Cell, state: State) -> bool:
        through = transfer.mappings is not None and transfer.mappings.kind == kind
        return through and cell.write is not None and (state.layer, cell.write.site.layer) in pairs

    return knows


class Planned(Saying):
    """A Runner of one transfer: both models read and know as above; a written state says its own where `knows`.

    Everywhere else next tokens are drawn by the cell, or nothing is named.
    """

    def __init__(self, transfer: Transfer, tokens: Knows, facts: Knows) -> None:
        super().__init__(self.said, lambda *_: -1.0)
        self.transfer, self.tokens, self.facts = transfer, tokens, facts

    def said(self, cell: Cell) -> str:
        vector = cell.write.vectors[0] if cell.write else None
        state = vector if isinstance(vector, State) else None
        if cell.readout.kind == "next-token":
            return self.next_token(cell, state)
        prompt = text_of(cell.target_ids)
        for start, objects in answers().items():
            if prompt.startswith(start):
                return f" is {self.named(cell, state, prompt[len(start) :], objects) or 'not said'}."
        return " nothing."

    def next_token(self, cell: Cell, state: State | None) -> str:
        prompt = text_of(cell.target_ids)
        if not prompt.startswith(IDENTITY):  # it reads the text itself
            return source_says(prompt) if self.transfer.target is source_model() else target_reads(prompt)
        if state is not None and self.tokens(self.transfer, cell, state):
            return source_says(text_of(state.ids))
        return (*TOKENS, " ->", " the", " of", " is", " country")[drawn(cell.identity(), len(TOKENS) + 5)]

    def named(self, cell: Cell, state: State | None, phrase: str, objects: dict[str, str]) -> str | None:
        if cell.write is None:
            return objects.get(phrase) if known(self.transfer.target, phrase) else None
        if state is None or not self.facts(self.transfer, cell, state):
            return None
        source = text_of(state.ids)
        return next((answer for subject, answer in objects.items() if source.endswith(f" {subject}")), None)


class Interrupted(Planned):
    """The same, which stops as Ctrl-C does after so many cells over all runners that share `left`."""

    left: list[int]

    def run(self, plan: Plan) -> Iterator[Result]:
        for result in super().run(plan):
            if not self.left[0]:
                raise KeyboardInterrupt
            self.left[0] -= 1
            yield result


def planned(tokens: Knows = nowhere, facts: Knows = nowhere) -> Callable[[Model | Transfer], Planned]:
    """What a study takes as its runner."""
    return lambda given: Planned(Transfer.of(given), tokens, facts)
