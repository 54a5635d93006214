import math

import numpy as np
import pytest

from patchscopes import errors
from patchscopes.analysis.resolution import Resolved, hits, logrank, resolution_layers, survival


def test_a_hit_is_own_absent_without_a_write_and_of_at_most_one_donor() -> None:
    own = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    unpatched = np.array([0, 1], bool)
    donors = np.zeros((2, 5, 4), bool)
    donors[0, :1, 0] = donors[0, :2, 1] = True
    assert hits(own, unpatched, donors).tolist() == [[True, False, True, False], [False] * 4]


def test_the_resolution_layer_needs_two_layers_in_a_row() -> None:
    found = np.array([[1, 0, 1, 1, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1]], bool)
    layers = range(3, 11)
    assert resolution_layers(found, layers) == [Resolved(5, 9), Resolved(None, None), Resolved(9, 9)]


def test_layers_that_are_not_consecutive_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="consecutive"):
        resolution_layers(np.ones((1, 3), bool), [0, 2, 4])


def test_kaplan_meier_without_censoring_is_the_median() -> None:
    found = survival([0, 1, 2, 3, 4], n_layers=30)
    assert (found.n, found.n_resolved, found.median) == (5, 5, 2)
    assert found.low <= 2 <= found.high


def test_never_is_censored_and_not_dropped() -> None:
    """Three of seven resolved: dropped, the others would leave a median of 2; kept, it is never reached."""
    found = survival([1, 2, 3, None, None, None, None], n_layers=30)
    assert (found.n, found.n_resolved, found.median, found.high) == (7, 3, math.inf, math.inf)
    assert survival([None, None], n_layers=30).median == math.inf


def test_the_interval_of_the_median_covers() -> None:
    """Layers geometric with median 4, censored at 12: the bounds hold the truth about 95 % of the time."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        layers = rng.geometric(1 - 0.5 ** (1 / 4.5), 60) - 1
        found = survival([int(x) if x < 12 else None for x in layers], n_layers=12)
        covered.append(found.low <= 4 <= found.high)
    assert np.mean(covered) >= 0.91


def test_the_log_rank_test_finds_a_later_group_and_no_difference_where_none_is() -> None:
    early, late = [1, 2, 2, 3, 3, 4] * 4, [8, 9, 10, None, 9, 8] * 4
    assert logrank(early + late, ["a"] * 24 + ["b"] * 24, n_layers=12) < 0.001
    rng = np.random.default_rng(1)
    p = [logrank(rng.integers(0, 12, 60).tolist(), ["a", "b"] * 30, n_layers=12) for _ in range(200)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert logrank([1, 2], ["a", "a"], n_layers=12) == 1.0


def test_all_at_one_layer_is_a_median_with_bounds_and_no_difference() -> None:
    """Where nothing varies, the survival function has no variance: it gives no bounds and the test cannot divide."""
    assert logrank([3] * 8, ["a", "b"] * 4, n_layers=8) == 1.0
    found = survival([3] * 20, n_layers=8)
    assert (found.median, found.low, found.high) == (3, 3, 3)
    few = survival([3] * 3, n_layers=8)
    assert (few.median, few.low, few.high) == (3, 0, math.inf), "of three, no order statistic bounds the median"
    for first in ([3] * 11 + [None] * 9, [0] * 19 + [5], [2] * 10 + [None] * 10):
        found = survival(first, n_layers=8)
        assert found.low <= found.median <= found.high


@pytest.mark.parametrize("call", [lambda: survival([], 3), lambda: logrank([1], ["a", "b"], 3)])
def test_nothing_to_compare_is_refused(call: object) -> None:
    with pytest.raises(errors.OptionError):
        call()  # type: ignore[operator]
