"""Does a text contain an answer (rule 18)?

Texts and answers are folded alike: NFKC, case, white space (a run of it, line breaks included, is one space), and the
apostrophes, quotes and dashes that keyboards and typesetters write differently. Then an answer matches where it stands
as whole words: a letter, digit or mark at its edge must not go on into another one in the text.

    "Paris"         matches " Paris.", "PARIS", "Paris's" and "_Paris_"; not "Parisian", "Paris2" or "comparison"
    "New York"      matches "new   York", also over a line break
    "U.S."          matches "the U.S. Army": its last edge is no letter, so that anything may follow
    "O'Brien"       matches "O’Brien"
    "東京"           matches "東京都": scripts without spaces have no words to be whole; so do Thai, Khmer, Burmese, Lao
    "파리"           matches "파리는", not "해파리": Korean writes particles onto a word's end

What is not folded needs an alias among the answers: accents ("Bogotá", "Bogota"), inflected forms, abbreviations, the
Turkish dotted İ.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from patchscopes.errors import OptionError

# By number, since they are hard to tell apart: typographic apostrophes, double quotes, hyphens and dashes; and what is
# not seen at all (soft hyphen, zero-width space, word joiner, byte-order mark).
_APOSTROPHES = (0x2018, 0x2019, 0x201B, 0x02BC)
_QUOTES = (0x201C, 0x201D, 0x201E, 0x201F)
_DASHES = (0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2015, 0x2212)
_UNSEEN = (0x00AD, 0x200B, 0x2060, 0xFEFF)
_TYPOGRAPHY: dict[int, str | None] = {
    **dict.fromkeys(_APOSTROPHES, "'"),
    **dict.fromkeys(_QUOTES, '"'),
    **dict.fromkeys(_DASHES, "-"),
    **dict.fromkeys(_UNSEEN),
}
# Thai and Lao; Burmese; Khmer; kana; ideographs, also those of the supplementary planes.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_HANGUL = re.compile("[\uac00-\ud7a3]")


def matches(text: str, answers: Sequence[str]) -> bool:
    """Whether `text` contains one of `answers` (an answer and its aliases) as whole words.

    Raises OptionError for an answer without any character, whatever the other answers are.
    """
    folded_answers = [_folded_answer(answer) for answer in ([answers] if isinstance(answers, str) else answers)]
    folded = _folded(text)
    return any(_contains(folded, answer) for answer in folded_answers)


def leaked(answers: Sequence[str], *, prompt: str, source: str) -> bool:
    """Whether an answer already stands where the model, or the reader, can copy it from.

    `prompt` is the text of the inspection prompt without its placeholder; `source` is the source's text up to and
    including the token that is read, "" for a control that reads none.
    """
    return matches(prompt, answers) or matches(source, answers)


def fold(text: str) -> str:
    """`text` as it is compared. Folding twice is folding once."""
    # Case folding may leave what NFKC composes, and the signs may stand inside what either of them makes.
    folded = unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHY).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).translate(_TYPOGRAPHY).split())


@lru_cache(maxsize=1 << 16)
def _folded(text: str) -> str:
    """As `fold`, for texts that are matched with many answers and answers that are matched with many texts."""
    return fold(text)


def _folded_answer(answer: str) -> str:
    folded = _folded(answer)
    if not folded:
        raise OptionError(f"an expected answer is empty: {answer!r}; give at least one character that can be seen.")
    return folded


def _contains(text: str, answer: str) -> bool:
    """Whether `answer` stands in `text`, both folded, at a place where no word goes on beyond it."""
    start = text.find(answer)
    while start >= 0:
        end = start + len(answer)
        goes_on = _one_word(answer[-1], text[end : end + 1]) and not _HANGUL.match(answer[-1])
        if not goes_on and not _one_word(text[max(start - 1, 0) : start], answer[0]):
            return True
        start = text.find(answer, start + 1)
    return False


def _one_word(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word; "" is a text's edge."""
    return _in_word(left) and _in_word(right)


def _in_word(character: str) -> bool:
    if not character or _WITHOUT_SPACES.match(character):
        return False
    return unicodedata.category(character)[0] in "LNM"  # letters, numbers, marks: not the underscore, as \w has it
