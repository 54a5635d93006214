"""The maps of all (ℓ, ℓ*): fitted once, kept in `out`, and how well each does on text that was held out."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import pandas as pd
import torch
from torch import Tensor

from patchscopes.data import Passage
from patchscopes.mappings import (
    LINEAR,
    FitOptions,
    Kind,
    Mappings,
    Moments,
    Pair,
    Quality,
    Side,
    fit_several,
    moments_of,
)
from patchscopes.mappings import Mapping as Map
from patchscopes.models import Model
from patchscopes.passes import captured, text_states
from patchscopes.prompts import resolve_positions, tokenize
from patchscopes.spec import State
from patchscopes.studies.cross_model.design import Design
from patchscopes.studies.relations import Case, source

Maps = Mapping[Kind, Mappings]
TIMED = 8  # passages that are run to tell how long the fit takes


def fitted_maps(design: Design, fit: Sequence[Passage], held_out: Sequence[Passage]) -> Maps:
    """Maps of every kind: those in `out` where they are of this text, else fitted, all from the same passes.

    Their qualities are those on the prose that is held out.

    Raises MappingError for text too short, and where those in `out` were fitted for other weights.
    """
    setup = design.setup
    options = FitOptions(held_out=0.0, seed=setup.seed, tell=lambda said: setup.tell(f"fitting maps: {said}"))

    @cache
    def made() -> dict[Kind, Mappings]:
        found = fit_several(design.source, design.target, fit, design.pairs, kinds=LINEAR, options=options)
        moments = moments_of(design.source, design.target, held_out, design.pairs, options=options)
        return {kind: measured(mappings, moments) for kind, mappings in found.items()}

    # Not the models: a map in `out` that is of others must be refused, and not fitted anew over it.
    key = {
        "fit_sha256": _hash(fit), "held_out_sha256": _hash(held_out),
        "pairs": [list(pair) for pair in design.pairs], "seed": setup.seed,
    }  # fmt: skip
    found = {kind: setup.fitted(kind, key, lambda kind=kind: made()[kind]) for kind in LINEAR}  # type: ignore[misc]
    for mappings in found.values():
        mappings.check(design.source, design.target)
    return found


def measured(mappings: Mappings, moments: Moments) -> Mappings:
    """The mappings, each with its quality where `moments` are from."""
    by_pair = {
        pair: replace(mapping, quality=moments.errors(pair, mapping).quality())
        for pair, mapping in mappings.by_pair.items()
    }
    return replace(mappings, by_pair=by_pair)


def _hash(passages: Sequence[Passage]) -> str:
    return hashlib.sha256("\0".join(passage.text for passage in passages).encode()).hexdigest()


def stand_ins(design: Design) -> Maps:
    """Maps to nothing, each with a bias of its own, to plan the cells of maps that are still to be fitted."""
    source, target = Side.of(design.source), Side.of(design.target)
    weight = torch.zeros(source.d_model, target.d_model, dtype=torch.float32, device="cpu")
    found = {}
    for number, kind in enumerate(LINEAR):
        first = number * len(design.pairs)
        maps = {
            pair: Map(weight, torch.full((target.d_model,), float(first + k), dtype=torch.float32, device="cpu"))
            for k, pair in enumerate(design.pairs)
        }
        found[kind] = Mappings(kind, source, target, maps)
    return found


def fit_seconds(design: Design, passages: Sequence[Passage]) -> float:
    """How long a fit takes here: passes over all of the text by both models, products of states, decompositions."""
    ordered = sorted(passages, key=lambda passage: len(passage.text))
    some = ordered[:: max(len(ordered) // TIMED, 1)][:TIMED]  # of all lengths
    share = sum(len(passage.text) for passage in passages) / max(sum(len(passage.text) for passage in some), 1)
    seconds, n_tokens = 0.0, 0
    for model, layers in ((design.source, design.sources), (design.target, design.targets)):
        ids = [tokenize(model, passage.text).ids[: model.max_text] for passage in some]
        n_tokens = max(n_tokens, sum(map(len, ids)))
        _run(model, ids[:1], layers)  # to warm up
        began = time.perf_counter()
        _run(model, ids, layers)
        seconds += (time.perf_counter() - began) * share
    x, y = (torch.randn(1024, model.d_model, dtype=torch.float64) for model in (design.source, design.target))
    began = time.perf_counter()
    product = x.T @ y
    seconds += (time.perf_counter() - began) * len(design.pairs) * n_tokens * share / len(x)
    began = time.perf_counter()
    torch.linalg.svd(product, full_matrices=False)
    return seconds + (time.perf_counter() - began) * len(design.pairs) * 1.5


def _run(model: Model, ids: Sequence[tuple[int, ...]], layers: Sequence[int]) -> None:
    for _ in text_states(model, ids, layers):
        pass


def on_subjects(design: Design, maps: Maps, cases: Sequence[Case]) -> dict[tuple[Kind, Pair], Quality]:
    """How near maps bring states of subjects, which no prose may have had, to the target's own; {} without cases."""
    sentences = {one.text: one for case in cases for one in (source(case, fact) for fact in case.facts)}
    if not sentences:
        return {}

    def states(model: Model, layers: Sequence[int]) -> dict[int, Tensor]:
        places = []
        for text, sentence in sentences.items():
            tokens = tokenize(model, text, bos="auto")
            places.append((tokens.ids, resolve_positions(model, tokens, sentence.at or "last")[0]))
        wanted = [State(ids, position, layer) for layer in layers for ids, position in places]
        return dict(zip(layers, torch.split(captured(model, wanted), len(places)), strict=True))

    moments = Moments(design.pairs)
    moments.add(states(design.source, design.sources), states(design.target, design.targets))
    return {
        (kind, pair): moments.errors(pair, mappings[pair]).quality()
        for kind, mappings in maps.items()
        for pair in mappings.pairs
    }


def map_table(maps: Maps, subjects: Mapping[tuple[Kind, Pair], Quality]) -> pd.DataFrame:
    """A map a line: R² on prose that was held out and on subjects, over all dimensions and at the median one."""
    rows = []
    for kind, mappings in maps.items():
        ridges = mappings.fitted.get("ridge", {})
        for pair in mappings.pairs:
            quality = mappings[pair].quality
            of_subjects = subjects.get((kind, pair))
            assert quality is not None
            rows.append(
                {
                    "kind": kind, "source_layer": pair[0], "target_layer": pair[1], "r2": quality.r2,
                    "r2_median": quality.r2_median, "n_held_out": quality.n_tokens,
                    "r2_subjects": of_subjects.r2 if of_subjects else None,
                    "r2_median_subjects": of_subjects.r2_median if of_subjects else None,
                    "n_subjects": of_subjects.n_tokens if of_subjects else 0,
                    "ridge": ridges.get(f"{pair[0]}-{pair[1]}"), "digest": mappings[pair].digest,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
