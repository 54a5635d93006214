"""Scores of entity-resolution → findings with intervals."""

import math
from collections.abc import Sequence

import numpy as np

from patchscopes.analysis.comparisons import sign_flip
from patchscopes.analysis.intervals import mean_interval, peak_interval
from patchscopes.analysis.resolution import logrank, resolution_layers, survival
from patchscopes.spec import Row
from patchscopes.studies.entities import DRAWS, PROMPTS
from patchscopes.studies.entity_resolution.scored import DISTINCTIVE, STAGES, Scored
from patchscopes.studies.headline import DIFFERENCE, beside, holm_over
from patchscopes.studies.report import Finding
from patchscopes.studies.scores import SCORES, ever_resolved, places_of, surprised
from patchscopes.studies.texts import Table

HEADLINES = {
    "keyword": "share of entities whose keyword the text holds",
    DISTINCTIVE: "share of entities of which the text holds a keyword that no other entity of the data has",
    "rouge_l": "mean RougeL",
}
OF_ADJUSTED = (-2.0, 2.0)  # a difference of two control-adjusted rates, each of which is one of rates
HALF = 0.5  # the article: before layer 20 of 40
EARLY, LATE = 0.15, 0.5  # thirds of the way that the part-to-entity curve is asked about, as shares of depth


def all_findings(scored: Scored) -> list[Finding]:
    """Every finding, in the order of the page."""
    return [
        *headline(scored),
        *resolution(scored),
        *popularity(scored),
        *early(scored),
        *parts(scored),
        *forms(scored),
        *surprisal(scored),
    ]


def headline(scored: Scored) -> list[Finding]:
    """At the placement that other entities chose: hits and RougeL, and what is left of them beside each control."""
    layer, star = scored.choice.headline, scored.choice.fixed
    column = scored.design.every_layer.index(layer)
    found: list[Finding] = []
    for score, label in HEADLINES.items():
        among = scored.asked(score, PROMPTS[0])
        if not among:
            continue
        curves, names = scored.curves("fixed", PROMPTS[0], score).among(among), [scored.subjects[k] for k in among]
        controls = {"shuffled": curves.donors[:, :, column].mean(axis=1), "unpatched": curves.unpatched}
        controls |= {control: values[among] for control, values in _controls(scored, score, layer).items()}
        about = label, f"ℓ {layer} → ℓ* {star}"
        found += beside(f"{score}/headline", curves.own[:, column], controls, names, seed=scored.seed, about=about)
    return found


def _controls(scored: Scored, score: str, layer: int) -> dict[str, np.ndarray]:
    """Each item's mean score with the other controls, at the headline's placement."""
    star, n = scored.choice.fixed, len(scored.design.reported)
    measure = scored.measure(score)
    controls = Table.of(scored.results["controls"], PROMPTS[0], n)
    main = scored.tables["fixed"][PROMPTS[0]]
    place = [(layer, star)]
    drawn = {
        name: controls.drawn(name, measure, scored.items, place, DRAWS)[:, :, 0].mean(axis=1)
        for name in ("random", "random-state")
    }
    mean = controls.drawn("mean", measure, scored.items, place, 1)[:, 0, 0]
    zero = controls.per_target("zero", measure, scored.items, place)[:, 0]
    texts = {name: main.once(name, measure, scored.items) for name in ("phrase-only", "text-only")}
    return {**drawn, "mean": mean, "zero": zero, **texts}


def resolution(scored: Scored) -> list[Finding]:
    """How many entities are resolved, beside donors' states, and by which layer, for each prompt; tiers and types."""
    found: list[Finding] = []
    for stage, prompts in STAGES.items():
        for prompt in prompts:
            found += [*_resolved(scored, stage, prompt), *_layers(scored, stage, prompt)]
        if len(prompts) > 1:
            by = {finding.name: finding for finding in found if finding.control is None}
            for name, what in (("resolved", "share"), ("first-layer", "first"), ("last-layer", "last")):
                over = [by[key].estimate for key in (f"{name}/{stage}/{p}" for p in prompts) if key in by]
                about = f"the first prompt's {what}; the bounds are the lowest and highest of the prompts, no interval"
                n = len(scored.items)
                if over:
                    found.append(Finding(f"{name}/{stage}/range", over[0], min(over), max(over), n, n, None, about))
    return holm_over(found, lambda f: f.name.startswith("resolved/") and f.control == "shuffled") + _groups(scored)


