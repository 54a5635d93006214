"""The filter: a fact is run only if the model itself gives the object from text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from patchscopes.analysis.matching import fold
from patchscopes.data import Exclusion
from patchscopes.results import Results
from patchscopes.studies.attribute_extraction.design import FEWEST, Design
from patchscopes.studies.relations import Case, known_facts

SINGLE_CLASS = "a relation with a single class: nothing to tell apart"


def known_cases(
    design: Design, cases: Sequence[Case], results: Mapping[str, Results]
) -> tuple[list[Case], list[Exclusion]]:
    """The cases with the facts that are known, as many as there is room for; what is left out, and why."""
    kept, excluded = [], []
    for case in cases:
        known, unknown = known_facts(case, results[case.name])
        excluded.extend(unknown)
        most = min(design.most(case), len(known))
        # What can be copied is reported apart, and takes no room from what cannot.
        clean, leaking = ([fact for fact in known if fact.leaks == leaks] for leaks in (False, True))
        reason = f"beyond the {most} known facts of a relation that are run"
        excluded.extend(case.without(fact, reason) for fact in (*clean[most:], *leaking[most:]))
        facts = [*clean[:most], *leaking[:most]]
        if len(clean) < FEWEST:
            reason = f"a relation of which the model knows fewer than {FEWEST} facts"
            excluded.extend(case.without(fact, reason) for fact in facts)
        elif len({fold(fact.object) for fact in clean[:most]}) < 2:
            excluded.extend(case.without(fact, SINGLE_CLASS) for fact in facts)
        else:
            kept.append(replace(case, facts=tuple(facts)))
    return kept, excluded
