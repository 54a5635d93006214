"""Scores of entity-resolution → findings with intervals, and the tables behind the figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from patchscopes.analysis.comparisons import sign_flip
from patchscopes.analysis.intervals import Interval, mean_interval, mean_intervals, peak_interval
from patchscopes.analysis.resolution import Resolved, logrank, resolution_layers, survival
from patchscopes.data import Entity
from patchscopes.results import Results
from patchscopes.studies.choice import Choice
from patchscopes.studies.entities import DRAWS, PROMPTS
from patchscopes.studies.entity_resolution.design import Design
from patchscopes.studies.headline import DIFFERENCE, HIT, beside
from patchscopes.studies.report import Finding
from patchscopes.studies.scores import SCORES, Curves, curves_of, places_of, surprised, tables_of
from patchscopes.studies.texts import Table

# ℓ* = ℓ is read through the first prompt, the fixed ℓ* through all three.
STAGES = {"same": PROMPTS[:1], "fixed": PROMPTS}
OF_ADJUSTED = (-2.0, 2.0)  # a difference of two control-adjusted rates, each of which is one of rates
HALF = 0.5  # the article: before layer 20 of 40
EARLY, LATE = 0.15, 0.5  # thirds of the way that the part-to-entity curve is asked about, as shares of depth


@dataclass(frozen=True)
class Scored:
    """The results of all stages, with the entities that have every result of the main stages."""

    design: Design
    choice: Choice
    results: Mapping[str, Results]
    items: tuple[int, ...]
    name_logprobs: Mapping[str, tuple[float, int]]  # (mean ln p per token, tokens) of each name
    _curves: dict[tuple[str, str, str], Curves] = field(default_factory=dict, repr=False)

    @property
    def entities(self) -> list[Entity]:
        """The entities that are reported on, in the order of all arrays."""
        return [self.design.reported[item] for item in self.items]

    @property
    def names(self) -> list[str]:
        """The subjects over which intervals are made."""
        return [entity.name for entity in self.entities]

    @property
    def seed(self) -> int:
        """Of all resampling."""
        return self.design.setup.seed

    def target(self, stage: str) -> int | None:
        """ℓ* of a main stage; None where ℓ* = ℓ."""
        return None if stage == "same" else self.choice.fixed

    @cached_property
    def tables(self) -> dict[str, dict[str, Table]]:
        """The main stages' rows, by stage and prompt."""
        n = len(self.design.reported)
        return {stage: tables_of(self.results[stage], prompts, n) for stage, prompts in STAGES.items()}

    @cached_property
    def keyword(self) -> dict[tuple[str, str], Curves]:
        """Keyword hits by (stage, prompt)."""
        return {(stage, prompt): self.curves(stage, prompt, "keyword") for stage in STAGES for prompt in STAGES[stage]}

    @cached_property
    def layers_of(self) -> dict[tuple[str, str], list[Resolved]]:
        """Resolution layers by (stage, prompt)."""
        return {key: resolution_layers(curves.hits, self.design.every_layer) for key, curves in self.keyword.items()}

    def curves(self, stage: str, prompt: str, score: str) -> Curves:
        """The curves of a main stage by one of SCORES."""
        key = stage, prompt, score
        if key not in self._curves:
            places = places_of(self.design.every_layer, self.target(stage))
            measure = SCORES[score](self.design.reported)
            self._curves[key] = curves_of(self.tables[stage][prompt], measure, self.items, places)
        return self._curves[key]

    def mean(
        self, values: ArrayLike, *, bounds: tuple[float, float] | None = HIT, among: Sequence[int] | None = None
    ) -> Interval:
        """The mean over entities (those at `among`) with its interval."""
        names = self.names if among is None else [self.names[k] for k in among]
        return mean_interval(values, names, seed=self.seed, bounds=bounds)


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
    for score, label in (("keyword", "share of entities whose keyword the text holds"), ("rouge_l", "mean RougeL")):
        curves = scored.curves("fixed", PROMPTS[0], score)
        controls = {"shuffled": curves.donors[:, :, column].mean(axis=1), "unpatched": curves.unpatched}
        controls |= _controls(scored, score, layer)
        about = label, f"ℓ {layer} → ℓ* {star}"
        own = curves.own[:, column]
        found += beside(f"{score}/headline", own, controls, scored.names, seed=scored.seed, about=about)
    return found