def _resolved(scored: Scored, stage: str, prompt: str) -> list[Finding]:
    """The share of entities that are resolved; beside the same best of all ℓ with each donor's state (rule 17)."""
    own = np.array([layer.first is not None for layer in scored.layers_of[stage, prompt]], dtype=float)
    donors = ever_resolved(scored.keyword[stage, prompt].donor_hits, scored.design.every_layer)
    label, star = "share of entities with a resolution layer (rule 23's criterion)", scored.target(stage)
    about = label, "ℓ* = ℓ" if star is None else f"ℓ* = {star}"
    controls = {"shuffled": donors}
    found = beside(f"resolved/{stage}/{prompt}", own, controls, scored.subjects, seed=scored.seed, about=about)
    if among := scored.asked(DISTINCTIVE, prompt):
        hits = scored.curves(stage, prompt, DISTINCTIVE).among(among).hits
        by_own = [layer.first is not None for layer in resolution_layers(hits, scored.design.every_layer)]
        said = f"{label}, by keywords that no other entity of the data has"
        found.append(Finding.of(f"resolved-distinctive/{stage}/{prompt}", scored.mean(by_own, among=among), said))
    return found


def _layers(scored: Scored, stage: str, prompt: str) -> list[Finding]:
    """By which layer: the median of all with censoring, and the first and the last of the resolved."""
    depth, found = scored.design.n_layers, scored.layers_of[stage, prompt]
    median = survival([layer.first for layer in found], depth)
    numbers = median.median / depth, median.low / depth, median.high / depth
    about = "median resolution layer (Kaplan–Meier) as a share of depth; null where fewer than half are resolved"
    findings = [Finding(f"resolution-median/{stage}/{prompt}", *numbers, median.n, median.n, None, about)]
    among = [k for k, layer in enumerate(found) if layer.first is not None]
    for which in ("first", "last") if among else ():
        shares = [getattr(found[k], which) / depth for k in among]
        about = f"mean {which} resolution layer of the resolved entities, as a share of depth"
        findings.append(Finding.of(f"{which}-layer/{stage}/{prompt}", scored.mean(shares, among=among), about))
    return findings


def _groups(scored: Scored) -> list[Finding]:
    """Resolution by popularity tier and type: shares, and a log-rank test."""
    found = []
    first = [layer.first for layer in scored.layers_of["fixed", PROMPTS[0]]]
    hit = np.array([layer is not None for layer in first], dtype=float)
    for kind, groups in (("tier", [str(e.tier) for e in scored.entities]), ("type", [e.type for e in scored.entities])):
        compared = logrank(first, groups, scored.design.n_layers)
        for name in sorted(set(groups)):
            among = [k for k, group in enumerate(groups) if group == name]
            judged = " (an editor's judgement)" if kind == "tier" else ""
            about = f"share resolved among {kind} {name}{judged}; p: log-rank test over all {kind}s, if several"
            p = compared if len(set(groups)) > 1 else None
            found.append(Finding.of(f"resolved/{kind}-{name}", scored.mean(hit[among], among=among), about, p=p))
    return found


def popularity(scored: Scored) -> list[Finding]:
    """The editor's tiers beside the model's own: mean ln p of the names, and who is resolved by it."""
    logprobs = np.array([scored.name_logprobs[name][0] for name in scored.subjects])
    found = []
    for tier in sorted({entity.tier for entity in scored.entities}):
        among = [k for k, entity in enumerate(scored.entities) if entity.tier == tier]
        interval = scored.mean(logprobs[among], bounds=None, among=among)
        found.append(Finding.of(f"name-logprob/tier-{tier}", interval, "mean ln p per token of the names, in nats"))
    hit = np.array([layer.first is not None for layer in scored.layers_of["fixed", PROMPTS[0]]], dtype=float)
    likelier = logprobs >= np.median(logprobs)
    for name, side in (("likelier", likelier), ("unlikelier", ~likelier)):
        among = np.flatnonzero(side).tolist()
        if not among:  # all names are equally likely
            continue
        about = f"share resolved among the half of the names that the model finds {name}"
        found.append(Finding.of(f"resolved/{name}-names", scored.mean(hit[among], among=among), about))
    return found


