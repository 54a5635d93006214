"""One entity, layer by layer, for a reader who sees it for the first time."""

from patchscopes.prompts import find_prompt
from patchscopes.resolve import resolve
from patchscopes.studies.entities import CARRIER, PROMPTS
from patchscopes.studies.entity_resolution.scored import Scored
from patchscopes.studies.scores import SCORES, answer_of
from patchscopes.studies.walk import contrasts, sentence, table_of

PREFERRED = "Diana, Princess of Wales"


def walkthrough(scored: Scored) -> str:
    """The page: what was read and written, a row per layer with its text and contrasts, the controls."""
    entities = scored.entities
    name = next((e.name for e in entities if e.name == PREFERRED), None)
    name = name or next((e.name for e in entities if e.part), entities[0].name)
    k = [entity.name for entity in entities].index(name)
    item, entity = scored.items[k], entities[k]
    table, star, layer = scored.tables["fixed"][PROMPTS[0]], scored.choice.fixed, scored.choice.headline
    places = [(at, star) for at in scored.design.every_layer]
    rows = [table.rows[None, item, place, 0] for place in places]
    stage = next(s for s in scored.design.stages(star, scored.choice.headline) if s.name == "fixed")
    requests = {
        (request.source_layer, request.prompt): request
        for request in resolve(scored.design.setup.model, stage.sweep).requests
        if request.control is None and request.source_index == item
    }
    words = contrasts(
        scored.design.setup,
        [requests[at, PROMPTS[0]] for at, _ in places],
        [row.token_ids or () for row in rows],
    )
    said = {score: SCORES[score](scored.design.reported) for score in ("part", "type", "keyword")}
    labels = {"part": f"the part “{entity.part}”", "type": "the kind", "keyword": "**the entity**"}
    lines = []
    for (at, _), row, found in zip(places, rows, words, strict=True):
        names = [labels[score] for score, measure in said.items() if measure(item, row)]
        lines.append((str(at), sentence(answer_of(row)), ", ".join(names) or "–", found))
    controls = {
        "unpatched (the prompt as it is)": table.rows["unpatched", None, (None, None), 0],
        "text-only (the source as text)": table.rows["text-only", item, (None, None), 0],
        "phrase-only (the name as text)": table.rows["phrase-only", item, (None, None), 0],
        f"shuffled, ℓ {layer} (another {entity.type}'s state)": table.rows["shuffled", item, (layer, star), 0],
    }
    prompt = find_prompt(PROMPTS[0]).text.replace("{}", "x")
    return table_of(
        title=f"{name}, layer by layer",
        opening=(
            f"The model reads “{CARRIER.format(name)}”. At the last token of the name, after ℓ blocks, there is a "
            f"vector. It is written over the “x” of the inspection prompt “{prompt}”, after ℓ* = {star} blocks, and "
            "the model goes on by itself."
        ),
        rows=lines,
        controls={label: sentence(row.text or "") for label, row in controls.items()},
        closing=(
            f"Words that count as the entity: {', '.join(entity.keywords)}. As its kind: "
            f"{', '.join(entity.type_keywords)}."
            + (f" As the misleading part: {', '.join(entity.part_keywords)}." if entity.part else "")
        ),
    )
