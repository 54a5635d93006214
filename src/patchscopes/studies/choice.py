"""The choice of ℓ* and of the headline's ℓ, on entities that are not reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from patchscopes.data import Exclusion
from patchscopes.errors import DataError
from patchscopes.studies.entities import PROMPTS, EntityDesign, without
from patchscopes.studies.scores import SCORES, curves_of, places_of
from patchscopes.studies.texts import Table


@dataclass(frozen=True)
class Choice:
    """ℓ* with the best mean control-adjusted keyword score over ℓ ≥ 1, and the best ℓ there; `table` has all.

    `target_layer` is None for ℓ* = ℓ. `chose` are the names of the entities with all results, which made the choice.
    """

    target_layer: int | None
    headline: int
    chose: tuple[str, ...]
    table: pd.DataFrame

    @property
    def fixed(self) -> int:
        """ℓ*, where ℓ* = ℓ was no candidate."""
        assert self.target_layer is not None
        return self.target_layer

    @property
    def target(self) -> str:
        """ℓ* in words."""
        return target_text(self.target_layer)

    def __str__(self) -> str:
        return f"{self.target}, ℓ = {self.headline}"


def choose_layers(design: EntityDesign, *, same: bool = False) -> tuple[Choice, list[Exclusion]]:
    """Run what chooses; the choice, and the entities that were to choose and lack a result.

    `same` makes ℓ* = ℓ a candidate beside the fixed ones. Of equals, the earlier is taken, ℓ* = ℓ last. ℓ = 0 is never
    chosen: the state there is the token itself, and written at ℓ* = 0 it is the name as text.

    Raises DataError where no entity of that part has all of its results.
    """
    n = len(design.choosing)
    fixed = Table.of(design.setup.run(design.choice()), PROMPTS[0], n)
    tables: dict[int | None, Table] = dict.fromkeys(design.target_candidates, fixed)
    if same:
        tables[None] = Table.of(design.setup.run(design.choice_same()), PROMPTS[0], n)
    missing = {item: reason for table in tables.values() for item, reason in table.missing.items()}
    items = [item for item in range(n) if item not in missing]
    if not items:
        why = next(iter(missing.values()), "there is none")
        raise DataError(f"no entity that chooses has all results; the first failed because: {why}")
    choice = _best(tables, items, design)
    design.setup.tell(f"chosen on {len(choice.chose)} entities that are not reported: {choice}")
    return choice, without(design.choosing, missing)


def _best(tables: dict[int | None, Table], items: Sequence[int], design: EntityDesign) -> Choice:
    layers = [layer for layer in design.stepped if layer > 0]
    measure = SCORES["keyword"](design.choosing)
    scores = {
        target: curves_of(table, measure, items, places_of(layers, target)).adjusted.mean(axis=0)
        for target, table in tables.items()
    }
    best = max(scores, key=lambda target: float(scores[target].mean()))  # the first of equals
    rows = [
        {"target": target_text(target), "source_layer": layer, "target_layer": star, "keyword_adjusted": float(score)}
        for target, found in scores.items()
        for (layer, star), score in zip(places_of(layers, target), found, strict=True)
    ]
    chose = tuple(design.choosing[item].name for item in items)
    return Choice(best, layers[int(scores[best].argmax())], chose, pd.DataFrame(rows))


def target_text(target: int | None) -> str:
    """ℓ* in words: "ℓ* = 3", or "ℓ* = ℓ" for None."""
    return f"ℓ* = {'ℓ' if target is None else target}"
