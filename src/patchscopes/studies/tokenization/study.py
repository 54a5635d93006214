"""The study itself: choose, run, score, report."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Unpack

from patchscopes.data import Exclusion, load_entities
from patchscopes.errors import DataError
from patchscopes.models import Model
from patchscopes.results import Results
from patchscopes.studies.choice import choose_layers
from patchscopes.studies.entities import too_few, without
from patchscopes.studies.report import Report, findings_table, left_out, provenance_of
from patchscopes.studies.setup import Setup, StudyOptions
from patchscopes.studies.texts import Table
from patchscopes.studies.tokenization import tables
from patchscopes.studies.tokenization.design import PROMPT, Design
from patchscopes.studies.tokenization.detokenised import SPLIT_WORD, detokenise
from patchscopes.studies.tokenization.findings import Scored, all_findings, lost_forms
from patchscopes.studies.tokenization.forms import FORMS
from patchscopes.studies.tokenization.page import figures, page
from patchscopes.studies.tokenization.walkthrough import walkthrough

NAME = "tokenization"


def run(model: Model, **options: Unpack[StudyOptions]) -> Report:
    """Run the study on `model` (see `patchscopes.studies.setup.StudyOptions`) and return its report.

    Raises DataError for data that cannot be used, and StoreError where `out` holds a run of something else.
    """
    began = time.monotonic()
    setup = Setup.of(model, options)
    data = load_entities(setup.data)
    design = Design.of(setup, data.items)
    if not design.names:
        raise too_few(data, design.excluded)
    setup.announce(
        [design.choice(), design.choice_same(), *design.stages(design.target_candidates[-1], design.stepped[0])]
    )
    choice, missing = choose_layers(design, same=True)
    results = {stage.name: setup.run(stage) for stage in design.stages(choice.target_layer, choice.headline)}
    items, lost = _complete(design, results)
    scored = Scored(design, choice, results, items, detokenise(design, tell=setup.tell))
    findings, curves = all_findings(scored), tables.curve_table(scored)
    excluded = [*data.excluded, *design.excluded, *missing, *scored.words.excluded, *lost, *lost_forms(scored)]
    notes = [*data.notes, *_notes(design)]
    report = Report(
        study=NAME,
        findings=findings,
        excluded=excluded,
        tables={
            "findings": findings_table(findings),
            "curves": curves,
            "names": tables.name_table(scored),
            "forms": tables.form_table(scored),
            "words": tables.word_table(scored),
            "neighbours": tables.neighbour_table(scored),
            "choice": scored.choice.table,
        },
        figures=figures(scored, curves, findings),
        pages={
            "page": page(scored, findings, left_out(_reasons(excluded), notes)),
            "walk": walkthrough(scored),
        },
        provenance=provenance_of(
            setup,
            data=data,
            design={
                "reported": [name.entity.name for name in design.names],
                "choosing": list(choice.chose),
                "target_layer": scored.choice.target_layer,
                "headline_layer": scored.choice.headline,
                "prompt": PROMPT,
                "forms": {form: [made.source.text for made in some] for form, some in design.forms.items()},
            },
            began=began,
        ),
        notes=notes,
    )
    if setup.out is not None:
        report.write(setup.out)
    return report


def _complete(design: Design, results: dict[str, Results]) -> tuple[tuple[int, ...], list[Exclusion]]:
    """The names that have every result of their own and of their controls; the others with the reason why not."""
    lost: dict[int, str] = {}
    for stage in ("names", "controls"):
        for item, reason in Table.of(results[stage], PROMPT, len(design.names)).missing.items():
            lost.setdefault(item, reason)
    kept = tuple(item for item in range(len(design.names)) if item not in lost)
    if not kept:
        raise DataError(f"no name has all results; the first failed because: {next(iter(lost.values()))}")
    return kept, without([name.entity for name in design.names], lost)


def _reasons(excluded: Sequence[Exclusion]) -> Counter[str]:
    """How often each reason holds; of what is left out of one part alone, with its name."""
    parts = (*FORMS, SPLIT_WORD)
    of = [next((part for part in parts if one.item.endswith(f": {part}")), None) for one in excluded]
    return Counter(
        one.reason if part is None else f"{part}: {one.reason}" for part, one in zip(of, excluded, strict=True)
    )


def _notes(design: Design) -> list[str]:
    """What the design leaves out by rule."""
    scale = design.scale
    notes = [
        f"ℓ runs from 0 to {design.n_layers - 1}: at the last layer a write reaches only its own position",
        f"other forms are read at ℓ = {', '.join(map(str, design.form_layers))}, so that no resolution layer, which "
        "needs neighbouring ℓ, is given for them",
        f"one inspection prompt, {PROMPT}; random and random-state are run at the headline's ℓ alone",
        f"ℓ* was chosen among {', '.join(map(str, design.target_candidates))} and ℓ itself, at every {scale.step}. ℓ",
        f"texts are {scale.max_new_tokens} tokens long, and cut where they go on to another entity",
        f"neighbours are listed for {scale.n_shown} names",
    ]
    not_run = design.seen - len(design.choosing) - len(design.names)
    if design.setup.quick and not_run:
        notes.append(f"--quick: {not_run} of {design.seen} entities were not run")
    return notes
