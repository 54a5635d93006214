"""The probe beside the Patchscope: the very states that are patched, the same folds, the same held-out subjects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from patchscopes.analysis.matching import fold
from patchscopes.analysis.probe import Labels, Probe, learning_curve, probe
from patchscopes.engine.states import States
from patchscopes.mappings import Transfer
from patchscopes.plan import SourcePass
from patchscopes.prompts import resolve_positions, tokenize
from patchscopes.spec import Source, State
from patchscopes.studies.attribute_extraction.design import N_FOLDS
from patchscopes.studies.attribute_extraction.hits import Grid

SIZES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Probed:
    """A case's probe: at every ℓ, and at the one that the training folds chose.

    `level` is the number of labelled subjects from which on it is no worse than the Patchscope: infinite where it
    always is, NaN where the Patchscope has no hit to draw level with.
    """

    by_layer: dict[int, Probe]
    chosen: Probe
    curve: pd.DataFrame
    level: float


def probed(grid: Grid, patchscope: NDArray[np.float64]) -> Probed:
    """Probe the items of `grid`; `patchscope` are their held-out hits, with which the learning curve may draw level."""
    design, case = grid.design, grid.case
    classes = [fold(case.facts[item].object) for item in grid.items]
    seed, labels = design.setup.seed, Labels(classes, grid.folds, [case.accepts(item) for item in grid.items])
    states = states_of(grid)
    layers = design.probed
    with threadpool_limits(1):  # the matrices are small: threads would only wait for each other
        by_layer = {layer: probe(states[:, :, k], labels, seed=seed) for k, layer in enumerate(layers)}
    best = np.array([[by_layer[layer].inside[k] for layer in layers] for k in range(N_FOLDS)]).argmax(axis=1)
    chosen = _at(best, [by_layer[layer] for layer in layers], grid.folds)
    trained = [int((grid.folds != k).sum()) for k in range(N_FOLDS)]
    sizes = [size for size in SIZES if size < min(trained)] + [max(trained)]
    with threadpool_limits(1):
        accuracy = learning_curve([states[:, :, k] for k in best], labels, sizes, seed=seed, strengths=chosen.strengths)
    curve = pd.DataFrame(
        {"relation": case.name, "n_labelled": sizes, "probe": accuracy, "patchscope": patchscope.mean()}
    )
    return Probed(by_layer, chosen, curve, level_of(sizes, accuracy, float(patchscope.mean())))


def level_of(sizes: Sequence[int], accuracy: Sequence[float], patchscope: float) -> float:
    """The first of `sizes` from which on the accuracy is at least `patchscope` (see `Probed.level`)."""
    if patchscope == 0:
        return math.nan
    below = [size for size, score in zip(sizes, accuracy, strict=True) if score < patchscope]
    return float(min((size for size in sizes if not below or size > max(below)), default=math.inf))


def states_of(grid: Grid) -> NDArray[np.float64]:
    """States (item, context, ℓ, d_model): of the carrier first, then of the contexts."""
    design, case = grid.design, grid.case
    model = design.setup.model
    numbers: list[int | None] = [None, *range(design.scale.n_contexts)]
    wanted: list[State] = []
    for item in grid.items:
        for number in numbers:
            wanted.extend(_states(grid, design.texts(case, number)[item]))
    by_ids: dict[tuple[int, ...], set[State]] = {}
    for state in wanted:
        by_ids.setdefault(state.ids, set()).add(state)
    passes = [SourcePass(ids, tuple(found)) for ids, found in by_ids.items()]
    batches = [passes[k : k + 64] for k in range(0, len(passes), 64)]
    vectors = States(Transfer.of(model), batches).states(wanted)
    shape = len(grid.items), len(numbers), len(design.probed), model.d_model
    array: NDArray[np.float64] = vectors.cpu().double().numpy().reshape(shape)
    return array


def _states(grid: Grid, source: Source) -> list[State]:
    model = grid.design.setup.model
    tokenized = tokenize(model, source.text, bos="auto")
    assert source.at is not None
    (position,) = resolve_positions(model, tokenized, source.at)
    return [State(tokenized.ids, position, layer) for layer in grid.design.probed]


def _at(best: NDArray[np.int64], probes: Sequence[Probe], folds: NDArray[np.int64]) -> Probe:
    """Each item's outcome at the layer that its fold chose without it."""
    index = best[folds]

    def pick(name: str) -> NDArray[np.bool_]:
        return np.array([getattr(probes[layer], name)[item] for item, layer in enumerate(index)])

    inside, strengths = (
        tuple(getattr(probes[layer], name)[k] for k, layer in enumerate(best)) for name in ("inside", "strengths")
    )
    picked = {name: pick(name) for name in ("correct", "shuffled", "majority", "possible")}
    return Probe(**picked, inside=inside, strengths=strengths)
