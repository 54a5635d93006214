"""Scores of items at every placement, the choice of one without the items that it is scored on, and the best of all.

Axes: item, draw, placement (kind of map × ℓ × ℓ*), in the order of `placements`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.scores import control_adjusted
from patchscopes.analysis.selection import Chosen, best_of, choose, folds_of
from patchscopes.cached import cached_property
from patchscopes.mappings import Kind
from patchscopes.studies.cross_model.design import DRAWS, N_FOLDS, Placement
from patchscopes.studies.texts import Score, Table

Floats = NDArray[np.float64]
NOISE = ("random", "random-state")
OWN_STATE = "the target's own state"  # what a perfect map could bring
TOKEN = "the token alone (ℓ = 0)"  # through the same kinds of map: a dictionary from one vocabulary to the other


@dataclass(frozen=True)
class Placed:
    """Scores of items with their own states, with others' (shuffled), with the map's bias alone (zero), unpatched."""

    placements: tuple[Placement, ...]
    subjects: tuple[str, ...]
    own: Floats
    shuffled: Floats
    zero: Floats
    unpatched: Floats
    seed: int

    @classmethod
    def of(
        cls, tables: Mapping[Kind, Table], score: Score, items: Sequence[int], placements: Sequence[Placement]
    ) -> "Placed":
        """The scores of `items` in the grids' tables, without subjects and seed."""
        parts = [(tables[kind], [p.pair for p in placements if p.kind == kind]) for kind in tables]
        assert [p for kind in tables for p in placements if p.kind == kind] == list(placements)
        return cls(
            tuple(placements),
            (),
            np.concatenate([table.own(score, items, pairs) for table, pairs in parts], axis=-1),
            np.concatenate([table.drawn("shuffled", score, items, pairs, DRAWS) for table, pairs in parts], axis=-1),
            np.concatenate([table.drawn("zero", score, items, pairs, 1)[:, 0] for table, pairs in parts], axis=-1),
            parts[0][0].once("unpatched", score, items),
            0,
        )

    @classmethod
    def joined(cls, parts: Sequence["Placed"], subjects: Sequence[str], seed: int) -> "Placed":
        """The items of all parts, one after the other."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
        return cls(parts[0].placements, tuple(subjects), **arrays, seed=seed)

    @property
    def adjusted(self) -> Floats:
        """The items' scores minus the mean of their donors' (item, placement), rule 17."""
        return control_adjusted(self.own, self.shuffled)

    @cached_property
    def folds(self) -> NDArray[np.int64]:
        """The fold of each item, all items of a subject in the same."""
        return folds_of(self.subjects, N_FOLDS, seed=self.seed)

    def eligible(self, *, kinds: Sequence[Kind], targets: Sequence[int]) -> list[int]:
        """The placements, by number, that may be chosen. Not ℓ = 0: the token's embedding is the token as text."""
        return [k for k, p in enumerate(self.placements) if p.source > 0 and p.kind in kinds and p.target in targets]

    def of_tokens(self, targets: Sequence[int]) -> list[int]:
        """The placements, by number, with ℓ = 0, whose state is the last token alone, whatever stands before it."""
        return [k for k, p in enumerate(self.placements) if p.source == 0 and p.target in targets]

    def chosen(self, among: Sequence[int]) -> Chosen:
        """For each fold, the placement with the best control-adjusted score on the others."""
        return choose(self.adjusted, self.folds, among=among)

    def best(self, among: Sequence[int]) -> tuple[Floats, Floats]:
        """The best score over placements, chosen on the very item; and the mean of the same with donors' states."""
        return best_of(self.own[:, among]), best_of(self.shuffled[:, :, among]).mean(axis=1)

    def only(self, items: Sequence[int]) -> "Placed":
        """Those of some items."""
        some = {name: getattr(self, name)[list(items)] for name in ARRAYS}
        return replace(self, subjects=tuple(self.subjects[k] for k in items), **some)


ARRAYS = ("own", "shuffled", "zero", "unpatched")


@dataclass(frozen=True)
class HeldOut:
    """Scores at the placement that was chosen without each item: with its own state, and with each control's (item)."""

    places: tuple[Placement, ...]
    own: Floats
    beside: Mapping[str, Floats]

    @classmethod
    def of(cls, placed: Placed, chosen: Chosen) -> "HeldOut":
        """The scores where `chosen` says, beside the controls that the grid itself has."""
        return cls(
            tuple(placed.placements[k] for k in chosen.placement),
            chosen.of(placed.own),
            {
                "unpatched": placed.unpatched,
                "shuffled": chosen.of(placed.shuffled).mean(axis=1),
                "zero": chosen.of(placed.zero),
            },
        )

    def along(self, more: Mapping[str, Floats]) -> "HeldOut":
        """The same beside further controls."""
        return replace(self, beside={**self.beside, **more})

    def only(self, items: Sequence[int]) -> "HeldOut":
        """Those of some items."""
        at = list(items)
        return HeldOut(tuple(self.places[k] for k in at), self.own[at], {c: v[at] for c, v in self.beside.items()})


@dataclass(frozen=True, slots=True)
class Beside:
    """The controls that need cells of their own, at one placement: noise for the items that have it as theirs.

    The mean is over all items but one, and so it is run with all of them. Rows of `noise` have their items' places in
    `items` as index, those of `mean` the items themselves.
    """

    items: tuple[int, ...]
    noise: Table
    mean: Table


def drawn_at(
    beside: Mapping[Placement, Beside], score: Score, items: Sequence[int], places: Sequence[Placement]
) -> dict[str, Floats]:
    """The mean score of each item with random, random-state and mean, at its own place (item)."""
    found: dict[str, list[float]] = {"random": [], "random-state": [], "mean": []}
    for item, place in zip(items, places, strict=True):
        one = beside[place]
        k = one.items.index(item)
        for control in NOISE:
            values = one.noise.drawn(control, lambda _, row, item=item: score(item, row), [k], [place.pair], DRAWS)  # type: ignore[misc]
            found[control].append(values.mean())
        found["mean"].append(one.mean.drawn("mean", score, [item], [place.pair], 1).mean())
    return {control: np.array(values, dtype=float) for control, values in found.items()}


def own_at(table: Table, score: Score, items: Sequence[int], places: Sequence[Placement]) -> Floats:
    """The score of each item with the target's own state, read and written at the ℓ* of its place (item)."""
    found = [
        table.own(score, [item], [(place.target, place.target)])[0, 0]
        for item, place in zip(items, places, strict=True)
    ]
    return np.array(found, dtype=float)
