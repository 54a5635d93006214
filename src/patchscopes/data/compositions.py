"""Two-hop compositions of relations: queries [π2][π1] (section 5 of the paper), where π1 stands for what π2 asks of.

    first relation    the Eiffel Tower → France    π1  the country that is home to the Eiffel Tower
    second relation   France → Paris               π2  The capital of

France, the bridge, is not named. Left out are queries that one hop answers, or that name the bridge; kept and marked
are those that name the answer. Names are the same as elsewhere (fold), and with or without "the" before them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from patchscopes.analysis.matching import fold, matches
from patchscopes.data.items import DataSet, Exclusion, Fact, Relation, counted
from patchscopes.data.phrases import Phrases, own_phrases, phrases_of
from patchscopes.errors import DataError

MIN_QUERIES = 5
MIN_ANSWERS = 2

NO_SUBJECT = "bridge is no subject of the second relation"
SUBJECTS = "bridge is several subjects of the second relation"
BACK = "second hop leads back to the subject"
NAMED = "bridge stands in the query"
ONE_HOP = "of bridge and answer, one stands in the other"

KINDS = "kinds of the bridge differ"
NO_FIRST = 'first relation has no template of the form "The … {}"'
NO_SECOND = 'second relation has no template of the form "The … {}"'
FEW = f"fewer than {MIN_QUERIES} queries"
ONE_ANSWER = f"fewer than {MIN_ANSWERS} different answers"


@dataclass(frozen=True, slots=True)
class Query:
    """One subject, led over the bridge to the answer.

    `bridge` is written as the second relation's subject, `bridges` are all texts that are right for it. `first` is π1
    with the subject at its end, `second` is π2. `leaks`: an answer can be copied from the query.
    """

    subject: str
    bridge: str
    bridges: tuple[str, ...]
    answer: str
    answers: tuple[str, ...]
    first: str
    second: str

    @property
    def text(self) -> str:
        """[π2][π1], which ends with the subject."""
        return f"{self.second} {self.first}"

    @property
    def leaks(self) -> bool:
        """Whether an answer stands in the text, the first also inside a word of the subject: as Fact.leaks says it."""
        return fold(self.answer) in fold(self.subject) or matches(self.text, self.answers)


@dataclass(frozen=True, slots=True)
class Composition:
    """One type of queries: "landmark country → country capital". `first` and `second` are the relations' names."""

    name: str
    first: str
    second: str
    queries: tuple[Query, ...]

    @property
    def n_classes(self) -> int:
        """How many different answers there are."""
        return len({fold(query.answer) for query in self.queries})


@dataclass(frozen=True, slots=True)
class _Hop:
    """A relation and its words; its facts by the keys of their subjects, and the keys of all their answers."""

    relation: Relation
    phrases: Phrases
    facts: dict[str, list[Fact]]
    answers: frozenset[str]


def compositions(relations: DataSet[Relation] | Sequence[Relation]) -> DataSet[Composition]:
    """All pairs of relations where objects of the first are subjects of the second, in the order of the relations.

    Hash, source, notes and `n_read` are those of the relations. Of a pair that is kept, each fact of the first relation
    is a query, or an exclusion of the kind "query"; a pair that is not is one exclusion of the kind "composition".

    Raises DataError where no pair is left.
    """
    data = relations if isinstance(relations, DataSet) else _given(relations)
    own = own_phrases()
    hops = [_hop(relation, phrases_of(relation, own)) for relation in data.items]
    made = [_composed(one, two) for one in hops for two in hops if not one.answers.isdisjoint(two.facts)]
    excluded = tuple(exclusion for _, left_out in made for exclusion in left_out)
    kept = tuple(composition for composition, _ in made if composition)
    if not kept:
        why = counted(excluded) if excluded else "no object of one is a subject of another"
        raise DataError(
            f"{data.name}: no two of the {len(hops)} relations can be composed ({why}); give two where at least "
            f"{MIN_QUERIES} objects of the first are subjects of the second."
        )
    return DataSet(f"compositions of {data.name}", kept, excluded, data.sha256, data.source, data.n_read, data.notes)


