"""The report of tokenization: figures, and the page in words."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from patchscopes.studies.entities import CARRIER, DRAWS
from patchscopes.studies.figures import Bar, Curve, Panel, bars, draw
from patchscopes.studies.headline import verdict
from patchscopes.studies.report import Finding, framed, markdown, shown, shown_p
from patchscopes.studies.tokenization.findings import CHANCE, GROUPS, LAYER_0, SHUFFLED, Scored
from patchscopes.studies.tokenization.forms import FORMS
from patchscopes.studies.tokenization.tables import RECOGNISED, WHOLE

NOTE = "Bars: 95 % intervals over names."
By = Mapping[tuple[str, str | None], Finding]
LABELS = {
    "no-space": "no space before it",
    "lower": "lower case",
    "upper": "upper case",
    "typo": "a typo",
    "odd-split": "an odd split",
}


def figures(scored: Scored, table: pd.DataFrame, findings: Sequence[Finding]) -> dict[str, Figure]:
    """Resolution by number of tokens, the forms' differences, and the whole word among the neighbours."""
    groups = [f"tokens {group}" for group in GROUPS]
    panels = [
        Panel("resolved", _curves(table, "names", "resolved-by", groups), "share resolved by ℓ"),
        Panel(
            "keyword",
            _curves(table, "names", "keyword-adjusted", groups),
            "keyword rate, control-adjusted",
            zero=0.0,
        ),
    ]
    found = {"number-of-tokens": draw(panels, note=f"{NOTE} By number of tokens of the name, not matched.")}
    differences = [f for f in findings if f.control in FORMS.values() and f.name.startswith("hit-rate/")]
    if differences:
        found["forms"] = bars(
            [Bar(f"{LABELS[f.name.removeprefix('hit-rate/')]} (n = {f.n_subjects})", f.interval) for f in differences],
            title=f"the same name with another split, {scored.choice.target}",
            x_label="share of ℓ ≥ 1 with a hit, minus that of the form beside it",
            note=NOTE,
        )
    if scored.words.words:
        n = len(scored.words.words)
        whole = _curves(table, "detokenisation", WHOLE, ("split", SHUFFLED, "plain"))
        same = _curves(table, "detokenisation", RECOGNISED, ("split",))
        panels = [
            Panel("the whole word's token is among the ten nearest", whole, "share of words"),
            Panel("the plain word's state is the nearest", same, "share of words", zero=1 / n),
        ]
        note = f"{NOTE.replace('names', 'words')} {n} words of one token, split by force; line on the right: chance."
        found["detokenisation"] = draw(panels, note=note)
    return found


def _curves(table: pd.DataFrame, stage: str, kind: str, series: Sequence[str]) -> list[Curve]:
    found = []
    for label in series:
        chosen = table[(table.stage == stage) & (table.series == label) & (table.kind == kind)]
        if len(chosen):
            found.append(Curve.of(label, chosen))
    return found


def page(scored: Scored, findings: Sequence[Finding], left_out: Sequence[str]) -> str:
    """What was found, how sure it is, what was left out and why."""
    by = {(finding.name, finding.control): finding for finding in findings}
    design, choice = scored.design, scored.choice
    return framed(
        title=f"Tokenization in {design.setup.model.id}",
        opening=(
            f"How does the split of a name into tokens change its resolution? {len(scored.items)} names, each at the "
            f"end of “{CARRIER.format('…')}”; the state of the name's last token at ℓ is written over the placeholder "
            f"of an inspection prompt at {choice.target}, and the text that follows is searched for words of a "
            f"description of this entity. {len(choice.chose)} other entities chose ℓ* and the headline's ℓ = "
            f"{choice.headline}, and are not in any figure."
        ),
        found=[
            *_headline(by),
            *_tokens(by),
            *_matched(by),
            *_slopes(by),
            *_forms(by),
            *_words(by),
        ],
        certainty=(
            "Intervals are 95 %, bootstrapped over names (over words for detokenisation). A hit: the keyword is in the "
            f"text, not in the unpatched one, and in at most one of {DRAWS} texts with the states of other names of "
            "the same type in the same form. None is counted at ℓ 0, where the state is the last token itself. p of "
            "forms are of sign-flip permutations of whole names, those of matched names of permutations within strata, "
            "each family corrected by Holm. Names were not made for this question: what else differs between long and "
            "short ones, within a type and tier, is not taken out; the same name in another form is the stricter test. "
            "The nearest tokens are by cosine with the input embeddings, which the farther up a state is the less it "
            "has to resemble."
        ),
        table=markdown(findings),
        left_out=left_out,
    )


