"""Where two tokenisations of one text agree: the positions at which states of two models are about the same characters.

Within one model that is every position; between two, those at which both have one token that covers the same
characters, spaces at its edges aside. Left out, in both cases: special tokens, and positions below `min_position` (what
stands at position 0 without a BOS is an attention sink, rule 6).

Axes: position (unpadded tokens, of the source and of the target).
"""

from collections import Counter
from dataclasses import dataclass

from patchscopes.models import Model
from patchscopes.prompts import Tokenized, tokenize
from patchscopes.prompts.tokens import verify_spans
from patchscopes.spec import Bos, Ids

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Agreeing:
    """A text as both models read it, and the positions (of the source, of the target) that are about the same."""

    source: Ids
    target: Ids
    positions: tuple[tuple[int, int], ...]


def agreeing_positions(
    source: Model, target: Model, text: str, *, min_position: int = 1, bos: Bos = "auto"
) -> Agreeing:
    """The positions of `text` at which both tokenisations agree, in order, both at least `min_position`.

    Tokens beyond what their model can read at once are cut off. Raises PositionError where a tokenizer's character
    offsets do not fit its ids, since then nothing says what its tokens cover; within one model offsets are not needed.
    """
    ours = _cut(tokenize(source, text, bos=bos), source)
    if source is target:
        kept = tuple((i, i) for i in range(min_position, len(ours)) if not ours.special[i])
        return Agreeing(ours.ids, ours.ids, kept)
    theirs = _cut(tokenize(target, text, bos=bos), target)
    verify_spans(source, ours)
    verify_spans(target, theirs)
    at = _covering(theirs, min_position)
    pairs = ((i, at[span]) for span, i in _covering(ours, min_position).items() if span in at)
    return Agreeing(ours.ids, theirs.ids, tuple(sorted(pairs)))


def _cut(tokenized: Tokenized, model: Model) -> Tokenized:
    n = model.max_text
    if len(tokenized) <= n:
        return tokenized
    return Tokenized(
        tokenized.text,
        tokenized.ids[:n],
        tokenized.spans[:n],
        tokenized.tokens[:n],
        tokenized.special[:n],
        tokenized.has_bos,
    )


def _covering(tokenized: Tokenized, min_position: int) -> dict[Span, int]:
    """Positions by the characters that they cover, spaces at the edges aside; not the pieces of one character."""
    spans = [_trimmed(tokenized.text, span) for span in tokenized.spans]
    times = Counter(spans)
    return {
        span: position
        for position, span in enumerate(spans)
        if position >= min_position and span[0] < span[1] and times[span] == 1 and not tokenized.special[position]
    }


def _trimmed(text: str, span: Span) -> Span:
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
