"""A relation's words for a hop of a composition: a noun phrase for its object, to be asked of or to ask with.

Ours are written by hand, since the two must join to good English. A relation of another name has its first template
that is such a phrase, as it ends with the subject or goes on with "is" and an article at most: "The CEO of {} is".
"""

import re
from dataclasses import dataclass
from pathlib import Path

from patchscopes.analysis.matching import fold
from patchscopes.data.entry import Entry, entry_of
from patchscopes.data.files import json_of, read_files
from patchscopes.data.items import Relation

OWN = Path(__file__).with_name("own") / "compositions.json"

_NOUN_PHRASE = re.compile(r"The (\S.* )\{\}(?: is(?: an?| the)?)?")


@dataclass(frozen=True, slots=True)
class Phrases:
    """`first` stands for the object and ends with {}; `second` asks for it and ends before the subject; "" for none.

    `with_article` are the subjects that need "the" before them in `first`.
    """

    first: str = ""
    second: str = ""
    with_article: frozenset[str] = frozenset()

    def of(self, subject: str) -> str:
        """`first` with the subject in it."""
        return self.first.replace("{}", f"the {subject}" if subject in self.with_article else subject)


def own_phrases() -> dict[str, Phrases]:
    """The phrases that are written by hand, by the folded names of relations."""
    (file,) = read_files(OWN, (".json",))
    value = entry_of(json_of(file), file.name)
    return {fold(name): _phrases(value.entry(name)) for name in value.values}


def phrases_of(relation: Relation, own: dict[str, Phrases]) -> Phrases:
    """The phrases of that name in `own`; what they do not say is as the relation's templates have it, where one can."""
    mine = own.get(fold(relation.name), Phrases())
    found = next((match for text in relation.prompt_templates if (match := _NOUN_PHRASE.fullmatch(text))), None)
    if found is None:
        return mine
    return Phrases(
        first=mine.first or f"the {found[1]}{{}}",
        second=mine.second or f"The {found[1].strip()}",
        with_article=mine.with_article,
    )


def _phrases(entry: Entry) -> Phrases:
    return Phrases(entry.text("first"), entry.text("second"), frozenset(entry.texts("the")))