def _headline(by: By) -> list[str]:
    return [
        f"- With the state of the name as it is, {by['keyword/headline', None]} of the texts name the entity; "
        f"{by['keyword/headline', 'shuffled']} more than with other names' states. {verdict(by, 'keyword/headline')}"
    ]


def _tokens(by: By) -> list[str]:
    shares = [(group, by.get((f"resolved/tokens-{group}", None))) for group in GROUPS]
    there = [(group, share) for group, share in shares if share is not None]
    listed = "; ".join(f"{group}: {share} of {share.n_subjects}" for group, share in there)
    medians = ", ".join(
        f"{group}: {shown(by[f'resolution-median/tokens-{group}', None].estimate)}" for group, _ in there
    )
    p = there[0][1].p
    return [
        f"- Resolved, two layers in a row: {by['resolved', None]} of the names, {by['resolved', 'shuffled']} more than "
        "with other names' states.",
        f"- By number of tokens (not matched): {listed}; log-rank p {shown_p(p)}. Median resolution layer as a share "
        f"of depth: {medians}.",
    ]


def _matched(by: By) -> list[str]:
    found = [by.get((f"single-minus-multi/{name}", "multi-token names")) for name in ("resolved", "hit-rate")]
    first = by.get(("single-minus-multi/first-layer", "multi-token names"))
    share, rate = found
    if share is None or rate is None:
        return ["- No stratum of type and popularity has both single- and multi-token names, so none were compared."]
    layer = f"; the first layer of the resolved by {first} of the depth" if first and not math.isnan(first.low) else ""
    return [
        f"- Single- minus multi-token names of the same type and popularity tier ({share.n_subjects} names): share "
        f"resolved {share} (p {shown_p(share.p)}); share of ℓ ≥ 1 with a hit {rate}{layer}."
    ]


def _slopes(by: By) -> list[str]:
    overall, inside = by["slope/resolved", None], by["slope/resolved/within-tier", None]
    return [
        f"- With each further token the share resolved changes by {overall}, and by {inside} among names of the same "
        "tier."
    ]


def _forms(by: By) -> list[str]:
    lines = []
    for form, beside in FORMS.items():
        rate, ever = by.get((f"hit-rate/{form}", beside)), by.get((f"ever-hit/{form}", beside))
        if rate is None or ever is None:
            lines.append(f"- {LABELS[form].capitalize()}: too few names; see what was left out.")
            continue
        more = by[f"more-tokens/{form}", beside]
        lines.append(
            f"- {LABELS[form].capitalize()} ({rate.n_subjects} names, {shown(more.estimate)} more tokens on average): "
            f"share of ℓ ≥ 1 with a hit {rate} (p {shown_p(rate.p)}) beside “{beside}”; names with any hit {ever}."
        )
    return lines


def _words(by: By) -> list[str]:
    ever = by.get(("detokenised/ever", None))
    if ever is None:
        return ["- No name begins with a word of one token that could be split, so no word was looked for."]
    first = by["detokenised/first-layer", None]
    parts = [
        f"{by['detokenised/ever', c]} more than for {c}" for c in (SHUFFLED, LAYER_0) if ("detokenised/ever", c) in by
    ]
    plain, same, met = by["detokenised/plain", None], by["recognised", None], by["recognised/first-layer", None]
    return [
        f"- Of {ever.n_subjects} words of one token, split by force, {ever} have their whole-word token among the ten "
        f"nearest of the last piece's state at some ℓ ≥ 1 ({'; '.join(parts)}); median of the first such ℓ, as a share "
        f"of depth: {shown(first.estimate)}. A word that was not split has its own token there at {plain} of ℓ ≥ 1: "
        "where that is next to nothing, embeddings say nothing about states in this model, and their silence about "
        "split words is no evidence.",
        f"- Among states of words: at {same} of ℓ ≥ 1 its state is nearest to that of the same word, plain; "
        f"{by['recognised', CHANCE]} more than by chance, {by['recognised', LAYER_0]} more than at ℓ 0; median of the "
        f"first such ℓ: {shown(met.estimate)} of the depth.",
    ]
