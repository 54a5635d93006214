"""The filter: a fact is run only if the model itself gives the object from text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from patchscopes.analysis.matching import fold, matches
from patchscopes.data import Exclusion, Fact
from patchscopes.results import Results
from patchscopes.studies.attribute_extraction.design import FEWEST, Case, Design
from patchscopes.studies.texts import Table

SINGLE_CLASS = "a relation with a single class: nothing to tell apart"


def known_cases(
    design: Design, cases: Sequence[Case], results: Mapping[str, Results]
) -> tuple[list[Case], list[Exclusion]]:
    """The cases with the facts that are known, as many as there is room for; what is left out, and why."""
    kept, excluded = [], []
    for case in cases:
        known, unknown = _split(case, results[case.name])
        excluded.extend(unknown)
        most = min(design.most(case), len(known))
        # What can be copied is reported apart, and takes no room from what cannot.
        clean, leaking = ([fact for fact in known if fact.leaks == leaks] for leaks in (False, True))
        reason = f"beyond the {most} known facts of a relation that are run"
        excluded.extend(_left(case, fact, reason) for fact in (*clean[most:], *leaking[most:]))
        facts = [*clean[:most], *leaking[:most]]
        if len(clean) < FEWEST:
            reason = f"a relation of which the model knows fewer than {FEWEST} facts"
            excluded.extend(_left(case, fact, reason) for fact in facts)
        elif len({fold(fact.object) for fact in clean[:most]}) < 2:
            excluded.extend(_left(case, fact, SINGLE_CLASS) for fact in facts)
        else:
            kept.append(replace(case, facts=tuple(facts)))
    return kept, excluded


def _split(case: Case, results: Results) -> tuple[list[Fact], list[Exclusion]]:
    """The facts whose object the model gives from text, and the others."""
    table = Table.of(results, case.prompt.label, len(case.facts))
    known, excluded = [], []
    for index, fact in enumerate(case.facts):
        row = table.rows.get(("phrase-only", index, (None, None), 0))
        if index in table.missing or row is None:
            reason = (table.missing.get(index) or "the subject as text could not be run").splitlines()[0]
            excluded.append(_left(case, fact, reason))
        elif matches(row.text or "", fact.answers):
            known.append(fact)
        else:
            excluded.append(_left(case, fact, "the model does not give the object from text"))
    return known, excluded


def _left(case: Case, fact: Fact, reason: str) -> Exclusion:
    return Exclusion(f"{case.name}: {fact.subject}", reason)
