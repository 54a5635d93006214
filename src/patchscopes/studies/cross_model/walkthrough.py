"""One passage and one subject, by layer pair, for a reader who sees it for the first time."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from patchscopes.mappings import Pair
from patchscopes.results import Results
from patchscopes.spec import Row
from patchscopes.studies.cross_model.design import IDENTITY, Design, Placement
from patchscopes.studies.cross_model.facts import Facts
from patchscopes.studies.cross_model.maps import Maps
from patchscopes.studies.cross_model.next_tokens import NextTokens
from patchscopes.studies.cross_model.page import identity_prompt
from patchscopes.studies.cross_model.placed import HeldOut
from patchscopes.studies.texts import Table
from patchscopes.studies.walk import sentence, shown_token

N_SHOWN = 8  # items of a walk's stage: the one that is shown, and those that stand beside it
CONTROLS = {"zero": "the bias alone", "shuffled": "another state", "mean": "the mean of others"}


def walkthrough(tokens: NextTokens, facts: Facts | None, maps: Maps) -> str:
    """The page: a passage whose next token is the source's, a subject whose fact is named, and how to read them."""
    source, target = tokens.design.source.id, tokens.design.target.id
    lines = [
        f"# From {source} to {target}, layer by layer",
        "",
        f"{source} reads a text. At its last token, after ℓ blocks, there is a vector; a map that was fitted on other "
        f"text makes of it a vector of {target}, which is written into a prompt of {target} after ℓ* blocks. What "
        f"{target} then says stands beside what it says of the map's bias alone (the map of a vector of zeros, the "
        "same whatever was read), of another text's state through the same map, and of the mean of other texts' "
        "states. A word counts for the state only where these do not say it too. Both items were picked because they "
        "come out at the placement that was chosen on others, where any do: they show what a hit looks like, and not "
        "how often there is one.",
        "",
        *_passage(tokens, maps),
        *(_subject(facts, maps) if facts is not None else []),
    ]
    return "\n".join(lines) + "\n"


def _passage(tokens: NextTokens, maps: Maps) -> list[str]:
    """The section on one passage."""
    design, held = tokens.design, tokens.held_out("inside")
    k = _shown(held, [len(token) for token in tokens.wanted])
    place, item = held.places[k], tokens.items[k]
    openings = tokens.compared.openings
    some = [openings[item], *(o for n, o in enumerate(openings) if n != item)][:N_SHOWN]
    table = Table.of(design.setup.run(design.walk_next(some, maps[place.kind])), IDENTITY, len(some))
    pairs = _cross(design, place, design.targets)
    return [
        "## A next token",
        "",
        f"“…{sentence(some[0].text[-160:])}”: {design.source.id} goes on with “{shown_token(tokens.wanted[k])}”, and "
        f"{design.target.id}, when it reads the text itself, with “{shown_token(tokens.compared.read[item])}”. "
        f"Through {place.kind} maps over the last token of “{identity_prompt()}”; chosen on other passages was "
        f"{place.source} → {place.target}.",
        "",
        *_table(table, pairs, lambda row: f"“{shown_token(tokens.said.next(row))}”"),
        "",
    ]


def _subject(facts: Facts, maps: Maps) -> list[str]:
    """The section on one subject."""
    design, held = facts.design, facts.held_out
    k = _shown(held, [len(subject) for subject in facts.subjects])
    ran, at = next(both for both in zip(facts.ran, facts.slices, strict=True) if both[1].start <= k < both[1].stop)
    place, fact = held.places[k], ran.facts[k - at.start]
    others = [other for other in ran.case.facts if other.subject != fact.subject]
    case = replace(ran.case, facts=(fact, *others)[:N_SHOWN])
    results: Results = design.setup.run(design.walk_fact(case, maps[place.kind]))
    table = Table.of(results, case.prompt.label, len(case.facts))
    knows = "knows it too" if fact.subject in ran.known.both else "does not give it from text"
    return [
        f"## A fact: {ran.case.name}, {fact.subject}",
        "",
        f"{design.source.id} reads “{sentence(case.relation.carrier.replace('{}', fact.subject))}”; the state of the "
        f"last token goes over the “x” of “{sentence(case.prompt.text.replace('{}', 'x'))}” in {design.target.id}. The "
        f"object is {fact.object}; {design.target.id} gives it from text, {design.source.id} {knows}. Through "
        f"{place.kind} maps; chosen on other subjects was {place.source} → {place.target}.",
        "",
        *_table(table, _cross(design, place, design.inner_targets), lambda row: sentence(row.text or "")),
        "",
        f"Counted as the object: {', '.join(fact.answers)}. Where to check the fact: {fact.where or 'not given'}.",
    ]


def _shown(held: HeldOut, sizes: Sequence[int]) -> int:
    """The item that is hit where its controls are hit least; of equals the one of the largest size."""
    controls = [values for name, values in held.beside.items() if name in ("shuffled", "zero", "mean", "unpatched")]
    return max(range(len(sizes)), key=lambda k: (held.own[k], -sum(values[k] for values in controls), sizes[k]))


def _cross(design: Design, place: Placement, targets: Sequence[int]) -> list[Pair]:
    """Every ℓ at the chosen ℓ*, then the other ℓ* at the chosen ℓ."""
    return [(layer, place.target) for layer in design.sources] + [
        (place.source, layer) for layer in targets if layer != place.target
    ]


def _table(table: Table, pairs: Sequence[Pair], said: Callable[[Row], str]) -> list[str]:
    """What is said of item 0 at each layer pair, and beside it."""
    head = ["ℓ → ℓ*", "the state", *CONTROLS.values()]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for pair in pairs:
        # The bias alone is of no source.
        rows = [table.rows[control, None if control == "zero" else 0, pair, 0] for control in (None, *CONTROLS)]
        cells = [said(row) for row in rows]
        lines.append(f"| {pair[0]} → {pair[1]} | {' | '.join(cells)} |")
    return lines
