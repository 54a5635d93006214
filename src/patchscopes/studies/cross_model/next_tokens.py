"""Next tokens: is the target's, with the source's state written in, the one that the source itself says next?

Of each opening the source's own next token is asked for first; where the target has no single token for it, the opening
is left out. The choice of a placement is made by equal tokens, and the looser measure is taken at the same placements.

Axes: item (an opening with all results), placement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from patchscopes.analysis.scores import majority_of_others
from patchscopes.cached import cached_property
from patchscopes.data import Exclusion
from patchscopes.errors import DataError
from patchscopes.mappings import LINEAR, Kind
from patchscopes.results import Results
from patchscopes.studies.cross_model.design import FEWEST, IDENTITY, Design, Placement
from patchscopes.studies.cross_model.maps import Maps
from patchscopes.studies.cross_model.openings import Opening
from patchscopes.studies.cross_model.placed import (
    OWN_STATE,
    TOKEN,
    Beside,
    Floats,
    HeldOut,
    Placed,
    drawn_at,
    own_at,
)
from patchscopes.studies.cross_model.tokens import Vocabulary, akin, incomparable, same
from patchscopes.studies.texts import Score, Table

# Where the target still computes behind the write, and where only its final norm and head read what is written.
Where = Literal["inside", "head"]
WHERE: tuple[Where, ...] = ("inside", "head")
AS_TEXT, READS, FREQUENT = "the token as text", "the text itself", "the most frequent token"
MEASURES: Mapping[str, Callable[[str, str], bool]] = {"same": same, "akin": akin}


@dataclass(frozen=True)
class Compared:
    """The openings whose next token the target could say, and what both models say of them from text."""

    openings: tuple[Opening, ...]
    wanted: tuple[str, ...]
    read: tuple[str, ...]
    excluded: tuple[Exclusion, ...]


def compared(design: Design, openings: Sequence[Opening], vocabularies: tuple[Vocabulary, Vocabulary]) -> Compared:
    """Run both models on the openings as text. Raises DataError where too few can be compared."""
    source, target = vocabularies
    said, lost = _next(design.setup.run(design.reads(design.source, openings)), source)
    excluded = {k: incomparable(token, target) for k, token in said.items() if incomparable(token, target)} | lost
    read, lost = _next(design.setup.run(design.reads(design.target, openings)), target)
    excluded |= lost
    kept = [k for k in range(len(openings)) if k not in excluded]
    left_out = tuple(Exclusion(openings[k].text[-60:], reason, "passage") for k, reason in sorted(excluded.items()))
    if len(kept) < FEWEST:
        raise DataError(
            f"of {len(openings)} passages {len(kept)} have a next token of {design.source.id} that "
            f"{design.target.id} could say too, and {FEWEST} are needed; give more text. What was left out: "
            f"{sorted(set(excluded.values())) or 'nothing'}."
        )
    return Compared(
        tuple(openings[k] for k in kept), tuple(said[k] for k in kept), tuple(read[k] for k in kept), left_out
    )


def _next(results: Results, vocabulary: Vocabulary) -> tuple[dict[int, str], dict[int, str]]:
    """The next token of each source, and of those without one the reason."""
    said: dict[int, str] = {}
    lost: dict[int, str] = {}
    for row in results:
        assert row.source_index is not None
        if row.status == "ok":
            said[row.source_index] = vocabulary.next(row)
        else:
            lost[row.source_index] = (row.reason or row.status).splitlines()[0]
    return said, lost


@dataclass(frozen=True)
class NextTokens:
    """All stages. `items` are numbers of `compared` openings that have every result, the order of all arrays."""

    design: Design
    compared: Compared
    said: Vocabulary
    grids: Mapping[Kind, Table]
    own: Table
    items: tuple[int, ...]
    beside: dict[Placement, Beside]
    _placed: dict[str, Placed] = field(default_factory=dict)
    _held_out: dict[tuple[Where, str], HeldOut] = field(default_factory=dict)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The openings, over which intervals are made."""
        return tuple(self.compared.openings[item].text for item in self.items)

    @cached_property
    def wanted(self) -> tuple[str, ...]:
        """The source's own next token of each item."""
        return tuple(self.compared.wanted[item] for item in self.items)

    def score(self, measure: str = "same") -> Score:
        """Scores 1 where the row's next token is the source's own."""
        agree, wanted = MEASURES[measure], self.compared.wanted
        return lambda item, row: float(agree(wanted[item], self.said.next(row)))

    def placed(self, measure: str = "same") -> Placed:
        """The scores of all items at all placements."""
        if measure not in self._placed:
            self._placed[measure] = self._scored(measure)
        return self._placed[measure]

    def _scored(self, measure: str) -> Placed:
        found = Placed.of(self.grids, self.score(measure), self.items, self.design.placements(self.design.targets))
        return Placed.joined([found], self.subjects, self.design.setup.seed)

    @property
    def same(self) -> Placed:
        """Those of equal tokens, by which placements are chosen."""
        return self.placed()

    def among(self, where: Where, kinds: Sequence[Kind] = LINEAR) -> list[int]:
        """The placements, by number, that may be chosen."""
        return self.same.eligible(kinds=kinds, targets=self._targets(where))

    def _targets(self, where: Where) -> tuple[int, ...]:
        return self.design.inner_targets if where == "inside" else (self.design.target.n_layers,)

    def places(self, where: Where) -> list[Placement]:
        """The placements that some fold chose, the most frequent first."""
        chosen = self.same.chosen(self.among(where))
        return [self.same.placements[k] for k in chosen.most_frequent]

    @property
    def scored_at(self) -> dict[Placement, tuple[int, ...]]:
        """The items that are scored at each placement that some fold chose."""
        found: dict[Placement, tuple[int, ...]] = {}
        for where in WHERE:
            chosen = self.same.chosen(self.among(where)).placement
            for place in self.places(where):
                number = self.same.placements.index(place)
                found[place] = tuple(item for item, k in zip(self.items, chosen, strict=True) if k == number)
        return found

    def held_out(self, where: Where, measure: str = "same") -> HeldOut:
        """The scores at the placements that were chosen without each item, beside every control, once all is run."""
        if (where, measure) not in self._held_out:
            self._held_out[where, measure] = self._chosen_at(where, measure)
        return self._held_out[where, measure]

    def _chosen_at(self, where: Where, measure: str) -> HeldOut:
        found = HeldOut.of(self.placed(measure), self.same.chosen(self.among(where)))
        score = self.score(measure)
        tokens = self.same.chosen(self.same.of_tokens(self._targets(where)))
        return found.along(
            {
                **drawn_at(self.beside, score, self.items, found.places),
                OWN_STATE: own_at(self.own, score, self.items, found.places),
                TOKEN: tokens.of(self.placed(measure).own),
                AS_TEXT: self.own.once("phrase-only", score, self.items),
                READS: self.reads(measure),
                FREQUENT: self.majority(measure),
            }
        )

    def reads(self, measure: str = "same") -> Floats:
        """What the target scores when it reads the text itself."""
        read = [self.compared.read[item] for item in self.items]
        agree = [MEASURES[measure](a, b) for a, b in zip(self.wanted, read, strict=True)]
        return np.array(agree, dtype=float)

    @property
    def differing(self) -> list[int]:
        """The numbers of the items of which the target, reading the text itself, says something else."""
        return np.flatnonzero(self.reads() == 0).tolist()

    def says(self, where: Where) -> list[str]:
        """What the target says with each item's state written in, at the placement that was chosen without it."""
        placed = zip(self.items, self.held_out(where).places, strict=True)
        return [self.said.next(self.grids[place.kind].rows[None, item, place.pair, 0]) for item, place in placed]

    def as_target(self, where: Where) -> Floats:
        """Whether that is what the target says when it reads the text itself."""
        read = (self.compared.read[item] for item in self.items)
        return np.array([same(a, b) for a, b in zip(read, self.says(where), strict=True)], dtype=float)

    def majority(self, measure: str = "same") -> Floats:
        """What always saying the most frequent token of the other folds scores."""
        tokens = frozenset(self.wanted)
        right = [frozenset(b for b in tokens if MEASURES[measure](a, b)) for a in self.wanted]
        return majority_of_others(self.wanted, right, self.same.folds)


