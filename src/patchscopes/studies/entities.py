"""What studies of entities share: the carrier, who chooses and who is reported, the sentence that a name is read in.

Every name stands at the end of a carrier sentence, so that it is never the first token (rule 6). Donors are entities of
the same type. One part of the entities only chooses ℓ* and the ℓ of the headline; figures come from the others. The
same entities and seed are dealt alike in every study.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from patchscopes.analysis.matching import matches
from patchscopes.data import Entity, Exclusion
from patchscopes.prompts import find_prompt
from patchscopes.rng import philox
from patchscopes.spec import Source

CARRIER = "All of them were talking about {}"
# The first is the paper's and the one that chooses; the range over all three is rule 23's uncertainty.
PROMPTS = ("entity-description", "sentence-description", "question-description")
DRAWS = 5
FEWEST = DRAWS + 1  # of a type in a part: each needs so many donors

Thin = Callable[[Sequence[Entity], int | None], list[Entity]]


def first_of(entities: Sequence[Entity], n: int | None) -> list[Entity]:
    """The first `n`; all for None."""
    return list(entities if n is None else entities[:n])


@dataclass(frozen=True)
class Parts:
    """The entities that choose, those that are reported, those left out with the reason; `seen` before thinning."""

    choosing: tuple[Entity, ...]
    reported: tuple[Entity, ...]
    excluded: tuple[Exclusion, ...]
    seen: int

    @classmethod
    def deal(
        cls,
        entities: Sequence[Entity],
        *,
        n_choosing: int,
        n_reported: int | None,
        seed: int,
        thin: Thin = first_of,
    ) -> "Parts":
        """Deal the entities, types evenly; `thin` picks who is reported where that is not all of them (None)."""
        usable, excluded = usable_entities(entities)
        by_type: dict[str, list[Entity]] = {}
        for index in philox("entities", seed).permutation(len(usable)):
            by_type.setdefault(usable[index].type, []).append(usable[index])
        choosing: list[Entity] = []
        reported: list[Entity] = []
        for kind, group in by_type.items():
            if len(group) < 2 * FEWEST:
                reason = f"fewer than {2 * FEWEST} entities of its type: each part needs {DRAWS} donors"
                excluded.extend(Exclusion(entity.name, reason, "entity") for entity in group)
                by_type[kind] = []
                continue
            n = min(max(n_choosing // len(by_type), FEWEST), len(group) - FEWEST)
            choosing.extend(group[:n])
            most = None if n_reported is None else max(n_reported // len(by_type), FEWEST)
            reported.extend(thin(group[n:], most))
        return cls(tuple(choosing), tuple(reported), tuple(excluded), sum(map(len, by_type.values())))


def usable_entities(entities: Sequence[Entity]) -> tuple[list[Entity], list[Exclusion]]:
    """Entities that the inspection prompts do not already speak of, and the others."""
    usable, excluded = [], []
    texts = [find_prompt(name).text for name in PROMPTS]
    for entity in entities:
        if any(matches(text, (entity.name, *entity.keywords)) for text in texts):
            excluded.append(Exclusion(entity.name, "the name or a keyword stands in an inspection prompt", "entity"))
        else:
            usable.append(entity)
    return usable, excluded


def source(
    entity: Entity, *, name: str | None = None, carrier: str = CARRIER, candidates: tuple[str, ...] = ()
) -> Source:
    """The sentence whose last word is the entity (by another form where `name` is given), read at that word."""
    said = name or entity.name
    return Source(
        carrier.format(said),
        at=f"text:{said}",
        expect=entity.keywords,
        item=entity.name,
        kind=entity.type,
        candidates=candidates,
    )
