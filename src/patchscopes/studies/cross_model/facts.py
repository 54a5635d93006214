"""Facts: does the target say the object when the source's state of the subject is written into its own prompt?

Both models are asked for each fact as text first. Run are the facts that the target gives; of these the source gives
some too, and others it does not know: what is said there must be the target's own knowledge, and the state has only
told it of which subject.

Axes: item (a fact with all results, relation after relation), placement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchscopes.analysis.matching import fold
from patchscopes.analysis.scores import majority_of_others
from patchscopes.cached import cached_property
from patchscopes.data import Exclusion, Fact, Passage, Relation
from patchscopes.mappings import LINEAR, Kind
from patchscopes.results import Results
from patchscopes.studies.cross_model.design import DRAWS, FEWEST, Design, Placement
from patchscopes.studies.cross_model.maps import Maps
from patchscopes.studies.cross_model.names import FITTED, IN_PROSE, names_in
from patchscopes.studies.cross_model.placed import (
    OWN_STATE,
    TOKEN,
    Beside,
    Floats,
    HeldOut,
    Placed,
    drawn_at,
    own_at,
)
from patchscopes.studies.relations import (
    UNKNOWN,
    Case,
    known_facts,
    naming,
    prompt_of,
    shuffled_facts,
    source,
    unreadable,
)
from patchscopes.studies.texts import Table

FEWEST_OF_RELATION = DRAWS + 1  # each subject needs so many donors
COPIED = "the answer can be copied from the subject, the sentence or a template"
FREQUENT = "the most frequent answer"
TARGET_LACKS = "the target model does not give the object from text"


@dataclass(frozen=True)
class Known:
    """A relation with facts that the target gives from text; `both` are the subjects of those that the source gives."""

    case: Case
    both: frozenset[str]


def cases_of(
    design: Design, relations: Sequence[Relation], names: frozenset[str], prose: Sequence[Passage]
) -> tuple[list[Case], list[Exclusion]]:
    """The relations to ask for, each with a prompt that works on both models and as many facts as are asked.

    Facts are asked of `names` alone, and of none that stands in the `prose` that maps are fitted on.
    """
    cases, excluded, read = [], [], names_in(names, prose)
    for relation in (relation for relation in relations if relation.name in design.scale.relations):
        facts = shuffled_facts(design.setup, relation)
        prompt = prompt_of(relation, (design.source, design.target))
        if prompt is None:
            reason = "no template of the relation has room for a one-token placeholder on both models"
            excluded += [Exclusion(f"{relation.name}: {fact.subject}", reason) for fact in facts]
            continue
        case = Case(relation, prompt, ())
        usable: list[Fact] = []
        for fact in facts:
            if reason := _unusable(design, case, fact, names, read):
                excluded.append(case.without(fact, reason))
            elif len(usable) == design.scale.n_asked:
                reason = f"beyond the {design.scale.n_asked} facts of a relation that the models are asked for"
                excluded.append(case.without(fact, reason))
            else:
                usable.append(fact)
        if usable:
            cases.append(replace(case, facts=tuple(usable)))
    return cases, excluded


def _unusable(design: Design, case: Case, fact: Fact, names: frozenset[str], read: frozenset[str]) -> str:
    """Why a fact is not asked for; "" where it can be."""
    if fold(fact.subject) not in names:
        return FITTED
    if fold(fact.subject) in read:
        return IN_PROSE
    if fact.leaks:
        return COPIED
    sentence = source(case, fact)
    return unreadable(design.source, sentence) or unreadable(design.target, sentence)


def known_cases(design: Design, cases: Sequence[Case]) -> tuple[list[Known], list[Exclusion]]:
    """Ask both models for all facts; those that the target gives, as many as there is room for."""
    kept, excluded = [], []
    for case in cases:
        by_target, unknown = known_facts(case, design.setup.run(design.asked(design.target, case)))
        excluded += [replace(e, reason=TARGET_LACKS if e.reason == UNKNOWN else e.reason) for e in unknown]
        by_source, _ = known_facts(case, design.setup.run(design.asked(design.source, case)))
        both = [fact for fact in by_target if fact in by_source]
        alone = [fact for fact in by_target if fact not in by_source]
        scale = design.scale
        excluded += _beyond(case, both[scale.n_both :], f"the {scale.n_both} of a relation that both models know")
        excluded += _beyond(
            case, alone[scale.n_target_only :], f"the {scale.n_target_only} of a relation that the target alone knows"
        )
        facts = (*both[: scale.n_both], *alone[: scale.n_target_only])
        if len(facts) < FEWEST_OF_RELATION:
            reason = f"a relation of which the target knows fewer than {FEWEST_OF_RELATION} facts"
            excluded += [case.without(fact, reason) for fact in facts]
        else:
            kept.append(Known(replace(case, facts=facts), frozenset(fact.subject for fact in both)))
    return kept, excluded


def _beyond(case: Case, facts: Sequence[Fact], room: str) -> list[Exclusion]:
    return [case.without(fact, f"beyond {room}, which are run") for fact in facts]


@dataclass(frozen=True)
class Ran:
    """What was run of a relation; `items` are the numbers of its facts that have every result."""

    known: Known
    grids: Mapping[Kind, Table]
    own: Table
    items: tuple[int, ...]

    @property
    def case(self) -> Case:
        """The relation and its facts."""
        return self.known.case

    @property
    def facts(self) -> list[Fact]:
        """Those that have every result."""
        return [self.case.facts[item] for item in self.items]


@dataclass(frozen=True)
class Facts:
    """All stages of all relations. Arrays have the items of one relation after those of another."""

    design: Design
    ran: tuple[Ran, ...]
    beside: dict[str, dict[Placement, Beside]]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Whose facts they are, over whom intervals are made: a country of three relations is one."""
        return tuple(fact.subject for ran in self.ran for fact in ran.facts)

    @cached_property
    def placed(self) -> Placed:
        """The hits of all items at all placements."""
        places = self.design.placements(self.design.inner_targets)
        parts = [Placed.of(ran.grids, naming(ran.case), ran.items, places) for ran in self.ran]
        return Placed.joined(parts, self.subjects, self.design.setup.seed)

    def among(self, kinds: Sequence[Kind] = LINEAR) -> list[int]:
        """The placements, by number, that may be chosen."""
        return self.placed.eligible(kinds=kinds, targets=self.design.inner_targets)

    @property
    def places(self) -> list[Placement]:
        """The placements that some fold chose, the most frequent first."""
        chosen = self.placed.chosen(self.among())
        return [self.placed.placements[k] for k in chosen.most_frequent]

    @cached_property
    def held_out(self) -> HeldOut:
        """The hits at the placements that were chosen without each subject, beside every control."""
        found = HeldOut.of(self.placed, self.placed.chosen(self.among()))
        parts = []
        for ran, at in zip(self.ran, self.slices, strict=True):
            places, score = found.places[at], naming(ran.case)
            own = own_at(ran.own, score, ran.items, places)
            parts.append(drawn_at(self.beside[ran.case.name], score, ran.items, places) | {OWN_STATE: own})
        more = {control: np.concatenate([part[control] for part in parts]) for control in parts[0]}
        tokens = self.placed.chosen(self.placed.of_tokens(self.design.inner_targets))
        return found.along(more | {TOKEN: tokens.of(self.placed.own), FREQUENT: self.majority()})

    @property
    def slices(self) -> list[slice]:
        """Where each relation's items stand."""
        ends = np.cumsum([len(ran.items) for ran in self.ran]).tolist()
        return [slice(end - len(ran.items), end) for ran, end in zip(self.ran, ends, strict=True)]

    def group(self, which: str) -> list[int]:
        """The items that both models know, or that the target alone knows."""
        known = [fact.subject in ran.known.both for ran in self.ran for fact in ran.facts]
        return [k for k, by_both in enumerate(known) if by_both == (which == "both")]

    def majority(self) -> Floats:
        """What always saying the relation's most frequent object of the other folds scores."""
        parts = []
        for ran, at in zip(self.ran, self.slices, strict=True):
            objects = [fold(fact.object) for fact in ran.facts]
            accepted = [ran.case.accepts(item) for item in ran.items]
            parts.append(majority_of_others(objects, accepted, self.placed.folds[at]))
        return np.concatenate(parts)


