"""Texts about entities → hits and scores, by entity and layer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.matching import matches
from patchscopes.analysis.resolution import hits, resolution_layers
from patchscopes.analysis.scores import control_adjusted, rouge_l
from patchscopes.data import Entity
from patchscopes.prompts import find_prompt
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
    """Scores 1 where the answer holds one of the entity's `words` that it cannot have copied."""
    listed = [tuple(words(entity)) for entity in entities]

    def score(item: int, row: Row) -> float:
        assert row.prompt is not None
        return float(matches(answer_of(row), uncopied(listed[item], entities[item].name, row.prompt)))

    return score


@lru_cache(maxsize=1 << 16)
def uncopied(words: tuple[str, ...], name: str, prompt: str) -> tuple[str, ...]:
    """Those of `words` that stand neither in the name nor in the inspection prompt (rule 18)."""
    before = (name, find_prompt(prompt).text)
    return tuple(word for word in words if not any(matches(text, [word]) for text in before))


def describing(entities: Sequence[Entity]) -> Score:
    """Scores RougeL of the answer against the entity's description."""
    return lambda item, row: rouge_l(answer_of(row).strip(" :,\n"), entities[item].description)


# What a text may be asked for: words of a description of this entity, of anything of its kind, of the misleading part
# of its name; or how near it comes to the description.
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
        """Hits by rule 23 (item, layer): own, absent without a write, and of at most one donor.

        The first layer, ℓ 0, counts for nothing: there the state is the token itself, the name as text.
        """
        found = hits(self.own > 0, self.unpatched > 0, self.donors > 0)
        found[:, 0] = False
        return found

    @property
    def donor_hits(self) -> NDArray[np.bool_]:
        """The same of each donor's state in the cell's stead: (item, draw, layer), of at most one of the others."""
        draws = range(self.donors.shape[1])
        others = [np.delete(self.donors, draw, axis=1) > 0 for draw in draws]
        found = np.stack(
            [hits(self.donors[:, k] > 0, self.unpatched > 0, rest) for k, rest in enumerate(others)], axis=1
        )
        found[:, :, 0] = False
        return found

    def among(self, items: Sequence[int]) -> "Curves":
        """Those of some items."""
        return Curves(self.own[items], self.donors[items], self.unpatched[items])


def ever_resolved(donor_hits: NDArray[np.bool_], layers: Sequence[int]) -> NDArray[np.float64]:
    """Hits of donors (item, draw, ℓ) → the share of its donors with a resolution layer, by item."""
    by_draw = [
        [layer.first is not None for layer in resolution_layers(donor_hits[:, draw], layers)]
        for draw in range(donor_hits.shape[1])
    ]
    share: NDArray[np.float64] = np.array(by_draw, dtype=float).mean(axis=0)
    return share


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
