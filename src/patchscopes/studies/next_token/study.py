"""The study itself: deal, fit, run, score, report."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Unpack

import pandas as pd

from patchscopes.data import DataSet, Exclusion, Passage, load_prose
from patchscopes.mappings import Mappings
from patchscopes.models import Model
from patchscopes.studies.next_token.design import IDENTITY, LABELS, Design
from patchscopes.studies.next_token.findings import all_findings
from patchscopes.studies.next_token.fits import fit_lenses, fitting_s
from patchscopes.studies.next_token.page import figures, page
from patchscopes.studies.next_token.pairs import Paired, pair_findings, pair_table, run_pairs
from patchscopes.studies.next_token.passages import MAX_POSITION, MIN_POSITION
from patchscopes.studies.next_token.readings import Readings, read
from patchscopes.studies.next_token.tables import ahead_table, control_table, curve_table, map_table, place_table
from patchscopes.studies.next_token.walkthrough import walkthrough
from patchscopes.studies.report import Finding, Report, findings_table, left_out, provenance_of
from patchscopes.studies.setup import Setup, StudyOptions

NAME = "next-token"


def run(model: Model, **options: Unpack[StudyOptions]) -> Report:
    """Run the study on `model` (see `patchscopes.studies.setup.StudyOptions`) and return its report.

    Raises DataError or MappingError for too little text, and StoreError where `out` holds a run of something else.
    """
    began = time.monotonic()
    setup = Setup.of(model, options)
    data = load_prose(setup.data)
    design = Design.of(setup, data)
    setup.announce(design.stages(), fitting_s=fitting_s(design))
    lenses = fit_lenses(design)
    readings = read(design, lenses)
    paired = run_pairs(readings)
    findings = [*all_findings(readings), *pair_findings(paired)]
    report = _report(data, Outcome(readings, paired, lenses, findings), began)
    if setup.out is not None:
        report.write(setup.out)
    return report


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that goes into the report."""

    readings: Readings
    paired: Paired
    lenses: Mapping[str, Mappings | None]
    findings: Sequence[Finding]


def _report(data: DataSet[Passage], outcome: Outcome, began: float) -> Report:
    readings, design = outcome.readings, outcome.readings.design
    excluded: list[Exclusion] = [
        *data.excluded, *design.dealt.excluded, *readings.excluded, *outcome.paired.excluded
    ]  # fmt: skip
    notes = [*data.notes, *_notes(design), *_fitted(outcome.lenses)]
    counts = Counter(exclusion.reason for exclusion in excluded)
    tables = {
        "findings": findings_table(outcome.findings),
        "curves": curve_table(readings),
        "ahead": ahead_table(readings),
        "controls": control_table(readings),
        "pairs": pair_table(outcome.paired),
        "maps": map_table(outcome.lenses),
        "places": place_table(readings),
        "excluded": pd.DataFrame([asdict(e) for e in excluded], columns=["item", "reason", "kind"]),
    }
    return Report(
        study=NAME,
        findings=outcome.findings,
        excluded=excluded,
        tables=tables,
        figures=figures(tables),
        pages={
            "page": page(readings, outcome.findings, tables, left_out(counts, notes)),
            "walk": walkthrough(readings),
        },
        provenance=provenance_of(design.setup, data=data, design=_described(design, outcome.lenses), began=began),
        notes=notes,
    )


def _described(design: Design, lenses: Mapping[str, Mappings | None]) -> dict[str, object]:
    """The design as plain JSON."""
    return {
        "n_places": len(design.places),
        "n_passages": len(set(design.subjects)),
        "n_fit_passages": len(design.dealt.fit),
        "layers": list(design.layers),
        "control_layers": list(design.coarse),
        "n_control_places": len(design.controlled),
        "pair_layers": list(design.paired_layers),
        "n_pair_places": len(design.paired),
        "prompts": {name: design.prompts[name].text for name in IDENTITY},
        "words": [list(words) for words in design.words],
        "maps": {name: mappings.describe() for name, mappings in lenses.items() if mappings is not None},
    }


def _fitted(lenses: Mapping[str, Mappings | None]) -> list[str]:
    """How much text each map was fitted on."""
    found = {name: mappings.fitted for name, mappings in lenses.items() if mappings is not None}
    return [
        f"the {LABELS[name]} is fitted on {of['n_tokens']['fit']:,} positions of {of['n_texts']['fit']:,} passages"
        for name, of in found.items()
    ]


def _notes(design: Design) -> list[str]:
    """What the design leaves out by rule."""
    most = max(design.scale.pairs)
    fewest = min(map(len, design.words))
    short = [
        f"the vocabulary has {fewest} words for a prompt: no more pairs are run, and draws that are alike count once"
    ] * (fewest < most)
    return [
        f"places are drawn from position {MIN_POSITION} to {MAX_POSITION} of a passage, its last token left out; a "
        "passage gets a second one when all have one",
        f"curves: ℓ = {', '.join(map(str, design.layers))}; ℓ = 0, where the state is the token itself, is in no mean; "
        f"at ℓ = {design.n_layers} every method is the model itself",
        f"controls: ℓ = {', '.join(map(str, design.coarse))}, for one place of each of {len(design.controlled)} "
        "passages; unpatched and zero say one thing for all places, which has no surprisal under source",
        f"prompts of 1 to {most} pairs: ℓ = {', '.join(map(str, design.paired_layers))}, for one place of each of "
        f"{len(design.paired)} passages, {design.scale.n_draws} prompts for each number",
        *short,
    ]