def early(scored: Scored) -> list[Finding]:
    """The article's claim, early layers, as a share of depth, through each prompt. ℓ 0 is the name as text."""
    found = []
    depth, layers = scored.design.n_layers, np.array(scored.design.every_layer[1:])
    for (stage, prompt), resolved_at in scored.layers_of.items():
        among = [k for k, layer in enumerate(resolved_at) if layer.first is not None]
        for which in ("first", "last") if among else ():
            by_half = [getattr(resolved_at[k], which) < HALF * depth for k in among]
            about = (
                f"of the resolved entities, the share whose {which} resolution layer is in the first half of the depth"
            )
            found.append(Finding.of(f"early-{which}/{stage}/{prompt}", scored.mean(by_half, among=among), about))
        adjusted = scored.keyword[stage, prompt].adjusted[:, 1:]
        peak = peak_interval(adjusted, scored.subjects, list(layers / depth), seed=scored.seed)
        about = "where the control-adjusted keyword curve is highest, as a share of depth"
        found.append(Finding.of(f"peak/{stage}/{prompt}", peak, about))
        first = layers < HALF * depth
        difference = adjusted[:, first].mean(axis=1) - adjusted[:, ~first].mean(axis=1)
        p = sign_flip(difference, scored.subjects, seed=scored.seed).p
        about = "control-adjusted keyword rate in the first half of the depth minus that in the second; Holm over all"
        interval = scored.mean(difference, bounds=OF_ADJUSTED)
        found.append(Finding.of(f"early-minus-late/{stage}/{prompt}", interval, about, p=p))
    return holm_over(found, lambda f: f.name.startswith("early-minus-late/"))


def parts(scored: Scored) -> list[Finding]:
    """Of entities with a misleading part: is the part what early layers say, and the entity what later ones do?

    ℓ 0 is left aside: the state there is the last token of the name as text, which most often ends the part too.
    """
    among = scored.asked("part", PROMPTS[0])
    if not among:
        return []
    found = []
    depth, layers = scored.design.n_layers, scored.design.every_layer
    for stage in STAGES:
        part, entity = (scored.curves(stage, PROMPTS[0], score).among(among).adjusted for score in ("part", "keyword"))
        for name, low, high in (("early", 0.0, EARLY), ("later", EARLY, LATE)):
            columns = [k for k, layer in enumerate(layers) if layer and low <= layer / depth < high]
            if not columns:
                continue
            difference = part[:, columns].mean(axis=1) - entity[:, columns].mean(axis=1)
            p = sign_flip(difference, [scored.subjects[k] for k in among], seed=scored.seed).p
            about = (
                "rate of the misleading part's keywords minus that of the entity's, control-adjusted, at ℓ ≥ 1 from "
                f"{low:.0%} to {high:.0%} of the depth"
            )
            interval = scored.mean(difference, bounds=OF_ADJUSTED, among=among)
            found.append(Finding.of(f"part-minus-entity/{stage}/{name}", interval, about, control="shuffled", p=p))
        if all(_above(scored, curve[:, 1:], among) for curve in (part, entity)):
            found.append(_shift(scored, stage, (part[:, 1:], entity[:, 1:]), among))
    return holm_over(found, lambda f: f.name.startswith("part-minus-entity/"))


def _above(scored: Scored, curve: np.ndarray, among: Sequence[int]) -> bool:
    """Whether a curve (item, ℓ) lies above its control on the whole: else its centre would be one of noise."""
    test = sign_flip(curve.mean(axis=1), [scored.subjects[k] for k in among], seed=scored.seed)
    return test.difference > 0 and test.p < 0.05


def _centre(curve: np.ndarray, layers: Sequence[int]) -> float:
    """The mean layer of a rate over layers, weighed by what of it is above 0; NaN where nothing is."""
    weights = np.clip(curve.mean(axis=0), 0, None)
    return float((weights * np.array(layers)).sum() / weights.sum()) if weights.sum() > 0 else math.nan


def _shift(scored: Scored, stage: str, curves: tuple[np.ndarray, np.ndarray], among: Sequence[int]) -> Finding:
    """How much later the entity is said than its part: the distance of the curves' centres over ℓ ≥ 1, by bootstrap."""
    depth, layers = scored.design.n_layers, scored.design.every_layer[1:]
    part, entity = curves
    rng = np.random.default_rng(scored.seed)
    drawn = []
    for _ in range(1000):
        sample = rng.integers(len(part), size=len(part))
        drawn.append((_centre(entity[sample], layers) - _centre(part[sample], layers)) / depth)
    kept = np.array([value for value in drawn if not math.isnan(value)])
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) > 900 else (math.nan, math.nan)
    estimate = (_centre(entity, layers) - _centre(part, layers)) / depth
    about = (
        "centre of the entity's curve minus that of its part's, as a share of depth: above 0, the part is said first"
    )
    return Finding(
        f"part-then-entity/{stage}", estimate, float(low), float(high), len(among), len(among), "shuffled", about
    )


