"""Rows of the study → hits by query and placement, of the two methods, their controls and the texts.

Axes: item (a query with all of its results, the same for both methods), draw, placement (ℓ, ℓ*).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.matching import fold, matches
from patchscopes.analysis.scores import control_adjusted
from patchscopes.analysis.selection import Chosen, best_of, choose, folds_of
from patchscopes.cached import cached_property
from patchscopes.results import Results
from patchscopes.spec import InspectionPrompt, Row
from patchscopes.studies.held_out import controls_at
from patchscopes.studies.multi_hop.design import DRAWS, N_FOLDS, Design, Item
from patchscopes.studies.texts import Place, Score, Table, owned

Floats = NDArray[np.float64]
Placement = tuple[int, int]


def answering(items: Sequence[Item]) -> Score:
    """Scores 1 where the text holds the query's answer or an alias of it."""
    return lambda item, row: float(matches(row.text or "", items[item].query.answers))


def table_of(design: Design, method: str, items: Sequence[Item], results: Results) -> Table:
    """The rows of a stage, of controls without a source too, by item."""
    prompts = [source.prompt for source in design.texts(method, items)]
    labels = [prompt.label for prompt in prompts if isinstance(prompt, InspectionPrompt)]
    return Table.of(owned(results, labels), None, len(items))


@dataclass(frozen=True)
class Queries:
    """The queries that are run; `items` are those that have all of their results, by number, in the order of arrays."""

    design: Design
    all: tuple[Item, ...]
    items: tuple[int, ...]

    @property
    def subjects(self) -> list[str]:
        """The bridges, over which intervals are made."""
        return [self.all[item].subject for item in self.items]

    @property
    def types(self) -> list[str]:
        """The type of each."""
        return [self.all[item].type for item in self.items]

    @cached_property
    def folds(self) -> NDArray[np.int64]:
        """The fold of each item; queries of one bridge are in one fold."""
        return folds_of(self.subjects, N_FOLDS, seed=self.design.setup.seed)

    def hits(self, texts: Mapping[str, str], name: str) -> Floats:
        """Whether the model answers the query, as it is or with a thought (item).

        `texts` is what it goes on with, from the text of every one of `items`: one without a result is no wrong answer.
        """
        some = [self.all[k] for k in self.items]
        return np.array([matches(texts[item.as_text(name)], item.query.answers) for item in some], dtype=float)


@dataclass(frozen=True)
class Method:
    """A method's grid. `chosen_results` has a Results per placement that some fold chose, once they are run."""

    name: str
    queries: Queries
    table: Table
    chosen_results: Mapping[Placement, Results]

    @property
    def design(self) -> Design:
        """The scale."""
        return self.queries.design

    @cached_property
    def own(self) -> Floats:
        """Hits (item, placement)."""
        return self.table.own(self._score, self.queries.items, list(self.design.placements))

    @cached_property
    def donors(self) -> Floats:
        """Hits with other queries' states (item, draw, placement)."""
        return self.table.drawn("shuffled", self._score, self.queries.items, list(self.design.placements), DRAWS)

    @cached_property
    def unpatched(self) -> Floats:
        """Hits of the inspection prompt as it is (item); of back-patching, with π1 masked."""
        return self.table.once("unpatched", self._score, self.queries.items)

    @cached_property
    def chosen(self) -> Chosen:
        """For each fold the placement with the best control-adjusted hits on the others."""
        return choose(control_adjusted(self.own, self.donors), self.queries.folds)

    @property
    def placements(self) -> list[Placement]:
        """Those that some fold chose, the most frequent first."""
        return [self.design.placements[k] for k in self.chosen.most_frequent]

    def placement(self, k: int) -> Placement:
        """The placement that was chosen without item number k."""
        return self.design.placements[int(self.chosen.placement[k])]

    @cached_property
    def held_out(self) -> Floats:
        """Hits of each item at the placement that was chosen without it."""
        return self.chosen.of(self.own)

    @cached_property
    def beside(self) -> dict[str, Floats]:
        """The mean hits with each control, at each item's own held-out placement (item)."""
        found = {"shuffled": self.chosen.of(self.donors).mean(axis=1), "unpatched": self.unpatched}
        tables: dict[Place, Table] = {
            place: table_of(self.design, self.name, self.queries.all, results)
            for place, results in self.chosen_results.items()
        }
        places = [self.placement(k) for k in range(len(self.queries.items))]
        return found | controls_at(tables, self._score, self.queries.items, places, draws=DRAWS)

    @cached_property
    def exists(self) -> dict[str, Floats]:
        """A hit at some placement (the paper's score): of the cells, and the mean of their donors' (item)."""
        return {"own": best_of(self.own), "shuffled": best_of(self.donors).mean(axis=1)}

    @cached_property
    def usual(self) -> Floats:
        """Whether a text names what most queries of its type are answered there, right or wrong (item, placement)."""
        found = np.zeros_like(self.own)
        for name in dict.fromkeys(self.queries.types):
            members = [k for k, kind in enumerate(self.queries.types) if kind == name]
            answers = self._answers(members)
            for place, where in enumerate(self.design.placements):
                rows = [self._row(k, where) for k in members]
                named = np.array([[matches(row.text or "", words) for words in answers.values()] for row in rows])
                most = int(named.sum(axis=0).argmax())
                found[members, place] = named[:, most]
        return found

    def _answers(self, members: Sequence[int]) -> dict[str, tuple[str, ...]]:
        """The different answers of some queries, with all texts that are right for each."""
        found: dict[str, tuple[str, ...]] = {}
        for k in members:
            query = self.queries.all[self.queries.items[k]].query
            found[fold(query.answer)] = tuple(dict.fromkeys((*found.get(fold(query.answer), ()), *query.answers)))
        return found

    def _row(self, k: int, place: Placement) -> Row:
        return self.table.rows[None, self.queries.items[k], place, 0]

    @cached_property
    def _score(self) -> Score:
        return answering(self.queries.all)


@dataclass(frozen=True)
class Outcome:
    """Both methods on the same queries, and what the model says of the queries as texts (item)."""

    queries: Queries
    methods: Mapping[str, Method]
    texts: Mapping[str, Floats]

    @property
    def seed(self) -> int:
        """Of all resampling."""
        return self.queries.design.setup.seed
