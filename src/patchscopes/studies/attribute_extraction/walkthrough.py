"""One fact, layer by layer, for a reader who sees it for the first time."""

from collections.abc import Mapping

from patchscopes.resolve import resolve
from patchscopes.studies.attribute_extraction.outcome import Outcome
from patchscopes.studies.walk import contrasts, sentence, table_of


def walkthrough(outcomes: Mapping[str, Outcome]) -> str:
    """The page: of the relation with the most hits, the fact that is hit at the most layers."""
    outcome = max(outcomes.values(), key=lambda o: float(o.held_out.mean()))
    grid, design = outcome.grid, outcome.design
    source, target = grid.placements[0]
    columns = [k for k, place in enumerate(design.placements) if place[1] == target]
    k = int(grid.own[:, columns].sum(axis=1).argmax())
    item, fact = grid.items[k], outcome.case.facts[grid.items[k]]
    rows = [grid.table.rows[None, item, design.placements[c], 0] for c in columns]
    requests = {
        (request.source_layer, request.target_layer): request
        for request in resolve(design.setup.model, design.grid(outcome.case).sweep).requests
        if request.control is None and request.source_index == item
    }
    words = contrasts(
        design.setup, [requests[design.placements[c]] for c in columns], [row.token_ids or () for row in rows]
    )
    lines = [
        (str(row.source_layer), sentence(row.text or ""), "**the object**" if grid.own[k, c] else "–", found)
        for row, c, found in zip(rows, columns, words, strict=True)
    ]
    controls = {
        "unpatched (the prompt as it is)": grid.table.rows["unpatched", None, (None, None), 0],
        "phrase-only (the subject as text)": grid.table.rows["phrase-only", item, (None, None), 0],
        f"shuffled, ℓ {source} (another subject's state)": grid.table.rows["shuffled", item, (source, target), 0],
    }
    text = design.texts(outcome.case)[item].text
    return table_of(
        title=f"{outcome.case.name}: {fact.subject}, layer by layer",
        opening=(
            f"The model reads “{text}”. At the last token of “{fact.subject}”, after ℓ blocks, there is a vector. It "
            f"is written over the “x” of “{outcome.case.prompt.text.replace('{}', 'x')}”, after ℓ* = {target} blocks, "
            "and the model goes on by itself. The prompt does not say of what; only the vector can. The object is "
            f"{fact.object}."
        ),
        rows=lines,
        controls={label: sentence(row.text or "") for label, row in controls.items()},
        closing=(
            f"Counted as the object: {', '.join(fact.answers)}. Where to check the fact: {fact.where or 'not given'}."
        ),
    )
