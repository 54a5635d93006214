"""The tables of next-token: by method and ℓ, by lens and ℓ, by control, by place."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from patchscopes.analysis.comparisons import holm, sign_flip
from patchscopes.analysis.intervals import Interval, mean_intervals
from patchscopes.mappings import Mappings
from patchscopes.studies.headline import DIFFERENCE, HIT
from patchscopes.studies.next_token.design import IDENTITY, LENSES, METHODS
from patchscopes.studies.next_token.findings import ABOUT, Floats, ahead, coarse, depth
from patchscopes.studies.next_token.prompts import folded_token
from patchscopes.studies.next_token.readings import LEAKED, PRECISION, Readings

Bounds = tuple[float, float] | None
SAYS_TOKEN, SAYS_PROMPT = "says-the-token", "says-what-the-prompt-says"


def curve_table(readings: Readings) -> pd.DataFrame:
    """By method, score and ℓ: the mean over places. For token identity also what else it says than the next token."""
    rows: list[dict[str, object]] = []
    for name in METHODS:
        for score in ABOUT:
            items = readings.among(readings.items, score)
            values = readings.methods[name].scores[score][items]
            rows += _lines(
                readings, items, values, {"method": name, "score": score}, HIT if score == PRECISION else None
            )
        for score, values in _says(readings, name).items():
            rows += _lines(readings, readings.items, values, {"method": name, "score": score}, HIT)
    return pd.DataFrame(rows)


def _lines(
    readings: Readings, items: Sequence[int], values: Floats, of: Mapping[str, object], bounds: Bounds
) -> list[dict[str, object]]:
    """A line for each ℓ."""
    if not items:
        return []
    seed, subjects = readings.design.setup.seed, readings.subjects(items)
    intervals = mean_intervals(values, subjects, seed=seed, bounds=bounds)
    return [_line({**of, "source_layer": layer}, i) for layer, i in zip(readings.design.layers, intervals, strict=True)]


def _line(of: Mapping[str, object], i: Interval) -> dict[str, object]:
    numbers = {"estimate": i.estimate, "low": i.low, "high": i.high, "n_items": i.n_items, "n_subjects": i.n_subjects}
    return {**of, **numbers}


def _says(readings: Readings, name: str) -> dict[str, Floats]:
    """Whether the cells say the token that is read, or what the inspection prompt says by itself: (item, ℓ)."""
    said = readings.methods[name].said[readings.items]
    tokens = [folded_token(readings.design.places[k].token) for k in readings.items]
    found = {
        SAYS_TOKEN: [[folded_token(text) == token for text in line] for line, token in zip(said, tokens, strict=True)]
    }
    if name in IDENTITY:
        alone = readings.alone(name)
        found[SAYS_PROMPT] = [[text == alone for text in line] for line in said]
    return {score: np.array(values, dtype=np.float64) for score, values in found.items()}


def ahead_table(readings: Readings) -> pd.DataFrame:
    """By prompt, lens, score and ℓ: by how much token identity is ahead; p with Holm's correction over the ℓ."""
    rows: list[dict[str, object]] = []
    seed, design = readings.design.setup.seed, readings.design
    for prompt in IDENTITY:
        for lens in LENSES:
            for score in ABOUT:
                one = ahead(readings, prompt, lens, score)
                if not len(one.values):
                    continue
                bounds = DIFFERENCE if score == PRECISION else None
                intervals = mean_intervals(one.values, one.subjects, seed=seed, bounds=bounds, own=one.hits)
                tests = holm([sign_flip(column, one.subjects, seed=seed).p for column in one.values.T])
                for k, i, p in zip(design.hidden, intervals, tests, strict=True):
                    of = {"prompt": prompt, "lens": lens, "score": score, "source_layer": design.layers[k]}
                    rows.append({**_line(of, i), "p": p})
    return pd.DataFrame(rows)


def control_table(readings: Readings) -> pd.DataFrame:
    """By method, control ("cell" for the cells themselves), score and ℓ: at the places and ℓ that have controls."""
    rows: list[dict[str, object]] = []
    seed = readings.design.setup.seed
    for name in METHODS:
        scored = {"cell": {score: coarse(readings, name, score) for score in ABOUT}, **readings.methods[name].beside}
        for control, scores in scored.items():
            for score, values in scores.items():
                items = readings.among(readings.controlled, score)
                if not items:
                    continue
                bounds = HIT if score == PRECISION else None
                intervals = mean_intervals(values[items], readings.subjects(items), seed=seed, bounds=bounds)
                for layer, i in zip(readings.design.coarse, intervals, strict=True):
                    of = {"method": name, "control": control, "score": score, "source_layer": layer}
                    rows.append(_line(of, i))
    return pd.DataFrame(rows)


def place_table(readings: Readings) -> pd.DataFrame:
    """A place a line: what is read, what comes next, why it is not scored, each method's scores over the depth."""
    rows = []
    for k, place in enumerate(readings.design.places):
        reason = readings.missing.get(k, LEAKED if k in readings.leaked else None)
        row: dict[str, object] = {
            "passage": place.passage, "position": place.position, "token": place.token,
            "next": readings.next_tokens[k], "left_out": reason, "before": place.before,
        }  # fmt: skip
        for name in METHODS:
            row[name] = float(depth(readings, name, PRECISION, [k])[0])
        rows.append(row)
    return pd.DataFrame(rows)


def map_table(lenses: Mapping[str, Mappings | None]) -> pd.DataFrame:
    """How well each map does on passages that it was not fitted on, by lens and ℓ.

    Beside the tuned lens's `kl` stand those of the logit lens and of least squares, on the same positions.
    """
    columns = ["lens", "source_layer", "n_tokens", "r2", "r2_median", "kl", "kl_logit_lens", "kl_affine"]
    rows = []
    for name, mappings in lenses.items():
        for pair in () if mappings is None else mappings.pairs:
            assert mappings is not None
            row: dict[str, object] = {"lens": name, "source_layer": pair[0]}
            if (quality := mappings[pair].quality) is not None:
                row |= asdict(quality)
            others = mappings.fitted.get("layers", {}).get(str(pair[0]), {})
            rows.append(row | {key: others[key] for key in columns if key in others})
    return pd.DataFrame(rows, columns=columns)
