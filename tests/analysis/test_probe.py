"""The probe on simulated states: it learns what is there, nothing where nothing is, and never from a test subject."""

import numpy as np
import pytest

from patchscopes import errors
from patchscopes.analysis.probe import Labels, choose_strength, learning_curve, predict, probe
from patchscopes.analysis.selection import folds_of


def simulated(
    rng: np.random.Generator,
    *,
    n: int = 40,
    n_classes: int = 4,
    n_contexts: int = 3,
    strength: float = 1.0,
    d: int = 64,
) -> tuple[np.ndarray, list[str]]:
    """States (subject, context, d_model): a mean per class, times `strength`, noise per subject and per context."""
    centres = rng.normal(size=(n_classes, d))
    classes = [k % n_classes for k in range(n)]
    own = rng.normal(size=(n, 1, d)) + strength * centres[classes][:, None]
    return own + 0.1 * rng.normal(size=(n, n_contexts, d)), [f"class {k}" for k in classes]


def test_it_learns_what_is_there() -> None:
    x, y = simulated(np.random.default_rng(0), strength=2.0)
    found = probe(x, Labels(y, folds_of(range(40), 5, seed=0)), seed=0)
    assert found.correct.mean() > 0.9
    assert found.possible.all()
    assert found.shuffled.mean() < 0.5
    assert all(score > 0.8 for score in found.inside)


def test_where_nothing_is_it_is_at_chance() -> None:
    """A probe that saw a context of a test subject would know it by heart: noise per subject is ten times the rest."""
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(5):
        x, y = simulated(rng, strength=0.0)
        scores.append(probe(x, Labels(y, folds_of(range(40), 5, seed=0)), seed=0).correct.mean())
    assert np.mean(scores) == pytest.approx(0.25, abs=0.15)


def test_a_class_of_one_subject_cannot_be_right() -> None:
    """Pitfall 20: capitals. Every class occurs once, so the ceiling is 0, and so is the probe."""
    x, _ = simulated(np.random.default_rng(2), n=20, strength=3.0)
    found = probe(x, Labels([f"city {k}" for k in range(20)], folds_of(range(20), 5, seed=0)), seed=0)
    assert not found.possible.any()
    assert not found.correct.any()
    assert not found.majority.any()


def test_the_majority_is_that_of_the_training_folds() -> None:
    x, _ = simulated(np.random.default_rng(3), n=10)
    y = ["red"] * 6 + ["green"] * 4
    found = probe(x, Labels(y, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]), seed=0)
    assert found.majority.tolist() == [False] * 10, "each fold knows only the other's colour"
    assert not found.possible.any()


def test_more_labels_are_no_worse() -> None:
    x, y = simulated(np.random.default_rng(4), n=80, strength=0.7)
    labels = Labels(y, folds_of(range(80), 5, seed=0))
    curve = learning_curve([x] * 5, labels, [2, 16, 64], seed=0, strengths=[1.0] * 5)
    assert curve[0] < curve[1] < curve[2]


def test_with_all_labels_the_curve_ends_at_the_probe_itself() -> None:
    """Each fold at its own layer and C; one layer holds the classes, the other nothing."""
    rng = np.random.default_rng(8)
    told, y = simulated(rng, n=40, strength=1.0)
    untold, _ = simulated(rng, n=40, strength=0.0)
    labels = Labels(y, folds_of(range(40), 5, seed=0))
    good, bad = probe(told, labels, seed=0), probe(untold, labels, seed=0)
    strengths = [good.strengths[0], *bad.strengths[1:]]
    (ending,) = learning_curve([told, *[untold] * 4], labels, [32], seed=0, strengths=strengths)
    by_hand = np.where(np.asarray(labels.folds) == 0, good.correct, bad.correct)
    assert ending == by_hand.mean()
    with pytest.raises(errors.OptionError, match="one for each fold"):
        learning_curve([told], labels, [2], seed=0, strengths=[1.0])


def test_an_alias_that_is_another_object_is_right_too() -> None:
    """Half of the reds may be called green: the probe that says green of them is not wrong, nor is the majority."""
    rng = np.random.default_rng(9)
    x, y = simulated(rng, n=40, n_classes=2, strength=3.0)
    folds = folds_of(range(40), 5, seed=0)
    swapped = ["class 1" if k < 20 else own for k, own in enumerate(y)]  # as one may call them: 0 or 1
    accepted = [{own, other} for own, other in zip(y, swapped, strict=True)]
    strict, fair = probe(x, Labels(swapped, folds), seed=0), probe(x, Labels(swapped, folds, accepted), seed=0)
    assert fair.correct.mean() > strict.correct.mean() + 0.05
    assert (fair.correct >= strict.correct).all()
    assert fair.majority.sum() == sum("class 1" in some for some in accepted)
    alone = Labels(["a", "b", "c", "d"], [0, 1, 0, 1], [{"a", "b"}, {"b"}, {"c"}, {"d"}])
    assert probe(rng.normal(size=(4, 1, 8)), alone, seed=0).possible.tolist() == [True, False, False, False]
    assert set(predict(x, np.array(y), x[:, 0], 1.0)) <= set(y)


def test_regularisation_is_chosen_from_the_training_subjects() -> None:
    rng = np.random.default_rng(5)
    x, y = simulated(rng, n=30, strength=2.0)
    labels = Labels(y, [0] * 30)
    strength, inside = choose_strength(x, labels, np.arange(30))
    assert strength in (0.01, 1.0, 100.0)
    assert inside > 0.7
    assert choose_strength(x, labels, np.arange(4)) == (1.0, 0.0), "too few to choose from"


def test_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(errors.OptionError, match="one of each per subject"):
        probe(np.ones((3, 1, 2)), Labels(["a", "b"], [0, 1, 0]), seed=0)
    with pytest.raises(errors.OptionError, match="two folds"):
        probe(np.ones((2, 1, 2)), Labels(["a", "b"], [0, 0]), seed=0)
