"""Single- against multi-token names, matched: differences within strata; and slopes over the number of tokens.

A stratum holds names of one type and popularity tier. Where it has both kinds, its difference of means counts by the
number of one-to-one pairs that it could make, which is the smaller of the two numbers; names in a stratum without the
other kind have no partner and are left out. Intervals resample names; there is none where no draw differs from another,
or where fewer than FEWEST_PAIRS could be made: draws in which a pair is lost do not count, so that few pairs would seem
certain. p permutes the kinds within strata.

Axes: draw (of a resampling), item, stratum.
"""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from patchscopes.analysis.comparisons import N_PERMUTATIONS
from patchscopes.analysis.intervals import LEVEL, N_RESAMPLES, Interval

Floats = NDArray[np.float64]
TAIL = (1 - LEVEL) / 2
TOLERANCE = 1e-12
BLOCK = 500  # draws at a time
FEWEST_PAIRS = 5


@dataclass(frozen=True, slots=True)
class Matched:
    """The difference single minus multi over `items`; those of `alone` had no partner."""

    interval: Interval
    p: float
    n_pairs: int
    items: tuple[int, ...]
    alone: tuple[int, ...]


def partners(single: ArrayLike, strata: Sequence[Hashable]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The items of strata that hold both kinds, and the others."""
    kinds = np.asarray(single, bool)
    both = {s for s in set(strata) if len({bool(kinds[k]) for k, other in enumerate(strata) if other == s}) == 2}
    inside = tuple(k for k, stratum in enumerate(strata) if stratum in both)
    return inside, tuple(k for k in range(len(strata)) if k not in set(inside))


def matched_difference(values: ArrayLike, single: ArrayLike, strata: Sequence[Hashable], *, seed: int) -> Matched:
    """The mean of single- minus that of multi-token names within strata; NaN where no stratum has both kinds."""
    inside, alone = partners(single, strata)
    if not inside:
        return Matched(Interval(math.nan, math.nan, math.nan, 0, 0, "none"), math.nan, 0, (), alone)
    scores = np.asarray(values, dtype=np.float64)[list(inside)]
    kinds = np.asarray(single, bool)[list(inside)]
    order = {stratum: k for k, stratum in enumerate(dict.fromkeys(strata[k] for k in inside))}
    codes = np.array([order[strata[k]] for k in inside])
    n = len(inside)
    difference = float(_differences(np.ones((1, n)), scores, kinds[None], codes)[0])
    pairs = sum(min(int((kinds & (codes == s)).sum()), int((~kinds & (codes == s)).sum())) for s in order.values())
    low, high = _bounds(scores, kinds, codes, seed) if pairs >= FEWEST_PAIRS else (math.nan, math.nan)
    p = _permuted(difference, scores, kinds, codes, seed)
    return Matched(Interval(difference, low, high, n, n), p, pairs, inside, alone)


def _differences(weights: Floats, scores: Floats, kinds: NDArray[np.bool_], codes: NDArray[np.int64]) -> Floats:
    """The difference of each draw: weights (draw, item) how often an item counts, kinds (draw or 1, item)."""
    member = (codes[:, None] == np.arange(codes.max() + 1)).astype(np.float64)
    means, sizes = [], []
    for kind in (kinds, ~kinds):
        counted = weights * kind
        size = counted @ member
        total = (counted * scores) @ member
        means.append(np.divide(total, size, out=np.zeros_like(total), where=size > 0))
        sizes.append(size)
    pairs = np.minimum(*sizes)
    total = pairs.sum(axis=1)
    found: Floats = np.divide(
        (pairs * (means[0] - means[1])).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0
    )
    return found


def _bounds(scores: Floats, kinds: NDArray[np.bool_], codes: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Percentiles over resampled items; a stratum that loses one kind in a draw does not count in it.

    That no draw differs from another is no certainty.
    """
    rng, n = np.random.default_rng(seed), len(scores)
    drawn = rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLES).astype(np.float64)
    found = _differences(drawn, scores, kinds[None], codes)
    if np.nanmax(found) - np.nanmin(found) < TOLERANCE:
        return math.nan, math.nan
    low, high = np.nanquantile(found, [TAIL, 1 - TAIL])
    return float(low), float(high)


def _permuted(
    difference: float, scores: Floats, kinds: NDArray[np.bool_], codes: NDArray[np.int64], seed: int
) -> float:
    """Two-sided p: how often kinds dealt at random within strata differ as much."""
    rng, n = np.random.default_rng(seed), len(scores)
    home = np.argsort(codes, kind="stable")
    more = 0
    for start in range(0, N_PERMUTATIONS, BLOCK):
        size = min(BLOCK, N_PERMUTATIONS - start)
        dealt = np.empty((size, n), dtype=bool)
        dealt[:, home] = kinds[np.argsort(codes + rng.random((size, n)), axis=1)]
        found = _differences(np.ones((size, n)), scores, dealt, codes)
        more += int((np.abs(found) >= abs(difference) - TOLERANCE).sum())
    return (1 + more) / (1 + N_PERMUTATIONS)


def slope(values: ArrayLike, n_tokens: ArrayLike, *, seed: int, within: Sequence[Hashable] | None = None) -> Interval:
    """By how much `values` change with each further token (least squares), with a bootstrap interval over items.

    `within` compares only names of the same group, whose means are taken off first. NaN where the number of tokens does
    not vary.
    """
    x, y = np.asarray(n_tokens, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if within is not None:
        x, y = _centred(x, within), _centred(y, within)
    n = len(x)
    if n < 3 or np.ptp(x) < TOLERANCE:
        return Interval(math.nan, math.nan, math.nan, n, n, "none")
    estimate = float(_slope(x, y))
    if np.ptp(y) < TOLERANCE:  # as above
        return Interval(estimate, math.nan, math.nan, n, n, "none")
    options = {"paired": True, "n_resamples": N_RESAMPLES, "batch": BLOCK, "method": "percentile"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # all on one line: no draw differs
        drawn = stats.bootstrap((x, y), _slope, vectorized=True, rng=np.random.default_rng(seed), **options)
    # A draw in which the number of tokens does not vary has no slope.
    low, high = np.nanquantile(drawn.bootstrap_distribution, [TAIL, 1 - TAIL])
    return Interval(estimate, float(low), float(high), n, n)


def _centred(values: Floats, groups: Sequence[Hashable]) -> Floats:
    """Values minus their group's mean."""
    out = values.copy()
    for group in set(groups):
        inside = [k for k, other in enumerate(groups) if other == group]
        out[inside] -= values[inside].mean()
    return out


def _slope(x: Floats, y: Floats, axis: int = -1) -> Floats:
    dx = x - x.mean(axis=axis, keepdims=True)
    dy = y - y.mean(axis=axis, keepdims=True)
    spread = (dx * dx).sum(axis=axis)
    both = (dx * dy).sum(axis=axis)
    found: Floats = np.divide(both, spread, out=np.full_like(spread, np.nan), where=spread > TOLERANCE)
    return found