def _controls(scored: Scored, score: str, layer: int) -> dict[str, np.ndarray]:
    """Each item's mean score with the other controls, at the headline's placement."""
    star, n = scored.choice.fixed, len(scored.design.reported)
    measure = SCORES[score](scored.design.reported)
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
    """How many entities are resolved, and by which layer, for each prompt; between tiers and types."""
    found: list[Finding] = []
    depth = scored.design.n_layers
    for stage, prompts in STAGES.items():
        shares = []
        for prompt in prompts:
            first = [layer.first for layer in scored.layers_of[stage, prompt]]
            share = scored.mean([layer is not None for layer in first])
            shares.append(share.estimate)
            found.append(
                Finding.of(f"resolved/{stage}/{prompt}", share, "share of entities with a resolution layer (rule 23)")
            )
            median = survival(first, depth)
            numbers = median.median / depth, median.low / depth, median.high / depth
            about = (
                "median resolution layer (Kaplan–Meier) as a share of depth; null where fewer than half are resolved"
            )
            found.append(Finding(f"resolution-median/{stage}/{prompt}", *numbers, median.n, median.n, None, about))
        n = len(scored.items)
        if len(prompts) == 1:
            continue
        spread = Finding(
            f"resolved/{stage}/range", shares[0], min(shares), max(shares), n, n, None,
            "the first prompt's share; bounds are the lowest and highest of the three prompts, no interval",
        )  # fmt: skip
        found.append(spread)
    return found + _groups(scored)


def _groups(scored: Scored) -> list[Finding]:
    """Resolution by popularity tier and type: shares, and a log-rank test."""
    found = []
    first = [layer.first for layer in scored.layers_of["fixed", PROMPTS[0]]]
    hit = np.array([layer is not None for layer in first], dtype=float)
    for kind, groups in (("tier", [str(e.tier) for e in scored.entities]), ("type", [e.type for e in scored.entities])):
        p = logrank(first, groups, scored.design.n_layers)
        for name in sorted(set(groups)):
            among = [k for k, group in enumerate(groups) if group == name]
            about = f"share resolved among {kind} {name} (an editor's judgement); p: log-rank test over all {kind}s"
            found.append(Finding.of(f"resolved/{kind}-{name}", scored.mean(hit[among], among=among), about, p=p))
    return found


def popularity(scored: Scored) -> list[Finding]:
    """The editor's tiers beside the model's own: mean ln p of the names, and who is resolved by it."""
    logprobs = np.array([scored.name_logprobs[name][0] for name in scored.names])
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
    """The article's claim, early layers, as a share of depth."""
    found = []
    depth, layers = scored.design.n_layers, scored.design.every_layer
    for stage in STAGES:
        resolved_at = scored.layers_of[stage, PROMPTS[0]]
        among = [k for k, layer in enumerate(resolved_at) if layer.first is not None]
        for which in ("first", "last"):
            by_half = [getattr(resolved_at[k], which) < HALF * depth for k in among]
            if among:
                share = scored.mean(by_half, among=among)
                about = (
                    f"of the resolved entities, the share whose {which} resolution layer lies in the first half of the "
                    "depth"
                )
                found.append(Finding.of(f"early-{which}/{stage}", share, about))
        adjusted = scored.keyword[stage, PROMPTS[0]].adjusted
        peak = peak_interval(adjusted, scored.names, [layer / depth for layer in layers], seed=scored.seed)
        found.append(
            Finding.of(
                f"peak/{stage}", peak, "where the control-adjusted keyword curve is highest, as a share of depth"
            )
        )
        middle = len([layer for layer in layers if layer < HALF * depth])
        difference = adjusted[:, :middle].mean(axis=1) - adjusted[:, middle:].mean(axis=1)
        p = sign_flip(difference, scored.names, seed=scored.seed).p
        about = "control-adjusted keyword rate in the first half of the depth minus that in the second"
        found.append(Finding.of(f"early-minus-late/{stage}", scored.mean(difference, bounds=OF_ADJUSTED), about, p=p))
    return found


