"""Means with intervals over subjects (rule 19): items of one subject are resampled together, never layers or contexts.

Axes: item, column (whatever is estimated side by side: layers, placements). An interval is a BCa bootstrap (Efron 1987)
over subjects. It knows only what it has seen. Where every subject has the same value it has nothing to resample and
would claim certainty; there, the exact binomial bound (Clopper and Pearson 1934) on the share of subjects that could
differ takes its place, which for rates is the exact interval of a rate of 0 or 1. The same holds for differences:
where `own` is alike for all subjects (a rare hit that did not happen) while their controls differ, the bootstrap sees
what the controls gain and not what own hits could; the exact bound is added. Without it as few as 65 % of the intervals
of rare hits minus their controls' cover the truth (docs/lab-log.md).
"""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from patchscopes.errors import OptionError

N_RESAMPLES = 4000
LEVEL = 0.95
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n_items` of `n_subjects`, with its interval; bounds are NaN where there is none (one subject)."""

    estimate: float
    low: float
    high: float
    n_items: int
    n_subjects: int
    method: Literal["bootstrap", "binomial", "none"] = "bootstrap"


def mean_interval(
    values: ArrayLike,
    subjects: Sequence[Hashable],
    *,
    seed: int,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    own: ArrayLike | None = None,
) -> Interval:
    """The mean of `values` (one per item) with its 95 % interval over subjects.

    Args:
        values: one number per item; NaN is refused, not skipped.
        subjects: whose item each is.
        seed: of the resampling.
        bounds: between which a value must lie: (0, 1) for hits, (−1, 1) for control-adjusted ones, None for surprisals.
        own: where `values` are hits minus those of a control, the hits, one per item.

    Raises:
        OptionError: no item, unequal lengths, NaN, or a value out of bounds.
    """
    column = np.asarray(values, dtype=np.float64)[:, None]
    hits = None if own is None else np.asarray(own, dtype=np.float64)[:, None]
    return mean_intervals(column, subjects, seed=seed, bounds=bounds, own=hits)[0]


def mean_intervals(
    values: ArrayLike,
    subjects: Sequence[Hashable],
    *,
    seed: int,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    own: ArrayLike | None = None,
) -> list[Interval]:
    """As `mean_interval`, for each column of `values` (item × column), all from the same resampled subjects."""
    table = np.asarray(values, dtype=np.float64)
    _check(table, subjects, bounds)
    sums, sizes = by_subject(table, subjects)
    rates = None if own is None else _rates(np.asarray(own, dtype=np.float64), subjects, sizes)
    n_items, n_subjects = len(table), len(sizes)
    found: list[Interval | None] = []
    varying = []
    for column in range(table.shape[1]):
        means = sums[:, column] / sizes
        estimate = float(table[:, column].mean())
        if n_subjects == 1:
            found.append(Interval(estimate, math.nan, math.nan, n_items, 1, "none"))
        elif np.ptp(means) < 1e-12:
            found.append(Interval(estimate, *_constant(estimate, n_subjects, bounds), n_items, n_subjects, "binomial"))
        else:
            found.append(None)
            varying.append(column)
    low, high = _bootstrap(sums[:, varying], sizes, seed) if varying else (np.empty(0), np.empty(0))
    for column, a, b in zip(varying, low, high, strict=True):
        lower, higher = (0.0, 0.0) if rates is None else _unseen(rates[:, column])
        lowest, highest = bounds or (-math.inf, math.inf)
        estimate = float(table[:, column].mean())
        interval = max(float(a) - lower, lowest), min(float(b) + higher, highest)
        found[column] = Interval(estimate, *interval, n_items, n_subjects)
    return [interval for interval in found if interval is not None]


def peak_interval(
    values: ArrayLike, subjects: Sequence[Hashable], at: Sequence[int] | Sequence[float], *, seed: int
) -> Interval:
    """Where the mean curve over items is highest: one of `at`, the first of equals, with a percentile interval.

    values (item × column), `at` one position a column. Subjects are resampled, and the curve's peak is found each time.
    """
    table = np.asarray(values, dtype=np.float64)
    _check(table, subjects, None)
    sums, sizes = by_subject(table, subjects)
    where = np.asarray(at, dtype=np.float64)
    drawn = np.random.default_rng(seed).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), N_RESAMPLES)
    peaks = where[((drawn @ sums) / (drawn @ sizes)[:, None]).argmax(axis=1)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(peaks, [tail, 1 - tail], method="nearest")
    estimate = float(where[table.mean(axis=0).argmax()])
    return Interval(estimate, float(low), float(high), len(table), len(sizes))


def crossing_interval(
    values: ArrayLike,
    subjects: Sequence[Hashable],
    at: Sequence[int] | Sequence[float],
    *,
    level: float,
    seed: int,
) -> Interval:
    """From which of `at` on the mean curve over items stays at or above `level`, with a percentile interval.

    values (item × column), `at` one position a column, in order. Infinite where the curve ends below `level`, which a
    bound may be too. Subjects are resampled, and the crossing is found each time.
    """
    table = np.asarray(values, dtype=np.float64)
    _check(table, subjects, None)
    sums, sizes = by_subject(table, subjects)
    where = np.append(np.asarray(at, dtype=np.float64), math.inf)
    drawn = np.random.default_rng(seed).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), N_RESAMPLES)
    found = np.sort(where[_stays((drawn @ sums) / (drawn @ sizes)[:, None] >= level)])
    tail = round((1 - LEVEL) / 2 * (N_RESAMPLES - 1))
    estimate = float(where[_stays(table.mean(axis=0, keepdims=True) >= level)[0]])
    return Interval(estimate, float(found[tail]), float(found[-1 - tail]), len(table), len(sizes))


def _stays(above: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each curve (curve × column), the first column from which on all are true; the number of columns for none."""
    below = ~above[:, ::-1]
    trailing = np.where(below.any(axis=1), below.argmax(axis=1), above.shape[1])
    return np.asarray(above.shape[1] - trailing, dtype=np.int64)


def by_subject(values: Floats, subjects: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Sums of items (subject × column) and numbers of items (subject), in order of first appearance."""
    order = {subject: k for k, subject in enumerate(dict.fromkeys(subjects))}
    index = np.array([order[subject] for subject in subjects])
    sums = np.zeros((len(order), values.shape[1]))
    np.add.at(sums, index, values)
    return sums, np.bincount(index, minlength=len(order)).astype(np.float64)


def _bootstrap(sums: Floats, sizes: Floats, seed: int) -> tuple[Floats, Floats]:
    """Bounds per column of Σ sums / Σ sizes, with subjects resampled."""

    def ratio(total: Floats, size: Floats, axis: int = -1) -> Floats:
        quotient: Floats = total.sum(axis=axis) / size.sum(axis=axis)
        return quotient

    data = (sums.T, np.broadcast_to(sizes, sums.T.shape))
    options = {"paired": True, "confidence_level": LEVEL, "n_resamples": N_RESAMPLES, "batch": 250, "axis": -1}
    with warnings.catch_warnings():
        # BCa has no bounds where the jackknife does not vary; the percentiles of the same resamples take their place.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.bootstrap(data, ratio, method="BCa", rng=np.random.default_rng(seed), **options)
    low, high = np.atleast_1d(result.confidence_interval.low), np.atleast_1d(result.confidence_interval.high)
    missing = ~(np.isfinite(low) & np.isfinite(high))
    drawn = np.atleast_2d(result.bootstrap_distribution)
    tail = (1 - LEVEL) / 2
    low = np.where(missing, np.quantile(drawn, tail, axis=-1), low)
    high = np.where(missing, np.quantile(drawn, 1 - tail, axis=-1), high)
    return low, high


def _constant(value: float, n_subjects: int, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """Bounds of a mean where all subjects have `value`: how many others could have another one, and how far off."""
    if bounds is None:
        return math.nan, math.nan
    share = float(stats.binomtest(0, n_subjects).proportion_ci(LEVEL, method="exact").high)
    return value - share * (value - bounds[0]), value + share * (bounds[1] - value)


def _rates(hits: Floats, subjects: Sequence[Hashable], sizes: Floats) -> Floats:
    """Each subject's own rate (subject × column)."""
    _check(hits, subjects, (0.0, 1.0))
    return by_subject(hits, subjects)[0] / sizes[:, None]


def _unseen(hits: Floats) -> tuple[float, float]:
    """By how much the rate of `hits` (subject) may lie below and above what was seen, where all are alike; else 0."""
    if np.ptp(hits) >= 1e-12:
        return 0.0, 0.0
    low, high = _constant(float(hits[0]), len(hits), (0.0, 1.0))
    return float(hits[0]) - low, high - float(hits[0])


def _check(values: Floats, subjects: Sequence[Hashable], bounds: tuple[float, float] | None) -> None:
    if values.ndim != 2 or len(values) != len(subjects):
        raise OptionError(f"values of shape {values.shape} for {len(subjects)} subjects; one row per item is needed.")
    if not len(values):
        raise OptionError("there is no item, so there is no mean; look at what was excluded, and why.")
    if np.isnan(values).any():
        raise OptionError(f"{int(np.isnan(values).sum())} values are NaN; exclude their items, with a reason.")
    if bounds is not None and (values.min() < bounds[0] or values.max() > bounds[1]):
        raise OptionError(f"values run from {values.min():g} to {values.max():g}, outside {bounds}.")
