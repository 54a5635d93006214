"""Does a text contain an answer? Rule 18.

Texts and answers are compared after NFKC, case folding and folding of white space, as whole words: where an answer
begins or ends with a letter, digit or mark, the text must not go on with another there. Scripts written without spaces
(Chinese, Japanese, Thai…) have no such boundary, so an answer in one matches wherever it stands.
"""

import re
import unicodedata
from collections.abc import Sequence

from patchscopes.errors import OptionError

# Apostrophes, quotes and dashes that keyboards and typesetters write differently for one thing.
_TYPOGRAPHY = str.maketrans(
    {"’": "'", "‘": "'", "\u02bc": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\u2010": "-", "−": "-"}
)
# Blocks whose words are not set apart by spaces: Thai to Myanmar, kana, CJK ideographs.
_NO_SPACES = re.compile(r"[฀-໿က-႟ក-៿぀-ヿ㐀-鿿豈-﫿\U00020000-\U0003ffff]")


def matches(text: str, answers: Sequence[str]) -> bool:
    """Whether `text` contains one of `answers` (an answer and its aliases) as whole words.

    Raises OptionError for an answer without any character.
    """
    folded = fold(text)
    return any(_pattern(answer).search(folded) for answer in answers)


def leaked(answers: Sequence[str], *, prompt: str, source: str) -> bool:
    """Whether an answer already stands in the inspection prompt, or in the source text up to the token that is read."""
    return matches(prompt, answers) or matches(source, answers)


def fold(text: str) -> str:
    """`text` as it is compared: NFKC, case-folded, typographic signs and white space made one."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_TYPOGRAPHY).split())


def _pattern(answer: str) -> re.Pattern[str]:
    folded = fold(answer)
    if not folded:
        raise OptionError(f"an expected answer is empty: {answer!r}; give at least one character.")
    before = r"(?<![^\W_])" if _is_bounded(folded[0]) else ""
    after = r"(?![^\W_])" if _is_bounded(folded[-1]) else ""
    return re.compile(before + re.escape(folded) + after)


def _is_bounded(character: str) -> bool:
    return character.isalnum() and not _NO_SPACES.match(character)