def parts(scored: Scored) -> list[Finding]:
    """Of entities with a misleading part: is the part what early layers say, and the entity what later ones do?"""
    among = [k for k, entity in enumerate(scored.entities) if entity.part]
    if not among:
        return []
    found = []
    depth, layers = scored.design.n_layers, scored.design.every_layer
    for stage in STAGES:
        part, entity = (scored.curves(stage, PROMPTS[0], score).among(among).adjusted for score in ("part", "keyword"))
        for name, low, high in (("early", 0.0, EARLY), ("later", EARLY, LATE)):
            columns = [k for k, layer in enumerate(layers) if low <= layer / depth < high]
            difference = part[:, columns].mean(axis=1) - entity[:, columns].mean(axis=1)
            p = sign_flip(difference, [scored.names[k] for k in among], seed=scored.seed).p
            about = (
                "rate of the misleading part's keywords minus that of the entity's, control-adjusted, at ℓ from "
                f"{low:.0%} to {high:.0%} of the depth"
            )
            interval = scored.mean(difference, bounds=OF_ADJUSTED, among=among)
            found.append(Finding.of(f"part-minus-entity/{stage}/{name}", interval, about, control="shuffled", p=p))
        if all(_above(scored, curve, among) for curve in (part, entity)):
            found.append(_shift(scored, stage, (part, entity), among))
    return found


def _above(scored: Scored, curve: np.ndarray, among: Sequence[int]) -> bool:
    """Whether a curve (item, ℓ) lies above its control on the whole: else its centre would be one of noise."""
    test = sign_flip(curve.mean(axis=1), [scored.names[k] for k in among], seed=scored.seed)
    return test.difference > 0 and test.p < 0.05


def _centre(curve: np.ndarray, layers: Sequence[int]) -> float:
    """The mean layer of a rate over layers, weighed by what of it is above 0; NaN where nothing is."""
    weights = np.clip(curve.mean(axis=0), 0, None)
    return float((weights * np.array(layers)).sum() / weights.sum()) if weights.sum() > 0 else math.nan


def _shift(scored: Scored, stage: str, curves: tuple[np.ndarray, np.ndarray], among: Sequence[int]) -> Finding:
    """How much later the entity is said than its part: the distance of the two curves' centres, by bootstrap."""
    depth, layers = scored.design.n_layers, scored.design.every_layer
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
        hits = bare.own(SCORES["keyword"](scored.design.reported), [scored.items[k] for k in alone], place)[:, 0]
        about = f"keyword hits of names without a carrier minus those with one, at ℓ {layer} → ℓ* {star}"
        found.append(_paired(scored, "bare-minus-carrier", hits - full[alone], alone, about))
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
    p = sign_flip(difference, [scored.names[k] for k in among], seed=scored.seed).p
    return Finding.of(name, scored.mean(difference, bounds=DIFFERENCE, among=among), about, p=p)


def surprisal(scored: Scored) -> list[Finding]:
    """How much less surprising the state makes the entity's description, than nothing and than a donor's state."""
    layer, star = scored.choice.headline, scored.choice.fixed
    gains, names = surprisal_gains(scored, [layer])
    if not names:
        return []
    found = []
    for control, values in gains.items():
        p = sign_flip(values[:, 0], names, seed=scored.seed).p
        interval = mean_interval(values[:, 0], names, seed=scored.seed, bounds=None)
        about = f"nats by which the description is less surprising than with {control}, at ℓ {layer} → ℓ* {star}"
        found.append(Finding.of("surprisal-gain", interval, about, control=control, p=p))
    return found


