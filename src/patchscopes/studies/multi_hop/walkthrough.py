"""One query, layer by layer, for a reader who sees it for the first time."""

from patchscopes.resolve import resolve
from patchscopes.studies.multi_hop.design import METHODS, Item
from patchscopes.studies.multi_hop.outcome import Method, Outcome
from patchscopes.studies.walk import contrasts, sentence, table_of


def walkthrough(outcome: Outcome) -> str:
    """The page: by each method the query that it answers at the most ℓ where other queries' states do not.

    ℓ* is the one that most folds chose.
    """
    return "\n".join(_section(outcome, method) for method in outcome.methods.values())


def _section(outcome: Outcome, method: Method) -> str:
    design, queries = method.design, outcome.queries
    source, target = method.placements[0]
    columns = [k for k, place in enumerate(design.placements) if place[1] == target]
    failing = outcome.texts["plain"] == 0
    more = (method.own - method.donors.mean(axis=1))[:, columns].sum(axis=1)
    k = int((more + 0.5 * failing).argmax())
    item, query = queries.items[k], queries.all[queries.items[k]].query
    rows = [method.table.rows[None, item, design.placements[c], 0] for c in columns]
    requests = {
        (request.source_layer, request.target_layer): request
        for request in resolve(design.setup.model, design.grid(method.name, queries.all).sweep).requests
        if request.control is None and request.source_index == item
    }
    words = contrasts(
        design.setup, [requests[design.placements[c]] for c in columns], [row.token_ids or () for row in rows]
    )
    lines = [
        (str(row.source_layer), sentence(row.text or ""), "**the answer**" if method.own[k, c] else "–", found)
        for row, c, found in zip(rows, columns, words, strict=True)
    ]
    controls = {
        "unpatched (the inspection prompt as it is)": method.table.rows["unpatched", item, (None, None), 0],
        f"shuffled, ℓ {source} (another query's state)": method.table.rows["shuffled", item, (source, target), 0],
    }
    return table_of(
        title=f"{METHODS[method.name]}: {query.text}",
        opening=(
            f"{_how(method.name, queries.all[item], target)} The bridge is {query.bridge}, which no text names; the "
            f"answer is {query.answer}."
        ),
        rows=lines,
        controls={label: sentence(row.text or "") for label, row in controls.items()},
        closing=(
            f"As the answer count: {', '.join(query.answers)}. Of all queries this is the one that is answered at the "
            "most ℓ here where other queries' states do not answer it: no typical one."
        ),
    )


def _how(method: str, item: Item, target: int) -> str:
    """What a method does with a query."""
    query = item.query
    if method == "two-prompts":
        return (
            f"“{item.first_text}” is read at its end, after ℓ blocks. That vector is written over the “x” of "
            f"“{query.second} x{item.ending}”, after ℓ* = {target} blocks, and the model goes on by itself."
        )
    return (
        f"“{item.text}” is read at the end of the subject, after ℓ blocks, with “{query.second}” hidden from what "
        f"stands behind it. The query runs again; that vector is written over the last token of “{query.second}”, "
        f"after ℓ* = {target} blocks, with “{query.first}” hidden from what stands behind it, and the model goes on "
        "from the end."
    )
