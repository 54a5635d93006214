"""Intervals on simulated data: they cover as often as they say, and resample subjects."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes import errors
from patchscopes.analysis.intervals import (
    Interval,
    by_subject,
    crossing_interval,
    mean_interval,
    mean_intervals,
    peak_interval,
)


def clustered(rng: np.random.Generator, n_subjects: int, n_items: int, rate: float) -> np.ndarray:
    """Hits of subjects that differ in their own rate (a beta distribution of mean `rate`): subject × item."""
    own = rng.beta(2 * rate, 2 * (1 - rate), n_subjects)
    return (rng.random((n_subjects, n_items)) < own[:, None]).astype(float)


@pytest.mark.parametrize(("n_subjects", "rate"), [(40, 0.5), (60, 0.2), (200, 0.1)])
def test_ninety_five_percent_of_intervals_cover_the_truth(n_subjects: int, rate: float) -> None:
    """Many data sets as the columns of one table: each column has its own data, all share the resampled subjects."""
    rng = np.random.default_rng(1)
    n_sets, n_items = 400, 6
    data = np.stack([clustered(rng, n_subjects, n_items, rate).ravel() for _ in range(n_sets)], axis=1)
    subjects = np.repeat(np.arange(n_subjects), n_items).tolist()
    found = mean_intervals(data, subjects, seed=2)
    covered = np.mean([interval.low <= rate <= interval.high for interval in found])
    assert 0.91 <= covered <= 0.98


def test_items_taken_for_subjects_would_cover_far_too_rarely() -> None:
    """The reason for the rule: contexts of one subject are no new evidence."""
    rng = np.random.default_rng(3)
    data = np.stack([clustered(rng, 40, 12, 0.5).ravel() for _ in range(200)], axis=1)
    wrong = mean_intervals(data, list(range(40 * 12)), seed=4)
    assert np.mean([interval.low <= 0.5 <= interval.high for interval in wrong]) < 0.75


@pytest.mark.parametrize(("value", "n", "low", "high"), [(0.0, 20, 0.0, 0.16843), (1.0, 20, 0.83157, 1.0)])
def test_rates_of_zero_and_one_have_the_exact_binomial_interval(value: float, n: int, low: float, high: float) -> None:
    interval = mean_interval([value] * 2 * n, [k // 2 for k in range(2 * n)], seed=0)
    assert interval.method == "binomial"
    assert (interval.estimate, interval.n_items, interval.n_subjects) == (value, 2 * n, n)
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


def test_adjusted_scores_that_are_all_zero_are_not_certain() -> None:
    interval = mean_interval([0.0] * 20, list(range(20)), seed=0, bounds=(-1.0, 1.0))
    assert interval.low == pytest.approx(-0.16843, abs=1e-4)
    assert interval.high == pytest.approx(0.16843, abs=1e-4)


@pytest.mark.parametrize(("n_subjects", "rate"), [(12, 0.08), (30, 0.03), (80, 0.03), (80, 0.3)])
def test_rare_hits_beside_their_controls_are_covered_too(n_subjects: int, rate: float) -> None:
    """Hits minus the mean of five draws that hit as often. Where nobody hits, a bootstrap alone sees only losses."""
    rng = np.random.default_rng(11)
    n_sets = 300
    own = rng.random((n_subjects, n_sets)) < rate
    controls = (rng.random((n_subjects, 5, n_sets)) < rate).mean(axis=1)
    found = mean_intervals(own - controls, list(range(n_subjects)), seed=2, bounds=(-1.0, 1.0), own=own)
    below = np.mean([interval.high < 0 for interval in found])
    above = np.mean([interval.low > 0 for interval in found])
    assert below <= 0.05
    assert above <= 0.05
    assert below + above <= 0.08


def test_hits_that_nobody_had_are_allowed_for_by_the_exact_share() -> None:
    """Ten subjects without a hit, three of whom lose 0.2: up to 30.85 % of all could have one. And the reverse."""
    losses, subjects = [-0.2] * 3 + [0.0] * 7, list(range(10))
    alone = mean_interval(losses, subjects, seed=0, bounds=(-1.0, 1.0))
    assert alone.high < 0
    found = mean_interval(losses, subjects, seed=0, bounds=(-1.0, 1.0), own=[0.0] * 10)
    assert (found.estimate, found.low) == (alone.estimate, alone.low)
    assert found.high == pytest.approx(alone.high + 0.30850, abs=1e-4)
    gains = mean_interval([1.0 + loss for loss in losses], subjects, seed=0, bounds=(-1.0, 1.0), own=[1.0] * 10)
    assert gains.low == pytest.approx(1 + alone.low - 0.30850, abs=1e-4)
    certain = mean_interval([-1.0] * 9 + [0.0], subjects, seed=0, bounds=(-1.0, 1.0), own=[1.0] * 10)
    assert certain.low == -1.0, "no further than a difference can be"
    some = [1.0] + [0.0] * 9
    assert mean_interval(losses, subjects, seed=0, bounds=(-1.0, 1.0), own=some) == alone, "a hit was seen"


def test_one_subject_has_no_interval() -> None:
    interval = mean_interval([0.0, 1.0, 1.0], ["a"] * 3, seed=0)
    assert interval.estimate == pytest.approx(2 / 3)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.method == "none"


def test_constant_surprisals_have_no_bounds_to_be_invented() -> None:
    interval = mean_interval([2.0] * 5, list(range(5)), seed=0, bounds=None)
    assert math.isnan(interval.low)


def test_columns_side_by_side_are_those_taken_alone() -> None:
    rng = np.random.default_rng(5)
    table = rng.random((30, 4))
    subjects = [k % 10 for k in range(30)]
    together = mean_intervals(table, subjects, seed=6)
    for column in range(4):
        alone = mean_interval(table[:, column], subjects, seed=6)
        assert alone.estimate == together[column].estimate
        assert alone.low == pytest.approx(together[column].low, abs=0.02)


def test_the_same_seed_gives_the_same_interval_and_another_one_hardly_another() -> None:
    values = np.random.default_rng(7).random(50)
    first, second = (mean_interval(values, list(range(50)), seed=1) for _ in range(2))
    assert first == second
    assert mean_interval(values, list(range(50)), seed=2).low == pytest.approx(first.low, abs=0.02)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_the_estimate_is_the_mean_and_lies_within(items: list[tuple[int, bool]]) -> None:
    interval = mean_interval([float(hit) for _, hit in items], [subject for subject, _ in items], seed=0)
    assert interval.estimate == pytest.approx(np.mean([hit for _, hit in items]))
    if interval.method != "none":
        assert 0 <= interval.low <= interval.high <= 1


def test_sums_by_subject() -> None:
    sums, sizes = by_subject(np.array([[1.0], [2.0], [4.0]]), ["b", "a", "b"])
    assert sums.tolist() == [[5.0], [2.0]]
    assert sizes.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("values", "subjects", "message"),
    [
        ([], [], "there is no item"),
        ([1.0, 0.0], ["a"], "one row per item"),
        ([1.0, math.nan], ["a", "b"], "1 values are NaN"),
        ([1.0, 2.0], ["a", "b"], "outside"),
    ],
)
def test_what_has_no_mean_is_refused(values: list[float], subjects: list[str], message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        mean_interval(values, subjects, seed=0)


def test_the_peak_of_a_curve_and_how_sure_it_is() -> None:
    rng = np.random.default_rng(8)
    curve = np.array([0.1, 0.2, 0.6, 0.2, 0.1])
    clear = peak_interval(curve + rng.normal(0, 0.1, (80, 5)), list(range(80)), [0.0, 1.0, 2.0, 3.0, 4.0], seed=0)
    assert (clear.estimate, clear.low, clear.high) == (2, 2, 2)
    flat = peak_interval(rng.normal(0, 1, (80, 5)), list(range(80)), [0.0, 1.0, 2.0, 3.0, 4.0], seed=0)
    assert flat.high - flat.low >= 3


def crossing(values: object, **options: float) -> Interval:
    table = np.asarray(values, dtype=float)
    return crossing_interval(table, list(range(len(table))), range(table.shape[1]), level=0.5, seed=0, **options)


def test_where_a_curve_passes_a_level_for_good() -> None:
    """0.6 at column 1 does not count, for column 2 is below again; column 3 is at the level itself."""
    clear = crossing([[0.0, 0.6, 0.4, 0.5, 0.9]] * 5)
    assert (clear.estimate, clear.low, clear.high, clear.n_items, clear.n_subjects) == (3, 3, 3, 5, 5)
    assert crossing([[0.5, 0.6]] * 5).estimate == 0
    never = crossing([[0.0, 0.9, 0.4]] * 5)
    assert (never.estimate, never.low, never.high) == (math.inf, math.inf, math.inf)


def test_a_crossing_is_as_sure_as_its_subjects_agree() -> None:
    early, late = [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]
    unsure = crossing([early] * 11 + [late] * 10)
    assert (unsure.estimate, unsure.low, unsure.high) == (1, 1, 3)
    sure = crossing([early] * 190 + [late] * 20)
    assert (sure.low, sure.high) == (1, 1)
    ends_below = [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]] * 10
    assert crossing(ends_below).high == math.inf
    whole = crossing_interval(np.array([early, late, late]), ["a", "b", "b"], range(4), level=0.5, seed=0)
    assert (whole.low, whole.high, whole.n_items, whole.n_subjects) == (1, 3, 3, 2)
