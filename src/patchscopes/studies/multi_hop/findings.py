"""Outcomes → findings with intervals over bridges: texts, methods beside controls, what they gain, what is a prior."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.intervals import mean_interval
from patchscopes.studies.headline import HIT, beside, holm_over, minus
from patchscopes.studies.multi_hop.design import METHODS, TEXTS, THOUGHTS
from patchscopes.studies.multi_hop.outcome import Method, Outcome
from patchscopes.studies.report import Finding

Floats = NDArray[np.float64]
By = Mapping[tuple[str, str | None], Finding]
PLACE = "a (ℓ, ℓ*) chosen on queries of other bridges"


def all_findings(outcome: Outcome) -> list[Finding]:
    """Texts first, then for each method its score, its gains, and how much of it is a prior."""
    found = [_rate(outcome, f"text/{name}", hits, _said(name)) for name, hits in outcome.texts.items()]
    found += _thoughts(outcome)
    for method in outcome.methods.values():
        found += _chosen(outcome, method)
        found += _exists(outcome, method)
        found += _gains(outcome, method)
        found += _repaired(outcome, method)
        found += _prior(outcome, method)
    found = holm_over(found, lambda f: f.name.startswith("gain/"))
    # Each of both over the methods.
    found = holm_over(found, lambda f: f.name.startswith("exists/") and f.control is not None)
    return holm_over(found, lambda f: f.name.startswith("repaired/") and f.control is not None)


def _thoughts(outcome: Outcome) -> list[Finding]:
    """What a thought brings, beside the query alone, as it is answered and with as many new tokens."""
    found = []
    for thought in THOUGHTS:
        for without in ("plain", "plain-long"):
            about = f"{_said(thought)}, minus: {_said(without)}; p: Holm over the thoughts"
            own, other = outcome.texts[thought], outcome.texts[without]
            found.append(_minus(outcome, (f"thought/{thought}", without), own, other, about))
    return holm_over(found, lambda _: True)


def _said(name: str) -> str:
    if name.endswith("-long"):
        return f"share answered after {TEXTS[name.removesuffix('-long')]}, with as many new tokens as where it thinks"
    return f"share answered after {TEXTS[name]}"


def _rate(outcome: Outcome, name: str, values: Floats, about: str) -> Finding:
    interval = mean_interval(values, outcome.queries.subjects, seed=outcome.seed, bounds=HIT)
    return Finding.of(name, interval, about)


def _chosen(outcome: Outcome, method: Method) -> list[Finding]:
    """Held-out hits at one placement, beside every control."""
    about = f"share answered by {METHODS[method.name]}", PLACE
    subjects = outcome.queries.subjects
    return beside(f"chosen/{method.name}", method.held_out, method.beside, subjects, seed=outcome.seed, about=about)


def _exists(outcome: Outcome, method: Method) -> list[Finding]:
    """The paper's score, some placement of the grid answers; beside the same best-of with other queries' states."""
    own, shuffled = method.exists["own"], method.exists["shuffled"]
    n = len(outcome.queries.design.placements)
    rate = _rate(outcome, f"exists/{method.name}", own, f"share that some of {n} (ℓ, ℓ*) answers (the paper's score)")
    about = "the paper's score minus the same best-of with other queries' states; p: Holm over both methods"
    return [rate, _minus(outcome, (rate.name, "shuffled"), own, shuffled, about)]


def _gains(outcome: Outcome, method: Method) -> list[Finding]:
    """Held-out hits minus those of the texts."""
    found = []
    for name, hits in outcome.texts.items():
        about = f"share answered by {METHODS[method.name]} at {PLACE}, minus: {_said(name)}; p: Holm over all gains"
        found.append(_minus(outcome, (f"gain/{method.name}", name), method.held_out, hits, about))
    return found


def _repaired(outcome: Outcome, method: Method) -> list[Finding]:
    """Of the queries that the model fails to answer as text: what is answered, and what of it above shuffled."""
    failed = np.flatnonzero(outcome.texts["plain"] == 0)
    if not len(failed):
        return []
    subjects = [outcome.queries.subjects[k] for k in failed]
    own, shuffled = method.held_out[failed], method.beside["shuffled"][failed]
    where = f"of the queries that fail as text, at {PLACE}"
    rate = mean_interval(own, subjects, seed=outcome.seed, bounds=HIT)
    name = f"repaired/{method.name}"
    about = f"share answered, minus that with shuffled, {where}; p: Holm over both methods"
    return [
        Finding.of(name, rate, f"share answered {where}"),
        minus((name, "shuffled"), own, shuffled, subjects, seed=outcome.seed, about=about),
    ]


def _prior(outcome: Outcome, method: Method) -> list[Finding]:
    """How often a text names what most queries of its type are answered there: a prior, whatever the query."""
    usual = method.chosen.of(method.usual)
    found = [
        _rate(
            outcome, f"prior/{method.name}", usual,
            f"share of texts that name the answer which most queries of their type get, right or wrong, at {PLACE}",
        )
    ]  # fmt: skip
    hit = np.flatnonzero(method.held_out)
    if len(hit):
        subjects = [outcome.queries.subjects[k] for k in hit]
        interval = mean_interval(usual[hit], subjects, seed=outcome.seed, bounds=HIT)
        about = "of the answered queries, the share where that is the answer: what a prior would have answered as well"
        found.append(Finding.of(f"prior-among-answered/{method.name}", interval, about))
    return found


def _minus(outcome: Outcome, key: tuple[str, str], own: Floats, other: Floats, about: str) -> Finding:
    """What is left of a score of all queries."""
    return minus(key, own, other, outcome.queries.subjects, seed=outcome.seed, about=about)
