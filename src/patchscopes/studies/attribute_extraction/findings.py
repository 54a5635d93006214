"""Outcomes of relations → findings with intervals over subjects."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from patchscopes.analysis.comparisons import holm, sign_flip
from patchscopes.analysis.intervals import Interval, mean_interval
from patchscopes.studies.attribute_extraction.cities import compared
from patchscopes.studies.attribute_extraction.outcome import RANK_CONTROLS, Outcome
from patchscopes.studies.headline import DIFFERENCE, HIT, NEEDED, beside, failing, holm_over
from patchscopes.studies.report import Finding

Floats = NDArray[np.float64]
CONTROLS = (*NEEDED, "mean", "zero", "self", "phrase-only", "text-only")
ALL = "all relations"


@dataclass(frozen=True)
class Pool:
    """Values of items, with whose they are: of one relation, or of all together."""

    values: Floats
    subjects: list[str]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], values: Callable[[Outcome], ArrayLike]) -> "Pool":
        """The values of some relations. A country of three relations is one subject."""
        arrays = [np.asarray(values(outcome), dtype=float) for outcome in outcomes]
        return cls(np.concatenate(arrays), [subject for outcome in outcomes for subject in outcome.grid.subjects])

    def interval(self, seed: int, bounds: tuple[float, float] | None, own: Floats | None = None) -> Interval:
        """The mean with its interval; `own` are the hits, where the values are what is left of them."""
        return mean_interval(self.values, self.subjects, seed=seed, bounds=bounds, own=own)


def all_findings(outcomes: Mapping[str, Outcome], seed: int) -> list[Finding]:
    """For all relations together, then for each: chosen, exists, contexts, ranks, probe."""
    found: list[Finding] = []
    for name, group in {ALL: list(outcomes.values()), **{n: [o] for n, o in outcomes.items()}}.items():
        found += _chosen(name, group, seed)
        found += _exists(name, group, seed)
        found += _contexts(name, group, seed)
        found += _ranks(name, group, seed)
    # The paper's score beside shuffled states, over the single relations.
    single = {f"exists/{name}" for name in outcomes}
    found = holm_over(found, lambda f: f.name in single and f.control == "shuffled")
    return found + _probes(outcomes, seed) + _leaked(outcomes, seed)


def _chosen(name: str, group: Sequence[Outcome], seed: int) -> list[Finding]:
    """Held-out hits at one placement, and what is left beside each control."""
    own = Pool.of(group, lambda o: o.held_out)
    controls = {c: np.concatenate([outcome.beside[c] for outcome in group]) for c in CONTROLS}
    about = "hits", "a (ℓ, ℓ*) chosen on other subjects"
    found = beside(f"chosen/{name}", own.values, controls, own.subjects, seed=seed, about=about)
    majority = Pool.of(group, lambda o: o.held_out - o.grid.majority())
    said = "held-out hits minus those of always saying the other folds' most frequent answer"
    found.append(
        Finding.of(f"chosen/{name}", majority.interval(seed, DIFFERENCE, own.values), said, control="majority")
    )
    return found


def _exists(name: str, group: Sequence[Outcome], seed: int) -> list[Finding]:
    """The paper's score, a hit at some ℓ*, as its mean over ℓ; beside the same best-of with other states."""
    # ℓ = 0 is no hidden state but the token; tables and figures show it.
    own = Pool.of(group, lambda o: o.exists["own"][:, 1:].mean(axis=1))
    found = [
        Finding.of(f"exists/{name}", own.interval(seed, HIT), "mean over ℓ ≥ 1 of a hit at some ℓ* (the paper's score)")
    ]
    adjusted = Pool.of(group, lambda o: (o.exists["own"] - o.exists["shuffled"])[:, 1:].mean(axis=1))
    p = sign_flip(adjusted.values, adjusted.subjects, seed=seed).p
    about = "the paper's score minus the same best over ℓ* with shuffled states; p: Holm over the single relations"
    found.append(
        Finding.of(f"exists/{name}", adjusted.interval(seed, DIFFERENCE, own.values), about, control="shuffled", p=p)
    )
    for control in ("unpatched", "phrase-only", "text-only"):
        texts = np.concatenate([outcome.grid.texts[control] for outcome in group])
        pool = Pool(own.values - texts, own.subjects)
        about = f"the paper's score minus hits with {control}"
        left = pool.interval(seed, DIFFERENCE, own.values)
        found.append(Finding.of(f"exists/{name}", left, about, control=control))
    pool = Pool.of(group, lambda o: o.exists["own"][:, 1:].mean(axis=1) - o.grid.majority())
    about = "the paper's score minus always saying the other folds' most frequent answer"
    left = pool.interval(seed, DIFFERENCE, own.values)
    found.append(Finding.of(f"exists/{name}", left, about, control="majority"))
    return found + _exists_beside(name, group, seed)