def run_facts(design: Design, maps: Maps, known: Sequence[Known]) -> tuple[Facts | None, list[Exclusion]]:
    """Run the grids, choose placements, run what stands beside them; None where too few facts have all results."""
    run, excluded, kept = design.setup.run, [], []
    for one in known:
        case = one.case
        grids = {kind: _table(case, run(design.fact_grid(case, maps[kind]))) for kind in LINEAR}
        own = _table(case, run(design.fact_own(case)))
        lost = {item: why.splitlines()[0] for table in (*grids.values(), own) for item, why in table.missing.items()}
        rows = [row for (control, *_), row in own.rows.items() if control is None and "leaked" in row.flags]
        lost |= {row.source_index: COPIED for row in rows if row.source_index is not None}
        excluded += [case.without(case.facts[item], why) for item, why in lost.items()]
        items = tuple(item for item in range(len(case.facts)) if item not in lost)
        if items:
            kept.append(Ran(one, grids, own, items))
    facts = Facts(design, tuple(kept), {})
    if len(set(facts.subjects)) < FEWEST:
        reason = f"fewer than {FEWEST} subjects, among which no placement can be chosen"
        return None, [*excluded, *(ran.case.without(fact, reason) for ran in kept for fact in ran.facts)]
    chosen = facts.placed.chosen(facts.among()).placement
    for ran, at in zip(kept, facts.slices, strict=True):
        case, places = ran.case, [facts.placed.placements[k] for k in chosen[at]]
        facts.beside[case.name] = {}
        for place in dict.fromkeys(places):
            items = tuple(item for item, its in zip(ran.items, places, strict=True) if its == place)
            some = replace(case, facts=tuple(case.facts[item] for item in items))
            noise = _table(some, run(design.fact_noise(some, maps[place.kind], place)))
            mean = _table(case, run(design.fact_mean(case, maps[place.kind], place)))
            facts.beside[case.name][place] = Beside(items, noise, mean)
    return facts, excluded


def _table(case: Case, results: Results) -> Table:
    return Table.of(results, case.prompt.label, len(case.facts))