def run_next_tokens(
    design: Design, maps: Maps, found: Compared, said: Vocabulary
) -> tuple[NextTokens, list[Exclusion]]:
    """Run the grids, choose placements, and run what stands beside them."""
    run, openings = design.setup.run, found.openings
    grids = {kind: _table(run(design.next_grid(openings, maps[kind])), len(openings)) for kind in LINEAR}
    own = _table(run(design.next_own(openings)), len(openings))
    lost = {item: why for table in (*grids.values(), own) for item, why in table.missing.items()}
    items = tuple(item for item in range(len(openings)) if item not in lost)
    if len(items) < FEWEST:
        raise DataError(f"{len(items)} of {len(openings)} passages have all results, and {FEWEST} are needed: {lost}.")
    outcome = NextTokens(design, found, said, grids, own, items, {})
    for place, at in outcome.scored_at.items():
        some = [openings[item] for item in at]
        noise = _table(run(design.next_noise(some, maps[place.kind], place)), len(some))
        mean = _table(run(design.next_mean(openings, maps[place.kind], place)), len(openings))
        outcome.beside[place] = Beside(at, noise, mean)
    excluded = [Exclusion(openings[k].text[-60:], why.splitlines()[0], "passage") for k, why in lost.items()]
    return outcome, excluded


def _table(results: Results, n_items: int) -> Table:
    return Table.of(results, IDENTITY, n_items)
