"""The controls that need cells of their own, at the placement that was chosen without each item (rule 17)."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from patchscopes.studies.texts import Place, Score, Table

Floats = NDArray[np.float64]


def controls_at(
    tables: Mapping[Place, Table], score: Score, items: Sequence[int], places: Sequence[Place], *, draws: int
) -> dict[str, Floats]:
    """The mean score that each item has with random, random-state, mean, zero and self at its own place (item).

    `tables` hold the controls' rows by place, `places` the place of each item.
    """

    def drawn(control: str, n: int) -> Floats:
        found = [tables[place].drawn(control, score, [item], [place], n).mean() for item, place in pairs]
        return np.array(found, dtype=float)

    def per_target(control: str) -> Floats:
        found = [tables[place].per_target(control, score, [item], [place])[0, 0] for item, place in pairs]
        return np.array(found, dtype=float)

    pairs = list(zip(items, places, strict=True))
    found = {control: drawn(control, draws) for control in ("random", "random-state")} | {"mean": drawn("mean", 1)}
    return found | {control: per_target(control) for control in ("zero", "self")}
