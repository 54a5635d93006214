"""All stages of one relation, and its held-out hits beside every control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchscopes.analysis.matching import fold
from patchscopes.cached import cached_property
from patchscopes.data import Exclusion
from patchscopes.results import Results
from patchscopes.studies.attribute_extraction.design import DRAWS, Design
from patchscopes.studies.attribute_extraction.hits import Grid, Key, Rank, ranks
from patchscopes.studies.attribute_extraction.probing import Probed, probed
from patchscopes.studies.held_out import controls_at
from patchscopes.studies.relations import Case, naming
from patchscopes.studies.texts import Place, Score, Table

Floats = NDArray[np.float64]
Placement = tuple[int, int]
RANKS = ("first", "reciprocal", "gain", "logprob")
RANK_CONTROLS = ("shuffled", "unpatched", "random", "random-state", "mean", "zero", "phrase-only")


@dataclass(frozen=True)
class Outcome:
    """What was run for a relation. `chosen` holds a Results per placement that some fold chose."""

    grid: Grid
    best_of: Results
    chosen: Mapping[Placement, Results]
    contexts: Mapping[tuple[int, Placement], Results]
    objects: tuple[str, ...]
    ranked: Results
    ranked_controls: Results

    @property
    def case(self) -> Case:
        """The relation and its facts."""
        return self.grid.case

    @property
    def design(self) -> Design:
        """The scale."""
        return self.grid.design

    @cached_property
    def held_out(self) -> Floats:
        """Hits of each item at the placement that the other folds chose."""
        return self.grid.chosen.of(self.grid.own)

    @cached_property
    def beside(self) -> dict[str, Floats]:
        """The mean hits that each item has with each control, at its own held-out placement (item)."""
        shuffled = self.grid.chosen.of(self.grid.donors).mean(axis=1)
        found = {"shuffled": shuffled, "unpatched": self.grid.texts["unpatched"]}
        tables: dict[Place, Table] = {
            place: Table.of(results, self.case.prompt.label, len(self.case.facts))
            for place, results in self.chosen.items()
        }
        places = [self.placement(k) for k in range(len(self.grid.items))]
        found |= controls_at(tables, self._score, self.grid.items, places, draws=DRAWS)
        return found | {"phrase-only": self.grid.texts["phrase-only"], "text-only": self.grid.texts["text-only"]}

    @cached_property
    def in_contexts(self) -> dict[str, Floats]:
        """Held-out hits in the other source sentences, and the mean of their donors' there: (item, context).

        NaN where a sentence holds the answer, could not be run, or is none of its own (a fact may have fewer).
        """
        shape = len(self.grid.items), self.design.scale.n_contexts
        own, shuffled = np.full(shape, np.nan), np.full(shape, np.nan)
        for number in range(self.design.scale.n_contexts):
            for k, item in enumerate(self.grid.items):
                table, places = self._context_tables[number, self.placement(k)], [self.placement(k)]
                if number < self._n_sentences(item) and not self._lost_context(number, k):
                    own[k, number] = table.own(self._score, [item], places)[0, 0]
                    shuffled[k, number] = table.drawn("shuffled", self._score, [item], places, DRAWS).mean()
        return {"own": own, "shuffled": shuffled}

    @property
    def context_items(self) -> list[int]:
        """Positions among the items that have a score in another sentence."""
        return np.flatnonzero(~np.isnan(self.in_contexts["own"]).all(axis=1)).tolist()

    def contexts_left_out(self) -> list[Exclusion]:
        """The sentences that are not scored, of the facts that are."""
        return [
            Exclusion(f"{self.case.name}: {self.case.facts[item].subject}", reason, "context")
            for number in range(self.design.scale.n_contexts)
            for k, item in enumerate(self.grid.items)
            if number < self._n_sentences(item) and (reason := self._lost_context(number, k))
        ]

    def _lost_context(self, number: int, k: int) -> str:
        """Why a sentence of item number k is not scored; "" where it is."""
        item, place = self.grid.items[k], self.placement(k)
        table = self._context_tables[number, place]
        if item in table.missing:
            return table.missing[item].splitlines()[0]
        leaks = "leaked" in table.rows[None, item, place, 0].flags
        return "the answer stands in this source sentence" if leaks else ""

    def _n_sentences(self, item: int) -> int:
        return len(self.case.relation.contexts_of(self.case.facts[item]))

    @cached_property
    def _context_tables(self) -> dict[tuple[int, Placement], Table]:
        return {
            key: Table.of(results, self.case.prompt.label, len(self.case.facts))
            for key, results in self.contexts.items()
        }

    @cached_property
    def exists(self) -> dict[str, Floats]:
        """The paper's score, a hit at some ℓ*, by item and ℓ: of the cells, and of their donors (mean over draws)."""
        return {
            "own": self.grid.by_layer(self.grid.own),
            "shuffled": self.grid.by_layer(self.grid.donors).mean(axis=1),
        }

    @cached_property
    def exists_beside(self) -> dict[str, Floats]:
        """The same best over ℓ* for the other controls, at the coarse ℓ, for some items: (item, coarse ℓ)."""
        some = [item for item in self.grid.items if item < max(self.design.scale.n_coarse, DRAWS + 1)]
        table = Table.of(self.best_of, self.case.prompt.label, len(some))
        places = [(layer, target) for layer in self.design.coarse for target in self.design.targets]
        n_layers = len(self.design.coarse)

        def best(hits: Floats) -> Floats:
            highest: Floats = hits.reshape(len(some), n_layers, -1).max(axis=-1)
            return highest

        found = {"own": best(table.own(self._score, some, places))}
        for control in ("random", "random-state", "mean"):
            found[control] = best(table.drawn(control, self._score, some, places, 1)[:, 0])
        found["zero"] = best(table.per_target("zero", self._score, some, places))
        return found

    @cached_property
    def rank(self) -> Rank:
        """The ranks of the items' own objects, by ℓ, at the ℓ* that most folds chose: (item, ℓ)."""
        return self._ranks(self.ranked, None, [0])

    @cached_property
    def donor_rank(self) -> Rank:
        """The same with donors' states, averaged over draws."""
        return self._ranks(self.ranked, "shuffled", list(range(DRAWS)))

    @property
    def rank_items(self) -> list[int]:
        """Positions among the items whose object is among the candidates."""
        among = {fold(answer) for answer in self.objects}
        return [k for k, item in enumerate(self.grid.items) if fold(self.case.facts[item].object) in among]

    @cached_property
    def rank_column(self) -> int:
        """The ℓ, by its index, of the placement that most folds chose: where the ranking is compared with controls."""
        return self.design.sources.index(self.grid.placements[0][0])

    @cached_property
    def rank_beside(self) -> dict[str, Rank]:
        """The ranks with each of RANK_CONTROLS, at the placement that most folds chose: (item,)."""
        donors = Rank(*(getattr(self.donor_rank, name)[:, self.rank_column] for name in RANKS))
        return {control: donors if control == "shuffled" else self._rank_with(control) for control in RANK_CONTROLS}

    def _rank_with(self, control: str) -> Rank:
        source, target = self.grid.placements[0]
        places: dict[str, tuple[int | None, int | None]] = {
            "unpatched": (None, None), "phrase-only": (None, None), "zero": (None, target),
        }  # fmt: skip
        results = self.ranked if control in places else self.ranked_controls
        place = places.get(control, (source, target))
        items = [self.grid.items[k] for k in self.rank_items]
        of_no_source = control in ("unpatched", "zero")
        return ranks(
            self.case, results, [(item, (control, None if of_no_source else item, place, 0)) for item in items]
        )

    @cached_property
    def probe(self) -> Probed:
        """The probe on the same states, folds and subjects."""
        return probed(self.grid, self.held_out)

    def placement(self, k: int) -> Placement:
        """The placement that was chosen without item number k."""
        return self.design.placements[int(self.grid.chosen.placement[k])]

    def leaked_hits(self) -> Floats:
        """Hits of the facts that can be copied, at the placement that most folds chose."""
        return self.grid.table.own(self._score, self.grid.leaked_items, [self.grid.placements[0]])[:, 0]

    @cached_property
    def _score(self) -> Score:
        return naming(self.case)

    def _ranks(self, results: Results, control: str | None, draws: Sequence[int]) -> Rank:
        target = self.grid.placements[0][1]
        items = [self.grid.items[k] for k in self.rank_items]
        wanted: list[tuple[int, Key]] = [
            (item, (control, item, (layer, target), draw))
            for item in items
            for layer in self.design.sources
            for draw in draws
        ]
        return ranks(self.case, results, wanted).reshaped(len(items), len(self.design.sources), len(draws)).mean()


def objects_of(grid: Grid, n: int) -> tuple[str, ...]:
    """The relation's objects, the most frequent first, at most `n`: one spelling each."""
    counts: dict[str, list[str]] = {}
    for item in grid.items:
        answer = grid.case.facts[item].object
        counts.setdefault(fold(answer), []).append(answer)
    ordered = sorted(counts.values(), key=len, reverse=True)
    return tuple(spellings[0] for spellings in ordered[:n])
