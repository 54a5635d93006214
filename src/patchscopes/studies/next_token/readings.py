"""Rows → arrays: by method what its cells say (place, ℓ), and beside it what each control says (place, coarse ℓ).

Scores of a row: `precision`, whether its likeliest token is that of the source's own run; `under-source` and
`under-patched`, the two surprisals of rule 14, in nats. Arrays have a line for every place of the design, NaN where it
has no result; means are over `Readings.items`, which have them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from patchscopes.cached import cached_property
from patchscopes.data import Exclusion
from patchscopes.errors import DataError
from patchscopes.mappings import Mappings
from patchscopes.spec import Row
from patchscopes.studies.next_token.design import CONTROLS, DRAWS, FITTED, IDENTITY, LENSES, LOGIT_LENS, METHODS, Design
from patchscopes.studies.next_token.floors import floors
from patchscopes.studies.next_token.prompts import folded_token, pieces_of
from patchscopes.studies.setup import Stage
from patchscopes.studies.texts import Place as Layers
from patchscopes.studies.texts import Score, Table

Floats = NDArray[np.float64]
Texts = NDArray[np.object_]

LEAKED = "the next token stands in an inspection prompt, from which it can be copied"
NOT_FINITE = "a surprisal is infinite: the place counts for precision, not for surprisals"

NOWHERE: Layers = (None, None)  # of the prompt as it is
PRECISION, UNDER_SOURCE, UNDER_PATCHED = "precision", "under-source", "under-patched"
SURPRISALS = (UNDER_SOURCE, UNDER_PATCHED)


def agreed(_: int, row: Row) -> float:
    """Whether the likeliest token is the one of the source's own run."""
    assert row.agrees is not None
    return float(row.agrees)


def under_source(_: int, row: Row) -> float:
    """−ln p_source(the likeliest token of the patched run)."""
    assert row.surprisal_under_source is not None
    return row.surprisal_under_source


def under_patched(_: int, row: Row) -> float:
    """−ln p_patched(the likeliest token of the source's own run)."""
    assert row.surprisal_under_patched is not None
    return row.surprisal_under_patched


SCORES: Mapping[str, Score] = MappingProxyType(
    {PRECISION: agreed, UNDER_SOURCE: under_source, UNDER_PATCHED: under_patched}
)
# Controls with a row for each place, and how many draws they have.
DRAWN: Mapping[str, int] = MappingProxyType({"random": DRAWS, "random-state": DRAWS, "shuffled": DRAWS, "mean": 1})


@dataclass(frozen=True)
class Reading:
    """A method: scores of its cells (place, ℓ) by name, and what they say (place, ℓ), None where there is no result.

    `beside` are scores of each control (place, coarse ℓ), means over its draws; places without controls have NaN.
    `beside_said` is what each control says in its first draw.
    """

    scores: Mapping[str, Floats]
    said: Texts
    beside: Mapping[str, Mapping[str, Floats]]
    beside_said: Mapping[str, Texts]


