"""The tables of entity-resolution: every curve, and every entity."""

from collections.abc import Sequence

import pandas as pd

from patchscopes.analysis.intervals import Interval, mean_intervals
from patchscopes.studies.entities import PROMPTS
from patchscopes.studies.entity_resolution.findings import surprisal_gains, surprised_names
from patchscopes.studies.entity_resolution.scored import DISTINCTIVE, STAGES, Scored
from patchscopes.studies.headline import DIFFERENCE, HIT
from patchscopes.studies.scores import SCORES

WITH_PART = "adjusted, of names with a part"  # a kind of curve: of the same entities for part, type and entity


def curve_table(scored: Scored) -> pd.DataFrame:
    """Every curve with its intervals: by stage, prompt, score and ℓ; own rates, and adjusted by donors."""
    rows = []
    for stage, prompts in STAGES.items():
        for prompt in prompts:
            for score in (*SCORES, DISTINCTIVE):
                rows.extend(_curve_rows(scored, stage, prompt, score))
    return pd.DataFrame([*rows, *_surprisal_rows(scored)])


def _surprisal_rows(scored: Scored) -> list[dict[str, object]]:
    layers = scored.design.surprisal_layers(scored.choice.headline)
    names = surprised_names(scored)
    if not names:
        return []
    gains = surprisal_gains(scored, layers)
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
    """Of the entities that have words for the score; of those with a part among them too, where it is about words."""
    asked, with_part = scored.asked(score, prompt), set(scored.asked("part", prompt))
    curves = scored.curves(stage, prompt, score)
    kinds = {"own": asked, "adjusted": asked}
    if score in ("part", "type", "keyword"):
        kinds[WITH_PART] = [k for k in asked if k in with_part]
    rows: list[dict[str, object]] = []
    for kind, among in kinds.items():
        if not among:
            continue
        some, names = curves.among(among), [scored.subjects[k] for k in among]
        values, bounds, own = (some.own, HIT, None) if kind == "own" else (some.adjusted, DIFFERENCE, some.own)
        intervals = mean_intervals(values, names, seed=scored.seed, bounds=bounds, own=own)
        rows.extend(_rows(scored, (stage, prompt, score, kind), scored.design.every_layer, intervals))
    return rows


def entity_table(scored: Scored) -> pd.DataFrame:
    """An entity a line: what it is, the mean ln p of its name, its resolution layers (`_share`: as shares of depth)."""
    rows = []
    for k, entity in enumerate(scored.entities):
        logprob, n_tokens = scored.name_logprobs[entity.name]
        row: dict[str, object] = {
            "name": entity.name, "type": entity.type, "tier": entity.tier, "part": entity.part, "bare": entity.bare,
            "mean_logprob_of_name": logprob, "n_tokens": n_tokens, "where": entity.where,
        }  # fmt: skip
        for (stage, prompt), found in scored.layers_of.items():
            for which in ("first", "last"):
                layer = getattr(found[k], which)
                row[f"{which}/{stage}/{prompt}"] = layer
                row[f"{which}_share/{stage}/{prompt}"] = None if layer is None else layer / scored.design.n_layers
        rows.append(row)
    return pd.DataFrame(rows).convert_dtypes()