def surprisal_gains(scored: Scored, layers: Sequence[int]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Surprisal of the description with each control minus that with the state (item, layer), in nats; and whose."""
    entities = scored.design.described()
    table = Table.of(scored.results["surprisal"], PROMPTS[2], len(entities))
    items, places = table.items(), places_of(layers, scored.choice.fixed)
    own = table.own(surprised, items, places)
    donors = table.drawn("shuffled", surprised, items, places, DRAWS).mean(axis=1)
    # A cell's own row says by how much the write changed its candidate's log-probability.
    gain = table.own(lambda _, row: row.logprob_minus_unpatched or 0.0, items, places)
    return {"shuffled": donors - own, "unpatched": gain}, [entities[item].name for item in items]


def curve_table(scored: Scored) -> pd.DataFrame:
    """Every curve with its intervals: by stage, prompt, score and ℓ; own rates, and adjusted by donors."""
    rows = []
    for stage, prompts in STAGES.items():
        for prompt in prompts:
            for score in SCORES:
                rows.extend(_curve_rows(scored, stage, prompt, score))
    return pd.DataFrame([*rows, *_surprisal_rows(scored)])


def _surprisal_rows(scored: Scored) -> list[dict[str, object]]:
    layers = scored.design.surprisal_layers(scored.choice.headline)
    gains, names = surprisal_gains(scored, layers)
    if not names:
        return []
    rows: list[dict[str, object]] = []
    for control, values in gains.items():
        kind = "adjusted" if control == "shuffled" else "minus-unpatched"
        intervals = mean_intervals(values, names, seed=scored.seed, bounds=None)
        rows.extend(_rows(scored, ("fixed", PROMPTS[2], "surprisal_gain", kind), layers, intervals))
    return rows


def _rows(
    scored: Scored, key: tuple[str, str, str, str], layers: Sequence[int], intervals: Sequence[Interval]
) -> list[dict[str, object]]:
    stage, prompt, score, kind = key
    star = scored.target(stage)
    return [
        {
            "stage": stage, "prompt": prompt, "score": score, "kind": kind, "source_layer": layer,
            "target_layer": layer if star is None else star, "estimate": i.estimate, "low": i.low, "high": i.high,
            "n_items": i.n_items, "n_subjects": i.n_subjects,
        }
        for layer, i in zip(layers, intervals, strict=True)
    ]  # fmt: skip


def _curve_rows(scored: Scored, stage: str, prompt: str, score: str) -> list[dict[str, object]]:
    among = [k for k, entity in enumerate(scored.entities) if entity.part or score != "part"]
    if not among:
        return []
    curves = scored.curves(stage, prompt, score).among(among)
    names = [scored.names[k] for k in among]
    rows: list[dict[str, object]] = []
    for kind, values, bounds in (("own", curves.own, HIT), ("adjusted", curves.adjusted, DIFFERENCE)):
        own = curves.own if kind == "adjusted" else None
        intervals = mean_intervals(values, names, seed=scored.seed, bounds=bounds, own=own)
        rows.extend(_rows(scored, (stage, prompt, score, kind), scored.design.every_layer, intervals))
    return rows


def entity_table(scored: Scored) -> pd.DataFrame:
    """An entity a line: what it is, the model's mean ln p of its name, and its resolution layers."""
    rows = []
    for k, entity in enumerate(scored.entities):
        logprob, n_tokens = scored.name_logprobs[entity.name]
        row: dict[str, object] = {
            "name": entity.name, "type": entity.type, "tier": entity.tier, "part": entity.part, "bare": entity.bare,
            "mean_logprob_of_name": logprob, "n_tokens": n_tokens, "where": entity.where,
        }  # fmt: skip
        for (stage, prompt), found in scored.layers_of.items():
            row[f"first/{stage}/{prompt}"], row[f"last/{stage}/{prompt}"] = found[k].first, found[k].last
        rows.append(row)
    return pd.DataFrame(rows).convert_dtypes()
