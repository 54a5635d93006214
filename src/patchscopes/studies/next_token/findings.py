"""Readings → findings with intervals over passages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.comparisons import holm, sign_flip
from patchscopes.analysis.intervals import Interval, crossing_interval, mean_interval
from patchscopes.analysis.scores import majority_of_others
from patchscopes.analysis.selection import choose, folds_of
from patchscopes.studies.headline import DIFFERENCE, HIT, beside, holm_over
from patchscopes.studies.next_token.design import CONTROLS, IDENTITY, LABELS, LENSES, METHODS
from patchscopes.studies.next_token.prompts import folded_token
from patchscopes.studies.next_token.readings import (
    PRECISION,
    SURPRISALS,
    UNDER_PATCHED,
    UNDER_SOURCE,
    Readings,
)
from patchscopes.studies.report import Finding

Floats = NDArray[np.float64]
N_FOLDS = 5
HALF = 0.5
DEPTH = "mean over ℓ from 1 to n_layers − 1"
ABOUT = {
    PRECISION: "precision@1",
    UNDER_SOURCE: "surprisal under source, nats",
    UNDER_PATCHED: "surprisal under patched, nats",
}


def all_findings(readings: Readings) -> list[Finding]:
    """Methods by themselves and beside their controls; then token identity beside each lens."""
    found: list[Finding] = []
    for name in METHODS:
        found += [*_depth(readings, name), *_beside(readings, name)]
        for score in SURPRISALS:
            found += _surprisal_beside(readings, name, score)
    found += _compared(readings)
    found += _at_chosen(readings)
    return found + _baselines(readings)


# ------------------------------------------------------------------------------------------------ each method


def depth(readings: Readings, name: str, score: str, items: Sequence[int]) -> Floats:
    """A method's score of each item, a mean over the ℓ that are hidden states."""
    mean: Floats = readings.methods[name].scores[score][items][:, readings.design.hidden].mean(axis=1)
    return mean


def _depth(readings: Readings, name: str) -> list[Finding]:
    """All scores over the depth; precision in its first quarter, and from which ℓ on it is half."""
    seed, design = readings.design.setup.seed, readings.design
    found = []
    for score, about in ABOUT.items():
        items = readings.among(readings.items, score)
        if items:
            bounds = HIT if score == PRECISION else None
            values = depth(readings, name, score, items)
            interval = mean_interval(values, readings.subjects(items), seed=seed, bounds=bounds)
            found.append(Finding.of(f"{score}/{name}", interval, f"{about} of {LABELS[name]}, {DEPTH}"))
    subjects = readings.subjects(readings.items)
    precision = readings.methods[name].scores[PRECISION][readings.items]
    early = mean_interval(precision[:, design.early].mean(axis=1), subjects, seed=seed, bounds=HIT)
    layers = ", ".join(str(design.layers[k]) for k in design.early)
    found.append(Finding.of(f"early/{name}", early, f"precision@1 in the first quarter of the depth: ℓ {layers}"))
    hidden = [design.layers[k] for k in design.hidden]
    half = crossing_interval(precision[:, design.hidden], subjects, hidden, level=HALF, seed=seed)
    about = f"the ℓ from which on precision@1 is at least {HALF}; at n_layers it is 1; null where never"
    return [*found, Finding.of(f"half/{name}", half, about)]


def _beside(readings: Readings, name: str) -> list[Finding]:
    """Precision beside every control, at the ℓ and places that have them."""
    items = readings.controlled
    if not items:
        return []
    own = coarse(readings, name, PRECISION)[items].mean(axis=1)
    controls = {c: readings.methods[name].beside[c][PRECISION][items].mean(axis=1) for c in CONTROLS}
    where = f"ℓ = {', '.join(map(str, readings.design.coarse))}"
    about = f"precision@1 of {LABELS[name]}", where
    return beside(
        f"controlled/{name}", own, controls, readings.subjects(items), seed=readings.design.setup.seed, about=about
    )


def coarse(readings: Readings, name: str, score: str) -> Floats:
    """A method's score at the ℓ that have controls: (place, coarse ℓ)."""
    columns = [readings.design.layers.index(layer) for layer in readings.design.coarse]
    return readings.methods[name].scores[score][:, columns]


