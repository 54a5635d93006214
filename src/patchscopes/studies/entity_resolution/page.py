"""The report of entity-resolution: figures, the page in words, and one entity walked through its layers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from patchscopes.studies.entities import CARRIER, DRAWS, PROMPTS
from patchscopes.studies.entity_resolution.scored import DISTINCTIVE, STAGES, Scored
from patchscopes.studies.entity_resolution.tables import WITH_PART
from patchscopes.studies.figures import Bar, Curve, Panel, bars, draw
from patchscopes.studies.headline import NEEDED, verdict
from patchscopes.studies.report import Finding, framed, markdown, shown, shown_p

NOTE = "Bars: 95 % intervals over entities."
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
    if scored.asked("part", PROMPTS[0]):
        names = {"part": "misleading part", "type": "kind of thing", "keyword": "the entity itself"}
        panels = [
            Panel(
                title,
                [_curve(table, stage, PROMPTS[0], s, WITH_PART, label) for s, label in names.items()],
                "share of texts, control-adjusted",
                zero=0.0,
            )
            for stage, title in TITLES.items()
        ]
        found["part-type-entity"] = draw(panels, note=f"{NOTE} Names with a part, for all three.")
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
            "of an inspection prompt at ℓ*, and the text that follows is searched for words of a description of this "
            f"entity. {len(scored.choice.chose)} other entities chose ℓ* = {star} and the headline's ℓ = {layer}, and "
            "are not in any figure."
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
            "themselves. p are of sign-flip permutations of whole entities, corrected by Holm within a family: of "
            "controls, of prompts. Nothing is counted as resolved at ℓ 0, where the state is the last token as text; "
            "words that stand in the name or the inspection prompt are not searched for."
        ),
        table=markdown(findings),
        left_out=left_out,
    )


def _headline(by: Mapping[tuple[str, str | None], Finding]) -> list[str]:
    rate = by["keyword/headline", None]
    text = by["keyword/headline", "phrase-only"]
    distinctive = by.get((f"{DISTINCTIVE}/headline", None))
    strict = (
        f" By keywords that no other entity of the data has it is {distinctive}, of {distinctive.n_subjects}."
        if distinctive
        else ""
    )
    return [
        f"- With the state, {rate} of the texts name the entity; {by['keyword/headline', 'shuffled']} more than with "
        f"other entities' states. {verdict(by, 'keyword/headline')}{strict}",
        f"- The name as plain text in the placeholder's stead, which is what the model knows anyway, differs by {text} "
        "(state minus text).",
        *_surprise(by),
        f"- RougeL against the description: {by['rouge_l/headline', None]}; {by['rouge_l/headline', 'shuffled']} above "
        f"shuffled. {verdict(by, 'rouge_l/headline')}",
    ]


def _surprise(by: Mapping[tuple[str, str | None], Finding]) -> list[str]:
    if ("surprisal-gain", "shuffled") not in by:
        return []
    gains = ", ".join(f"{control} {by['surprisal-gain', control]}" for control in NEEDED)
    return [
        f"- The description is less surprising with the state, in nats, than with: {gains}. "
        f"{verdict(by, 'surprisal-gain')}"
    ]


def _resolved(by: Mapping[tuple[str, str | None], Finding]) -> list[str]:
    lines = []
    for stage, title in TITLES.items():
        key = f"{stage}/{PROMPTS[0]}"
        share, median = by[f"resolved/{key}", None], by[f"resolution-median/{key}", None]
        distinctive = by.get((f"resolved-distinctive/{key}", None))
        strict = f", {distinctive} by keywords that no other entity has" if distinctive else ""
        lines.append(
            f"- {title}: {share} of the entities are ever resolved (two layers in a "
            f"row){_over(by, 'resolved', stage)}, {by[f'resolved/{key}', 'shuffled']} more than with other entities' "
            f"states{strict}; median resolution layer, as a share of depth: {shown(median.estimate)}."
        )
        first, last = (by.get((f"{which}-layer/{key}", None)) for which in ("first", "last"))
        if first and last:
            lines.append(
                f"- {title}: of those, the first layer is on average at {first}{_over(by, 'first-layer', stage)}, the "
                f"last at {last} of the depth{_over(by, 'last-layer', stage)}."
            )
    tiers = [by[key] for key in by if key[0].startswith("resolved/tier-")]
    shares = ", ".join(f"{finding.name[-1]}: {finding}" for finding in tiers)
    tested = f"; log-rank p {shown_p(tiers[0].p)}" if len(tiers) > 1 else ""
    return [
        *lines,
        f"- By popularity tier (1 household name, 3 known to few): {shares}{tested}.",
        _names(by),
    ]


def _over(by: Mapping[tuple[str, str | None], Finding], name: str, stage: str) -> str:
    spread = by.get((f"{name}/{stage}/range", None))
    return f", {shown(spread.low)} to {shown(spread.high)} over the prompts" if spread else ""


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
    for stage, prompt in ((stage, prompt) for stage, prompts in STAGES.items() for prompt in prompts):
        key, title = f"{stage}/{prompt}", f"{TITLES[stage]}, {prompt}"
        first, last = by.get((f"early-first/{key}", None)), by.get((f"early-last/{key}", None))
        peak, difference = by[f"peak/{key}", None], by[f"early-minus-late/{key}", None]
        shares = (
            f"of the resolved, {first} are first resolved in the first half of the depth, and {last} for the last "
            "time; "
            if first
            else ""
        )
        lines.append(
            f"- The article's “early layers” ({title}): {shares}the curve is highest at {peak} of the depth; first "
            f"half minus second half: {difference} (p {shown_p(difference.p)})."
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
        bare, sinks = by["bare-minus-carrier", None], by.get(("bare-minus-carrier/sinks", None))
        read = f"of them {sinks.n_subjects} read at an attention sink: {sinks}" if sinks else "none read at a sink"
        lines.append(f"- Without a carrier (the bare name, {bare.n_subjects}) hits differ by {bare}; {read}.")
    if ("short-minus-full", None) in by:
        short = by["short-minus-full", None]
        lines.append(
            f"- The shorter, ambiguous form beside the full name ({short.n_subjects} pairs) hits differ by {short}."
        )
    return lines
