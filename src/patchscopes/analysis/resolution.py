"""The resolution layer of an entity (rule 23), and how long entities take to be resolved, with censoring.

Axes: item, draw (donors), layer (consecutive ℓ). An entity that is never resolved is censored at the last layer, not
dropped: Kaplan and Meier's estimator for the median, the log-rank test between groups.
"""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from patchscopes.errors import OptionError

MAX_DONORS = 1  # of five: a word that more donors' states bring out is not this entity's own


@dataclass(frozen=True, slots=True)
class Resolved:
    """The first and the last ℓ with a hit at ℓ and ℓ+1; None where there is none."""

    first: int | None
    last: int | None


@dataclass(frozen=True, slots=True)
class Survival:
    """Kaplan–Meier: of `n` entities `n_resolved` were; the median ℓ, its 95 % bounds; infinite where never reached."""

    n: int
    n_resolved: int
    median: float
    low: float
    high: float


def hits(own: ArrayLike, unpatched: ArrayLike, donors: ArrayLike) -> NDArray[np.bool_]:
    """Where an entity's own keyword is matched, is absent from the unpatched text, and is matched by at most one donor.

    own (item, layer), unpatched (item), donors (item, draw, layer), all bool → (item, layer).
    """
    mine, without, others = np.asarray(own, bool), np.asarray(unpatched, bool), np.asarray(donors, bool)
    if others.shape[:1] + others.shape[2:] != mine.shape or without.shape != mine.shape[:1]:
        raise OptionError(
            f"hits {mine.shape}, unpatched {without.shape} and donors {others.shape} do not belong together."
        )
    found: NDArray[np.bool_] = mine & ~without[:, None] & (others.sum(axis=1) <= MAX_DONORS)
    return found


def resolution_layers(found: ArrayLike, layers: Sequence[int]) -> list[Resolved]:
    """Per item of `found` (item × layer), the resolution layer. Raises OptionError unless `layers` are consecutive."""
    table = np.asarray(found, bool)
    if any(b != a + 1 for a, b in pairwise(layers)) or table.shape[1] != len(layers):
        raise OptionError(f"a resolution layer needs consecutive layers, one a column; given were {list(layers)}.")
    both = table[:, :-1] & table[:, 1:]
    at = [np.flatnonzero(row) for row in both]
    return [Resolved(layers[row[0]], layers[row[-1]]) if len(row) else Resolved(None, None) for row in at]


def survival(first: Sequence[int | None], n_layers: int) -> Survival:
    """The Kaplan–Meier median of resolution layers; None is censored at `n_layers`."""
    from statsmodels.duration.survfunc import SurvfuncRight

    if not first:
        raise OptionError("there is no entity, so there is no median.")
    resolved = np.array([layer is not None for layer in first])
    times = np.array([n_layers if layer is None else layer for layer in first], dtype=np.float64)
    if not resolved.any():
        return Survival(len(first), 0, math.inf, math.inf, math.inf)
    # Time 0 is a layer like any other here, which a survival function does not know.
    curve = SurvfuncRight(times + 1, resolved.astype(int))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the variance at a survival of 0
        low, high = curve.quantile_ci(0.5)
    median = curve.quantile(0.5)
    if math.isnan(median):
        return Survival(len(first), int(resolved.sum()), math.inf, _reached(low), math.inf)
    # Where the curve falls at once from above the bounds to below them, it has none; order statistics do.
    lowest, highest = _order_bounds(np.sort(np.where(resolved, times, math.inf)))
    bounds = lowest if math.isnan(low) else _reached(low), highest if math.isnan(high) else _reached(high)
    return Survival(len(first), int(resolved.sum()), _reached(median), *bounds)


def _reached(time: float) -> float:
    """The layer of a time that a survival function gave; infinite where it gave none."""
    return math.inf if math.isnan(time) else float(time) - 1


def _order_bounds(layers: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the median of sorted `layers` from order statistics; from 0 to infinity where too few."""
    below = int(stats.binom.ppf(0.025, len(layers), 0.5))
    return (float(layers[below - 1]), float(layers[-below])) if below else (0.0, math.inf)


def logrank(first: Sequence[int | None], groups: Sequence[Hashable], n_layers: int) -> float:
    """The p of the log-rank test that groups take equally long to be resolved; 1 where nothing can differ."""
    from statsmodels.duration.survfunc import survdiff

    names = list(dict.fromkeys(groups))
    if len(first) != len(groups):
        raise OptionError(f"{len(first)} entities of {len(groups)} groups; one group per entity is needed.")
    resolved = np.array([layer is not None for layer in first])
    if len(names) < 2 or not resolved.any():
        return 1.0
    times = np.array([n_layers if layer is None else layer for layer in first], dtype=np.float64) + 1
    if np.ptp(times) == 0:  # all at the same layer, of which the test's variance is 0
        return 1.0
    _, p = survdiff(times, resolved.astype(int), np.array([names.index(group) for group in groups]))
    return float(p)
