r"""`at=` → positions in the unpadded tokens (rule 6).

last          the last token                 all           every token, a cell each
3, "3", -1    a position; −1 is the last     Wales         a phrase: its last token
Wales#2       its second occurrence          re:W\w+       what a regular expression matches, once
span:of Wales every token of it, a cell each text:last     a phrase that looks like something else
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, SupportsIndex

from patchscopes.errors import PositionError
from patchscopes.models import Model
from patchscopes.numbers import whole
from patchscopes.prompts.tokens import Span, Tokenized, verify_spans

NORMAL_FORMS: Final[tuple[Literal["NFC", "NFKC"], ...]] = ("NFC", "NFKC")


@dataclass(frozen=True, slots=True)
class Marked:
    """What `at` names: positions, and the characters of the phrase that it marks; None where it names mere tokens."""

    positions: tuple[int, ...]
    span: Span | None = None


def resolve_positions(model: Model, source: Tokenized, at: str | SupportsIndex) -> tuple[int, ...]:
    """The positions that `at` names in `source`. Raises PositionError, with the token table, where it names none."""
    return resolve_marked(model, source, at).positions


def resolve_marked(model: Model, source: Tokenized, at: str | SupportsIndex) -> Marked:
    """As `resolve_positions`, with the whole phrase that `at` marks where it marks one."""
    if at == "last":
        return Marked((len(source) - 1,))
    if at == "all":
        return Marked(tuple(range(len(source))))
    number = _as_number(at)
    if number is not None:
        return Marked((_in_range(source, number),))
    if not isinstance(at, str):
        raise PositionError(f'{at!r} names no position; give a phrase, a whole number, "last" or "all".')
    span = _find(source, at.removeprefix("span:"))
    verify_spans(model, source, span)
    covering = _covering(source, *span, at)
    return Marked(covering if at.startswith("span:") else covering[-1:], span)


def resolve_mask(model: Model, text: Tokenized, phrase: str) -> tuple[int, ...]:
    """Every token of a phrase that is masked: no later token attends to them.

    Raises PositionError where the phrase is not to be found, or begins or ends inside a token.
    """
    named = phrase.removeprefix("span:")
    if not named.strip():
        raise PositionError(f"the mask is {phrase!r}; give a phrase of {text.text!r}.")
    try:
        span = _find(text, named, "")
        verify_spans(model, text, span)
        covering = _covering(text, *span, phrase)
    except PositionError as error:
        raise PositionError(f"the mask {error}") from None
    if text.text[text.spans[covering[0]][0] : span[0]].strip():
        raise PositionError(
            f"the mask {phrase!r} begins inside a token of {text.text!r}; begin it where a token does."
            f"\n{text.table(covering)}"
        )
    return covering


def _as_number(at: object) -> int | None:
    if isinstance(at, str):
        # Digits of other scripts, such as full-width ones, are text: what they stand for is looked for in the text.
        return int(at) if re.fullmatch(r"[+-]?[0-9]{1,9}", at.strip()) else None
    return whole(at)


def _in_range(source: Tokenized, number: int) -> int:
    if not -len(source) <= number < len(source):
        raise PositionError(
            f"position {number} is out of range: {source.text!r} has {len(source)} tokens, so 0 to {len(source) - 1}, "
            f"or -1 (the last) to -{len(source)}; a phrase that looks like a number is text:{number}."
            f"\n{source.table()}"
        )
    return number % len(source)


def _find(source: Tokenized, phrase: str, instead: str = ", or a position") -> Span:
    """The one place in the text that `phrase` names; `instead` is what could be given too."""
    if phrase.startswith("re:"):
        return _only(source, phrase, _matches(source, phrase.removeprefix("re:")), instead)
    if phrase.startswith("text:"):
        return _only(source, phrase, _occurrences(source.text, phrase.removeprefix("text:")), instead)
    numbered = re.fullmatch(r"(.+)#([1-9][0-9]*)", phrase, flags=re.DOTALL)
    if numbered is None:
        found = _occurrences(source.text, phrase)
        below = re.fullmatch(r"(.+)#(?:0[0-9]*|-[0-9]+)", phrase, flags=re.DOTALL)
        if below is not None and not found:
            raise PositionError(
                f"{phrase!r}: occurrences count from 1, so that {below[1]}#1 is the first.\n{source.table()}"
            )
        return _only(source, phrase, found, instead)
    plain, nth = numbered[1], int(numbered[2])
    found = _occurrences(source.text, plain)
    if not found:
        _check_form(source, phrase, plain)
    if nth > len(found):
        raise PositionError(
            f"{phrase!r} asks for occurrence {nth} of {plain!r}, which occurs {_times(len(found))} in "
            f"{source.text!r}.\n{source.table()}"
        )
    return found[nth - 1]


def _occurrences(text: str, phrase: str) -> list[Span]:
    if not phrase:
        raise PositionError('the phrase is empty; give a phrase, a position, "last" or "all".')
    starts = [match.start() for match in re.finditer(f"(?={re.escape(phrase)})", text)]
    return [(start, start + len(phrase)) for start in starts]


def _matches(source: Tokenized, pattern: str) -> list[Span]:
    try:
        return [match.span() for match in re.finditer(pattern, source.text) if match.end() > match.start()]
    except re.error as error:
        raise PositionError(f"{pattern!r} is no regular expression: {error}.") from error


def _only(source: Tokenized, phrase: str, found: Sequence[Span], instead: str) -> Span:
    if len(found) == 1:
        return found[0]
    if not found:
        _check_form(source, phrase, phrase.removeprefix("text:"))
        advice = f"give a phrase of the text, in its case{instead}"
    elif phrase.startswith(("re:", "text:")):
        advice = f"give more of the text{instead}"
    else:
        advice = f"name one, as in {phrase}#2, or give more of the text"
    raise PositionError(
        f"{phrase!r} occurs {_times(len(found))} in {source.text!r}; it must occur once: {advice}.\n{source.table()}"
    )


def _check_form(source: Tokenized, phrase: str, plain: str) -> None:
    """Raise where the text has a phrase that looks the same, in another Unicode normal form."""
    for form in NORMAL_FORMS:
        if unicodedata.normalize(form, plain) in unicodedata.normalize(form, source.text):
            raise PositionError(
                f"{phrase!r} is in {source.text!r} only in another Unicode normal form (both are alike in {form}); "
                f"copy the phrase from the text, or bring both to one form (unicodedata.normalize).\n{source.table()}"
            )


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def _covering(source: Tokenized, start: int, end: int, at: str) -> tuple[int, ...]:
    """The tokens that cover characters start to end; the last must end where the phrase does."""
    inside = tuple(
        position
        for position, (first, last) in enumerate(source.spans)
        if first < end and last > start and not (source.special[position] and first == last)
    )
    if not inside or max(source.spans[position][1] for position in inside) != end:
        raise PositionError(
            f"{at!r} ends inside a token of {source.text!r}, so no token's state holds just it; "
            f"end the phrase at a token's end.\n{source.table(inside)}"
        )
    return inside
