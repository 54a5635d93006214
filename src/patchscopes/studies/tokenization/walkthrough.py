"""One name plain and split, layer by layer, for a reader who sees it for the first time."""

from collections.abc import Sequence

from patchscopes.neighbours import Neighbour
from patchscopes.prompts import find_prompt
from patchscopes.studies.entities import CARRIER
from patchscopes.studies.report import shown
from patchscopes.studies.scores import answer_of, places_of
from patchscopes.studies.texts import Table
from patchscopes.studies.tokenization.design import PROMPT
from patchscopes.studies.tokenization.detokenised import listed
from patchscopes.studies.tokenization.findings import Scored
from patchscopes.studies.tokenization.forms import Form
from patchscopes.studies.walk import sentence

N_NEAREST = 4


def walkthrough(scored: Scored) -> str:
    """The page: two forms of one name side by side, their nearest tokens and what the patched prompt says."""
    name, split = _chosen(scored)
    forms = [("plain", name)] + ([("odd-split", split)] if split is not None else [])
    nearest = {(label, layer): found for label, _, layer, found in listed(scored.design, forms)}
    layers = scored.design.form_layers if split is not None else scored.design.every_layer
    texts = {label: _texts(scored, label, form) for label, form in forms}
    head = " | ".join(f"{label}: nearest tokens | {label}: the text goes on" for label, _ in forms)
    rows = []
    for layer in layers:
        cells = [f"{_tokens(nearest[label, layer])} | {texts[label][layer]}" for label, _ in forms]
        rows.append(f"| {layer} | {' | '.join(cells)} |")
    split_up = {
        label: " · ".join(f"`{form.tokenized.tokens[p].strip()}`" for p in form.positions) for label, form in forms
    }
    lines = [
        f"# {name.entity.name}, plain and split",
        "",
        f"The model reads “{CARRIER.format(name.entity.name)}”. Its tokenizer makes of the name: {split_up['plain']}."
        + (f" By force it is split into {split_up['odd-split']}, which the model hardly ever saw." if split else ""),
        "",
        "At the last token of the name, after ℓ blocks, there is a vector. **Nearest tokens**: the words of the "
        "vocabulary whose input embeddings point the same way, with the cosine. **The text goes on**: the vector is "
        f"written over the “x” of the inspection prompt “{find_prompt(PROMPT).text.replace('{}', 'x')}”, after ℓ* "
        f"blocks ({scored.choice.target}), and the model goes on by itself.",
        "",
        f"| ℓ | {head} |",
        f"|---|{'---|---|' * len(forms)}",
        *rows,
        "",
        "Without a write the prompt goes on: "
        f"{sentence(scored.table.rows['unpatched', None, (None, None), 0].text or '')}",
        "",
        f"Words that count as the entity: {', '.join(name.entity.keywords)}.",
        "",
        "How to read it: at ℓ 0 the nearest token is the last piece itself. The whole word, near the state of its last "
        "piece at a later ℓ, is evidence that the model has put the pieces together; that it is not there is none that "
        "it has not, since states need not resemble embeddings. How far they do here: over all words of the report, "
        f"one that was not split has its own token among the ten nearest at {_near(scored)} of the ℓ above 0. Where "
        "that is little, what the columns have in common is no word's doing, and the texts tell more.",
    ]
    return "\n".join(lines) + "\n"


def _near(scored: Scored) -> str:
    plain = scored.words.plain
    return shown(float(plain[:, 1:].mean())) if plain.size else "–"


def _chosen(scored: Scored) -> tuple[Form, Form | None]:
    """A name that could be split, of one token if there is one, so that the split is in what is read; the most hits."""
    split = {made.entity.name: made for made in scored.forms["odd-split"].made} if "odd-split" in scored.forms else {}
    order = sorted(
        range(len(scored.names)),
        key=lambda k: (
            scored.names[k].entity.name not in split,
            scored.names[k].n_tokens > 1,
            -scored.hits[k].sum(),
        ),
    )
    name = scored.names[order[0]]
    return name, split.get(name.entity.name)


def _texts(scored: Scored, label: str, form: Form) -> dict[int, str]:
    """What the patched prompt says, by ℓ, for the name in this form."""
    made: Sequence[Form] = scored.design.names if label == "plain" else scored.design.forms[label]
    stage = "names" if label == "plain" else label
    table = Table.of(scored.results[stage], PROMPT, len(made))
    item = [one.entity.name for one in made].index(form.entity.name)
    layers = scored.design.every_layer if label == "plain" else scored.design.form_layers
    places = places_of(layers, scored.choice.target_layer)
    return {
        layer: sentence(answer_of(table.rows[None, item, place, 0]))
        for layer, place in zip(layers, places, strict=True)
    }


def _tokens(found: Sequence[Neighbour]) -> str:
    return ", ".join(f"“{sentence(n.token)}” {n.cosine:.2f}".replace("-", "−") for n in found[:N_NEAREST])
