"""Texts about entities → hits and scores, by entity and layer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.matching import matches
from patchscopes.analysis.resolution import hits
from patchscopes.analysis.scores import control_adjusted, rouge_l
from patchscopes.data import Entity
from patchscopes.results import Results
from patchscopes.spec import Row
from patchscopes.studies.entities import DRAWS
from patchscopes.studies.texts import Place, Score, Table

# Where the answer about the entity ends and the model goes on to others, as the prompt's own examples do.
ENDS = {
    "entity-description": re.compile(r",\s+[^,:]{1,60}:"),
    # A sentence's end, and no abbreviation's: "U.S.", "J. S. Bach", "St. Petersburg".
    "sentence-description": re.compile(r"(?<!\b[A-Z])(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)[.!?](\s|$)"),
    "question-description": re.compile(r"\n"),
}


def answer_of(row: Row) -> str:
    """The part of a text that is about the entity."""
    text = row.text or ""
    end = ENDS[row.prompt].search(text) if row.prompt in ENDS else None
    return text[: end.start()] if end else text


def naming(entities: Sequence[Entity], words: Callable[[Entity], Sequence[str]]) -> Score:
    """Scores 1 where the answer holds one of the entity's `words`."""
    return lambda item, row: float(matches(answer_of(row), words(entities[item])))


def describing(entities: Sequence[Entity]) -> Score:
    """Scores RougeL of the answer against the entity's description."""
    return lambda item, row: rouge_l(answer_of(row).strip(" :,\n"), entities[item].description)


# What a text may be asked for: words of a description of this entity alone, of anything of its kind, of the misleading
# part of its name; or how near it comes to the description.
SCORES: Mapping[str, Callable[[Sequence[Entity]], Score]] = MappingProxyType(
    {
        "keyword": partial(naming, words=lambda entity: entity.keywords),
        "type": partial(naming, words=lambda entity: entity.type_keywords),
        "part": partial(naming, words=lambda entity: entity.part_keywords),
        "rouge_l": describing,
    }
)


def surprised(_: int, row: Row) -> float:
    """`answer_surprisal`, in nats."""
    assert row.answer_surprisal is not None
    return row.answer_surprisal


@dataclass(frozen=True)
class Curves:
    """A score by (item, layer): of the cells, their donors (item, draw, layer), the prompt as it is (item)."""

    own: NDArray[np.float64]
    donors: NDArray[np.float64]
    unpatched: NDArray[np.float64]

    @property
    def adjusted(self) -> NDArray[np.float64]:
        """The cells' scores minus the donors' mean (rule 17)."""
        return control_adjusted(self.own, self.donors)

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Hits by rule 23 (item, layer): own, absent without a write, and of at most one donor."""
        return hits(self.own > 0, self.unpatched > 0, self.donors > 0)

    def among(self, items: Sequence[int]) -> "Curves":
        """Those of some items."""
        return Curves(self.own[items], self.donors[items], self.unpatched[items])


def curves_of(table: Table, score: Score, items: Sequence[int], places: Sequence[Place]) -> Curves:
    """The score at every place, with the donors' and the unpatched prompt's."""
    return Curves(
        table.own(score, items, places),
        table.drawn("shuffled", score, items, places, DRAWS),
        table.once("unpatched", score, items),
    )


def tables_of(results: Results, prompts: Sequence[str], n_items: int) -> dict[str, Table]:
    """A table per inspection prompt."""
    return {prompt: Table.of(results, prompt, n_items) for prompt in prompts}


def places_of(layers: Sequence[int], target: int | None) -> list[Place]:
    """(ℓ, ℓ*) for each ℓ: ℓ* = ℓ where `target` is None."""
    return [(layer, layer if target is None else target) for layer in layers]
