"""The tables of multi-hop: by placement, by region of the depth, by type, by query."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from patchscopes.analysis.intervals import Interval, mean_interval, mean_intervals
from patchscopes.analysis.scores import control_adjusted
from patchscopes.studies.headline import DIFFERENCE, HIT
from patchscopes.studies.multi_hop.outcome import Method, Outcome

Floats = NDArray[np.float64]


def grid_table(outcome: Outcome) -> pd.DataFrame:
    """By method and placement: hits, what is left beside shuffled, what a prior gives, how many queries have it."""
    rows: list[dict[str, object]] = []
    for method in outcome.methods.values():
        adjusted = control_adjusted(method.own, method.donors)
        subjects = outcome.queries.subjects
        left = mean_intervals(adjusted, subjects, seed=outcome.seed, bounds=DIFFERENCE, own=method.own)
        chosen = Counter(method.placement(k) for k in range(len(outcome.queries.items)))
        for k, (place, interval) in enumerate(zip(method.design.placements, left, strict=True)):
            rows.append(
                {
                    "method": method.name, "source_layer": place[0], "target_layer": place[1],
                    "hits": method.own[:, k].mean(), "usual": method.usual[:, k].mean(),
                    **_numbers(interval), "n_chosen": chosen[place],
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def region_table(outcome: Outcome) -> pd.DataFrame:
    """By method and region (third of the depth that is read, and written): hits, above shuffled, the same answer.

    `usual` is the share of texts that name the answer which most queries of their type get at that placement, right or
    wrong: a prior, not reasoning; `usual_among_hits` is that share of the hits.
    """
    rows: list[dict[str, object]] = []
    for method in outcome.methods.values():
        for region in dict.fromkeys(map(method.design.region, method.design.placements)):
            at = [k for k, place in enumerate(method.design.placements) if method.design.region(place) == region]
            rows.append(
                {"method": method.name, "read": region[0], "written": region[1], **_region(outcome, method, at)}
            )
    return pd.DataFrame(rows)


def _region(outcome: Outcome, method: Method, at: Sequence[int]) -> dict[str, object]:
    columns, subjects = list(at), outcome.queries.subjects
    own, usual = method.own[:, columns], method.usual[:, columns]
    adjusted = control_adjusted(method.own, method.donors)[:, columns].mean(axis=1)
    left = mean_interval(adjusted, subjects, seed=outcome.seed, bounds=DIFFERENCE, own=own.mean(axis=1))
    same = mean_interval(usual.mean(axis=1), subjects, seed=outcome.seed, bounds=HIT)
    return {
        "n_placements": len(columns), "hits": own.mean(), "some": own.max(axis=1).mean(),
        "some_shuffled": method.donors[:, :, columns].max(axis=-1).mean(), **_numbers(left),
        "usual": same.estimate, "usual_low": same.low, "usual_high": same.high,
        "usual_among_hits": float(usual[own > 0].mean()) if own.any() else np.nan,
    }  # fmt: skip


def type_table(outcome: Outcome) -> pd.DataFrame:
    """By type: how many queries and bridges, the texts' hits, each method's, held out, and beside shuffled."""
    rows: list[dict[str, object]] = []
    types, subjects = outcome.queries.types, outcome.queries.subjects
    for name in dict.fromkeys(types):
        at = [k for k, kind in enumerate(types) if kind == name]
        row: dict[str, object] = {"type": name, "queries": len(at), "bridges": len({subjects[k] for k in at})}
        row |= {f"text_{key}": hits[at].mean() for key, hits in outcome.texts.items()}
        for method in outcome.methods.values():
            left = method.held_out - method.beside["shuffled"]
            row |= {
                f"{method.name}": method.held_out[at].mean(),
                f"{method.name}_minus_shuffled": left[at].mean(),
                f"{method.name}_some": method.exists["own"][at].mean(),
                f"{method.name}_some_shuffled": method.exists["shuffled"][at].mean(),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def query_table(outcome: Outcome) -> pd.DataFrame:
    """A line a query: its hops, what the texts and the methods give."""
    rows = []
    for k, item in enumerate(outcome.queries.items):
        query = outcome.queries.all[item].query
        row: dict[str, object] = {
            "type": outcome.queries.types[k], "subject": query.subject, "bridge": query.bridge, "answer": query.answer,
            "query": query.text,
        }  # fmt: skip
        row |= {f"text_{key}": bool(hits[k]) for key, hits in outcome.texts.items()}
        for method in outcome.methods.values():
            read, written = method.placement(k)
            row |= {
                f"{method.name}_source_layer": read,
                f"{method.name}_target_layer": written,
                method.name: bool(method.held_out[k]),
                f"{method.name}_shuffled": method.beside["shuffled"][k],
                f"{method.name}_some": bool(method.exists["own"][k]),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _numbers(interval: Interval) -> dict[str, object]:
    return {
        "estimate": interval.estimate, "low": interval.low, "high": interval.high, "n_items": interval.n_items,
        "n_subjects": interval.n_subjects,
    }  # fmt: skip