def _exists_beside(name: str, group: Sequence[Outcome], seed: int) -> list[Finding]:
    """The paper's score beside the controls that need cells of their own."""
    found = []
    for control in ("random", "random-state", "mean", "zero"):
        values, hits, subjects = [], [], []
        for outcome in group:
            other = outcome.exists_beside
            values.append((other["own"] - other[control]).mean(axis=1))
            hits.append(other["own"].mean(axis=1))
            subjects += outcome.grid.subjects[: len(other["own"])]
        left = Pool(np.concatenate(values), subjects).interval(seed, DIFFERENCE, np.concatenate(hits))
        about = f"the paper's score minus the same best over ℓ* with {control}, at the coarse ℓ, for some of the facts"
        found.append(Finding.of(f"exists/{name}", left, about, control=control))
    return found


def _contexts(name: str, group: Sequence[Outcome], seed: int) -> list[Finding]:
    """Of the facts that have a score in another sentence: a mean over theirs."""
    subjects = [outcome.grid.subjects[k] for outcome in group for k in outcome.context_items]
    if not subjects:
        return []
    means = {
        which: np.concatenate([np.nanmean(o.in_contexts[which][o.context_items], axis=1) for o in group])
        for which in ("own", "shuffled")
    }
    left = Pool(means["own"] - means["shuffled"], subjects).interval(seed, DIFFERENCE, means["own"])
    about = "the chosen placement in other source sentences, minus shuffled; sentences of a subject are no new subjects"
    return [Finding.of(f"contexts/{name}", left, about, control="shuffled")]


def _ranks(name: str, group: Sequence[Outcome], seed: int) -> list[Finding]:
    """The object among the relation's objects, at the placement that most folds chose."""
    subjects = [outcome.grid.subjects[k] for outcome in group for k in outcome.rank_items]
    if not subjects:
        return []
    found = []
    for score, about in ABOUT_RANK.items():
        bounds = HIT if score in ("first", "reciprocal") else None
        own = np.concatenate([getattr(o.rank, score)[:, o.rank_column] for o in group])
        found.append(Finding.of(f"rank-{score}/{name}", Pool(own, subjects).interval(seed, bounds), about))
        pools = {
            control: Pool(
                own - np.concatenate([getattr(o.rank_beside[control], score) for o in group if o.rank_items]), subjects
            )
            for control in RANK_CONTROLS
        }
        corrected = holm([sign_flip(pool.values, subjects, seed=seed).p for pool in pools.values()])
        for (control, pool), p in zip(pools.items(), corrected, strict=True):
            interval = pool.interval(seed, None) if bounds is None else pool.interval(seed, DIFFERENCE, own)
            said = f"{about}, minus {control}; p: Holm over the controls"
            found.append(Finding.of(f"rank-{score}/{name}", interval, said, control=control, p=p))
    return found


ABOUT_RANK = {
    "first": "share of facts whose object is raised most over the unpatched prompt, of all the relation's objects",
    "reciprocal": "1 over the object's rank among the relation's objects, by what the write adds to their ln p",
    "gain": "nats by which the write makes the object likelier than the unpatched prompt",
    "logprob": "ln p of the object, given that it is one of the relation's objects (minus its surprisal among them), "
    "nats",
}


