"""Names: half of them stand in sentences that maps are fitted on, and of the other half facts are asked.

Prose alone may have no names in it (Python's topics have hardly any), and a map that has seen none takes the state of a
name to something else. So sentences about names are fitted on too. No name, and no sentence's wording, is both
fitted on and asked for, be it in one of those sentences or in the prose.
"""

from collections.abc import Sequence

from patchscopes.analysis.matching import fold, matches
from patchscopes.data import Exclusion, Passage, Relation
from patchscopes.rng import philox

FITTED = "the subject is one of those in the sentences that maps are fitted on"
IN_PROSE = "the subject stands in the prose that maps are fitted on"
ASKED = "a name that is asked for stands in a sentence to fit on"


def asked_names(relations: Sequence[Relation], seed: int) -> frozenset[str]:
    """The half of all subjects that facts may be asked of, as they are compared; a name is on one side everywhere."""
    names = sorted({fold(fact.subject) for relation in relations for fact in relation.facts})
    order = philox("names", seed).permutation(len(names))
    return frozenset(names[k] for k in order[: len(names) // 2])


def names_in(names: frozenset[str], prose: Sequence[Passage]) -> frozenset[str]:
    """Those of `names` that stand in the prose, as whole words."""
    text = "\n".join(passage.text for passage in prose)
    return frozenset(name for name in names if matches(text, (name,)))


def sentences(
    relations: Sequence[Relation], asked: frozenset[str], n_most: int, seed: int
) -> tuple[tuple[Passage, ...], tuple[Exclusion, ...]]:
    """At most `n_most` sentences about the other names, a section a name: every name once, then once more, and so on.

    They are the relations' other source sentences; a fact is asked in the carrier.
    """
    frames: dict[str, dict[str, None]] = {}
    spelled: dict[str, str] = {}
    for relation in relations:
        for fact in relation.facts:
            if fold(fact.subject) not in asked:
                spelled.setdefault(fold(fact.subject), fact.subject)
                frames.setdefault(fold(fact.subject), {}).update(dict.fromkeys(relation.contexts_of(fact)))
    carriers = {relation.carrier for relation in relations}
    found: list[Passage] = []
    excluded: list[Exclusion] = []
    names = sorted(frames)
    order = [names[k] for k in philox("sentences", seed).permutation(len(names))]
    rounds = max(map(len, frames.values()), default=0)
    for number in range(rounds):
        for name in order:
            some = [frame for frame in frames[name] if frame not in carriers]
            if number >= len(some) or len(found) == n_most:
                continue
            drawn = philox("frames", seed, name).permutation(len(some))
            text = f"{some[drawn[number]].replace('{}', spelled[name])}."
            if matches(text, tuple(asked)):
                excluded.append(Exclusion(text, ASKED, "context"))
            else:
                found.append(Passage(text, f"name: {name}"))
    return tuple(found), tuple(excluded)
