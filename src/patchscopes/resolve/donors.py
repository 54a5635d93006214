"""Donors: places of a call's other sources, whose states stand beside a source's own (controls `shuffled`, `mean`).

A source's donors are the places (ids, position, what is masked) that sources of its kind have and its item has not.
They are in one order, whatever the order of the sources.
"""

from collections.abc import Iterator, Sequence

from patchscopes.errors import OptionError
from patchscopes.resolve.grid import Grid, Point
from patchscopes.rng import philox
from patchscopes.spec import Ids, Mean, State

MIN_SOURCES = 2

Place = tuple[Ids, int, tuple[int, ...]]
Key = tuple[str | None, tuple[str, str]]  # the kind and the item, which have the same donors wherever they stand


class Donors:
    """The donors of every point of a grid, for one control."""

    def __init__(self, grid: Grid, control: str) -> None:
        self._control, self._sweep = control, grid.sweep
        self._n_read = len({point.source_index for point in grid.points})
        found: dict[str | None, set[Place]] = {}
        self._own: dict[tuple[str, str], set[Place]] = {}
        for point in grid.points:
            found.setdefault(point.kind, set()).add(_place(point))
            self._own.setdefault(_item(point), set()).add(_place(point))
        self._places = {kind: sorted(places) for kind, places in found.items()}
        self._pools: dict[Key, list[int]] = {}
        self._states: dict[tuple[str | None, int], list[State]] = {}
        self._means: dict[tuple[Key, int], Mean] = {}

    def check_draws(self, points: Sequence[Point]) -> None:
        """Raise OptionError where a point has fewer than two donors, or fewer than there are draws."""
        fewest = min(points, key=lambda point: len(self._pool(point)))
        n_donors = len(self._pool(fewest))
        if n_donors < self._sweep.draws:
            raise OptionError(
                f"{self._control} is asked for {self._sweep.draws} draws, each another donor, and {_named(fewest)} has "
                f"only {n_donors} donors; ask for at most {n_donors} draws, or give more sources."
            )

    def drawn(self, point: Point) -> list[Place]:
        """A donor per draw, no two alike. Their order hangs on the seed and the point alone, never on a layer."""
        pool, places = self._pool(point), self._places[point.kind]
        key = ("shuffled", self._sweep.seed, point.tokenized.ids, point.position)
        order = philox(*key).permutation(len(pool))
        return [places[pool[int(k)]] for k in order[: self._sweep.draws]]

    def mean(self, point: Point, layer: int) -> Mean:
        """The mean of all donors' states at `layer`. Raises OptionError where there are fewer than two."""
        key = _key(point), layer
        if key not in self._means:
            states = self._states_at(point.kind, layer)
            self._means[key] = Mean(tuple(states[k] for k in self._pool(point)))
        return self._means[key]

    def _pool(self, point: Point) -> list[int]:
        """The point's donors, by their number among the places of its kind."""
        key = _key(point)
        if key not in self._pools:
            own, places = self._own[_item(point)], self._places[point.kind]
            pool = [k for k, place in enumerate(places) if place not in own]
            n_sources = len({places[k][0] for k in pool})
            if n_sources < MIN_SOURCES:
                raise OptionError("; ".join(self._too_few(point, n_sources)))
            self._pools[key] = pool
        return self._pools[key]

    def _too_few(self, point: Point, n_sources: int) -> Iterator[str]:
        alike = "without a kind" if point.kind is None else f"of kind {point.kind!r}"
        item = "about another text" if point.item is None else f"about another item than {point.item!r}"
        yield (
            f"{self._control} needs at least {MIN_SOURCES} donors for every source, and {_named(point)} has "
            f"{n_sources}: its donors are the call's sources {alike} {item}"
        )
        if failed := len(self._sweep.sources) - self._n_read:
            yield f"{failed} of the {len(self._sweep.sources)} sources failed and cannot be donors"
        yield f"give more such sources, or leave {self._control} out."

    def _states_at(self, kind: str | None, layer: int) -> list[State]:
        """The states of all places of a kind at `layer`, one object each however many means it is in."""
        if (kind, layer) not in self._states:
            self._states[kind, layer] = [State(ids, at, layer, masked) for ids, at, masked in self._places[kind]]
        return self._states[kind, layer]


def _place(point: Point) -> Place:
    return point.tokenized.ids, point.position, point.masked


def _item(point: Point) -> tuple[str, str]:
    """What the point's source is about: the item that it names, else its own text."""
    return ("text", point.tokenized.text) if point.item is None else ("item", point.item)


def _key(point: Point) -> Key:
    return point.kind, _item(point)


def _named(point: Point) -> str:
    text = point.tokenized.text
    shown = text if len(text) <= 60 else f"{text[:59]}…"
    return f"source {point.source_index} ({shown!r})"
