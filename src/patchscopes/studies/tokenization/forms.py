"""The forms that a name is read in, each another split of the same name into tokens.

    plain       behind the carrier, as the tokenizer splits it
    no-space    behind an opening bracket, so that its first token has no leading space; beside `spaced`, the same
                carrier with the space
    lower, upper, typo (two neighbouring inner letters swapped)
    odd-split   the first word cut where no token ends, by force (`Source.split`)

A form of a name counts only where the ids of the name really differ from those of the form that it stands beside.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from patchscopes.data import Entity
from patchscopes.errors import PositionError, SourceError
from patchscopes.models import Model
from patchscopes.prompts import Tokenized, resolve_positions, tokenize, tokenize_pieces
from patchscopes.rng import philox
from patchscopes.spec import Ids, Source
from patchscopes.studies.entities import CARRIER, source

BRACKET = "All of them were talking about ({}"
SPACED = "All of them were talking about ( {}"
# Each form with the one that it stands beside.
FORMS = {"no-space": "spaced", "lower": "plain", "upper": "plain", "typo": "plain", "odd-split": "plain"}
CARRIERS = {"no-space": BRACKET, "spaced": SPACED}

UNCHANGED = "its tokens do not change"
MERGED = "its first token takes in what stands before it"
NO_TYPO = "no word of at least 4 letters with two different inner letters"
NO_CUT = "its first word has no place inside a token to be cut at"
FEWEST_LETTERS = 4


@dataclass(frozen=True, slots=True)
class Form:
    """A name in one form, as it is `said`: where it is read, the tokens, and the positions of the name's own."""

    entity: Entity
    said: str
    source: Source
    tokenized: Tokenized
    positions: tuple[int, ...]

    @property
    def ids(self) -> Ids:
        """Those of the name alone."""
        return tuple(self.tokenized.ids[position] for position in self.positions)

    @property
    def n_tokens(self) -> int:
        """How many tokens the name has."""
        return len(self.positions)

    @property
    def start(self) -> int:
        """The character at which the name begins."""
        return len(self.tokenized.text) - len(self.said)


class NotFormedError(Exception):
    """A name has no such form; the text is the reason."""


def form_of(model: Model, entity: Entity, form: str, *, seed: int) -> Form:
    """`entity` in `form`, perhaps split as ever. Raises NotFormedError with the reason where there is none."""
    if form == "odd-split":
        plain = form_of(model, entity, "plain", seed=seed)
        cut = plain.start + odd_cut(plain, seed)
        text = plain.source.text
        return _formed(model, entity, plain.said, replace(plain.source, split=(text[:cut], text[cut:])))
    said = {"lower": entity.name.lower(), "upper": entity.name.upper()}.get(form, entity.name)
    if form == "typo":
        said = typo(entity.name, seed)
    return _formed(model, entity, said, source(entity, name=said, carrier=CARRIERS.get(form, CARRIER)))


def another_split(model: Model, entity: Entity, form: str, *, seed: int) -> Form:
    """As `form_of`, and another split of the name than in the form that it stands beside, or NotFormedError."""
    made, beside = (form_of(model, entity, name, seed=seed) for name in (form, FORMS[form]))
    if made.ids == beside.ids:
        raise NotFormedError(UNCHANGED)
    return made


def _formed(model: Model, entity: Entity, said: str, read: Source) -> Form:
    try:
        pieces = read.split or (read.text,)
        tokenized = tokenize_pieces(model, pieces) if read.split else tokenize(model, read.text)
        positions = resolve_positions(model, tokenized, f"span:{read.at}")
    except (PositionError, SourceError) as error:
        raise NotFormedError(str(error).splitlines()[0]) from error
    made = Form(entity, said, read, tokenized, positions)
    begins = tokenized.spans[positions[0]][0]
    if tokenized.text[begins : made.start].strip():
        raise NotFormedError(MERGED)
    return made


def typo(name: str, seed: int) -> str:
    """`name` with two neighbouring inner letters of a word swapped, drawn among all places where that changes it."""
    places = list(_swaps(name))
    if not places:
        raise NotFormedError(NO_TYPO)
    at = places[int(philox("typo", seed, name).integers(len(places)))]
    return f"{name[:at]}{name[at + 1]}{name[at]}{name[at + 2 :]}"


def _swaps(name: str) -> Iterator[int]:
    """Where an inner letter of a word stands whose next one is another inner letter."""
    for word in re.finditer(rf"[^\W\d_]{{{FEWEST_LETTERS},}}", name):
        for at in range(word.start() + 1, word.end() - 2):
            if name[at].casefold() != name[at + 1].casefold():
                yield at


def first_word(name: str) -> tuple[int, int]:
    """Where the first word of a name stands; (0, 0) where it has none."""
    found = re.search(r"\w+", name)
    return found.span() if found else (0, 0)


def odd_cut(plain: Form, seed: int) -> int:
    """Where to cut the first word of a name, in characters of the name: inside one of its tokens."""
    ends = {end - plain.start for _, end in plain.tokenized.spans}
    return drawn_cut(plain.said, ends, seed)


def drawn_cut(name: str, ends: Collection[int], seed: int) -> int:
    """A place inside the first word of `name`, and at none of `ends`, drawn at random."""
    start, end = first_word(name)
    places = [place for place in range(start + 1, end) if place not in ends]
    if not places:
        raise NotFormedError(NO_CUT)
    return places[int(philox("odd split", seed, name).integers(len(places)))]
