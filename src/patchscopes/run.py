"""The one loop: requests → distinct cells → Plan → Runner → rows, as they finish.

An `Inspection` is a request that has been resolved and found good. Nothing has run yet: what follows can only be
slow, interrupted or refused by memory, and either way every request ends as exactly one row.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from patchscopes.analysis.matching import matches
from patchscopes.kv import sharing
from patchscopes.models import Model
from patchscopes.plan import Budget, ModelShape, Plan, Runner, compile_plan
from patchscopes.provenance import provenance
from patchscopes.resolve import Resolved
from patchscopes.results import Results
from patchscopes.spec import Cell, Request, Result, Row, Sweep


@contextmanager
def collector_paused() -> Iterator[None]:
    """While open, Python does not search for reference cycles: what is made meanwhile stays, and there is much of it.

    Walking a million live objects again and again would take a tenth of the time of a large sweep.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Inspection:
    """A resolved sweep on a model, its plan, and the runner to run it with.

    `plan` holds each distinct cell once; `askers[k]` are the requests that ask for cell k of it.
    """

    model: Model
    sweep: Sweep
    resolved: Resolved
    make_runner: Callable[[Model], Runner]
    runner_name: str
    plan: Plan
    askers: tuple[tuple[int, ...], ...]

    @property
    def requests(self) -> tuple[Request, ...]:
        """One per row, in the order of Results."""
        return self.resolved.requests

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Run, and yield (index of the request, row) as rows finish: first those that need no run."""
        for index, request in enumerate(self.requests):
            if request.status != "ok":
                yield index, self.row(request)
        if not self.plan.cells:
            return
        for result in self.make_runner(self.model).run(self.plan):
            for index in self.askers[result.index]:
                yield index, self.row(self.requests[index], result)

    def results(self, rows: Mapping[int, Row] | None = None) -> Results:
        """All rows in order; runs what there is where none are given.

        A request without its row was interrupted: it is skipped, and the results are not complete.
        """
        if rows is None:
            with collector_paused():
                rows = dict(self.rows())
        done = rows
        complete = len(done) == len(self.requests)
        skipped = {"status": "skipped", "reason": "interrupted before this cell was run"}
        ordered = [
            done[index] if index in done else self.row(replace(request, **skipped))  # type: ignore[arg-type]
            for index, request in enumerate(self.requests)
        ]
        return Results(
            ordered,
            model=self.model.describe(),
            spec=self.spec(),
            complete=complete,
            warnings=self.resolved.warnings,
        )

    def spec(self) -> dict[str, object]:
        """The full specification and the software that ran it (rule 22), as plain JSON."""
        return provenance(self.sweep, runner=self.runner_name)

    def row(self, request: Request, result: Result | None = None) -> Row:
        """A request with its result, or with the reason why it has none."""
        cell = request.cell
        if result is not None and result.failure is not None:
            request, result = replace(request, status="failed", reason=result.failure), None
        return Row(
            cell=cell.identity() if cell is not None else None,
            source=request.source,
            source_index=request.source_index,
            position=request.position,
            token=request.token,
            source_layer=request.source_layer,
            target_layer=request.target_layer,
            target_positions=request.target_positions,
            prompt=request.prompt,
            control=request.control,
            draw=request.draw,
            sample=request.sample,
            text=result.text if result else None,
            token_ids=result.token_ids if result else None,
            finish_reason=result.finish_reason if result else None,
            top=result.top if result else None,
            entropy=result.entropy if result else None,
            expected=matches(result.text, request.expect)
            if result and result.text is not None and request.expect
            else None,
            flags=request.flags,
            status=request.status,
            reason=request.reason,
            model=self.model.id,
            seed=self.sweep.seed,
        )


def plan_inspection(
    model: Model,
    sweep: Sweep,
    resolved: Resolved,
    *,
    make_runner: Callable[[Model], Runner],
    runner_name: str,
    budget: Budget,
) -> Inspection:
    """Compile the distinct cells of `resolved`: equal identities run once and give a row each.

    Raises OptionError where one row alone is over the budget.
    """
    cells: dict[str, Cell] = {}
    askers: dict[str, list[int]] = {}
    for index, request in enumerate(resolved.requests):
        if request.cell is not None and request.status == "ok":
            identity = request.cell.identity()
            cells.setdefault(identity, request.cell)
            askers.setdefault(identity, []).append(index)
    plan = compile_plan(tuple(cells.values()), shape_of(model), budget)
    return Inspection(model, sweep, resolved, make_runner, runner_name, plan, tuple(map(tuple, askers.values())))


def shape_of(model: Model) -> ModelShape:
    """What a plan needs to know of `model`."""
    return ModelShape(
        n_layers=model.n_layers,
        d_model=model.d_model,
        d_vocab=model.d_vocab,
        kv_bytes_per_token=model.kv_bytes_per_token,
        n_matrix_parameters=model.n_matrix_parameters,
        itemsize=model.dtype.itemsize,
        shares_prefix=sharing(model) == "shared",
    )


def run_cells(model: Model, runner: Runner, cells: Sequence[Cell], budget: Budget) -> list[Result]:
    """Run `cells`, which must be distinct, and return their results in the same order."""
    plan = compile_plan(cells, shape_of(model), budget)
    return sorted(runner.run(plan), key=lambda result: result.index)
