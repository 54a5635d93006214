"""Token-identity prompts: the paper's, and others of random words, of one pair or more.

A prompt of k pairs is k lines "word -> word" and the placeholder. Words are of one token in both places, stand in no
passage that is reported, and do not come twice in a prompt.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from patchscopes.errors import OptionError
from patchscopes.models import Model
from patchscopes.prompts import find_prompt, tokenize
from patchscopes.rng import philox
from patchscopes.spec import InspectionPrompt

FIXED = find_prompt("token-identity")
N_FIXED_PAIRS = 3

_WORD = re.compile(r"[▁Ġ]?([A-Za-z]{3,12})")
_WORDS = re.compile(r"[^\W\d_]+")


def words_of(model: Model, n: int, *, draw: int, like: Sequence[str], unlike: Sequence[str], seed: int) -> list[str]:
    """At most `n` words of the vocabulary, drawn at random, those that stand in `like` first, none that is in `unlike`.

    A vocabulary also has pieces of words, and worse: texts have words. Raises OptionError where there is none.
    """
    known = sorted({match[1] for token in model.tokenizer.get_vocab() if (match := _WORD.fullmatch(token))})
    taken, plain = _words(unlike), _words(like)
    order = [known[k] for k in philox("identity-words", seed, draw).permutation(len(known))]
    free = [word for word in order if word.casefold() not in taken]
    free.sort(key=lambda word: word not in plain)
    found: dict[str, str] = {}
    for word in _of_one_token(model, free):
        found.setdefault(word.casefold(), word)
        if len(found) == n:
            break
    if not found:
        raise OptionError(
            f"the vocabulary of {model.id} has {len(known)} words of letters, and none of one token that the passages "
            "have not; a token-identity prompt cannot be made of random words."
        )
    return list(found.values())


def _words(texts: Sequence[str]) -> set[str]:
    """The words of some texts, folded."""
    return {word.casefold() for text in texts for word in _WORDS.findall(text)}


def _of_one_token(model: Model, words: Iterable[str]) -> Iterator[str]:
    """Those that are one token at a line's begin and, with the space before, behind an arrow."""
    for word in words:
        tokens = tokenize(model, f": -> :\n{word} -> {word}\n?").tokens
        spaces = [token for token in tokens if not token.strip() and "\n" not in token]
        if [token.strip() for token in tokens].count(word) == 2 and not spaces:
            yield word


def identity_prompt(words: Sequence[str]) -> InspectionPrompt:
    """The prompt that shows each word as itself."""
    return InspectionPrompt("".join(f"{word} -> {word}\n" for word in words) + "{}", placeholder=FIXED.placeholder)


def pieces_of(model: Model, prompt: InspectionPrompt) -> set[str]:
    """The tokens of a prompt, as they are compared (see `folded_token`): what can be copied from it (rule 18)."""
    text = prompt.text.replace("{}", prompt.placeholder or "")
    return {folded_token(token) for token in tokenize(model, text).tokens}


def folded_token(token: str) -> str:
    """A token without case and outer spaces; white space as it is."""
    return token.strip().casefold() or token