@dataclass(frozen=True)
class Readings:
    """All methods; `next_tokens` is what the sources' own runs say, None where a place has no result."""

    design: Design
    methods: Mapping[str, Reading]
    next_tokens: tuple[str | None, ...]
    missing: Mapping[int, str]

    @cached_property
    def leaked(self) -> frozenset[int]:
        """Places whose next token is one of an inspection prompt's (rule 18)."""
        prompts = [*self.design.prompts.values(), *self.design.pair_prompts.values()]
        pieces = set().union(*(pieces_of(self.design.setup.model, prompt) for prompt in prompts))
        return frozenset(
            k for k, token in enumerate(self.next_tokens) if token is not None and folded_token(token) in pieces
        )

    @cached_property
    def items(self) -> list[int]:
        """The places that are scored: those with every result, of which none can be copied."""
        return [k for k in range(len(self.design.places)) if k not in self.missing and k not in self.leaked]

    @cached_property
    def controlled(self) -> list[int]:
        """Those of `items` that have controls."""
        return [k for k in self.design.controlled if k in set(self.items)]

    def alone(self, name: str) -> str | None:
        """What the inspection prompt of a method says by itself."""
        said = self.methods[name].beside_said["unpatched"][self.design.controlled]
        return next((text for text in said.ravel() if text is not None), None)

    @cached_property
    def infinite(self) -> frozenset[int]:
        """Those of `items` with a surprisal that is no number."""
        arrays = [
            scores[name]
            for reading in self.methods.values()
            for scores in (reading.scores, *reading.beside.values())
            for name in SURPRISALS
            if name in scores
        ]
        beyond = np.any([np.isinf(array).any(axis=1) for array in arrays], axis=0)
        return frozenset(k for k in self.items if beyond[k])

    def among(self, items: Sequence[int], score: str) -> list[int]:
        """Those of `items` that count for a score."""
        return [k for k in items if score == PRECISION or k not in self.infinite]

    def subjects(self, items: Sequence[int]) -> list[str]:
        """The passages of some places."""
        return [self.design.places[k].passage for k in items]

    @property
    def excluded(self) -> list[Exclusion]:
        """The places that are not scored, or not for everything, with the reason."""
        reasons = {**dict.fromkeys(self.leaked, LEAKED), **self.missing}
        found = [Exclusion(self._name(k), reason.splitlines()[0], "position") for k, reason in sorted(reasons.items())]
        return found + [Exclusion(self._name(k), NOT_FINITE, "surprisal") for k in sorted(self.infinite)]

    def _name(self, k: int) -> str:
        place = self.design.places[k]
        return f"{place.passage}, position {place.position}"


def read(design: Design, lenses: Mapping[str, Mappings | None]) -> Readings:
    """Run every method and its controls. Raises DataError where no place has all results."""
    reader = _Reader(design)
    reader.methods(IDENTITY, design.identity())
    for name in LENSES:
        reader.methods([name], design.lens(name, lenses[name]))
    reader.controls(IDENTITY, design.identity_controls())
    for name in LENSES:
        reader.controls([name], design.lens_controls(name, lenses[name]))
    readings = reader.readings()
    if not readings.items:
        why = next(iter(readings.missing.values()), LEAKED)
        raise DataError(f"none of {len(design.places)} places is left; the first because: {why}")
    return readings


