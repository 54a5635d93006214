"""The choice of a placement (ℓ, ℓ*) among many, and what the choice itself brings (rules 17, 19, 20).

Axes: item, draw, placement. A placement is chosen on the training folds and scored on the held-out one; the best of
many, chosen on the very items that it is scored on, stands beside the same best of shuffled states.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchscopes.errors import OptionError


@dataclass(frozen=True, slots=True)
class Chosen:
    """Per item, which placement the other folds chose for it; `by_fold[k]` is the choice for fold k."""

    placement: NDArray[np.int64]
    by_fold: tuple[int, ...]

    def of(self, scores: ArrayLike) -> NDArray[np.float64]:
        """The held-out scores: of each item (item, …, placement) at the placement that was chosen without it."""
        table = np.asarray(scores, dtype=np.float64)
        index = self.placement.reshape(-1, *(1,) * (table.ndim - 1))
        taken: NDArray[np.float64] = np.take_along_axis(table, index, axis=-1)[..., 0]
        return taken

    @property
    def most_frequent(self) -> list[int]:
        """The placements that some fold chose, that of the most items first."""
        counts = np.bincount(self.placement)
        return [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]


def folds_of(subjects: Sequence[Hashable], n_folds: int, *, seed: int) -> NDArray[np.int64]:
    """The fold of each item, all items of a subject in the same; subjects are dealt at random, as evenly as they go.

    Raises OptionError for fewer subjects than folds.
    """
    names = list(dict.fromkeys(subjects))
    if n_folds < 2 or len(names) < n_folds:
        raise OptionError(f"{len(names)} subjects cannot be dealt to {n_folds} folds; at least one each is needed.")
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[k]: position % n_folds for position, k in enumerate(order)}
    return np.array([fold[subject] for subject in subjects], dtype=np.int64)


def choose(scores: ArrayLike, folds: ArrayLike, *, among: Sequence[int] | None = None) -> Chosen:
    """For each fold, the placement with the best mean score over the items of the others; the first of equals.

    scores (item, placement), folds (item); `among` are the placements that may be chosen, all where None.
    """
    table, fold = np.asarray(scores, dtype=np.float64), np.asarray(folds)
    if table.ndim != 2 or not table.shape[1] or len(fold) != len(table):
        raise OptionError(f"scores of shape {table.shape} and {len(fold)} folds; items × placements are needed.")
    eligible = np.arange(table.shape[1]) if among is None else np.asarray(among)
    if not len(eligible):
        raise OptionError("there is no placement that may be chosen.")
    n_folds = int(fold.max()) + 1
    by_fold = tuple(int(eligible[table[fold != k][:, eligible].mean(axis=0).argmax()]) for k in range(n_folds))
    return Chosen(np.array(by_fold, dtype=np.int64)[fold], by_fold)


def best_of(scores: ArrayLike) -> NDArray[np.float64]:
    """The best score over all placements (the last axis), the paper's "some ℓ* yields it"; to stand beside donors'."""
    table = np.asarray(scores, dtype=np.float64)
    if not table.shape[-1]:
        raise OptionError("there is no placement to take the best of.")
    best: NDArray[np.float64] = table.max(axis=-1)
    return best
