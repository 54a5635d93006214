"""Capitals and largest cities: is the capital told from the largest city, in countries where they differ?

Both relations are read from the same states; only the inspection prompt differs. A state that holds "city of this
country" and nothing more would give the same city to both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from patchscopes.analysis.matching import fold, matches
from patchscopes.data import Exclusion, Fact
from patchscopes.results import Results
from patchscopes.studies.attribute_extraction.design import CAPITAL, DRAWS, LARGEST, Design
from patchscopes.studies.attribute_extraction.outcome import Outcome, Placement
from patchscopes.studies.relations import Case
from patchscopes.studies.setup import Stage
from patchscopes.studies.texts import Table


@dataclass(frozen=True)
class Pair:
    """The two relations over the countries that are in both, `facts` in the same order."""

    capital: Case
    largest: Case

    @property
    def cases(self) -> tuple[Case, Case]:
        """Both."""
        return self.capital, self.largest


def _same(capital: Fact, largest: Fact) -> bool:
    """Whether the largest city is the capital, aliases considered."""
    return not {fold(answer) for answer in capital.answers}.isdisjoint(fold(answer) for answer in largest.answers)


def pair_of(cases: Mapping[str, Case], cap: int) -> Pair:
    """The pair over the countries of both cases, those where the cities differ first, at most `cap`."""
    capitals = {fact.subject: fact for fact in cases[CAPITAL].facts}
    largest = {fact.subject: fact for fact in cases[LARGEST].facts}
    both = [subject for subject in capitals if subject in largest]
    some = sorted(both, key=lambda subject: _same(capitals[subject], largest[subject]))[:cap]

    def of(case: Case, facts: Mapping[str, Fact]) -> Case:
        return replace(case, facts=tuple(facts[subject] for subject in some))

    return Pair(of(cases[CAPITAL], capitals), of(cases[LARGEST], largest))


def stages(design: Design, case: Case, placements: Sequence[Placement]) -> list[Stage]:
    """A relation's countries at each of `placements`: those that one of its folds chose."""
    found = []
    for source, target in placements:
        sweep = design.cell_sweep(case, (source, target), ("unpatched", "shuffled", "phrase-only"))
        found.append(Stage(f"cities/{case.slug}-{source}-{target}", sweep))
    return found


def table(
    pair: Pair, outcomes: Mapping[str, Outcome], results: Mapping[str, Results]
) -> tuple[pd.DataFrame, list[Exclusion]]:
    """A country and relation a line: the right answer, the other relation's, and what the texts say, held out.

    `right` and `says_other` have beside them the same with other countries' states, a mean over draws. Countries whose
    state could not be written are left out, with the reason.
    """
    rows, excluded = [], []
    for case, other in (pair.cases, pair.cases[::-1]):
        outcome = outcomes[case.name]
        tables = {
            place: Table.of(results[f"cities/{case.slug}-{place[0]}-{place[1]}"], case.prompt.label, len(case.facts))
            for place in outcome.grid.placements
        }
        for k, fact in enumerate(case.facts):
            place = _placement(outcome, fact)
            if k in tables[place].missing:
                reason = f"cities: {tables[place].missing[k].splitlines()[0]}"
                excluded.append(Exclusion(f"{case.name}: {fact.subject}", reason, "country"))
            else:
                rows.append(_line(case, k, (fact, other.facts[k]), (tables[place], place)))
    return pd.DataFrame(rows), excluded


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of countries whose largest city is not the capital, where neither can be copied."""
    return table[table.differ & ~table.leaks] if len(table) else table


def _line(case: Case, k: int, facts: tuple[Fact, Fact], found: tuple[Table, Placement]) -> dict[str, object]:
    (fact, other), (rows, place) = facts, found
    row, as_text = rows.rows[None, k, place, 0], rows.rows["phrase-only", k, (None, None), 0]
    said = row.text or ""

    def shuffled(of: Fact) -> float:
        score = rows.drawn(
            "shuffled", lambda _, other_row: matches(other_row.text or "", of.answers), [k], [place], DRAWS
        )
        return float(score.mean())

    return {
        "country": fact.subject, "relation": case.name, "expected": fact.object, "other": other.object,
        "differ": not _same(fact, other), "leaks": fact.leaks or other.leaks or "leaked" in row.flags,
        "known": matches(as_text.text or "", fact.answers),
        "source_layer": row.source_layer, "target_layer": row.target_layer,
        "right": matches(said, fact.answers), "says_other": matches(said, other.answers),
        "right_shuffled": shuffled(fact), "says_other_shuffled": shuffled(other), "text": said,
    }  # fmt: skip


def _placement(outcome: Outcome, fact: Fact) -> Placement:
    """The placement that was chosen without this country; where it was in no fold, the one that most folds chose."""
    for k, item in enumerate(outcome.grid.items):
        if outcome.case.facts[item].subject == fact.subject:
            return outcome.placement(k)
    return outcome.grid.placements[0]
