"""The tables of attribute-extraction: by relation, by placement, by ℓ, by fact."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscopes.analysis.intervals import Interval, mean_interval, mean_intervals
from patchscopes.analysis.scores import control_adjusted
from patchscopes.studies.attribute_extraction.findings import ALL, CONTROLS, stands
from patchscopes.studies.attribute_extraction.outcome import Outcome
from patchscopes.studies.headline import DIFFERENCE, HIT
from patchscopes.studies.report import Finding

Floats = NDArray[np.float64]
Bounds = tuple[float, float] | None
# How a score of `Rank` is called in the table by ℓ, and between which bounds it lies.
RANKED: dict[str, tuple[str, Bounds]] = {
    "first": ("rank-first", HIT),
    "reciprocal": ("rank-reciprocal", HIT),
    "logprob": ("logprob-among-objects", None),
    "gain": ("gain", None),
}


def grid_table(outcomes: Mapping[str, Outcome], seed: int) -> pd.DataFrame:
    """By relation (and all together) and placement: hits minus shuffled, and how many facts have it as theirs."""
    rows: list[dict[str, object]] = []
    for name, group in {ALL: list(outcomes.values()), **{n: [o] for n, o in outcomes.items()}}.items():
        own = np.concatenate([outcome.grid.own for outcome in group])
        values = np.concatenate([control_adjusted(o.grid.own, o.grid.donors) for o in group])
        subjects = [subject for outcome in group for subject in outcome.grid.subjects]
        chosen = Counter(outcome.placement(k) for outcome in group for k in range(len(outcome.grid.items)))
        intervals = mean_intervals(values, subjects, seed=seed, bounds=DIFFERENCE, own=own)
        for place, i in zip(group[0].design.placements, intervals, strict=True):
            rows.append(
                {
                    "relation": name, "source_layer": place[0], "target_layer": place[1], "estimate": i.estimate,
                    "low": i.low, "high": i.high, "n_items": i.n_items, "n_subjects": i.n_subjects,
                    "n_chosen": chosen[place],
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def layer_table(outcomes: Mapping[str, Outcome], seed: int) -> pd.DataFrame:
    """By relation and ℓ: exists-ℓ*, the same with shuffled states, ranks and what the write adds, the probe."""
    rows: list[dict[str, object]] = []
    for name, outcome in outcomes.items():
        subjects, ranked = outcome.grid.subjects, [outcome.grid.subjects[k] for k in outcome.rank_items]
        for k, layer in enumerate(outcome.design.sources):
            scores: dict[str, tuple[Floats, Floats, list[str], Bounds]] = {
                "exists": (outcome.exists["own"][:, k], outcome.exists["shuffled"][:, k], subjects, HIT)
            }
            if ranked:
                own, donor = outcome.rank, outcome.donor_rank
                scores |= {
                    label: (getattr(own, name)[:, k], getattr(donor, name)[:, k], ranked, bounds)
                    for name, (label, bounds) in RANKED.items()
                }
            for score, (values, donors, whose, bounds) in scores.items():
                rows.append(_line(name, layer, score, mean_interval(values, whose, seed=seed, bounds=bounds)))
                hits, span = (None, None) if bounds is None else (values, DIFFERENCE)
                left = mean_interval(values - donors, whose, seed=seed, bounds=span, own=hits)
                rows.append(_line(name, layer, f"{score}-minus-shuffled", left))
            if layer in outcome.probe.by_layer:
                correct = outcome.probe.by_layer[layer].correct.astype(float)
                rows.append(_line(name, layer, "probe", mean_interval(correct, subjects, seed=seed)))
    return pd.DataFrame(rows)


def _line(name: str, layer: int, score: str, i: Interval) -> dict[str, object]:
    return {
        "relation": name, "source_layer": layer, "score": score, "estimate": i.estimate, "low": i.low, "high": i.high,
        "n_items": i.n_items, "n_subjects": i.n_subjects,
    }  # fmt: skip


def relation_table(outcomes: Mapping[str, Outcome], findings: Sequence[Finding]) -> pd.DataFrame:
    """A relation a line, as the paper's table has them, with what it lacks."""
    by = {(finding.name, finding.control): finding for finding in findings}
    rows = []
    for name, outcome in outcomes.items():
        rows.append(
            {
                "relation": name,
                "facts": len(outcome.grid.items),
                "classes": len({outcome.case.facts[item].object for item in outcome.grid.items}),
                "prompt": outcome.case.prompt.text,
                "placements": "; ".join(f"{source}→{target}" for source, target in outcome.grid.placements),
                "exists": by[f"exists/{name}", None].estimate,
                "exists_shuffled": by[f"exists/{name}", None].estimate - by[f"exists/{name}", "shuffled"].estimate,
                "chosen": by[f"chosen/{name}", None].estimate,
                **{f"minus_{c}": by[f"chosen/{name}", c].estimate for c in (*CONTROLS, "majority")},
                "stands": stands(by, name),
                "probe": by[f"probe-correct/{name}", None].estimate,
                "ceiling": by[f"probe-possible/{name}", None].estimate,
                "majority": by[f"probe-majority/{name}", None].estimate,
                "probe_shuffled": by[f"probe-shuffled/{name}", None].estimate,
                "minus_probe": by[f"patchscope-minus-probe/{name}", "probe"].estimate,
                "p_minus_probe": by[f"patchscope-minus-probe/{name}", "probe"].p,
                "level_at": outcome.probe.level,
            }
        )
    return pd.DataFrame(rows).convert_dtypes()


def item_table(outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    """A fact a line: its held-out placement and text, whether it hits, what the controls and the probe say."""
    rows = []
    for name, outcome in outcomes.items():
        for k, item in enumerate(outcome.grid.items):
            fact, place = outcome.case.facts[item], outcome.placement(k)
            row = outcome.grid.table.rows[None, item, place, 0]
            rows.append(
                {
                    "relation": name, "subject": fact.subject, "object": fact.object, "where": fact.where,
                    "source_layer": place[0], "target_layer": place[1], "text": row.text,
                    "hit": bool(outcome.held_out[k]), "probe": bool(outcome.probe.chosen.correct[k]),
                    **{control: float(outcome.beside[control][k]) for control in CONTROLS},
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