def _given(relations: Sequence[Relation]) -> DataSet[Relation]:
    """Relations of no file: they have no hash, and their facts are all that was read."""
    n_facts = sum(len(relation.facts) for relation in relations)
    return DataSet("given relations", tuple(relations), (), sha256="", source="given", n_read=n_facts)


def _hop(relation: Relation, phrases: Phrases) -> _Hop:
    facts: dict[str, list[Fact]] = defaultdict(list)
    for fact in relation.facts:
        facts[_key(fact.subject)].append(fact)
    answers = frozenset(_key(answer) for fact in relation.facts for answer in fact.answers)
    return _Hop(relation, phrases, dict(facts), answers)


def _composed(first: _Hop, second: _Hop) -> tuple[Composition | None, list[Exclusion]]:
    """The composition and what was left out of it; or none, and why."""
    name = f"{first.relation.name} → {second.relation.name}"
    if reason := _apart(first, second):
        return None, [Exclusion(name, reason, "composition")]
    queries, excluded = _queries(name, first, second)
    made = Composition(name, first.relation.name, second.relation.name, queries)
    if reason := _too_small(made):
        of_facts = f" ({counted(excluded)})" if excluded else ""
        return None, [Exclusion(f"{name}{of_facts}", reason, "composition")]
    return made, excluded


def _too_small(composition: Composition) -> str:
    if len(composition.queries) < MIN_QUERIES:
        return FEW
    return ONE_ANSWER if composition.n_classes < MIN_ANSWERS else ""


def _apart(first: _Hop, second: _Hop) -> str:
    """Why two relations cannot be composed, whatever their facts; "" where they can."""
    kinds = fold(first.relation.object_kind), fold(second.relation.subject_kind)
    if all(kinds) and kinds[0] != kinds[1]:
        return KINDS
    if not first.phrases.first:
        return NO_FIRST
    return "" if second.phrases.second else NO_SECOND


def _queries(name: str, first: _Hop, second: _Hop) -> tuple[tuple[Query, ...], list[Exclusion]]:
    queries, excluded = [], []
    for fact in first.relation.facts:
        reached = [found for key in dict.fromkeys(map(_key, fact.answers)) for found in second.facts.get(key, ())]
        query = _query(fact, reached[0], first.phrases.of(fact.subject), second.phrases.second) if reached else None
        if query is None or len(reached) > 1:
            excluded.append(Exclusion(f"{name}: {fact.subject}", SUBJECTS if reached else NO_SUBJECT, "query"))
        elif reason := _unfit(query):
            excluded.append(Exclusion(f"{name}: {fact.subject}", reason, "query"))
        else:
            queries.append(query)
    return tuple(queries), excluded


def _query(first: Fact, second: Fact, words: str, asking: str) -> Query:
    bridges: dict[str, str] = {}
    for text in (second.subject, *first.answers):
        bridges.setdefault(fold(text), text)
    return Query(
        subject=first.subject,
        bridge=second.subject,
        bridges=tuple(bridges.values()),
        answer=second.object,
        answers=second.answers,
        first=words,
        second=asking,
    )


def _unfit(query: Query) -> str:
    """Why an answer to `query` would not show two hops; "" where it would."""
    bridges = [_key(bridge) for bridge in query.bridges]
    if _key(query.subject) in map(_key, query.answers):
        return BACK
    if matches(query.text, bridges) or _key(query.bridge) in fold(query.subject):
        return NAMED
    if matches(query.answer, bridges) or any(matches(bridge, query.answers) for bridge in bridges):
        return ONE_HOP
    return ""


@lru_cache(maxsize=1 << 16)
def _key(text: str) -> str:
    """`text` as a name is looked up: "the United States" is "United States"."""
    return fold(text).removeprefix("the ")
