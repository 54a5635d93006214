"""The study itself: read the prose, fit, compare next tokens, ask for facts, score, report."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Unpack

import pandas as pd

from patchscopes.data import DataSet, Exclusion, Passage, load_prose, load_relations
from patchscopes.errors import OptionError
from patchscopes.mappings import LINEAR, Mappings
from patchscopes.models import Model
from patchscopes.models.pull import pulled_weights
from patchscopes.models.registry import DEFAULT_MODEL, REGISTRY, RegistryEntry
from patchscopes.settings import Settings
from patchscopes.studies.cross_model.design import DRAWS, FEWEST, N_FOLDS, Design
from patchscopes.studies.cross_model.facts import FEWEST_OF_RELATION, Facts, cases_of, known_cases, run_facts
from patchscopes.studies.cross_model.findings import all_findings
from patchscopes.studies.cross_model.maps import Maps, fit_seconds, fitted_maps, map_table, on_subjects, stand_ins
from patchscopes.studies.cross_model.names import asked_names, sentences
from patchscopes.studies.cross_model.next_tokens import WHERE, NextTokens, compared, run_next_tokens
from patchscopes.studies.cross_model.openings import FIRST, LAST, Texts, deal
from patchscopes.studies.cross_model.page import figures, page
from patchscopes.studies.cross_model.tables import (
    fact_table,
    item_table,
    next_token_table,
    passage_table,
    relation_table,
)
from patchscopes.studies.cross_model.tokens import Vocabulary
from patchscopes.studies.cross_model.walkthrough import N_SHOWN, walkthrough
from patchscopes.studies.relations import Case
from patchscopes.studies.report import Report, findings_table, left_out, provenance_of
from patchscopes.studies.setup import Setup, Stage, StudyOptions

NAME = "cross-model"
LESS = "less by facts that the target does not know, and where folds choose one placement: often half of it"


def usual_target(model: Model, settings: Settings) -> str:
    """The model that states of `model` are written into where none is given: the first of the registry that it is not.

    It is one of them that has its name or its original's, as a path or a hub id has it too, or its weights, where that
    one is pulled. (Where it is not, `run` compares weights once more.) Raises OptionError where it is all of them.
    """
    names = tuple(dict.fromkeys((DEFAULT_MODEL, *REGISTRY)))
    for name in names:
        if not _is(model, REGISTRY[name], settings):
            return name
    raise OptionError(
        f"each of {', '.join(names)} is {model.id}, by name or by weights: say which model states are written "
        "into, as target_model (--target-model)."
    )


def _is(model: Model, entry: RegistryEntry, settings: Settings) -> bool:
    """Whether `model` is that of the registry, or another version of it: "./smollm2-135m", "…/SmolLM2-135M"."""
    called = Path(model.id).absolute().name.casefold()
    names = entry.name, PurePosixPath(entry.hub_id).name
    return called.startswith(tuple(map(str.casefold, names))) or (
        pulled_weights(entry.name, settings) == model.fingerprint
    )


def run(model: Model, **options: Unpack[StudyOptions]) -> Report:
    """Run the study from `model` to the option `target_model` (see `patchscopes.studies.setup.StudyOptions`).

    `data` is prose, of which maps are fitted on one part and next tokens compared on another. Raises OptionError
    without another model as target, DataError and MappingError for prose that cannot be used and maps of other weights,
    and StoreError where `out` holds a run of something else.
    """
    began = time.monotonic()
    setup = Setup.across(model, options)
    design = Design.of(setup)
    data = load_prose(setup.data)
    scale = design.scale
    shares = scale.compared, scale.held_out, scale.fitted
    texts = deal((design.source, design.target), data, shares, n_most=scale.n_passages, fewest=FEWEST, seed=setup.seed)
    relations = load_relations()
    names = asked_names(relations.items, setup.seed)
    about, clashing = sentences(relations.items, names, scale.n_sentences, setup.seed)
    cases, excluded = cases_of(design, relations.items, names, texts.fit)
    fit = (*texts.fit, *about)
    setup.announce(_most(design, texts, cases), less=LESS, fitting_s=fit_seconds(design, (*fit, *texts.held_out)))
    maps = fitted_maps(design, fit, texts.held_out)
    said = Vocabulary(design.target)
    found = compared(design, texts.openings, (Vocabulary(design.source), said))
    tokens, lost = run_next_tokens(design, maps, found, said)
    known, unknown = known_cases(design, cases)
    facts, failed = run_facts(design, maps, known)
    left = [*data.excluded, *texts.excluded, *found.excluded, *lost]
    left += [*clashing, *relations.excluded, *excluded, *unknown, *failed]
    report = _report(Outcome(design, data, texts, maps, tokens, facts, tuple(left)), began)
    if setup.out is not None:
        report.write(setup.out)
    return report


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that goes into the report; `facts` is None where too few are known."""

    design: Design
    data: DataSet[Passage]
    texts: Texts
    maps: Maps
    tokens: NextTokens
    facts: Facts | None
    excluded: tuple[Exclusion, ...]


