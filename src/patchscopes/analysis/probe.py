"""A linear probe, trained and tested on folds grouped by subject (rule 20).

Axes: subject, context, d_model. A probe learns the class (the object) from the states of its training subjects in all
of their contexts, and is tested on the first context of each held-out subject. Its ceiling, the majority class and the
same probe on shuffled labels stand beside it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchscopes.errors import OptionError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
STRENGTHS = (0.01, 1.0, 100.0)  # scikit-learn's C, from which the training folds choose
INNER_FOLDS = 3


@dataclass(frozen=True)
class Probe:
    """Per subject, held out: whether each of them is right. `possible`: its class occurs in training (the ceiling).

    `inside[k]` is the accuracy that fold k's training subjects have among themselves, for a choice of layer without it;
    `strength` the regularisation that the folds chose most often.
    """

    correct: Bools
    shuffled: Bools
    majority: Bools
    possible: Bools
    inside: tuple[float, ...]
    strength: float


def probe(states: ArrayLike, classes: Sequence[str], folds: ArrayLike, *, seed: int) -> Probe:
    """Logistic regression, its regularisation chosen inside the training folds.

    Args:
        states: (subject, context, d_model).
        classes: of each subject.
        folds: of each subject, 0 and up.
        seed: of the shuffled labels.

    Raises:
        OptionError: shapes that do not belong together, or fewer than two folds.
    """
    x, fold, y = np.asarray(states, dtype=np.float64), np.asarray(folds), np.asarray(classes)
    if x.ndim != 3 or not len(x) == len(y) == len(fold) or len(set(fold.tolist())) < 2:
        raise OptionError(
            f"states {x.shape}, {len(y)} classes and {len(fold)} folds: one of each per subject, two folds."
        )
    shuffled_y = np.random.default_rng(seed).permutation(y)
    found = {name: np.zeros(len(y), dtype=bool) for name in ("correct", "shuffled", "majority", "possible")}
    inside, strengths = [], []
    for k in range(int(fold.max()) + 1):
        test, train = fold == k, fold != k
        possible = np.isin(y[test], y[train])
        found["possible"][test] = possible
        found["majority"][test] = y[test] == _most_frequent(y[train])
        strength, score = 1.0, 0.0
        if possible.any():  # else there is nothing that could be right
            strength, score = choose_strength(x[train], y[train])
            found["correct"][test] = predict(x[train], y[train], x[test, 0], strength) == y[test]
        found["shuffled"][test] = predict(x[train], shuffled_y[train], x[test, 0], strength) == y[test]
        inside.append(score)
        strengths.append(strength)
    most = max(STRENGTHS, key=strengths.count)
    return Probe(**found, inside=tuple(inside), strength=most)


def learning_curve(
    states: ArrayLike,
    classes: Sequence[str],
    folds: ArrayLike,
    sizes: Sequence[int],
    *,
    seed: int,
    strength: float = 1.0,
) -> list[float]:
    """The probe's accuracy when it may learn from so many labelled subjects, drawn from the training folds."""
    x, fold, y = np.asarray(states, dtype=np.float64), np.asarray(folds), np.asarray(classes)
    rng = np.random.default_rng(seed)
    found = []
    for size in sizes:
        correct = np.zeros(len(y))
        for k in range(int(fold.max()) + 1):
            test, train = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
            drawn = rng.permutation(train)[:size]
            correct[test] = predict(x[drawn], y[drawn], x[test, 0], strength) == y[test]
        found.append(float(correct.mean()))
    return found


def choose_strength(x: Floats, y: NDArray[Any]) -> tuple[float, float]:
    """The C of STRENGTHS that does best on folds of these subjects, and how well; x (subject, context, d_model)."""
    from sklearn.model_selection import KFold

    if len(x) < 2 * INNER_FOLDS:
        return 1.0, 0.0
    scores = np.zeros((len(STRENGTHS), len(x)))
    for train, test in KFold(INNER_FOLDS).split(x):
        for k, strength in enumerate(STRENGTHS):
            scores[k, test] = predict(x[train], y[train], x[test, 0], strength) == y[test]
    best = int(scores.mean(axis=1).argmax())
    return STRENGTHS[best], float(scores[best].mean())


def predict(x: Floats, y: NDArray[Any], test: Floats, strength: float) -> NDArray[Any]:
    """The classes of `test` (row, d_model) by a probe that has learnt from x (subject, context, d_model) and y."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(set(y.tolist())) == 1:
        return np.repeat(y[:1], len(test))
    train, held_out = _rotated(x.reshape(-1, x.shape[-1]), test)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that has not quite converged is a probe still
        model = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(train, np.repeat(y, x.shape[1]))
    predicted: NDArray[Any] = model.predict(held_out)
    return predicted


def _rotated(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Both standardised by the training rows, in the axes that these span: the same probe, in far fewer dimensions."""
    centre, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread == 0] = 1.0
    a, b = (train - centre) / spread, (test - centre) / spread
    if len(a) >= a.shape[1]:
        return a, b
    _, _, axes = np.linalg.svd(a, full_matrices=False)
    return a @ axes.T, b @ axes.T


def _most_frequent(y: NDArray[Any]) -> str:
    values, counts = np.unique(y, return_counts=True)
    return str(values[counts.argmax()])
