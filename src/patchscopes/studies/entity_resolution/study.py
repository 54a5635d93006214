"""The study itself: choose, run, score, report."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Unpack

from patchscopes.data import Exclusion, load_entities
from patchscopes.errors import DataError
from patchscopes.models import Model
from patchscopes.results import Results
from patchscopes.studies.choice import choose_layers
from patchscopes.studies.entities import PROMPTS, too_few, without
from patchscopes.studies.entity_resolution.design import Design
from patchscopes.studies.entity_resolution.findings import all_findings
from patchscopes.studies.entity_resolution.page import figures, page
from patchscopes.studies.entity_resolution.popularity import name_logprobs
from patchscopes.studies.entity_resolution.scored import Scored
from patchscopes.studies.entity_resolution.tables import curve_table, entity_table
from patchscopes.studies.entity_resolution.walkthrough import walkthrough
from patchscopes.studies.report import Report, findings_table, left_out, provenance_of
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
        raise too_few(data, design.excluded)
    names = name_logprobs(setup, design.reported)
    setup.announce([design.choice(), *design.stages(design.target_candidates[-1], design.stepped[0])])
    choice, missing = choose_layers(design)
    results = {stage.name: setup.run(stage) for stage in design.stages(choice.fixed, choice.headline)}
    items, lost = _complete(design, results)
    scored = Scored(design, choice, results, items, names)
    findings = all_findings(scored)
    excluded = [*data.excluded, *design.excluded, *missing, *lost]
    notes = [*data.notes, *_notes(design), *_copied(scored), *_gaps(design, results)]
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
            "page": page(scored, findings, left_out(Counter(exclusion.reason for exclusion in excluded), notes)),
            "walk": walkthrough(scored),
        },
        provenance=provenance_of(
            setup,
            data=data,
            design={
                "reported": scored.subjects,
                "choosing": list(choice.chose),
                "target_layer": choice.fixed,
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
    return kept, without(design.reported, lost)


def _gaps(design: Design, results: Mapping[str, Results]) -> list[str]:
    """Which entities lack a result of a further stage, and so are not in its findings alone."""
    further = {
        "bare": (PROMPTS[0], design.reported, "without a carrier"),
        "short": (PROMPTS[0], design.paired(), "in their short form"),
        "surprisal": (PROMPTS[2], design.described(), "by the surprise at their description"),
        "surprisal-controls": (PROMPTS[2], design.described(), "by that surprise beside random states"),
    }
    found = []
    for stage, (prompt, entities, how) in further.items():
        if stage in results and (missing := Table.of(results[stage], prompt, len(entities)).missing):
            why = next(iter(missing.values())).splitlines()[0]
            found.append(f"{len(missing)} of {len(entities)} entities are not scored {how}; of the first: {why}")
    return found


def _copied(scored: Scored) -> list[str]:
    """How many words are not searched for since they can be copied."""
    n, of = scored.n_copied, sum(len(e.type_keywords) + len(e.part_keywords) for e in scored.entities)
    what = "words of kinds and parts stand in the name or in an inspection prompt, and are not searched for there"
    return [f"{n} of {of} {what}"] if n else []


def _notes(design: Design) -> list[str]:
    """What the design leaves out by rule."""
    scale = design.scale
    not_run = design.seen - len(design.choosing) - len(design.reported)
    notes = [
        f"ℓ runs from 0 to {design.n_layers - 1}: at the last layer a write reaches only its own position",
        f"random, random-state, mean and zero are run at ℓ = {', '.join(map(str, design.coarse()))} and the "
        "headline's, through the first prompt; ℓ* = ℓ through the first prompt too",
        f"ℓ* was chosen among {', '.join(map(str, design.target_candidates))}, at every {scale.step}. ℓ, which bare "
        f"names and short forms are read at too; descriptions are scored at every {scale.surprisal_step}. ℓ, beside "
        f"random and random-state at the headline's ({scale.surprisal_draws} draws)",
        f"texts are {scale.max_new_tokens} tokens long, and cut where they go on to another entity",
    ]
    if not_run:
        n_parts = sum(entity.part is not None for entity in design.reported)
        notes.append(
            f"--quick: {not_run} of {design.seen} entities were not run; of the {len(design.reported)} reported, "
            f"{n_parts} have a misleading part"
        )
    return notes
