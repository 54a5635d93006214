"""The study itself: ask, run, score, report."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Unpack

import pandas as pd

from patchscopes.data import DataSet, Exclusion, Relation, load_relations
from patchscopes.errors import DataError
from patchscopes.models import Model
from patchscopes.results import Results
from patchscopes.studies.attribute_extraction import cities
from patchscopes.studies.attribute_extraction.design import FEWEST, N_FOLDS, UNCAPPED, Design, cases_of
from patchscopes.studies.attribute_extraction.findings import all_findings, told_apart
from patchscopes.studies.attribute_extraction.hits import Grid
from patchscopes.studies.attribute_extraction.known import SINGLE_CLASS, known_cases
from patchscopes.studies.attribute_extraction.outcome import Outcome, objects_of
from patchscopes.studies.attribute_extraction.page import figures, page
from patchscopes.studies.attribute_extraction.tables import grid_table, item_table, layer_table, relation_table
from patchscopes.studies.attribute_extraction.walkthrough import walkthrough
from patchscopes.studies.relations import Case
from patchscopes.studies.report import Finding, Report, findings_table, left_out, provenance_of
from patchscopes.studies.setup import Setup, Stage, StudyOptions

NAME = "attribute-extraction"
LESS = "less by the facts that the model does not know, and where folds choose one placement: often half of it"


def run(model: Model, **options: Unpack[StudyOptions]) -> Report:
    """Run the study on `model` (see `patchscopes.studies.setup.StudyOptions`) and return its report.

    Raises DataError for data that cannot be used, and StoreError where `out` holds a run of something else.
    """
    began = time.monotonic()
    setup = Setup.of(model, options)
    data = load_relations(setup.data)
    design = Design.of(setup, len(data.items))
    cases, excluded = cases_of(setup, data.items, design)
    setup.announce(_most(design, cases), less=LESS)
    known, unknown = known_cases(design, cases, {case.name: setup.run(design.asked(case)) for case in cases})
    excluded = [*data.excluded, *excluded, *unknown]
    outcomes, lost = _outcomes(design, known)
    excluded += lost
    if not outcomes:
        raise DataError(
            f"of no relation in {data.source} does {model.id} know {FEWEST} facts; what was left out: "
            f"{dict(Counter(exclusion.reason for exclusion in excluded))}."
        )
    table, told, lost = _cities(design, data, outcomes)
    excluded += lost
    findings = [*all_findings(outcomes, setup.seed), *told]
    report = _report(design, data, Outcomes(outcomes, findings, table, excluded), began)
    if setup.out is not None:
        report.write(setup.out)
    return report


def _most(design: Design, cases: Sequence[Case]) -> list[Stage]:
    """The stages if the model knew everything and each fold chose another placement: what the study costs at most."""
    stages = [design.asked(case) for case in cases]
    place = design.placements[-1]
    for case in cases:
        full = replace(case, facts=case.facts[: design.most(case)])
        if len(full.facts) < FEWEST:
            continue
        objects = tuple(dict.fromkeys(fact.object for fact in full.facts))[: design.scale.n_objects]
        stages += [design.grid(full), design.best_of(full)]
        contexts = [design.contexts(full, place, number) for number in range(design.scale.n_contexts)]
        stages += [replace(stage, times=N_FOLDS) for stage in (design.chosen(full, place), *contexts)]
        stages += [design.ranked(full, place[1], objects), design.ranked_controls(full, place, objects)]
    both = {case.name: case for case in cases if case.name in UNCAPPED}
    if len(both) == len(UNCAPPED):
        pair = cities.pair_of(both, design.scale.n_cities)
        for case in pair.cases:
            stages += [replace(stage, times=N_FOLDS) for stage in cities.stages(design, case, [place])]
    return stages


def _outcomes(design: Design, cases: Sequence[Case]) -> tuple[dict[str, Outcome], list[Exclusion]]:
    """Run all stages of every relation that still has enough facts after its grid."""
    found: dict[str, Outcome] = {}
    excluded: list[Exclusion] = []
    for case in cases:
        grid = Grid(design, case, design.setup.run(design.grid(case)))
        lost = {item: reason.splitlines()[0] for item, reason in grid.table.missing.items()}
        lost |= dict.fromkeys(grid.leaked_items, "leaked: reported apart")
        excluded.extend(Exclusion(f"{case.name}: {case.facts[k].subject}", reason) for k, reason in lost.items())
        too_few = f"a relation with fewer than {FEWEST} facts whose answer cannot be copied"
        if reason := too_few if len(grid.items) < FEWEST else SINGLE_CLASS if grid.n_classes < 2 else "":
            excluded.extend(Exclusion(f"{case.name}: {subject}", reason) for subject in grid.subjects)
            continue
        found[case.name] = _outcome(grid)
        excluded.extend(found[case.name].contexts_left_out())
    return found, excluded


def _outcome(grid: Grid) -> Outcome:
    """Run what stands beside a grid: controls at the chosen placements, contexts, ranks."""
    design, case, run_stage = grid.design, grid.case, grid.design.setup.run
    objects = objects_of(grid, design.scale.n_objects)
    places = grid.placements
    contexts: dict[tuple[int, tuple[int, int]], Results] = {}
    for number in range(design.scale.n_contexts):
        for place in places:
            contexts[number, place] = run_stage(design.contexts(case, place, number))
    return Outcome(
        grid=grid,
        best_of=run_stage(design.best_of(case)),
        chosen={place: run_stage(design.chosen(case, place)) for place in places},
        contexts=contexts,
        objects=objects,
        ranked=run_stage(design.ranked(case, places[0][1], objects)),
        ranked_controls=run_stage(design.ranked_controls(case, places[0], objects)),
    )


def _cities(
    design: Design, data: DataSet[Relation], outcomes: Mapping[str, Outcome]
) -> tuple[pd.DataFrame | None, list[Finding], list[Exclusion]]:
    """Capitals and largest cities of all countries, where both relations were run."""
    if not set(UNCAPPED) <= set(outcomes):
        return None, [], []
    relations = {relation.name: relation for relation in data.items}
    pair = cities.pair_of(
        {n: replace(outcomes[n].case, facts=relations[n].facts) for n in UNCAPPED}, design.scale.n_cities
    )
    stages = [
        stage for case in pair.cases for stage in cities.stages(design, case, outcomes[case.name].grid.placements)
    ]
    table, lost = cities.table(pair, outcomes, {stage.name: design.setup.run(stage) for stage in stages})
    return table, told_apart(table, design.setup.seed), lost


@dataclass(frozen=True, slots=True)
class Outcomes:
    """All that goes into the report."""

    by_relation: Mapping[str, Outcome]
    findings: Sequence[Finding]
    cities: pd.DataFrame | None
    excluded: Sequence[Exclusion]


def _report(design: Design, data: DataSet[Relation], found: Outcomes, began: float) -> Report:
    outcomes, findings, table = found.by_relation, found.findings, found.cities
    notes = [*data.notes, *_notes(design)]
    layers, grid = layer_table(outcomes, design.setup.seed), grid_table(outcomes, design.setup.seed)
    counts = Counter(exclusion.reason for exclusion in found.excluded)
    tables = {
        "findings": findings_table(findings),
        "relations": relation_table(outcomes, findings),
        "grid": grid,
        "layers": layers,
        "items": item_table(outcomes),
        "learning": pd.concat([outcome.probe.curve for outcome in outcomes.values()]),
        "excluded": pd.DataFrame([asdict(e) for e in found.excluded], columns=["item", "reason", "kind"]),
    }
    if table is not None:
        tables["cities"] = table
    return Report(
        study=NAME,
        findings=findings,
        excluded=found.excluded,
        tables=tables,
        figures=figures(outcomes, findings, layers, grid),
        pages={
            "page": page(design, outcomes, findings, (grid, table), left_out(counts, notes)),
            "walk": walkthrough(outcomes),
        },
        provenance=provenance_of(
            design.setup,
            data=data,
            design={
                "relations": {name: list(outcome.case.subjects) for name, outcome in outcomes.items()},
                "sources": list(design.sources),
                "targets": list(design.targets),
                "placements": {name: [list(p) for p in outcome.grid.placements] for name, outcome in outcomes.items()},
            },
            began=began,
        ),
        notes=notes,
    )


def _notes(design: Design) -> list[str]:
    """What the design leaves out by rule."""
    scale = design.scale
    uncapped = "" if design.setup.quick else " (capitals and largest cities: all)"
    return [
        "ℓ = 0 is in tables and figures, and never chosen or averaged: written at ℓ* = 0 it is the token as text",
        f"the grid has ℓ = {', '.join(map(str, design.sources))} and ℓ* = {', '.join(map(str, design.targets))}",
        f"at most {design.cap} known facts of a relation are run{uncapped}, so that the whole stays near "
        f"{scale.n_total}",
        f"the best over ℓ* of random, random-state, mean and zero: at ℓ = {', '.join(map(str, design.coarse))}, for "
        f"{scale.n_coarse} facts of a relation, one draw; at the chosen placement: all facts, 5 draws",
        f"other source sentences: at most {scale.n_contexts}, at the chosen placements; texts are "
        f"{scale.max_new_tokens} tokens long, as were those that decided what the model knows",
        f"at most {scale.n_objects} objects of a relation are ranked; probes at ℓ = "
        f"{', '.join(map(str, design.probed))}",
    ]
