"""Rows of candidates, by the cell that they score: what a table says of a cell is the order of its candidates.

One cell has a row per candidate. The first of them leads: it stands for the cell wherever rows are counted as cells.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from patchscopes.results.entry import Entry, Kind, cropped, listed, nats
from patchscopes.results.rows import Record
from patchscopes.spec import Row

N_SHOWN, N_SHOWN_BESIDE = 5, 3
NAME_WIDTH, RAISED_WIDTH = 40, 26  # of a candidate, in characters; what is longer is cropped

Key = tuple[object, ...]


class Candidates:
    """The rows of each cell, most likely candidate first."""

    def __init__(self, results: Record) -> None:
        found: dict[Key, dict[str, Row]] = {}
        for row in results:
            if row.candidate is not None:
                found.setdefault(_cell(row), {}).setdefault(row.candidate, row)
        self._asked: Mapping[Key, tuple[Row, ...]] = {key: tuple(rows.values()) for key, rows in found.items()}
        self._rows: Mapping[Key, list[Row]] = {
            key: sorted(rows, key=lambda row: row.rank or 0) for key, rows in self._asked.items()
        }

    @property
    def n(self) -> str:
        """How many candidates a cell has, as 4 or, where cells differ in it, 3–5; empty where none were scored."""
        return self._n(self._asked.values())

    def n_of(self, rows: Iterable[Row]) -> str:
        """As `n`, of the cells that `rows` lead."""
        return self._n(map(self.of, rows))

    def _n(self, cells: Iterable[Sequence[Row]]) -> str:
        found = {len(rows) for rows in cells if rows}
        if not found:
            return ""
        return str(min(found)) if len(found) == 1 else f"{min(found)}–{max(found)}"

    def names(self, row: Row) -> frozenset[str]:
        """The set of candidates that the cell of `row` scores."""
        return frozenset(one.candidate for one in self.of(row) if one.candidate is not None)

    def of(self, row: Row) -> tuple[Row, ...]:
        """The rows of the cell that `row` is of, in the order in which candidates were asked for."""
        return self._asked.get(_cell(row), ())

    def leads(self, row: Row) -> bool:
        """Whether `row` stands for its cell."""
        return row.candidate is None or self._asked[_cell(row)][0] is row

    def judged(self, row: Row) -> Row:
        """`row`, which leads, with `expected` telling whether an expected answer is the likeliest candidate.

        None where no candidate is an expected answer.
        """
        if row.candidate is None:
            return row
        best = self.best(row)
        return replace(row, expected=None if best is None else best.rank == 1)

    def judged_by_raise(self, row: Row) -> Row:
        """As `judged`, with `expected` telling whether the write raises an expected answer the most."""
        most = self._most_raised(row)
        expected = None if self.best(row) is None else most is not None and bool(most.expected)
        return replace(row, expected=expected)

    def best(self, row: Row) -> Row | None:
        """The likeliest of the cell's candidates that are expected answers."""
        return next((scored for scored in self._rows[_cell(row)] if scored.expected), None)

    def entry(self, row: Row) -> Entry:
        """The candidates of the cell that `row` leads, in order, with log-probabilities; or why there are none."""
        return self._listed(row, N_SHOWN, "")

    def marked(self, row: Row) -> Entry:
        """As `entry`, where there is no column for the rank of the expected answer: with it."""
        best = self.best(row)
        return self._listed(row, N_SHOWN_BESIDE, "" if best is None else f"{mark(self.judged(row))} {best.rank} · ")

    def raised(self, row: Row) -> Entry:
        """The candidate that the write raises the most over the prompt alone; or that there is none."""
        most = self._most_raised(row)
        if most is None:
            return Entry("(all lowered)" if row.status == "ok" else "", "note")
        return Entry(f"{_name(most, RAISED_WIDTH)} {_difference(most)}", _kind(most))

    def keys(self, rows: Sequence[Row]) -> Iterator[tuple[str, list[Entry]]]:
        """Narrow columns about the expected answer, where there is one: its rank, and what the write adds to it."""
        found = [self.best(row) for row in rows]
        if any(found):
            yield "rank", [Entry("" if best is None else str(best.rank)) for best in found]
            yield "Δ", [Entry("" if best is None else _difference(best)) for best in found]

    def notes(self, rows: Sequence[Row]) -> Iterator[str]:
        """What to know of a block's expected answers."""
        scored = [one for row in rows for one in self._rows.get(_cell(row), ())]
        if any(one.expected is not None for one in scored) and not any(one.expected for one in scored):
            yield "no candidate is an expected answer, so that none has a rank here"

    def _most_raised(self, row: Row) -> Row | None:
        raised = [one for one in self._rows[_cell(row)] if (one.logprob_minus_unpatched or 0) > 0]
        return max(raised, key=lambda one: one.logprob_minus_unpatched or 0, default=None)

    def _listed(self, row: Row, n_shown: int, head: str) -> Entry:
        if row.status != "ok":
            return Entry(f"({row.status})", "note")
        parts = [_scored(one) for one in self._rows[_cell(row)]]
        return listed(parts, n_shown, head=head, kind=_kind(self.judged(row)))


def mark(row: Row) -> str:
    """✓ or ✗ where an answer was expected; in brackets where it had leaked."""
    if row.expected is None:
        return ""
    sign = "✓" if row.expected else "✗"
    return f"({sign})" if "leaked" in row.flags else sign


def _cell(row: Row) -> Key:
    """Where a row stands, and its cell: a control without a source has several there, one for each set of answers."""
    place = (row.control, row.source_index, row.position, row.source_layer, row.target_layer)
    return *place, row.prompt, row.draw, row.sample, row.cell


def _scored(row: Row) -> str:
    """A candidate, its log-probability, and what the write adds to it; ✓ where it is an expected answer."""
    difference = "" if row.control == "unpatched" else f" ({_difference(row)})"
    return f"{_name(row)} {nats(row.logprob)}{difference}"


def _name(row: Row, width: int = NAME_WIDTH) -> str:
    return f"{'✓' if row.expected else ''}{cropped(row.candidate or '', width)}"


def _difference(row: Row) -> str:
    return nats(row.logprob_minus_unpatched, signed=True)


def _kind(row: Row) -> Kind:
    return "plain" if row.expected is None else "hit" if row.expected else "miss"
