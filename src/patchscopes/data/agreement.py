"""Do two passes agree? The second was made blind: it saw the question, or the name, and not the first pass's answer.

A fact, an entity or a part of a name is kept only where the passes agree. This finds slips of either pass; what both
believe wrongly it does not find.
"""

from collections.abc import Sequence

from patchscopes.analysis.matching import fold, matches


def agree(answers: Sequence[str], second: Sequence[str]) -> bool:
    """Whether one of `answers` and one of `second` are the same, or stand as whole words one in the other.

    Texts without a character that can be seen count for nothing, so that [] and [""] agree with nothing.
    """
    ours, theirs = seen(answers), seen(second)
    return any(matches(text, theirs) for text in ours) or any(matches(text, ours) for text in theirs)


def told(keywords: Sequence[str], *texts: str) -> bool:
    """Whether one of `keywords` stands as whole words in one of `texts`."""
    words = seen(keywords)
    return any(matches(text, words) for text in texts)


def seen(texts: Sequence[str]) -> tuple[str, ...]:
    """Those of `texts` that have a character that can be seen."""
    return tuple(text for text in texts if fold(text))
