"""What a data set holds: relations of facts, entities, and what was left out of it, with the reason.

Axes: a `Relation` has facts (a subject and the answers that are right for it), templates that ask for the object, and
sentences that a subject stands in. `{}` is the place of the subject, in all of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from patchscopes.analysis.matching import fold

Kind = Literal[
    "sample", "template", "context", "alias", "entity", "keyword", "part", "bare", "country", "query", "composition",
    "passage", "position", "surprisal",
]  # fmt: skip
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fact:
    """A subject and its object.

    `where` says where it can be checked. `contexts` are the fact's own source sentences, cut behind the subject, where
    the data has such. `leaks`: an answer can be copied from the subject or from a template of the relation.
    """

    subject: str
    object: str
    aliases: tuple[str, ...] = ()
    where: str = ""
    contexts: tuple[str, ...] = ()
    leaks: bool = False

    @property
    def answers(self) -> tuple[str, ...]:
        """All texts that are right: the object and its aliases."""
        return (self.object, *self.aliases)


@dataclass(frozen=True, slots=True)
class Relation:
    """Facts of one kind. Templates hold `{}` once; the carrier and the contexts end with it, behind other words."""

    name: str
    prompt_templates: tuple[str, ...]
    carrier: str
    contexts: tuple[str, ...]
    facts: tuple[Fact, ...]
    question: str = ""
    subject_kind: str = ""
    object_kind: str = ""

    @property
    def n_classes(self) -> int:
        """How many different objects there are. With one, nothing can be told apart: studies decide."""
        return len({fold(fact.object) for fact in self.facts})

    def contexts_of(self, fact: Fact) -> tuple[str, ...]:
        """The sentences for one fact: its own where it has any, else the relation's."""
        return fact.contexts or self.contexts


@dataclass(frozen=True, slots=True)
class Entity:
    """A name and the words by which a text shows that it describes what bears the name.

    Any of `keywords` belongs to a description of it, though others may share some ("American"); any of `type_keywords`
    names its kind only. `tier` is 1 for household names to 3 for what few know. `part` is a piece of the name that by
    itself means something else, of which `part_keywords` tell; `bare` is a shorter, more ambiguous form of the name.
    """

    name: str
    type: str
    tier: int
    description: str
    keywords: tuple[str, ...]
    type_keywords: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    part: str | None = None
    part_keywords: tuple[str, ...] = ()
    bare: str | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What was read and left out.

    `kind` tells whole samples, entities and passages from a mere template, keyword or part.
    """

    item: str
    reason: str
    kind: Kind = "sample"


@dataclass(frozen=True, slots=True)
class DataSet(Generic[T]):
    """Items, and what was left out on the way to them.

    `n_read` counts samples, entities or passages in the files: each is in `items`, or in `excluded` with the kind
    "sample", "entity" or "passage". `sha256` is over the bytes of the files read, in the order of their names. `notes`
    say what was mended or not read.
    """

    name: str
    items: tuple[T, ...]
    excluded: tuple[Exclusion, ...]
    sha256: str
    source: str
    n_read: int
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many were left out for each reason, the most frequent first."""
        return dict(Counter(exclusion.reason for exclusion in self.excluded).most_common())


def counted(excluded: Sequence[Exclusion]) -> str:
    """The reasons with how often each holds, for a message."""
    counts = Counter(exclusion.reason for exclusion in excluded).most_common()
    return ", ".join(f"{reason}: {n}" for reason, n in counts) or "none was read"