class _Reader:
    """Takes stages as they are run, and keeps arrays: the rows of all stages together would not fit in memory."""

    def __init__(self, design: Design) -> None:
        self._design = design
        self._n = len(design.places)
        self._missing: dict[int, str] = {}
        self._next: list[str | None] = [None] * self._n
        self._next_ids: dict[int, int] = {}
        self._scores: dict[str, dict[str, Floats]] = {}
        self._said: dict[str, Texts] = {}
        self._beside: dict[str, dict[str, dict[str, Floats]]] = {}
        self._beside_said: dict[str, dict[str, Texts]] = {}

    def methods(self, names: Sequence[str], stage: Stage) -> None:
        """Run the cells of some methods, which are told apart by their prompts."""
        results, every = self._design.setup.run(stage), range(self._n)
        for name in names:
            table = Table.of(results, self._design.prompts[name].label, self._n)
            self._note(table, every)
            places = self._at(name, self._design.layers)
            self._scores[name] = {
                score: self._spread(table.own(of, table.items(), places), table.items(), every)
                for score, of in SCORES.items()
            }
            self._said[name] = self._texts(table, None, every, places)
            if name == LOGIT_LENS:
                self._note_next(table)

    def controls(self, names: Sequence[str], stage: Stage) -> None:
        """Run the controls of some methods. The next tokens must be known."""
        results, some = self._design.setup.run(stage), self._design.controlled
        rates = floors(self._design, stage, list(self._next_ids.values()))
        for name in names:
            prompt = self._design.prompts[name].label
            table = Table.of(results, prompt, len(some))
            self._note(table, some)
            items = [item for item in table.items() if some[item] in self._next_ids]
            beside: dict[str, dict[str, Floats]] = {}
            for control, places in self._control_places(name).items():
                if control in DRAWN:
                    drawn = {s: table.drawn(control, of, items, places, DRAWN[control]) for s, of in SCORES.items()}
                    beside[control] = {score: values.mean(axis=1) for score, values in drawn.items()}
                else:
                    beside[control] = {
                        PRECISION: table.drawn(control, self._says_next, items, places, 1)[:, 0],
                        UNDER_PATCHED: self._surprisals(items, [rates[prompt, control, place] for place in places]),
                    }
            self._beside[name] = {
                control: {score: self._spread(values, items, some) for score, values in scores.items()}
                for control, scores in beside.items()
            }
            self._beside_said[name] = {
                control: self._texts(table, control, some, places)
                for control, places in self._control_places(name).items()
            }

    def readings(self) -> Readings:
        """All that was read."""
        methods = {
            name: Reading(self._scores[name], self._said[name], self._beside[name], self._beside_said[name])
            for name in METHODS
        }
        return Readings(self._design, methods, tuple(self._next), dict(self._missing))

    def _at(self, name: str, layers: Sequence[int]) -> list[Layers]:
        """(ℓ, ℓ*) of a method."""
        return [(layer, layer if name in IDENTITY else self._design.n_layers) for layer in layers]

    def _control_places(self, name: str) -> dict[str, list[Layers]]:
        """Where each control has its rows. Zero is written once for each ℓ*, or for each map, which makes its bias."""
        places = self._at(name, self._design.coarse)
        zeros: list[Layers] = [(source if name in FITTED else None, target) for source, target in places]
        sourceless = {"unpatched": [NOWHERE] * len(places), "zero": zeros}
        return {control: sourceless.get(control, places) for control in CONTROLS}

    def _says_next(self, item: int, row: Row) -> float:
        """Whether a row without a source says what the source of a controlled place says, token by token as cells do.

        Different tokens can have one text: of halves of a character it is the same replacement character.
        """
        assert row.token_ids is not None
        return float(row.token_ids[0] == self._next_ids[self._design.controlled[item]])

    def _surprisals(self, items: Sequence[int], rates: Sequence[Mapping[int, float]]) -> Floats:
        """How unlikely the next token of each controlled place is at each of `rates`."""
        some = self._design.controlled
        found = [[rate[self._next_ids[some[item]]] for rate in rates] for item in items]
        return np.array(found, dtype=np.float64).reshape(len(items), len(rates))

    def _spread(self, values: Floats, items: Sequence[int], places: Sequence[int]) -> Floats:
        """Lines of a stage's items → lines of all places; NaN for the others."""
        found = np.full((self._n, *values.shape[1:]), np.nan)
        found[[places[item] for item in items]] = values
        return found

    def _texts(self, table: Table, control: str | None, places: Sequence[int], at: Sequence[Layers]) -> Texts:
        """What rows say, in their first draw: a line for every place, None where there is no row."""
        found = np.full((self._n, len(at)), None, dtype=object)
        for item, place in enumerate(places):
            for column, layers in enumerate(at):
                keys = ((control, source, layers, 0) for source in (item, None))
                row = next((table.rows[key] for key in keys if key in table.rows), None)
                found[place, column] = None if row is None else row.text
        return found

    def _note(self, table: Table, places: Sequence[int]) -> None:
        """Remember what has no result."""
        for item, reason in table.missing.items():
            self._missing.setdefault(places[item], reason)

    def _note_next(self, table: Table) -> None:
        """What the sources say next: written at n_layers as it is, the last state gives its own next token."""
        last = self._design.n_layers
        for item in table.items():
            row = table.rows[None, item, (last, last), 0]
            assert row.token_ids is not None
            self._next[item], self._next_ids[item] = row.source_next, row.token_ids[0]
