"""The study itself: choose, run, score, report."""

import time
from collections import Counter
from typing import Unpack

from patchscopes.data import Exclusion, load_entities
from patchscopes.errors import DataError
from patchscopes.models import Model
from patchscopes.results import Results
from patchscopes.studies.choice import choose_layers
from patchscopes.studies.entities import FEWEST, PROMPTS
from patchscopes.studies.entity_resolution.design import Design
from patchscopes.studies.entity_resolution.findings import Scored, all_findings, curve_table, entity_table
from patchscopes.studies.entity_resolution.page import figures, page
from patchscopes.studies.entity_resolution.popularity import name_logprobs
from patchscopes.studies.entity_resolution.walkthrough import walkthrough
from patchscopes.studies.report import Report, findings_table, provenance_of
from patchscopes.studies.setup import Setup, StudyOptions
from patchscopes.studies.texts import Table

NAME = "entity-resolution"


def run(model: Model, **options: Unpack[StudyOptions]) -> Report:
    """Run the study on `model` (see `patchscopes.studies.setup.StudyOptions`) and return its report.

    Raises DataError for data that cannot be used, and StoreError where `out` holds a run of something else.
    """
    began = time.monotonic()
    setup = Setup.of(model, options)
    data = load_entities(setup.data)
    design = Design.of(setup, data.items)
    if not design.reported:
        raise DataError(
            f"{data.source} has {len(data.items)} entities, and no type with {2 * FEWEST} of them: half of them "
            f"choose, half "
            f"are reported, and each half needs {FEWEST}. What was left out: {data.counts() or 'nothing'}."
        )
    setup.announce([design.choice(), *design.stages(design.target_candidates[-1], design.stepped[0])])
    choice = choose_layers(setup.run(design.choice()), design.choosing, design.target_candidates, design.stepped)
    setup.tell(
        f"chosen on {len(design.choosing)} entities that are not reported: ℓ* = {choice.target_layer}, ℓ = "
        f"{choice.headline}"
    )
    results = {stage.name: setup.run(stage) for stage in design.stages(choice.target_layer, choice.headline)}
    items, lost = _complete(design, results)
    scored = Scored(design, choice, results, items, name_logprobs(setup, [design.reported[item] for item in items]))
    findings = all_findings(scored)
    excluded = [*data.excluded, *design.excluded, *lost]
    notes = _notes(design)
    curves = curve_table(scored)
    report = Report(
        study=NAME,
        findings=findings,
        excluded=excluded,
        tables={
            "findings": findings_table(findings),
            "curves": curves,
            "entities": entity_table(scored),
            "choice": choice.table,
        },
        figures=figures(scored, curves, findings),
        pages={
            "page": page(scored, findings, Counter(exclusion.reason for exclusion in excluded), notes),
            "walk": walkthrough(scored),
        },
        provenance=provenance_of(
            setup,
            data={"name": data.name, "source": data.source, "sha256": data.sha256},
            design={
                "reported": [entity.name for entity in design.reported],
                "choosing": [entity.name for entity in design.choosing],
                "target_layer": choice.target_layer,
                "headline_layer": choice.headline,
                "prompts": list(PROMPTS),
            },
            began=began,
        ),
        notes=notes,
    )
    if setup.out is not None:
        report.write(setup.out)
    return report


def _complete(design: Design, results: dict[str, Results]) -> tuple[tuple[int, ...], list[Exclusion]]:
    """The entities that have every result of the main stages; the others with the reason why not."""
    lost: dict[int, str] = {}
    for stage in ("same", "fixed", "controls"):
        for prompt in PROMPTS:
            for item, reason in Table.of(results[stage], prompt, len(design.reported)).missing.items():
                lost.setdefault(item, reason)
    kept = tuple(item for item in range(len(design.reported)) if item not in lost)
    if not kept:
        raise DataError(f"no entity has all results; the first failed because: {next(iter(lost.values()))}")
    excluded = [Exclusion(design.reported[item].name, reason.splitlines()[0]) for item, reason in lost.items()]
    return kept, excluded


def _notes(design: Design) -> list[str]:
    """What the design leaves out by rule."""
    scale = design.scale
    not_run = design.seen - len(design.choosing) - len(design.reported)
    notes = [
        f"ℓ runs from 0 to {design.n_layers - 1}: at the last layer a write reaches only its own position",
        f"random, random-state, mean and zero are run at ℓ = {', '.join(map(str, design.coarse()))} and the "
        f"headline's, "
        "through the first prompt; ℓ* = ℓ through the first prompt too",
        f"ℓ* was chosen among {', '.join(map(str, design.target_candidates))}, at every {scale.step}. ℓ, which "
        f"surprisals, bare names and short forms are read at",
        f"texts are {scale.max_new_tokens} tokens long, and cut where they go on to another entity",
    ]
    if not_run:
        notes.append(
            f"--quick: {not_run} of {design.seen} entities were not run, half of those run have a misleading part"
        )
    return notes
