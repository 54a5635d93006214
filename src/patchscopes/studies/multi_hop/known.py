"""The filter: a query is run only if the model itself gives both hops from text, and enough of its type are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from patchscopes.analysis.matching import fold, matches
from patchscopes.data import Exclusion
from patchscopes.results import Results
from patchscopes.rng import philox
from patchscopes.studies.multi_hop.design import ENDINGS, FEWEST, Design, Item

FIRST, SECOND = "the model does not give the first hop from text", "the model does not give the second hop from text"
Texts = Mapping[str, str]  # what the model goes on with, by the text that it is given


def said(results: Iterable[Results]) -> dict[str, str]:
    """What the model goes on with, by text; one that could not be run is not among them."""
    return {
        row.prompt: row.text or ""
        for part in results
        for row in part
        if row.control == "unpatched" and row.prompt is not None and row.status == "ok"
    }


def ending_of(items: Sequence[Item], texts: Texts) -> str:
    """The ending after which the model gives the most second hops; the first of equals."""
    return max(ENDINGS, key=lambda ending: sum(_gives_second(item, ending, texts) for item in items))


def _gives_second(item: Item, ending: str, texts: Texts) -> bool:
    return matches(texts.get(item.second_text + ending, ""), item.query.answers)


def _gives_first(item: Item, texts: Texts) -> bool:
    """Whether the bridge is given after some ending: what is read is the state before any."""
    return any(matches(texts.get(item.first_text + ending, ""), item.query.bridges) for ending in ENDINGS)


def known_items(design: Design, items: Sequence[Item], texts: Texts) -> tuple[list[Item], list[Exclusion]]:
    """Queries whose hops are both known, dealt evenly over the types, with their ending; what is left out, and why.

    `texts` is what the model says of each hop with each ending.
    """
    ending = ending_of(items, texts)
    known: dict[str, list[Item]] = {}
    excluded: list[Exclusion] = []
    for item in items:
        if not _gives_first(item, texts):
            excluded.append(_left(item, FIRST))
        elif not _gives_second(item, ending, texts):
            excluded.append(_left(item, SECOND))
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