def _probes(outcomes: Mapping[str, Outcome], seed: int) -> list[Finding]:
    """The probe, its ceiling, majority and shuffled labels; and the paired comparison, Holm over the relations."""
    found: list[Finding] = []
    pairs = []
    for name, outcome in outcomes.items():
        subjects, chosen = outcome.grid.subjects, outcome.probe.chosen
        for what, about in ABOUT_PROBE.items():
            interval = mean_interval(getattr(chosen, what), subjects, seed=seed)
            found.append(Finding.of(f"probe-{what}/{name}", interval, about))
        n = len(subjects)
        about = (
            "labelled subjects from which on the probe is level with the Patchscope, no interval; null where never, or "
            "where the Patchscope has no hit"
        )
        found.append(Finding(f"probe-level-at/{name}", outcome.probe.level, math.nan, math.nan, n, n, None, about))
        difference = outcome.held_out - chosen.correct
        pairs.append((name, difference, outcome, sign_flip(difference, subjects, seed=seed).p))
    corrected = holm([p for *_, p in pairs])
    for (name, difference, outcome, _), p in zip(pairs, corrected, strict=True):
        interval = Pool(difference, outcome.grid.subjects).interval(seed, DIFFERENCE, outcome.held_out)
        about = (
            "held-out hits of the Patchscope minus those of the probe, same subjects, folds and states; Holm over "
            "relations"
        )
        found.append(Finding.of(f"patchscope-minus-probe/{name}", interval, about, control="probe", p=p))
    return found


ABOUT_PROBE = {
    "correct": "accuracy of the probe on held-out subjects, at the ℓ that the training folds chose",
    "possible": "the probe's ceiling: share of held-out subjects whose class occurs in training",
    "majority": "accuracy of the most frequent class of the training folds",
    "shuffled": "accuracy of the probe trained on shuffled labels",
}


def _leaked(outcomes: Mapping[str, Outcome], seed: int) -> list[Finding]:
    found = []
    for name, outcome in outcomes.items():
        items = outcome.grid.leaked_items
        if items:
            subjects = [outcome.case.facts[item].subject for item in items]
            interval = mean_interval(outcome.leaked_hits(), subjects, seed=seed)
            found.append(
                Finding.of(f"leaked/{name}", interval, "hits of facts whose answer can be copied; in no other figure")
            )
    return found


def told_apart(table: pd.DataFrame, seed: int) -> list[Finding]:
    """Of countries whose largest city is not the capital: the relation's own city against the other one's.

    What can be copied is left aside. Other countries' states, read and written at the same places, stand beside it.
    """
    found: list[Finding] = []
    differ = compared(table)
    if not len(differ):
        return []
    for relation, lines in differ.groupby("relation"):
        countries = list(lines.country)
        for what, label in (("right", "names the right city"), ("says_other", "names the other relation's city")):
            own, controls = lines[what].astype(float).to_numpy(), {"shuffled": lines[f"{what}_shuffled"].to_numpy()}
            where = f"share of countries where the text {label}", "the placement chosen without the country"
            found += beside(f"cities-{what}/{relation}", own, controls, countries, seed=seed, about=where)
    countries, own = list(differ.country), differ.right.astype(float).to_numpy()
    difference = own - differ.says_other.to_numpy()
    shuffled = (differ.right_shuffled - differ.says_other_shuffled).to_numpy()
    about = (
        "right minus the other relation's city, over both relations: above 0 where capital and largest city are "
        "told apart"
    )
    for control, values in (("other relation", difference), ("shuffled", difference - shuffled)):
        p = sign_flip(values, countries, seed=seed).p
        interval = mean_interval(values, countries, seed=seed, bounds=DIFFERENCE, own=own)
        said = f"{about}{'; minus shuffled' if control == 'shuffled' else ''}; p: Holm over both"
        found.append(Finding.of("cities-told-apart", interval, said, control=control, p=p))
    return holm_over(found, lambda f: f.name == "cities-told-apart")


def stands(by: Mapping[tuple[str, str | None], Finding], name: str) -> bool:
    """Rule 17: the interval is above 0 beside each of four controls."""
    return not failing(by, f"chosen/{name}")
