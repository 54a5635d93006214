"""The report of entity-resolution: figures, the page in words, and one entity walked through its layers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from patchscopes.studies.entities import CARRIER, DRAWS, PROMPTS
from patchscopes.studies.entity_resolution.findings import STAGES, Scored
from patchscopes.studies.figures import Bar, Curve, Panel, bars, draw
from patchscopes.studies.headline import verdict
from patchscopes.studies.report import Finding, framed, markdown, shown, shown_p

NOTE = "Bars: 95 % bootstrap over entities."
GAINS = {"adjusted": "other entities (shuffled)", "minus-unpatched": "no write (unpatched)"}
TITLES = {"same": "ℓ* = ℓ", "fixed": "ℓ* fixed"}


def figures(scored: Scored, table: pd.DataFrame, findings: Sequence[Finding]) -> dict[str, Figure]:
    """Curves by layer, part against entity, resolution over depth, and the headline beside its controls."""
    depth = scored.design.n_layers
    half = ((depth / 2, "half the depth"),)
    found = {}
    for score, label in (("keyword", "keyword rate, control-adjusted"), ("rouge_l", "RougeL, control-adjusted")):
        panels = [
            Panel(
                f"{title}{'' if stage == 'same' else f' = {scored.choice.fixed}'}",
                [_curve(table, stage, prompt, score, "adjusted", prompt) for prompt in STAGES[stage]],
                label, zero=0.0, marks=half,
            )
            for stage, title in TITLES.items()
        ]  # fmt: skip
        found[score.replace("_", "-")] = draw(panels, note=NOTE)
    if any(entity.part for entity in scored.entities):
        names = {"part": "misleading part", "type": "kind of thing", "keyword": "the entity itself"}
        panels = [
            Panel(
                title,
                [_curve(table, stage, PROMPTS[0], s, "own", label) for s, label in names.items()],
                "share of texts",
            )
            for stage, title in TITLES.items()
        ]
        found["part-type-entity"] = draw(panels, note=f"{NOTE} “Part”: entities whose name has one.")
    gains = [_curve(table, "fixed", PROMPTS[2], "surprisal_gain", kind, label) for kind, label in GAINS.items()]
    found["surprisal"] = draw(
        [Panel("description", gains, "nats less surprising than with", zero=0.0, marks=half)], note=NOTE
    )
    found["resolution"] = draw(
        [_resolution(scored, stage) for stage in TITLES], note="Share of entities resolved by ℓ; 1 − Kaplan–Meier."
    )
    beside = [finding for finding in findings if finding.name == "keyword/headline"]
    found["controls"] = bars(
        [Bar(f"minus {f.control}" if f.control else "keyword rate", f.interval) for f in beside],
        title=f"ℓ {scored.choice.headline} → ℓ* {scored.choice.fixed}", x_label="share of entities", note=NOTE,
    )  # fmt: skip
    return found


def _curve(table: pd.DataFrame, stage: str, prompt: str, score: str, kind: str, label: str) -> Curve:
    chosen = table[(table.stage == stage) & (table.prompt == prompt) & (table.score == score) & (table.kind == kind)]
    return Curve.of(label, chosen)


def _resolution(scored: Scored, stage: str) -> Panel:
    """Nothing is censored before the last layer, so Kaplan–Meier is the share resolved so far, with its interval."""
    layers = scored.design.every_layer
    curves = []
    for prompt in STAGES[stage]:
        first = [found.first for found in scored.layers_of[stage, prompt]]
        by = np.array([[f is not None and f <= layer for layer in layers] for f in first], dtype=float)
        curves.append(Curve(prompt, layers, [scored.mean(by[:, k]) for k in range(len(layers))]))
    return Panel(TITLES[stage], curves, "share resolved by ℓ")


def page(scored: Scored, findings: Sequence[Finding], left_out: Sequence[str]) -> str:
    """What was found, how sure it is, what was left out and why."""
    by = {(finding.name, finding.control): finding for finding in findings}
    model, layer, star = scored.design.setup.model, scored.choice.headline, scored.choice.fixed
    return framed(
        title=f"Entity resolution in {model.id}",
        opening=(
            f"At which layer does a name become the entity that it names? {len(scored.items)} entities, each at the "
            f"end of “{CARRIER.format('…')}”; the state of the name's last token at ℓ is written over the placeholder "
            "of an inspection prompt at ℓ*, and the text that follows is searched for words that only a description of "
            f"this entity holds. {len(scored.choice.chose)} other entities chose ℓ* = {star} and the headline's ℓ = "
            f"{layer}, and are not in any figure."
        ),
        found=[
            *_headline(by),
            *_resolved(by),
            *_early(by),
            *_parts(by),
            *_forms(by),
        ],
        certainty=(
            f"Intervals are 95 %, bootstrapped over entities. “Shuffled” is the mean over {DRAWS} other entities of "
            "the same type, read and written at the same places: what the prompt, the layer and the type bring by "
            "themselves. p are of sign-flip permutations of whole entities, corrected by Holm within a family of "
            "controls."
        ),
        table=markdown(findings),
        left_out=left_out,
    )


def _headline(by: Mapping[tuple[str, str | None], Finding]) -> list[str]:
    rate = by["keyword/headline", None]
    text = by["keyword/headline", "phrase-only"]
    gain = by.get(("surprisal-gain", "shuffled"))
    surprise = f" The description is {gain} nats less surprising than with other entities' states." if gain else ""
    return [
        f"- With the state, {rate} of the texts name the entity; {by['keyword/headline', 'shuffled']} more than with "
        f"other entities' states. {verdict(by, 'keyword/headline')}",
        f"- The name as plain text in the placeholder's stead, which is what the model knows anyway, differs by {text} "
        "(state minus text).",
        f"- RougeL against the description: {by['rouge_l/headline', None]}; {by['rouge_l/headline', 'shuffled']} above "
        f"shuffled.{surprise}",
    ]


def _resolved(by: Mapping[tuple[str, str | None], Finding]) -> list[str]:
    lines = []
    for stage, title in TITLES.items():
        share, median = by[f"resolved/{stage}/{PROMPTS[0]}", None], by[f"resolution-median/{stage}/{PROMPTS[0]}", None]
        spread = by.get((f"resolved/{stage}/range", None))
        over = f", {shown(spread.low)} to {shown(spread.high)} over the three prompts" if spread else ""
        lines.append(
            f"- {title}: {share} of the entities are ever resolved (two layers in a row){over}; median resolution "
            f"layer, as a share of depth: {shown(median.estimate)}."
        )
    tiers = [by[key] for key in by if key[0].startswith("resolved/tier-")]
    shares = ", ".join(f"{finding.name[-1]}: {finding}" for finding in tiers)
    p = tiers[0].p if tiers else None
    return [
        *lines,
        f"- By popularity tier (1 household name, 3 known to few): {shares}; log-rank p {shown_p(p)}.",
        _names(by),
    ]


def _names(by: Mapping[tuple[str, str | None], Finding]) -> str:
    tiers = ", ".join(f"{key[0][-1]}: {by[key]}" for key in by if key[0].startswith("name-logprob/tier-"))
    likelier, other = (by.get((f"resolved/{side}-names", None)) for side in ("likelier", "unlikelier"))
    halves = (
        f" Of the half of the names that it finds likelier {likelier} are resolved, of the other half {other}."
        if likelier and other
        else ""
    )
    return f"- The model's mean ln p of the names by tier: {tiers}.{halves}"


def _early(by: Mapping[tuple[str, str | None], Finding]) -> list[str]:
    lines = []
    for stage, title in TITLES.items():
        first, last = by.get((f"early-first/{stage}", None)), by.get((f"early-last/{stage}", None))
        peak, difference = by[f"peak/{stage}", None], by[f"early-minus-late/{stage}", None]
        shares = (
            f"of the resolved, {first} are first resolved in the first half of the depth, and {last} for the last "
            "time; "
            if first
            else ""
        )
        lines.append(
            f"- The article's “early layers” ({title}): {shares}the curve is highest at {peak} of the depth; first "
            f"half minus second half: {difference}."
        )
    return lines


def _parts(by: Mapping[tuple[str, str | None], Finding]) -> list[str]:
    lines = []
    for stage, title in TITLES.items():
        early, later = (by.get((f"part-minus-entity/{stage}/{when}", "shuffled")) for when in ("early", "later"))
        shift = by.get((f"part-then-entity/{stage}", "shuffled"))
        if early and later:
            after = f"; the entity's curve lies {shift} of the depth behind its part's" if shift else ""
            lines.append(
                f"- Misleading parts ({title}, {early.n_subjects} entities): part minus entity is {early} in the first "
                f"layers and {later} in the following ones{after}."
            )
    return lines


def _forms(by: Mapping[tuple[str, str | None], Finding]) -> list[str]:
    lines = []
    if ("bare-minus-carrier", None) in by:
        bare = by["bare-minus-carrier", None]
        lines.append(f"- Without a carrier (the bare name; often an attention sink) hits differ by {bare}.")
    if ("short-minus-full", None) in by:
        short = by["short-minus-full", None]
        lines.append(
            f"- The shorter, ambiguous form beside the full name ({short.n_subjects} pairs) hits differ by {short}."
        )
    return lines
