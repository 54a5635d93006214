"""The filter: a query is run only if the model itself gives both hops from text, and enough of its type are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from patchscopes.analysis.matching import fold, matches
from patchscopes.data import Exclusion
from patchscopes.results import Results
from patchscopes.rng import philox
from patchscopes.studies.multi_hop.design import ENDINGS, FEWEST, Design, Item

FIRST, SECOND = "the model does not give the first hop from text", "the model does not give the second hop from text"
NOT_RUN = "the text could not be run"


@dataclass(frozen=True)
class Said:
    """What the model goes on with, by the text that it is given; why there is nothing, by the text that failed."""

    texts: Mapping[str, str]
    failed: Mapping[str, str]

    @classmethod
    def of(cls, results: Iterable[Results]) -> "Said":
        """Of the rows of texts that nothing is written into."""
        texts: dict[str, str] = {}
        failed: dict[str, str] = {}
        for row in (row for part in results for row in part if row.control == "unpatched"):
            assert row.prompt is not None
            if row.status == "ok":
                texts[row.prompt] = row.text or ""
            else:
                failed[row.prompt] = (row.reason or NOT_RUN).splitlines()[0]
        return cls(texts, failed)

    def gives(self, text: str, answers: Sequence[str]) -> bool:
        """Whether the model goes on from `text` with one of `answers`."""
        return text in self.texts and matches(self.texts[text], answers)

    def without(self, texts: Iterable[str]) -> str:
        """Why the first of `texts` that has no result has none; "" where all have: silence is no wrong answer."""
        return next((self.failed.get(text, NOT_RUN) for text in texts if text not in self.texts), "")


def ending_of(items: Sequence[Item], said: Said) -> str:
    """The ending after which the model gives the most second hops; the first of equals."""
    return max(
        ENDINGS,
        key=lambda ending: sum(said.gives(item.second_text + ending, item.query.answers) for item in items),
    )


def _unknown(item: Item, ending: str, said: Said) -> str:
    """Why a query is not known; "" where both hops are.

    The first is where the bridge is given after some ending: what is read is the state before any.
    """
    first, second = [item.first_text + some for some in ENDINGS], item.second_text + ending
    if not any(said.gives(text, item.query.bridges) for text in first):
        return said.without(first) or FIRST
    if not said.gives(second, item.query.answers):
        return said.without([second]) or SECOND
    return ""


def known_items(design: Design, items: Sequence[Item], said: Said) -> tuple[list[Item], list[Exclusion]]:
    """Queries whose hops are both known, dealt evenly over the types, with their ending; what is left out, and why.

    `said` is what the model says of each hop with each ending.
    """
    ending = ending_of(items, said)
    known: dict[str, list[Item]] = {}
    excluded: list[Exclusion] = []
    for item in items:
        if reason := _unknown(item, ending, said):
            excluded.append(_left(item, reason))
        else:
            known.setdefault(item.type, []).append(replace(item, ending=ending))
    kept, left = _run_of(design, known)
    return kept, excluded + left


def if_all_known(design: Design, items: Sequence[Item]) -> list[Item]:
    """The queries that would be run if the model knew all hops."""
    known: dict[str, list[Item]] = {}
    for item in items:
        known.setdefault(item.type, []).append(item)
    return _run_of(design, known)[0]


def _run_of(design: Design, known: Mapping[str, Sequence[Item]]) -> tuple[list[Item], list[Exclusion]]:
    """Of known queries by type, those that are run, and the others."""
    reasons = {name: reason for name, found in known.items() if (reason := _too_few(found))}
    excluded = [_left(item, reason) for name, reason in reasons.items() for item in known[name]]
    types = [found for name, found in known.items() if name not in reasons]
    order = philox("types", design.setup.seed).permutation(len(types))
    kept = _dealt([types[k] for k in order], design.scale.n_queries)
    chosen = {id(item) for item in kept}
    beyond = f"beyond the {design.scale.n_queries} known queries that are run"
    return kept, excluded + [_left(item, beyond) for found in types for item in found if id(item) not in chosen]


def _too_few(found: Sequence[Item]) -> str:
    if len({item.query.subject for item in found}) < FEWEST:
        return f"a type of which the model knows both hops of fewer than {FEWEST} queries"
    if len({fold(item.query.answer) for item in found}) < 2:
        return "a type with a single answer among the known queries: nothing to tell apart"
    return ""


def _dealt(types: Sequence[Sequence[Item]], n: int) -> list[Item]:
    """`n` items, as evenly from all types as there are: FEWEST of each, or none of it; in the order of the types."""
    room = n
    take = [0] * len(types)
    for k in range(len(types)):  # whole types first: fewer than FEWEST of one have no donors
        if room >= FEWEST:
            take[k] = FEWEST
            room -= FEWEST
    while room and any(0 < take[k] < len(found) for k, found in enumerate(types)):
        for k, found in enumerate(types):
            if room and 0 < take[k] < len(found):
                take[k] += 1
                room -= 1
    return [item for k, found in enumerate(types) for item in found[: take[k]]]


def _left(item: Item, reason: str) -> Exclusion:
    return Exclusion(item.name, reason, "query")
