"""Rows of a stage → arrays: (item, layer) for the cells, (item, draw, layer) for controls that are drawn.

Axes: item (a source of the sweep), draw, layer (ℓ, or a pair (ℓ, ℓ*)), in the order of the sweep.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchscopes.cached import cached_property
from patchscopes.errors import DataError, OptionError
from patchscopes.spec import Row

Place = tuple[int | None, int | None]  # (ℓ, ℓ*)
Key = tuple[str | None, int | None, Place, int]  # control, item, (ℓ, ℓ*), draw
Score = Callable[[int, Row], float]  # of the row, for the item


@dataclass(frozen=True)
class Table:
    """The rows of one inspection prompt, by control, item, (ℓ, ℓ*) and draw; items with one that failed are `missing`.

    Where several rows would be one place's (candidates, samples), none of them is: whoever asks for it gets an error,
    as for a row that failed, whose reason is in `failed`.
    """

    rows: dict[Key, Row]
    failed: dict[Key, str]
    n_items: int

    @classmethod
    def of(cls, results: Iterable[Row], prompt: str | None, n_items: int) -> "Table":
        """The table of `prompt`'s rows, of all where None. An inert row is no result: it is never scored (rule 12)."""
        rows: dict[Key, Row] = {}
        twice: set[Key] = set()
        failed: dict[Key, str] = {}
        for row in results:
            if prompt is not None and row.prompt not in (prompt, None):
                continue
            key = row.control, row.source_index, (row.source_layer, row.target_layer), row.draw
            if row.status == "ok":
                if key in rows:
                    twice.add(key)
                rows[key] = row
            elif row.status == "failed":
                failed.setdefault(key, row.reason or "failed")
        return cls({key: row for key, row in rows.items() if key not in twice}, failed, n_items)

    @cached_property
    def missing(self) -> dict[int, str]:
        """The items that lack a result, with the first reason."""
        found: dict[int, str] = {}
        for (_, item, _, _), reason in self.failed.items():
            if item is not None:
                found.setdefault(item, reason)
        return found

    def items(self) -> list[int]:
        """The items that have all of their results."""
        return [item for item in range(self.n_items) if item not in self.missing]

    def own(self, score: Score, items: Sequence[int], places: Sequence[Place]) -> NDArray[np.float64]:
        """Scores of the cells themselves: (item, place)."""
        return self._scores(None, score, items, places, [0])[:, 0]

    def drawn(
        self, control: str, score: Score, items: Sequence[int], places: Sequence[Place], draws: int
    ) -> NDArray[np.float64]:
        """Scores of a control with a row per cell and draw: (item, draw, place)."""
        return self._scores(control, score, items, places, list(range(draws)))

    def once(self, control: str, score: Score, items: Sequence[int]) -> NDArray[np.float64]:
        """Scores, for each item, of a control without layers: text-only, phrase-only, or the one row of unpatched."""
        return np.array([score(item, self._row(control, item, (None, None), 0)) for item in items], dtype=np.float64)

    def per_target(self, control: str, score: Score, items: Sequence[int], places: Sequence[Place]) -> NDArray[Any]:
        """Scores, for each item, of a control with a row per ℓ*: (item, place)."""
        return np.array(
            [[score(item, self._row(control, item, (None, target), 0)) for _, target in places] for item in items],
            dtype=np.float64,
        ).reshape(len(items), len(places))

    def _scores(
        self, control: str | None, score: Score, items: Sequence[int], places: Sequence[Place], draws: list[int]
    ) -> NDArray[np.float64]:
        found = [
            [[score(item, self._row(control, item, place, draw)) for place in places] for draw in draws]
            for item in items
        ]
        return np.array(found, dtype=np.float64).reshape(len(items), len(draws), len(places))

    def _row(self, control: str | None, item: int, place: Place, draw: int) -> Row:
        for source in (item, None):  # a control without a source belongs to every item
            key = control, source, place, draw
            if (row := self.rows.get(key)) is not None:
                return row
            if key in self.failed:
                raise DataError(
                    f"{control or 'the cell'} at (ℓ, ℓ*) = {place} failed, and nothing could be compared without it: "
                    f"{self.failed[key]}"
                )
        raise OptionError(
            f"there is no row of {control or 'the cell'} for item {item} at (ℓ, ℓ*) = {place}, draw {draw}."
        )


def owned(rows: Iterable[Row], prompts: Sequence[str]) -> Iterator[Row]:
    """The rows, where item k has inspection prompt `prompts[k]` of its own: those without a source, for each it is of.

    A control without a source has one row a prompt, which belongs to every item that has this prompt.
    """
    items: dict[str, list[int]] = {}
    for item, prompt in enumerate(prompts):
        items.setdefault(prompt, []).append(item)
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        if row.source_index is not None or row.prompt is None:
            yield row
            continue
        place = row.control, row.prompt, row.source_layer, row.target_layer, row.draw
        if place not in seen:  # the same prompt, given by several items
            seen.add(place)
            yield from (replace(row, source_index=item) for item in items.get(row.prompt, ()))
