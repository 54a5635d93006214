"""The tables of cross-model: by map, by placement, by passage, by fact."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from patchscopes.analysis.intervals import mean_intervals
from patchscopes.studies.cross_model.design import Placement
from patchscopes.studies.cross_model.facts import Facts
from patchscopes.studies.cross_model.next_tokens import WHERE, NextTokens
from patchscopes.studies.cross_model.placed import Floats, Placed
from patchscopes.studies.headline import DIFFERENCE


def next_token_table(tokens: NextTokens) -> pd.DataFrame:
    """By placement: equal next tokens, with shuffled states, with the bias alone; tokens that are akin."""
    akin, same = tokens.placed("akin"), tokens.same
    chosen = {f"n_chosen_{where}": Counter(tokens.held_out(where).places) for where in WHERE}
    more = {"akin": akin.own.mean(axis=0), "akin_adjusted": akin.adjusted.mean(axis=0)}
    return _grid(same, more, chosen)


def fact_table(facts: Facts) -> pd.DataFrame:
    """By placement: hits, with shuffled states, with the bias alone."""
    return _grid(facts.placed, {}, {"n_chosen": Counter(facts.held_out.places)})


def _grid(placed: Placed, more: Mapping[str, Floats], chosen: Mapping[str, Counter[Placement]]) -> pd.DataFrame:
    """A placement a line; `low` and `high` are of the score minus that of shuffled states, `adjusted`."""
    intervals = mean_intervals(placed.adjusted, placed.subjects, seed=placed.seed, bounds=DIFFERENCE, own=placed.own)
    own, zero = placed.own.mean(axis=0), placed.zero.mean(axis=0)
    shuffled = placed.shuffled.mean(axis=(0, 1))
    rows = [
        {
            "kind": place.kind, "source_layer": place.source, "target_layer": place.target, "own": own[k],
            "shuffled": shuffled[k], "zero": zero[k], "adjusted": i.estimate, "low": i.low, "high": i.high,
            **{name: values[k] for name, values in more.items()},
            "n_items": i.n_items, "n_subjects": i.n_subjects,
            **{name: counts[place] for name, counts in chosen.items()},
        }
        for k, (place, i) in enumerate(zip(placed.placements, intervals, strict=True))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def passage_table(tokens: NextTokens) -> pd.DataFrame:
    """A passage a line: what the source says next, what the target says of the text, and from the source's state."""
    rows = []
    held = {where: (tokens.held_out(where), tokens.says(where)) for where in WHERE}
    for k, item in enumerate(tokens.items):
        line: dict[str, object] = {
            "section": tokens.compared.openings[item].section, "text": tokens.compared.openings[item].text,
            "source_says": tokens.wanted[k], "target_reads": tokens.compared.read[item],
        }  # fmt: skip
        for where, (found, says) in held.items():
            line |= {f"{where}_placement": str(found.places[k]), f"{where}_says": says[k]}
            line |= {f"{where}_own": found.own[k]}
            line |= {f"{where}_{control}": values[k] for control, values in found.beside.items()}
        rows.append(line)
    return pd.DataFrame(rows)


def item_table(facts: Facts) -> pd.DataFrame:
    """A fact a line: who knows it, its held-out placement and text, whether it hits, and with each control."""
    rows = []
    held, both = facts.held_out, set(facts.group("both"))
    for ran, at in zip(facts.ran, facts.slices, strict=True):
        for k, item, fact in zip(range(at.start, at.stop), ran.items, ran.facts, strict=True):
            place = held.places[k]
            row = ran.grids[place.kind].rows[None, item, place.pair, 0]
            rows.append(
                {
                    "relation": ran.case.name, "subject": fact.subject, "object": fact.object, "where": fact.where,
                    "source_knows": k in both, "placement": str(place), "text": row.text, "hit": bool(held.own[k]),
                    **{control: values[k] for control, values in held.beside.items()},
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def relation_table(facts: Facts) -> pd.DataFrame:
    """A relation a line: how many facts, who knows them, hits beside the controls."""
    held, both = facts.held_out, set(facts.group("both"))
    rows = []
    for ran, at in zip(facts.ran, facts.slices, strict=True):
        items = range(at.start, at.stop)
        rows.append(
            {
                "relation": ran.case.name, "prompt": ran.case.prompt.text, "facts": len(items),
                "source_knows": sum(k in both for k in items), "own": float(held.own[at].mean()),
                **{control: float(np.mean(values[at])) for control, values in held.beside.items()},
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
