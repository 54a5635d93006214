"""The choice of ℓ* and of the headline's ℓ, on entities that are not reported."""

from dataclasses import dataclass

import pandas as pd

from patchscopes.errors import DataError
from patchscopes.results import Results
from patchscopes.studies.entity_resolution.design import PROMPTS, Design
from patchscopes.studies.entity_resolution.scores import SCORES, curves_of
from patchscopes.studies.texts import Table


@dataclass(frozen=True)
class Choice:
    """ℓ* with the best mean control-adjusted keyword score over ℓ ≥ 1, and the best ℓ there; `table` has all."""

    target_layer: int
    headline: int
    table: pd.DataFrame

    def __str__(self) -> str:
        return f"ℓ* = {self.target_layer}, ℓ = {self.headline}"


def choose_layers(design: Design, results: Results) -> Choice:
    """Choose from the choosing part's scores. Of equals, the earlier layer is taken.

    Raises DataError where no entity of that part has all of its results.
    """
    table = Table.of(results, PROMPTS[0], len(design.choosing))
    if not table.items():
        why = next(iter(table.missing.values()), "there is none")
        raise DataError(f"no entity that chooses has all results; the first failed because: {why}")
    layers = [layer for layer in design.stepped if layer > 0]  # the token's embedding is the name as text
    places = [(layer, target) for target in design.target_candidates for layer in layers]
    scores = curves_of(table, SCORES["keyword"](design.choosing), table.items(), places).adjusted.mean(axis=0)
    grid = scores.reshape(len(design.target_candidates), len(layers))
    target = int(grid.mean(axis=1).argmax())
    headline = layers[int(grid[target].argmax())]
    rows = [
        {"source_layer": layer, "target_layer": star, "keyword_adjusted": float(score)}
        for (layer, star), score in zip(places, scores, strict=True)
    ]
    return Choice(design.target_candidates[target], headline, pd.DataFrame(rows))
