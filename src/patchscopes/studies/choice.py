"""The choice of ℓ* and of the headline's ℓ, on entities that are not reported."""

from dataclasses import dataclass

import pandas as pd

from patchscopes.data import Exclusion
from patchscopes.errors import DataError
from patchscopes.studies.entities import PROMPTS, EntityDesign, without
from patchscopes.studies.scores import SCORES, curves_of
from patchscopes.studies.texts import Table


@dataclass(frozen=True)
class Choice:
    """ℓ* with the best mean control-adjusted keyword score over ℓ ≥ 1, and the best ℓ there; `table` has all.

    `chose` are the names of the entities with all results, which made the choice.
    """

    target_layer: int
    headline: int
    chose: tuple[str, ...]
    table: pd.DataFrame

    def __str__(self) -> str:
        return f"ℓ* = {self.target_layer}, ℓ = {self.headline}"


def choose_layers(design: EntityDesign) -> tuple[Choice, list[Exclusion]]:
    """Run the stage that chooses; the choice, and the entities that were to choose and lack a result.

    Of equals, the earlier is taken. ℓ = 0 is never chosen: the state there is the token itself, and written at ℓ* = 0
    it is the name as text.

    Raises DataError where no entity of that part has all of its results.
    """
    results = design.setup.run(design.choice())
    table = Table.of(results, PROMPTS[0], len(design.choosing))
    if not table.items():
        why = next(iter(table.missing.values()), "there is none")
        raise DataError(f"no entity that chooses has all results; the first failed because: {why}")
    choice = _best(table, design)
    design.setup.tell(f"chosen on {len(choice.chose)} entities that are not reported: {choice}")
    return choice, without(design.choosing, table.missing)


def _best(table: Table, design: EntityDesign) -> Choice:
    targets, layers = design.target_candidates, [layer for layer in design.stepped if layer > 0]
    places = [(layer, target) for target in targets for layer in layers]
    scores = curves_of(table, SCORES["keyword"](design.choosing), table.items(), places).adjusted.mean(axis=0)
    grid = scores.reshape(len(targets), len(layers))
    target = int(grid.mean(axis=1).argmax())
    headline = layers[int(grid[target].argmax())]
    rows = [
        {"source_layer": layer, "target_layer": star, "keyword_adjusted": float(score)}
        for (layer, star), score in zip(places, scores, strict=True)
    ]
    chose = tuple(design.choosing[item].name for item in table.items())
    return Choice(targets[target], headline, chose, pd.DataFrame(rows))
