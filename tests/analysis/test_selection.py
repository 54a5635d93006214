"""What choosing among many placements does to a score, on simulated data."""

import numpy as np
import pytest

from patchscopes import errors
from patchscopes.analysis.intervals import mean_interval
from patchscopes.analysis.scores import control_adjusted
from patchscopes.analysis.selection import Chosen, best_of, choose, folds_of


def test_the_best_of_many_is_inflated_and_the_chosen_one_is_not() -> None:
    """Hits at a rate of 10 % wherever one looks, and no information at all (pitfall 17)."""
    rng = np.random.default_rng(0)
    own = rng.random((200, 100)) < 0.1
    donors = rng.random((200, 5, 100)) < 0.1
    folds = folds_of(range(200), 5, seed=0)
    assert best_of(own).mean() > 0.99, "some placement hits for nearly every item"
    same_best_of_noise = mean_interval(
        control_adjusted(best_of(own), best_of(donors)), range(200), seed=0, bounds=(-1.0, 1.0)
    )
    assert same_best_of_noise.low <= 0 <= same_best_of_noise.high
    held_out = choose(own, folds).of(own)
    assert held_out.mean() == pytest.approx(0.1, abs=0.05)
    on_its_own_items = own.mean(axis=0).max()
    assert on_its_own_items > 0.13, "even one placement for all, chosen on the items it is scored on, looks better"


def test_the_placements_that_folds_chose_come_by_how_many_items_they_are_for() -> None:
    chosen = Chosen(np.array([4, 2, 2, 0, 4, 2]), (4, 2, 0))
    assert chosen.most_frequent == [2, 4, 0]


def test_a_good_placement_is_found_without_the_items_that_it_is_scored_on() -> None:
    rng = np.random.default_rng(1)
    scores = (rng.random((60, 9)) < 0.1).astype(float)
    scores[:, 4] = rng.random(60) < 0.8
    chosen = choose(scores, folds_of(range(60), 5, seed=0))
    assert chosen.by_fold == (4,) * 5
    assert chosen.of(scores).tolist() == scores[:, 4].tolist()


def test_a_fold_does_not_see_its_own_items() -> None:
    """Item k alone scores at placement k: no other item chooses it."""
    scores = np.eye(4)
    chosen = choose(scores, np.arange(4))
    assert chosen.of(scores).tolist() == [0.0] * 4


def test_chosen_placements_are_read_from_tables_with_draws() -> None:
    scores = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(float)
    chosen = choose(np.array([[0, 1, 0, 0], [0, 0, 1, 0]], float), [0, 1])
    assert chosen.placement.tolist() == [2, 1]
    assert chosen.of(scores).tolist() == [[2, 6, 10], [13, 17, 21]]


def test_subjects_stay_together_and_folds_are_even() -> None:
    subjects = [f"s{k % 23}" for k in range(92)]
    folds = folds_of(subjects, 5, seed=3)
    by_subject = {s: {int(f) for f, t in zip(folds, subjects, strict=True) if t == s} for s in set(subjects)}
    assert all(len(found) == 1 for found in by_subject.values())
    sizes = np.bincount([next(iter(found)) for found in by_subject.values()])
    assert sizes.max() - sizes.min() <= 1


def test_too_few_subjects_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="4 subjects cannot be dealt to 5 folds"):
        folds_of("aabbccdd", 5, seed=0)
    with pytest.raises(errors.OptionError, match="no placement"):
        best_of(np.empty((3, 0)))
    with pytest.raises(errors.OptionError, match="items × placements"):
        choose(np.ones(3), [0, 1, 0])


def test_only_eligible_placements_are_chosen() -> None:
    scores = np.array([[1.0, 0.0, 0.5]] * 4)
    assert choose(scores, [0, 1, 0, 1], among=[1, 2]).by_fold == (2, 2)
    with pytest.raises(errors.OptionError, match="may be chosen"):
        choose(scores, [0, 1, 0, 1], among=[])
