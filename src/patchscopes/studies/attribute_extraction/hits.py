"""Rows of a case → hits by fact and placement, of the cells and of every control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.matching import fold
from patchscopes.analysis.scores import control_adjusted, majority_of_others
from patchscopes.analysis.selection import Chosen, choose, folds_of
from patchscopes.cached import cached_property
from patchscopes.results import Results
from patchscopes.spec import Row
from patchscopes.studies.attribute_extraction.design import DRAWS, N_FOLDS, Design
from patchscopes.studies.relations import Case, naming
from patchscopes.studies.texts import Table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """The grid of a case. `items`, the order of all arrays, have every result and are not leaked."""

    design: Design
    case: Case
    results: Results

    @cached_property
    def table(self) -> Table:
        """All rows."""
        return Table.of(self.results, self.case.prompt.label, len(self.case.facts))

    @cached_property
    def items(self) -> list[int]:
        """Facts that are scored."""
        return [item for item in self.table.items() if not self.leaked(item)]

    @cached_property
    def leaked_items(self) -> list[int]:
        """Facts whose answer can be copied: reported apart (rule 18)."""
        return [item for item in self.table.items() if self.leaked(item)]

    @property
    def subjects(self) -> list[str]:
        """The subjects of `items`."""
        return [self.case.facts[item].subject for item in self.items]

    @property
    def n_classes(self) -> int:
        """How many different objects `items` have."""
        return len({fold(self.case.facts[item].object) for item in self.items})

    @cached_property
    def own(self) -> Floats:
        """Hits (item, placement)."""
        return self.table.own(naming(self.case), self.items, list(self.design.placements))

    @cached_property
    def donors(self) -> Floats:
        """Hits with donors' states (item, draw, placement)."""
        return self.table.drawn("shuffled", naming(self.case), self.items, list(self.design.placements), DRAWS)

    @cached_property
    def texts(self) -> Mapping[str, Floats]:
        """Hits of the controls without a placement (item)."""
        return {
            control: self.table.once(control, naming(self.case), self.items)
            for control in ("unpatched", "phrase-only", "text-only")
        }

    @cached_property
    def folds(self) -> NDArray[np.int64]:
        """The fold of each item."""
        return folds_of(self.subjects, N_FOLDS, seed=self.design.setup.seed)

    @cached_property
    def chosen(self) -> Chosen:
        """For each fold, the eligible placement with the best control-adjusted hits on the others."""
        return choose(control_adjusted(self.own, self.donors), self.folds, among=self.design.eligible)

    @property
    def placements(self) -> list[tuple[int, int]]:
        """The placements that some fold chose, the most frequent first."""
        return [self.design.placements[k] for k in self.chosen.most_frequent]

    def leaked(self, item: int) -> bool:
        """Whether the answer stands in the subject, a template, or the source up to the token."""
        if self.case.facts[item].leaks:
            return True
        row = next(r for (control, source, _, _), r in self.table.rows.items() if control is None and source == item)
        return "leaked" in row.flags

    def by_layer(self, hits: Floats) -> Floats:
        """Hits (…, placement) → the best over ℓ* at each ℓ (…, ℓ): the paper's score."""
        shape = (*hits.shape[:-1], len(self.design.sources), len(self.design.targets))
        best: Floats = hits.reshape(shape).max(axis=-1)
        return best

    def majority(self) -> Floats:
        """Whether the most frequent object of the other folds is right for the item: what always saying it scores."""
        objects = [fold(self.case.facts[item].object) for item in self.items]
        return majority_of_others(objects, [self.case.accepts(item) for item in self.items], self.folds)


@dataclass(frozen=True)
class Rank:
    """How an item's object stands among the relation's, by ℓ: (item, ℓ), and with donors (item, draw, ℓ).

    `first`: it is raised most over the unpatched prompt; `reciprocal`: 1 over its rank by that; both in expectation
    where objects are raised alike, as all are by no write. `gain`: by how many nats it is likelier than unpatched;
    `logprob`: its ln p given that it is one of the objects, minus its surprisal. Another object that is right as well
    (an alias) does not compete.
    """

    first: Floats
    reciprocal: Floats
    gain: Floats
    logprob: Floats

    def reshaped(self, *shape: int) -> "Rank":
        """The same with other axes."""
        return Rank(*(array.reshape(shape) for array in (self.first, self.reciprocal, self.gain, self.logprob)))

    def mean(self) -> "Rank":
        """The mean over the last axis."""
        return Rank(*(array.mean(axis=-1) for array in (self.first, self.reciprocal, self.gain, self.logprob)))


Key = tuple[str | None, int | None, tuple[int | None, int | None], int]  # control, item, (ℓ, ℓ*), draw: of a row


def ranks(case: Case, table: Results, wanted: Sequence[tuple[int, Key]]) -> Rank:
    """The rank of each item's own object, in the row at its key."""
    by_cell: dict[Key, dict[str, Row]] = {}
    for row in table:
        if row.status == "ok" and row.candidate is not None:
            cell = row.control, row.source_index, (row.source_layer, row.target_layer), row.draw
            by_cell.setdefault(cell, {})[fold(row.candidate)] = row
    found = []
    for item, key in wanted:
        own, accepted = fold(case.facts[item].object), case.accepts(item)
        rows = {answer: row for answer, row in by_cell[key].items() if answer == own or answer not in accepted}
        raised = {answer: _raised(row) for answer, row in rows.items()}
        first, reciprocal = _place(raised[own], np.array(list(raised.values())))
        likely = np.logaddexp.reduce([_number(row.logprob) for row in rows.values()])
        found.append((first, reciprocal, raised[own], _number(rows[own].logprob) - likely))
    return Rank(*np.array(found, dtype=float).reshape(len(found), 4).T)


def _place(own: float, values: Floats) -> tuple[float, float]:
    """Whether `own` is the highest of `values`, and 1 over its rank: in expectation where others are equal to it."""
    above, equal = int((values > own).sum()), int((values == own).sum())
    return (1 / equal if not above else 0.0), float(np.mean(1 / np.arange(above + 1, above + equal + 1)))


def _raised(row: Row) -> float:
    """By how much the row's candidate is likelier than in the unpatched prompt: by 0 where nothing was written."""
    return 0.0 if row.control == "unpatched" else _number(row.logprob_minus_unpatched)


def _number(value: float | None) -> float:
    assert value is not None  # rows that are ok have both
    return value