def forms(scored: Scored) -> list[Finding]:
    """The bare name without a carrier, and the shorter, more ambiguous form, beside the full name in its carrier."""
    found = []
    layer, star = scored.choice.headline, scored.choice.fixed
    place = [(layer, star)]
    full = scored.keyword["fixed", PROMPTS[0]].own[:, scored.design.every_layer.index(layer)]
    bare = Table.of(scored.results["bare"], PROMPTS[0], len(scored.design.reported))
    alone = [k for k, item in enumerate(scored.items) if item not in bare.missing]
    if alone:
        hits = bare.own(scored.measure("keyword"), [scored.items[k] for k in alone], place)[:, 0]
        difference = hits - full[alone]
        about = f"keyword hits of names without a carrier minus those with one, at ℓ {layer} → ℓ* {star}"
        found.append(_paired(scored, "bare-minus-carrier", difference, alone, about))
        at_sink = np.array(["sink" in bare.rows[None, scored.items[k], place[0], 0].flags for k in alone])
        for name, which in (("sinks", at_sink), ("others", ~at_sink)):
            among = [k for k, one in zip(alone, which, strict=True) if one]
            if among and not which.all():
                said = f"{about}; of names {'read at' if name == 'sinks' else 'not at'} an attention sink (rule 6)"
                found.append(_paired(scored, f"bare-minus-carrier/{name}", difference[which], among, said))
    paired = scored.design.paired()
    if not paired:
        return found
    short = Table.of(scored.results["short"], PROMPTS[0], len(paired))
    index = {entity.name: k for k, entity in enumerate(scored.entities)}
    both = [k for k, entity in enumerate(paired) if entity.name in index and k not in short.missing]
    if both:
        hits = short.own(SCORES["keyword"](paired), both, place)[:, 0]
        among = [index[paired[k].name] for k in both]
        about = (
            f"keyword hits of the shorter, ambiguous form (“Diana”) minus those of the full name, at ℓ {layer} → ℓ* "
            f"{star}"
        )
        found.append(_paired(scored, "short-minus-full", hits - full[among], among, about))
    return found


def _paired(scored: Scored, name: str, difference: np.ndarray, among: Sequence[int], about: str) -> Finding:
    p = sign_flip(difference, [scored.subjects[k] for k in among], seed=scored.seed).p
    return Finding.of(name, scored.mean(difference, bounds=DIFFERENCE, among=among), about, p=p)


def surprisal(scored: Scored) -> list[Finding]:
    """How much less surprising the state makes the entity's description, than without it or with other states."""
    layer, star = scored.choice.headline, scored.choice.fixed
    names, items, place = surprised_names(scored), scored.described_items, [(layer, star)]
    if not names:
        return []
    gains = surprisal_gains(scored, [layer])
    own, draws = scored.described["surprisal"].own(surprised, items, place), scored.design.scale.surprisal_draws
    for control in ("random", "random-state"):
        drawn = scored.described["surprisal-controls"].drawn(control, surprised, items, place, draws)
        gains[control] = drawn.mean(axis=1) - own
    found = []
    for control, values in gains.items():
        p = sign_flip(values[:, 0], names, seed=scored.seed).p
        interval = mean_interval(values[:, 0], names, seed=scored.seed, bounds=None)
        about = f"nats by which the description is less surprising than with {control}, at ℓ {layer} → ℓ* {star}; Holm"
        found.append(Finding.of("surprisal-gain", interval, about, control=control, p=p))
    return holm_over(found, lambda _: True)


def surprised_names(scored: Scored) -> list[str]:
    """Whose descriptions are scored."""
    described = scored.design.described()
    return [described[item].name for item in scored.described_items]


def surprisal_gains(scored: Scored, layers: Sequence[int]) -> dict[str, np.ndarray]:
    """Surprisal of the description with each control minus that with the state (item, layer), in nats."""
    table, items, places = scored.described["surprisal"], scored.described_items, places_of(layers, scored.choice.fixed)
    own = table.own(surprised, items, places)
    donors = table.drawn("shuffled", surprised, items, places, DRAWS).mean(axis=1)
    # A cell's own row says by how much the write changed its candidate's log-probability.
    return {"shuffled": donors - own, "unpatched": table.own(_raised, items, places)}


def _raised(_: int, row: Row) -> float:
    assert row.logprob_minus_unpatched is not None
    return row.logprob_minus_unpatched
