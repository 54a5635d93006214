"""Scores of texts, and what of a score is left beside the controls (rule 17)."""

from collections.abc import Sequence
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
    """The most frequent answer and its share: what always saying the same would score; the first of equals."""
    if not answers:
        raise OptionError("there is no answer, so none is the most frequent.")
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer] = counts.get(answer, 0) + 1
    best = max(counts, key=lambda answer: counts[answer])
    return best, counts[best] / len(answers)
