"""Paired comparisons of whole subjects (rule 19): sign-flip permutation, McNemar where a subject has one item, Holm."""

import gc
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from patchscopes.analysis.intervals import by_subject
from patchscopes.errors import OptionError

N_PERMUTATIONS = 9999


@dataclass(frozen=True, slots=True)
class Test:
    """A paired comparison: the mean difference, its two-sided p, and how it was made."""

    difference: float
    p: float
    n_items: int
    n_subjects: int
    method: Literal["sign-flip", "mcnemar", "none"] = "sign-flip"


def sign_flip(differences: ArrayLike, subjects: Sequence[Hashable], *, seed: int) -> Test:
    """Whether the mean of `differences` (one per item) is 0, by flipping the signs of whole subjects.

    Exact where there are at most 13 subjects (all 2ⁿ flips), else 9,999 random ones, themselves counted (so p is
    never 0). Raises OptionError for no item or NaN.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or len(values) != len(subjects) or np.isnan(values).any():
        raise OptionError(f"{len(values)} differences of {len(subjects)} items; one number per item is needed.")
    sums, _ = by_subject(values[:, None], subjects)
    total = sums[:, 0]
    if not total.any():
        return Test(0.0, 1.0, len(values), len(total))
    if len(total) == 1:  # both flips lie equally far from 0
        return Test(float(values.mean()), 1.0, len(values), 1, "none")
    result = stats.permutation_test(
        (total,),
        lambda sample, axis=-1: sample.sum(axis=axis),
        permutation_type="samples",
        n_resamples=N_PERMUTATIONS,
        vectorized=True,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return Test(float(values.mean()), min(float(result.pvalue), 1.0), len(values), len(total))


def mcnemar(first: ArrayLike, second: ArrayLike) -> Test:
    """Whether two kinds of hits, on the same items of one subject each, are equally frequent: McNemar's exact test."""
    from statsmodels.stats.contingency_tables import mcnemar as exact

    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or not a.size:
        raise OptionError(f"hits of shapes {a.shape} and {b.shape}; one of each per item is needed.")
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return Test(float(a.mean() - b.mean()), float(exact(table, exact=True).pvalue), a.size, a.size, "mcnemar")


def holm(p_values: Sequence[float]) -> list[float]:
    """`p_values` of one family, corrected by Holm's step-down procedure, in the same order."""
    from statsmodels.stats.multitest import multipletests

    if not len(p_values):
        return []
    # It collects garbage at each call, which takes half a second beside a study's rows. What is frozen is thawed all at
    # once, so nothing is where the program had frozen something of its own.
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    try:
        return [float(p) for p in multipletests(p_values, method="holm")[1]]
    finally:
        if freezes:
            gc.unfreeze()
