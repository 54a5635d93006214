import numpy as np
import pytest

from patchscopes import errors
from patchscopes.analysis.scores import control_adjusted, majority, majority_of_others, rouge_l


def test_rouge_l_by_hand() -> None:
    """Longest common subsequence "british royal" of 2 words: P = 2/3, R = 2/4, F = 4/7."""
    assert rouge_l("The British royal", "British monarch and royal") == pytest.approx(2 * (2 / 3) * (2 / 4) / (7 / 6))
    assert rouge_l("", "British royal") == 0.0
    assert rouge_l("british ROYAL", "British royal.") == 1.0


def test_adjusted_is_own_minus_the_mean_of_the_donors() -> None:
    own = np.array([[1.0, 0.0]])
    donors = np.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]])
    assert control_adjusted(own, donors) == pytest.approx(np.array([[0.8, -0.4]]))


def test_donors_with_the_same_states_leave_nothing() -> None:
    """A null: scores that do not depend on the state are adjusted to zero on the average."""
    rng = np.random.default_rng(0)
    scores = rng.random((500, 6)) < 0.7
    adjusted = control_adjusted(scores[:, 0], scores[:, 1:])
    assert abs(adjusted.mean()) < 0.05


def test_donors_without_a_draw_axis_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="a draw axis is needed"):
        control_adjusted([1.0, 0.0], [1.0, 0.0])


def test_the_majority_answer() -> None:
    assert majority(["red", "green", "red", "yellow"]) == ("red", 0.5)
    assert majority(["green", "red"]) == majority(["red", "green"]) == ("green", 0.5)
    with pytest.raises(errors.OptionError, match="no answer"):
        majority([])


def test_the_most_frequent_answer_is_that_of_the_other_folds() -> None:
    answers = ["a", "a", "b", "b", "b", "c"]
    accepted = [frozenset(answer) for answer in answers]
    folds = [0, 1, 0, 0, 1, 1]
    # Fold 0 is told "a" (of a, b, c; the first of equals), fold 1 "b" (of a, b, b).
    assert majority_of_others(answers, accepted, folds).tolist() == [1, 0, 0, 0, 1, 0]
    assert majority_of_others(answers, [{"a", "b"}] * 6, folds).tolist() == [1] * 6, "an alias counts"
    assert majority_of_others(answers, accepted, [0] * 6).tolist() == [0] * 6, "there are no others"