def _surprisal_beside(readings: Readings, name: str, score: str) -> list[Finding]:
    """How much less surprised the cells are than each control, Holm over the controls that have this surprisal."""
    items = readings.among(readings.controlled, score)
    if not items:
        return []
    subjects, seed = readings.subjects(items), readings.design.setup.seed
    own = coarse(readings, name, score)[items].mean(axis=1)
    saved = {
        control: scores[score][items].mean(axis=1) - own
        for control, scores in readings.methods[name].beside.items()
        if score in scores
    }
    corrected = holm([sign_flip(values, subjects, seed=seed).p for values in saved.values()])
    about = f"nats by which {LABELS[name]} is less surprised than the control: {ABOUT[score]}; p: Holm over controls"
    return [
        Finding.of(
            f"{score}-saved/{name}", mean_interval(values, subjects, seed=seed, bounds=None), about,
            control=control, p=p,
        )
        for (control, values), p in zip(saved.items(), corrected, strict=True)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ beside the lenses


@dataclass(frozen=True)
class Ahead:
    """By how much token identity is ahead of a lens, (item, ℓ ≥ 1): above 0 where it is the better one.

    `hits` are its own, where the score is precision, else None.
    """

    values: Floats
    hits: Floats | None
    subjects: list[str]
    sections: list[str]


def ahead(readings: Readings, prompt: str, lens: str, score: str) -> Ahead:
    """Precision minus the lens's, or the lens's surprisal minus its own."""
    items, hidden = readings.among(readings.items, score), readings.design.hidden
    own, other = (readings.methods[name].scores[score][items][:, hidden] for name in (prompt, lens))
    sections = [readings.design.places[k].section for k in items]
    if score == PRECISION:
        return Ahead(own - other, own, readings.subjects(items), sections)
    return Ahead(other - own, None, readings.subjects(items), sections)


def _compared(readings: Readings) -> list[Finding]:
    """Over the whole depth, Holm over both prompts and all lenses; and the same over sections."""
    found: list[Finding] = []
    for score in ABOUT:
        if readings.among(readings.items, score):
            family = [_over_depth(readings, prompt, lens, score) for prompt in IDENTITY for lens in LENSES]
            found += holm_over(family, lambda _: True)
    return found + [_by_section(readings, prompt, lens) for prompt in IDENTITY for lens in LENSES]


def _over_depth(readings: Readings, prompt: str, lens: str, score: str) -> Finding:
    one, seed = ahead(readings, prompt, lens, score), readings.design.setup.seed
    values, hits = one.values.mean(axis=1), None if one.hits is None else one.hits.mean(axis=1)
    p = sign_flip(values, one.subjects, seed=seed).p
    about = f"{_about(prompt, lens, score)}; p: Holm over both prompts and all lenses"
    interval = _interval(values, hits, one.subjects, seed)
    return Finding.of(f"{score}-ahead/{prompt}", interval, about, control=lens, p=p)


def _by_section(readings: Readings, prompt: str, lens: str) -> Finding:
    one = ahead(readings, prompt, lens, PRECISION)
    hits = None if one.hits is None else one.hits.mean(axis=1)
    interval = _interval(one.values.mean(axis=1), hits, one.sections, readings.design.setup.seed)
    about = f"{_about(prompt, lens, PRECISION)}; the interval is over sections"
    return Finding.of(f"{PRECISION}-ahead-by-section/{prompt}", interval, about, control=lens)


def _interval(values: Floats, hits: Floats | None, subjects: Sequence[str], seed: int) -> Interval:
    """The mean of differences: of hits, or of nats where there are none."""
    return mean_interval(values, subjects, seed=seed, bounds=None if hits is None else DIFFERENCE, own=hits)


def _about(prompt: str, lens: str, score: str) -> str:
    return f"by how much {LABELS[prompt]} is ahead of the {LABELS[lens]}, {ABOUT[score]}, {DEPTH}"


def _at_chosen(readings: Readings) -> list[Finding]:
    """At the ℓ where the other folds have it most ahead, and most behind: what a chosen ℓ shows, without the choice."""
    if len(set(readings.subjects(readings.items))) < N_FOLDS:
        return []
    found = [
        _chosen(readings, prompt, lens, side) for prompt in IDENTITY for lens in LENSES for side in ("ahead", "behind")
    ]
    return holm_over(found, lambda _: True)


def _chosen(readings: Readings, prompt: str, lens: str, side: str) -> Finding:
    one, design = ahead(readings, prompt, lens, PRECISION), readings.design
    seed = design.setup.seed
    chosen = choose(one.values if side == "ahead" else -one.values, folds_of(one.subjects, N_FOLDS, seed=seed))
    values, hits = chosen.of(one.values), None if one.hits is None else chosen.of(one.hits)
    layers = sorted({design.layers[design.hidden[k]] for k in chosen.by_fold})
    about = (
        f"precision@1 of {LABELS[prompt]} minus the {LABELS[lens]} at the ℓ that the other folds chose, "
        f"{', '.join(map(str, layers))}; p: Holm over both prompts, all lenses and both sides"
    )
    p = sign_flip(values, one.subjects, seed=seed).p
    interval = _interval(values, hits, one.subjects, seed)
    return Finding.of(f"most-{side}/{prompt}", interval, about, control=lens, p=p)


# ------------------------------------------------------------------------------------------------ baselines


def _baselines(readings: Readings) -> list[Finding]:
    """What precision@1 is worth: always the most frequent next token, and the token itself once more."""
    items, seed = readings.items, readings.design.setup.seed
    subjects = readings.subjects(items)
    found = []
    about = "share of places whose next token is the token itself"
    found.append(Finding.of("repeated", mean_interval(_repeated(readings), subjects, seed=seed), about))
    if len(set(subjects)) < N_FOLDS:
        return found
    hits = majority(readings)
    about = "share of places whose next token is the most frequent one of the other folds"
    found.append(Finding.of("majority", mean_interval(hits, subjects, seed=seed), about))
    for name in METHODS:
        own = depth(readings, name, PRECISION, items)
        interval = mean_interval(own - hits, subjects, seed=seed, bounds=DIFFERENCE, own=own)
        said = f"precision@1 of {LABELS[name]}, {DEPTH}, minus always the other folds' most frequent next token"
        found.append(Finding.of(f"{PRECISION}/{name}", interval, said, control="majority"))
    return found


def majority(readings: Readings) -> Floats:
    """Whether each item's next token is the most frequent one of the other folds."""
    tokens = [str(readings.next_tokens[k]) for k in readings.items]
    folds = folds_of(readings.subjects(readings.items), N_FOLDS, seed=readings.design.setup.seed)
    return majority_of_others(tokens, [{token} for token in tokens], folds)


def _repeated(readings: Readings) -> Floats:
    places = readings.design.places
    return np.array(
        [folded_token(places[k].token) == folded_token(str(readings.next_tokens[k])) for k in readings.items],
        dtype=np.float64,
    )
