"""Progress on standard error: a bar on a terminal; elsewhere a plain line every ten seconds and no more."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from patchscopes.plan import duration
from patchscopes.spec import Row

if TYPE_CHECKING:
    from patchscopes.run import Session

LINE_EVERY_S, BAR_EVERY_S = 10.0, 0.1
# Before so many cells have come, what they took says little of the others.
FEW_CELLS = 8


@dataclass(slots=True)
class Progress:
    """Counts rows and cells as they finish, and calls `show` at most every `every_s`."""

    rows: int
    total_rows: int
    total_cells: int
    every_s: float
    show: Callable[["Progress"], None]
    clock: Callable[[], float] = time.monotonic
    cells: int = 0
    began: float = field(init=False)
    _shown: float = field(init=False)
    _last_cell: str | None = None

    def __post_init__(self) -> None:
        self.began = self._shown = self.clock()

    def advance(self, row: Row) -> None:
        """Count a row. Those that one cell answers come one after the other."""
        self.rows += 1
        if row.status in ("ok", "failed") and row.cell is not None and row.cell != self._last_cell:
            self.cells, self._last_cell = self.cells + 1, row.cell
        now = self.clock()
        if now - self._shown >= self.every_s:
            self._shown = now
            self.show(self)

    def __str__(self) -> str:
        elapsed = self.clock() - self.began
        rate = self.cells / elapsed if elapsed > 0 else 0.0
        known = self.cells >= min(FEW_CELLS, self.total_cells)
        left = f"{duration((self.total_cells - self.cells) / rate)} left" if known else "time left not known yet"
        return f"{self.rows:,} of {self.total_rows:,} rows, {rate:,.1f} cells/s, {left}"


@contextmanager
def progress(session: "Session") -> Iterator[Callable[[Row], None]]:
    """Show the progress of `session`; gives a function to call with each row that finishes."""
    counts = session.n_kept, len(session.inspection.requests), len(session.work.plan.cells)
    if not sys.stderr.isatty():
        yield Progress(*counts, LINE_EVERY_S, lambda state: click.echo(str(state), err=True)).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    with Bars(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=counts[1], completed=counts[0])

        def show(state: Progress) -> None:
            bars.update(task, completed=state.rows, description=str(state))

        state = Progress(*counts, BAR_EVERY_S, show)
        show(state)
        yield state.advance


def announce(session: "Session") -> None:
    """Say on standard error what is to be done."""
    requests, cost = len(session.inspection.requests), session.work.plan.cost
    if session.inspection.folder is None:
        to_do = f"{requests:,} rows to do"
    else:
        to_do = f"{session.n_kept:,} of {requests:,} rows were there; {requests - session.n_kept:,} remain"
    click.echo(
        f"{to_do}: {len(session.work.plan.cells):,} distinct cells, at most {cost.forward_passes:,} forward passes and "
        f"{cost.flops / 1e12:.1f} TFLOP",
        err=True,
    )
