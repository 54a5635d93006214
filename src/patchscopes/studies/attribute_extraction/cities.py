"""Capitals and largest cities: is the capital told from the largest city, in countries where they differ?

Both relations are read from the same states; only the inspection prompt differs. A state that holds "city of this
country" and nothing more would give the same city to both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from patchscopes.analysis.matching import fold, matches
from patchscopes.data import Fact, Relation
from patchscopes.results import Results
from patchscopes.spec import Row
from patchscopes.studies.attribute_extraction.design import Case, Design
from patchscopes.studies.attribute_extraction.outcome import Outcome, Placement
from patchscopes.studies.setup import Stage
from patchscopes.studies.texts import Table

CAPITAL, LARGEST = "country capital", "country largest city"


@dataclass(frozen=True)
class Pair:
    """The two relations over the countries that are in both, `facts` in the same order."""

    capital: Case
    largest: Case

    @property
    def cases(self) -> tuple[Case, Case]:
        """Both."""
        return self.capital, self.largest

    @property
    def differing(self) -> list[int]:
        """The countries whose largest city is not the capital, aliases considered."""
        pairs = enumerate(zip(self.capital.facts, self.largest.facts, strict=True))
        return [k for k, (a, b) in pairs if not {fold(x) for x in a.answers} & {fold(x) for x in b.answers}]


def pair_of(relations: Sequence[Relation], outcomes: Mapping[str, Outcome], cap: int) -> Pair | None:
    """The pair over the countries of both, those where the cities differ first; None unless both were run."""
    by_name = {relation.name: relation for relation in relations}
    if CAPITAL not in outcomes or LARGEST not in outcomes:
        return None
    capitals = {fact.subject: fact for fact in by_name[CAPITAL].facts}
    largest = {fact.subject: fact for fact in by_name[LARGEST].facts}
    both = [subject for subject in capitals if subject in largest]
    both.sort(key=lambda s: fold(capitals[s].object) == fold(largest[s].object))
    some = both[:cap]

    def case(outcome: Outcome, facts: Mapping[str, Fact]) -> Case:
        return Case(outcome.case.relation, outcome.case.prompt, tuple(facts[subject] for subject in some))

    return Pair(case(outcomes[CAPITAL], capitals), case(outcomes[LARGEST], largest))


def stages(design: Design, pair: Pair, outcomes: Mapping[str, Outcome]) -> list[Stage]:
    """Both relations at every placement that one of their folds chose."""
    found = []
    for case in pair.cases:
        for source, target in outcomes[case.name].grid.placements:
            sweep = design.cell_sweep(case, (source, target), ("unpatched", "shuffled", "phrase-only"))
            found.append(Stage(f"cities/{case.slug}-{source}-{target}", sweep))
    return found


def table(pair: Pair, outcomes: Mapping[str, Outcome], results: Mapping[str, Results]) -> pd.DataFrame:
    """A country and relation a line: the right answer, the other relation's, and what the texts say, held out."""
    rows = []
    for case, other in (pair.cases, pair.cases[::-1]):
        outcome = outcomes[case.name]
        tables = {
            place: Table.of(results[f"cities/{case.slug}-{place[0]}-{place[1]}"], case.prompt.label, len(case.facts))
            for place in outcome.grid.placements
        }
        for k, fact in enumerate(case.facts):
            place = _placement(outcome, fact)
            found = tables[place]
            row, text = found.rows.get((None, k, place, 0)), found.rows.get(("phrase-only", k, (None, None), 0))
            if row is None:
                continue
            rows.append(_line(case, (fact, other.facts[k]), row, text) | {"known": _known(outcome, fact)})
    frame = pd.DataFrame(rows)
    frame["differ"] = frame.apply(lambda line: fold(line["expected"]) != fold(line["other"]), axis=1)
    return frame


def _line(case: Case, facts: tuple[Fact, Fact], row: Row, text: Row | None) -> dict[str, object]:
    fact, other = facts
    said = row.text or ""
    return {
        "country": fact.subject, "relation": case.name, "expected": fact.object, "other": other.object,
        "source_layer": row.source_layer, "target_layer": row.target_layer,
        "right": matches(said, fact.answers), "says_other": matches(said, other.answers), "text": said,
        "right_as_text": None if text is None else matches(text.text or "", fact.answers),
    }  # fmt: skip


def _placement(outcome: Outcome, fact: Fact) -> Placement:
    """The placement that was chosen without this country; where it was in no fold, the one that most folds chose."""
    for k, item in enumerate(outcome.grid.items):
        if outcome.case.facts[item].subject == fact.subject:
            return outcome.placement(k)
    return outcome.grid.placements[0]


def _known(outcome: Outcome, fact: Fact) -> bool:
    return any(known.subject == fact.subject for known in outcome.case.facts)
