"""The study itself: ask both hops, run, score, report."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Unpack

import pandas as pd

from patchscopes.data import Composition, DataSet, Exclusion, compositions, load_relations
from patchscopes.errors import DataError
from patchscopes.models import Model
from patchscopes.studies.multi_hop.design import ENDINGS, FEWEST, METHODS, N_FOLDS, Design, Item, items_of
from patchscopes.studies.multi_hop.findings import all_findings
from patchscopes.studies.multi_hop.known import Said, if_all_known, known_items
from patchscopes.studies.multi_hop.outcome import Method, Outcome, Queries, table_of
from patchscopes.studies.multi_hop.page import figures, page
from patchscopes.studies.multi_hop.tables import grid_table, query_table, region_table, type_table
from patchscopes.studies.multi_hop.walkthrough import walkthrough
from patchscopes.studies.report import Finding, Report, findings_table, left_out, provenance_of
from patchscopes.studies.setup import Setup, Stage, StudyOptions
from patchscopes.studies.texts import Table

NAME = "multi-hop"
LESS = "less by the queries whose hops the model does not know, and where folds choose one placement"


def run(model: Model, **options: Unpack[StudyOptions]) -> Report:
    """Run the study on `model` (see `patchscopes.studies.setup.StudyOptions`) and return its report.

    Raises DataError for relations that cannot be composed, or of which the model knows too little, and StoreError where
    `out` holds a run of something else.
    """
    began = time.monotonic()
    setup = Setup.of(model, options)
    data = compositions(load_relations(setup.data))
    design = Design.of(setup)
    items, excluded = items_of(design, data.items)
    most = if_all_known(design, items)
    _check("there are", data, most, excluded)
    setup.announce([*_hops(design, items), *_most(design, most)], less=LESS)
    kept, unknown = known_items(design, items, Said.of(setup.run(stage) for stage in _hops(design, items)))
    excluded = [*data.excluded, *excluded, *unknown]
    _check(f"{model.id} knows both hops of", data, kept, excluded)
    outcome, lost = _outcome(design, kept)
    excluded += lost
    report = _report(outcome, data, excluded, began)
    if setup.out is not None:
        report.write(setup.out)
    return report


def _hops(design: Design, items: Sequence[Item]) -> list[Stage]:
    """Does the model give both hops from text?"""
    hops = {"first": [item.first_text for item in items], "second": [item.second_text for item in items]}
    return [
        design.text(f"{hop}-hops-{number}", [text + ending for text in texts], design.scale.max_new_tokens)
        for hop, texts in hops.items()
        for number, ending in enumerate(ENDINGS)
    ]


def _texts(design: Design, items: Sequence[Item]) -> dict[str, Stage]:
    """The queries as texts."""
    queries, long = [item.text for item in items], design.scale.long
    return {
        "plain": design.text("plain", queries, design.scale.max_new_tokens),
        **{name: design.text(name, [item.thinking[name] for item in items], long) for name in items[0].thinking},
        "plain-long": design.text("plain-long", queries, long),
    }


def _most(design: Design, run: Sequence[Item]) -> list[Stage]:
    """The stages on `run`, if each fold chose another placement: what they cost at most."""
    place = design.placements[-1]
    stages = list(_texts(design, run).values())
    for method in METHODS:
        chosen = design.chosen(method, run, place)
        stages += [design.grid(method, run), Stage(chosen.name, chosen.sweep, N_FOLDS)]
    return stages


def _check(what: str, data: DataSet[Composition], kept: Sequence[Item], excluded: Sequence[Exclusion]) -> None:
    n_bridges = len({item.subject for item in kept})
    if n_bridges < N_FOLDS:
        raise DataError(
            f"of {len(data.items)} compositions in {data.source}, {what} {len(kept)} queries "
            f"over {n_bridges} bridges, in types of at least {FEWEST}; {N_FOLDS} bridges are needed. What was "
            f"left out: {dict(Counter(exclusion.reason for exclusion in excluded))}."
        )


def _outcome(design: Design, kept: Sequence[Item]) -> tuple[Outcome, list[Exclusion]]:
    """Run the texts and both grids, then the other controls at the placements that folds chose."""
    setup, all_items = design.setup, tuple(kept)
    stages = _texts(design, all_items)
    said = {name: Said.of([setup.run(stage)]) for name, stage in stages.items()}
    tables = {name: table_of(design, name, all_items, setup.run(design.grid(name, all_items))) for name in METHODS}
    lost = _lost(all_items, said, list(tables.values()))
    excluded = [Exclusion(all_items[k].name, reason, "query") for k, reason in lost.items()]
    queries = Queries(design, all_items, tuple(k for k in range(len(all_items)) if k not in lost))
    if len(set(queries.subjects)) < N_FOLDS:
        raise DataError(
            f"of {len(all_items)} queries that are run, {len(queries.items)} over {len(set(queries.subjects))} bridges "
            f"have all of their results; {N_FOLDS} bridges are needed. What was lost: {dict(Counter(lost.values()))}."
        )
    methods = {}
    for name, table in tables.items():
        bare = Method(name, queries, table, {})
        chosen = {place: setup.run(design.chosen(name, all_items, place)) for place in bare.placements}
        methods[name] = Method(name, queries, table, chosen)
    hits = {name: queries.hits(found.texts, name) for name, found in said.items()}
    return Outcome(queries, methods, hits), excluded


def _lost(items: Sequence[Item], said: Mapping[str, Said], tables: Sequence[Table]) -> dict[int, str]:
    """Why queries have not all of their results, of the texts and of both methods, by number."""
    lost: dict[int, str] = {}
    for k, item in enumerate(items):
        reasons = [found.without([item.as_text(name)]) for name, found in said.items()]
        reasons += [table.missing[k].splitlines()[0] for table in tables if k in table.missing]
        if reason := next(filter(None, reasons), ""):
            lost[k] = reason
    return lost


def _report(outcome: Outcome, data: DataSet[Composition], excluded: Sequence[Exclusion], began: float) -> Report:
    findings: list[Finding] = all_findings(outcome)
    grid, regions, types = grid_table(outcome), region_table(outcome), type_table(outcome)
    notes = [*data.notes, *_notes(outcome)]
    design = outcome.queries.design
    counts = Counter(exclusion.reason for exclusion in excluded)
    return Report(
        study=NAME,
        findings=findings,
        excluded=excluded,
        tables={
            "findings": findings_table(findings),
            "grid": grid,
            "regions": regions,
            "types": types,
            "queries": query_table(outcome),
            "excluded": pd.DataFrame([asdict(e) for e in excluded], columns=["item", "reason", "kind"]),
        },
        figures=figures(findings, grid),
        pages={
            "page": page(outcome, findings, (regions, types), left_out(counts, notes)),
            "walk": walkthrough(outcome),
        },
        provenance=provenance_of(
            design.setup,
            data=data,
            design={
                "queries": [[item.type, item.query.subject] for item in outcome.queries.all],
                "sources": list(design.sources),
                "targets": list(design.targets),
                "placements": {name: [list(p) for p in m.placements] for name, m in outcome.methods.items()},
            },
            began=began,
        ),
        notes=notes,
    )


def _notes(outcome: Outcome) -> list[str]:
    """What the design leaves out by rule."""
    design = outcome.queries.design
    scale = design.scale
    asked = f"“{outcome.queries.all[0].text}”"
    return [
        f"queries end as this model is best asked, {asked}: of {len(ENDINGS)} endings the one after which it gives the "
        "most second hops; a first hop is known where it is given after any of them",
        f"the grid has ℓ = {', '.join(map(str, design.sources))} and ℓ* = {', '.join(map(str, design.targets))}; the "
        "last block's output is in no ℓ*: a write there reaches nothing that is read",
        f"at most {scale.n_queries} queries are run, dealt evenly over the types; a type needs {FEWEST} of them",
        f"random, random-state, mean, zero and self: at the chosen placements alone; {scale.max_new_tokens} new "
        f"tokens, as were those that decided what the model knows; {scale.long} where it thinks",
        "continents, currencies and languages repeat: the states of other queries of a type then hit as well",
    ]
