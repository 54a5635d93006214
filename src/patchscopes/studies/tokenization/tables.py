"""The tables of tokenization: curves by layer, names, forms, detokenisation, neighbours."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from patchscopes.analysis.intervals import Interval, mean_intervals
from patchscopes.studies.headline import DIFFERENCE, HIT
from patchscopes.studies.tokenization.detokenised import listed
from patchscopes.studies.tokenization.findings import GROUPS, SHUFFLED, Scored, hit_rate
from patchscopes.studies.tokenization.forms import FORMS, Form

Row = dict[str, object]
WHOLE, RECOGNISED = "whole word among the ten nearest", "nearest to the plain word's state"


def curve_table(scored: Scored) -> pd.DataFrame:
    """Every curve over ℓ with its intervals: names by number of tokens, forms, detokenisation."""
    return pd.DataFrame([*_names(scored), *_forms(scored), *_words(scored)])


def _names(scored: Scored) -> Iterable[Row]:
    layers = scored.design.every_layer
    first = [found.first for found in scored.layers_of]
    by = np.array([[f is not None and f <= layer for layer in layers] for f in first], dtype=float)
    curves = scored.curves
    for group in (*GROUPS, "all"):
        among = [k for k, name in enumerate(scored.groups) if group in (name, "all")]
        if not among:
            continue
        names = [scored.subjects[k] for k in among]
        for kind, values, bounds in (
            ("keyword", curves.own, HIT),
            ("keyword-adjusted", curves.adjusted, DIFFERENCE),
            ("resolved-by", by, HIT),
        ):
            own = curves.own[among] if kind == "keyword-adjusted" else None
            intervals = mean_intervals(values[among], names, seed=scored.seed, bounds=bounds, own=own)
            yield from _rows("names", f"tokens {group}", kind, layers, intervals)


def _forms(scored: Scored) -> Iterable[Row]:
    layers = scored.design.form_layers
    for form, scores in scored.forms.items():
        for series, values in ((form, scores.hits), (f"{FORMS[form]}, of the same names", scores.beside)):
            intervals = mean_intervals(values.astype(float), scores.names, seed=scored.seed)
            yield from _rows(f"form {form}", series, "hit", layers, intervals)


def _words(scored: Scored) -> Iterable[Row]:
    words = scored.words
    if not words.words:
        return
    names = [word.text for word in words.words]
    series = [("split", words.split, WHOLE), ("plain", words.plain, WHOLE), ("split", words.recognised, RECOGNISED)]
    if words.others.shape[1]:
        series.append((SHUFFLED, words.others.mean(axis=1), WHOLE))
    for label, values, kind in series:
        intervals = mean_intervals(values.astype(float), names, seed=scored.seed)
        yield from _rows("detokenisation", label, kind, words.layers, intervals)


def _rows(stage: str, series: str, kind: str, layers: Sequence[int], intervals: Sequence[Interval]) -> Iterable[Row]:
    for layer, i in zip(layers, intervals, strict=True):
        yield {
            "stage": stage, "series": series, "kind": kind, "source_layer": layer, "estimate": i.estimate,
            "low": i.low, "high": i.high, "n_items": i.n_items, "n_subjects": i.n_subjects,
        }  # fmt: skip


def name_table(scored: Scored) -> pd.DataFrame:
    """A name a line: its tokens, and by which layer it is resolved."""
    rows = [
        {
            "name": name.entity.name, "type": name.entity.type, "tier": name.entity.tier, "n_tokens": name.n_tokens,
            "tokens": "|".join(name.tokenized.tokens[position] for position in name.positions),
            "first": found.first, "last": found.last, "hit_rate": float(rate),
        }
        for name, found, rate in zip(scored.names, scored.layers_of, hit_rate(scored.hits), strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows).convert_dtypes()


def form_table(scored: Scored) -> pd.DataFrame:
    """A name in a form a line: the form's tokens, how many more, and its hits beside those of the other form."""
    columns = ["name", "form", "beside", "text", "tokens", "more_tokens", "hit_rate", "hit_rate_beside"]
    rows = [
        (
            made.entity.name, form, FORMS[form], made.source.text,
            "|".join(made.tokenized.tokens[position] for position in made.positions),
            int(more), float(rate), float(other),
        )
        for form, scores in scored.forms.items()
        for made, more, rate, other in zip(
            scores.made, scores.more_tokens, hit_rate(scores.hits), hit_rate(scores.beside), strict=True
        )
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def word_table(scored: Scored) -> pd.DataFrame:
    """A split word a line, with the first ℓ at which its whole token is among the nearest."""
    columns = ["name", "word", "token_id", "first", "share_of_layers", "first_recognised", "share_recognised"]
    words = scored.words
    rows = [
        (word.entity, word.text, word.token_id, first, float(found.mean()), met, float(same.mean()))
        for word, first, found, met, same in zip(
            words.words, words.first, words.split, words.first_recognised, words.recognised, strict=True
        )
    ]
    return pd.DataFrame(rows, columns=columns).convert_dtypes()


def shown_forms(scored: Scored) -> list[tuple[str, Form]]:
    """A dozen names, those first that have a split word, plain and in every form beside plain that they have."""
    split = [word.entity for word in scored.words.words]
    order = sorted(scored.names, key=lambda name: name.entity.name not in split)[: scored.design.scale.n_shown]
    by = {(form, made.entity.name): made for form, scores in scored.forms.items() for made in scores.made}
    return [
        (label, made)
        for name in order
        for label, made in (("plain", name), *((form, by.get((form, name.entity.name))) for form in FORMS))
        if made is not None
    ]


def neighbour_table(scored: Scored) -> pd.DataFrame:
    """The ten nearest tokens of the last token's state of a dozen names, by form and ℓ."""
    columns = ["name", "form", "source_layer", "rank", "token", "token_id", "cosine"]
    rows = [
        (form.entity.name, label, layer, rank, neighbour.token, neighbour.token_id, neighbour.cosine)
        for label, form, layer, found in listed(scored.design, shown_forms(scored))
        for rank, neighbour in enumerate(found, 1)
    ]
    return pd.DataFrame(rows, columns=columns)
