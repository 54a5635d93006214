"""Scores of texts, and what of a score is left beside the controls (rule 17)."""

from collections import Counter
from collections.abc import Container, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchscopes.errors import OptionError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


@lru_cache(maxsize=1)
def _scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


@lru_cache(maxsize=1 << 18)
def rouge_l(text: str, reference: str) -> float:
    """RougeL (Lin 2004), the F-measure of the longest common subsequence of words, 0 to 1, without stemming."""
    return float(_scorer().score(reference, text)["rougeL"].fmeasure)


def control_adjusted(own: ArrayLike, donors: ArrayLike) -> NDArray[np.float64]:
    """Scores of items minus the mean of the scores that the same items get with their donors' states (rule 17).

    Axes: own (item, …), donors (item, draw, …).
    """
    scores, others = np.asarray(own, dtype=np.float64), np.asarray(donors, dtype=np.float64)
    if others.ndim != scores.ndim + 1 or others.shape[:1] + others.shape[2:] != scores.shape:
        raise OptionError(
            f"scores of shape {scores.shape} beside donors' of shape {others.shape}: a draw axis is needed."
        )
    adjusted: NDArray[np.float64] = scores - others.mean(axis=1)
    return adjusted


def majority(answers: Sequence[str]) -> tuple[str, float]:
    """The most frequent answer and its share: what always saying the same would score.

    Of equals the first by its letters, so that the order of items does not show.
    """
    if not len(answers):
        raise OptionError("there is no answer, so none is the most frequent.")
    counts = Counter(answers)
    best = max(sorted(counts), key=counts.__getitem__)
    return best, counts[best] / len(answers)


def majority_of_others(
    answers: Sequence[str], accepted: Sequence[Container[str]], folds: ArrayLike
) -> NDArray[np.float64]:
    """Whether the most frequent answer of the other folds is one of those `accepted` of each item (item).

    What always saying the same scores, held out as a choice is; 0 where all items are in one fold.
    """
    fold_of = np.asarray(folds).tolist()
    others = {fold: [a for a, f in zip(answers, fold_of, strict=True) if f != fold] for fold in set(fold_of)}
    said = {fold: majority(of)[0] for fold, of in others.items() if of}
    right = [fold in said and said[fold] in those for fold, those in zip(fold_of, accepted, strict=True)]
    return np.array(right, dtype=np.float64)