def _most(design: Design, texts: Texts, cases: Sequence[Case]) -> list[Stage]:
    """The stages if every passage and fact were run and each fold chose another placement: what it costs at most."""
    maps, openings, scale = stand_ins(design), texts.openings, design.scale
    stages = [design.reads(model, openings) for model in (design.source, design.target)]
    stages += [design.next_grid(openings, maps[kind]) for kind in LINEAR]
    stages.append(design.next_own(openings))
    place = design.placements(design.inner_targets)[-1]
    mappings: Mappings = maps[place.kind]
    stages.append(replace(design.next_noise(openings, mappings, place), times=2))  # in all, for both ℓ*
    stages.append(replace(design.next_mean(openings, mappings, place), times=2 * N_FOLDS))
    stages.append(design.walk_next(openings[:N_SHOWN], mappings))
    for case in cases:
        stages += [design.asked(model, case) for model in (design.source, design.target)]
        some = replace(case, facts=case.facts[: scale.n_both + scale.n_target_only])
        if len(some.facts) < FEWEST_OF_RELATION:
            continue
        stages += [design.fact_grid(some, maps[kind]) for kind in LINEAR]
        stages += [design.fact_own(some), design.fact_noise(some, mappings, place)]
        stages.append(replace(design.fact_mean(some, mappings, place), times=N_FOLDS))
    if cases:
        stages.append(design.walk_fact(replace(cases[0], facts=cases[0].facts[:N_SHOWN]), mappings))
    return stages


def _report(found: Outcome, began: float) -> Report:
    design, tokens, facts = found.design, found.tokens, found.facts
    findings = all_findings(tokens, facts)
    cases = [ran.case for ran in facts.ran] if facts is not None else []
    notes = _notes(found)
    tables = {
        "findings": findings_table(findings),
        "maps": map_table(found.maps, on_subjects(design, found.maps, cases)),
        "next-tokens": next_token_table(tokens),
        "passages": passage_table(tokens),
    }
    if facts is not None:
        tables |= {"facts": fact_table(facts), "items": item_table(facts), "relations": relation_table(facts)}
    tables["excluded"] = pd.DataFrame([asdict(e) for e in found.excluded], columns=["item", "reason", "kind"])
    return Report(
        study=NAME,
        findings=findings,
        excluded=found.excluded,
        tables=tables,
        figures=figures(findings, tables),
        pages={
            "page": page(design, findings, tables, _left_out(found, notes)),
            "walk": walkthrough(tokens, facts, found.maps),
        },
        provenance=provenance_of(design.setup, data=found.data, design=_described(found), began=began),
        notes=[*found.data.notes, *notes],
    )


def _left_out(found: Outcome, notes: Sequence[str]) -> list[str]:
    """What was left out of the prose and of the facts, and by the design, as lists for the page."""
    prose, others = (
        Counter(exclusion.reason for exclusion in found.excluded if (exclusion.kind == "passage") == of_prose)
        for of_prose in (True, False)
    )
    return [
        *("Of the prose:", "", *left_out(prose, found.data.notes), ""),
        *("Of the facts and the sentences about names:", "", *left_out(others, []), ""),
        *("By the design:", "", *(f"- {note}" for note in notes)),
    ]


def _described(found: Outcome) -> dict[str, object]:
    """The design as plain JSON, with the maps by their hash and what they were fitted on."""
    design, tokens, facts = found.design, found.tokens, found.facts
    ran = facts.ran if facts is not None else ()
    return {
        "sources": list(design.sources),
        "targets": list(design.targets),
        "maps": {kind: mappings.describe() for kind, mappings in found.maps.items()},
        "placements": {where: [str(place) for place in tokens.places(where)] for where in WHERE}
        | {"facts": [str(place) for place in facts.places] if facts is not None else []},
        "relations": {one.case.name: list(one.case.subjects) for one in ran},
    }


def _notes(found: Outcome) -> list[str]:
    """What the design leaves out by rule."""
    design, scale = found.design, found.design.scale
    notes = [
        "ℓ = 0 is in tables and figures, and never chosen: the state there is the token itself, the text of one token",
        f"the grid has ℓ = {', '.join(map(str, design.sources))} of {design.source.id} and "
        f"ℓ* = {', '.join(map(str, design.targets))} of {design.target.id}; facts are not written at the last ℓ*, from "
        "where nothing is read of them",
        f"next tokens: one place a passage, token {FIRST} to {LAST}; facts: at most {scale.n_both} of a relation that "
        f"both models know and {scale.n_target_only} that the target alone knows; texts are {scale.max_new_tokens} "
        "tokens long, as were those that decided what a model knows",
        f"random, random-state and mean: at the chosen placements alone, {DRAWS} draws (mean: one)",
        f"relations of our own that are asked for: {', '.join(scale.relations)}",
    ]
    if found.facts is None:
        notes.append(f"no facts are reported: fewer than {FEWEST} subjects are left that the target knows from text")
    return notes
