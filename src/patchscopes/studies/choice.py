"""The choice of ℓ* and of the headline's ℓ, on entities that are not reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from patchscopes.data import Entity
from patchscopes.errors import DataError
from patchscopes.results import Results
from patchscopes.studies.entities import PROMPTS
from patchscopes.studies.scores import SCORES, curves_of
from patchscopes.studies.texts import Table


@dataclass(frozen=True)
class Choice:
    """ℓ* with the best mean control-adjusted keyword score over ℓ ≥ 1, and the best ℓ there; `table` has all."""

    target_layer: int
    headline: int
    table: pd.DataFrame

    def __str__(self) -> str:
        return f"ℓ* = {self.target_layer}, ℓ = {self.headline}"


def choose_layers(
    results: Results, choosing: Sequence[Entity], targets: Sequence[int], layers: Sequence[int]
) -> Choice:
    """Choose from the choosing part's scores at `targets` (ℓ*) and `layers` (ℓ). Of equals, the earlier is taken.

    ℓ = 0 is never chosen: the state there is the token itself, and written at ℓ* = 0 it is the name as text.

    Raises DataError where no entity of that part has all of its results.
    """
    layers = [layer for layer in layers if layer > 0]
    table = Table.of(results, PROMPTS[0], len(choosing))
    places = [(layer, target) for target in targets for layer in layers]
    if not table.items():
        why = next(iter(table.missing.values()), "there is none")
        raise DataError(f"no entity that chooses has all results; the first failed because: {why}")
    scores = curves_of(table, SCORES["keyword"](choosing), table.items(), places).adjusted.mean(axis=0)
    grid = scores.reshape(len(targets), len(layers))
    target = int(grid.mean(axis=1).argmax())
    headline = layers[int(grid[target].argmax())]
    rows = [
        {"source_layer": layer, "target_layer": star, "keyword_adjusted": float(score)}
        for (layer, star), score in zip(places, scores, strict=True)
    ]
    return Choice(targets[target], headline, pd.DataFrame(rows))
