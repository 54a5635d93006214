"""A linear probe, trained and tested on folds grouped by subject (rule 20).

Axes: subject, context, d_model. A probe learns the class (the object) from the states of its training subjects in all
of their contexts, and is tested on the first context of each held-out subject. Its ceiling, the majority class and the
same probe on shuffled labels stand beside it. Where several classes are right for a subject (a word and its alias), any
of them counts; it learns the one that it is given.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchscopes.analysis.scores import majority
from patchscopes.cached import cached_property
from patchscopes.errors import OptionError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
STRENGTHS = (0.01, 1.0, 100.0)  # scikit-learn's C, from which the training folds choose
INNER_FOLDS = 3


@dataclass(frozen=True)
class Labels:
    """Of each subject: its class, which a probe learns; its fold, 0 and up; and the classes that are right for it.

    `accepted` has other classes than a subject's own where an object is another's alias; None where there are none.
    """

    classes: Sequence[str]
    folds: ArrayLike
    accepted: Sequence[Collection[str]] | None = None

    @cached_property
    def y(self) -> NDArray[Any]:
        """The classes."""
        return np.asarray(self.classes)

    @cached_property
    def fold(self) -> NDArray[np.int64]:
        """The folds."""
        return np.asarray(self.folds)

    @property
    def n_accepted(self) -> int:
        """For how many subjects it is said what is right."""
        return len(self._accepted)

    @property
    def n_folds(self) -> int:
        """How many folds have subjects, if none is skipped."""
        return int(self.fold.max()) + 1

    def right(self, rows: NDArray[np.intp], said: ArrayLike) -> Bools:
        """Whether what is said of each of the subjects `rows` is right."""
        pairs = zip(rows.tolist(), np.asarray(said).tolist(), strict=True)
        return np.array([one in self._accepted[row] for row, one in pairs], dtype=bool)

    def occurs(self, rows: NDArray[np.intp], among: NDArray[Any]) -> Bools:
        """Whether a class that is right for each of the subjects `rows` is among these."""
        there = set(among.tolist())
        return np.array([not there.isdisjoint(self._accepted[row]) for row in rows.tolist()], dtype=bool)

    @cached_property
    def _accepted(self) -> Sequence[Collection[str]]:
        return [(own,) for own in self.y.tolist()] if self.accepted is None else self.accepted


@dataclass(frozen=True)
class Probe:
    """Per subject, held out: whether each of them is right. `possible`: a right class occurs in training (the ceiling).

    `inside[k]` is the accuracy that fold k's training subjects have among themselves, for a choice of layer without it;
    `strengths[k]` the regularisation that they chose.
    """

    correct: Bools
    shuffled: Bools
    majority: Bools
    possible: Bools
    inside: tuple[float, ...]
    strengths: tuple[float, ...]


def probe(states: ArrayLike, labels: Labels, *, seed: int) -> Probe:
    """Logistic regression, its regularisation chosen inside the training folds.

    Args:
        states: (subject, context, d_model).
        labels: the subjects' classes and folds.
        seed: of the shuffled labels.

    Raises:
        OptionError: shapes that do not belong together, or fewer than two folds.
    """
    x, fold, y = np.asarray(states, dtype=np.float64), labels.fold, labels.y
    if x.ndim != 3 or not len(x) == len(y) == len(fold) == labels.n_accepted or len(set(fold.tolist())) < 2:
        raise OptionError(
            f"states {x.shape}, {len(y)} classes and {len(fold)} folds: one of each per subject, two folds."
        )
    shuffled_y = np.random.default_rng(seed).permutation(y)
    found = {name: np.zeros(len(y), dtype=bool) for name in ("correct", "shuffled", "majority", "possible")}
    inside, strengths = [], []
    for k in range(labels.n_folds):
        test, train = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        found["possible"][test] = possible = labels.occurs(test, y[train])
        found["majority"][test] = labels.right(test, [majority(y[train].tolist())[0]] * len(test))
        strength, score = 1.0, 0.0
        if possible.any():  # else there is nothing that could be right
            strength, score = choose_strength(x, labels, train)
            found["correct"][test] = labels.right(test, predict(x[train], y[train], x[test, 0], strength))
        found["shuffled"][test] = labels.right(test, predict(x[train], shuffled_y[train], x[test, 0], strength))
        inside.append(score)
        strengths.append(strength)
    return Probe(**found, inside=tuple(inside), strengths=tuple(strengths))


def learning_curve(
    states: Sequence[ArrayLike],
    labels: Labels,
    sizes: Sequence[int],
    *,
    seed: int,
    strengths: Sequence[float],
    draws: int = 5,
) -> list[float]:
    """The probe's accuracy when it may learn from so many labelled subjects, drawn from the training folds.

    Args:
        states: for each fold, (subject, context, d_model) at the layer that was chosen without it.
        labels: the subjects' classes and folds.
        sizes: how many subjects are drawn; all are taken, once, where a fold's training subjects are no more.
        seed: of the draws.
        strengths: the C that was chosen without each fold.
        draws: over how many the accuracy is the mean.

    Raises:
        OptionError: not one array of states and one C for each fold.
    """
    if not len(states) == len(strengths) == labels.n_folds:
        raise OptionError(f"{len(states)} arrays of states, {len(strengths)} strengths: one for each fold.")
    rng = np.random.default_rng(seed)
    correct = np.zeros((len(sizes), len(labels.y)))
    for k, strength in enumerate(strengths):
        x = np.asarray(states[k], dtype=np.float64)
        test, train = np.flatnonzero(labels.fold == k), np.flatnonzero(labels.fold != k)
        for number, size in enumerate(sizes):
            drawn = [train] if size >= len(train) else [rng.permutation(train)[:size] for _ in range(draws)]
            hits = [labels.right(test, predict(x[some], labels.y[some], x[test, 0], strength)) for some in drawn]
            correct[number, test] = np.mean(hits, axis=0)
    return [float(accuracy) for accuracy in correct.mean(axis=1)]


def choose_strength(x: Floats, labels: Labels, rows: NDArray[np.intp]) -> tuple[float, float]:
    """The C of STRENGTHS that does best on folds of subjects `rows`, and how well; x (subject, context, d_model)."""
    from sklearn.model_selection import KFold

    if len(rows) < 2 * INNER_FOLDS:
        return 1.0, 0.0
    scores = np.zeros((len(STRENGTHS), len(rows)))
    for inner, outer in KFold(INNER_FOLDS).split(rows):
        train, test = rows[inner], rows[outer]
        for k, strength in enumerate(STRENGTHS):
            scores[k, outer] = labels.right(test, predict(x[train], labels.y[train], x[test, 0], strength))
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
