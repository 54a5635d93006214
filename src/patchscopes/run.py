"""The one loop: requests → those without a row → distinct cells → Plan → Runner → rows, kept as they finish.

An `Inspection` is a request that has been resolved and found good. Nothing has run yet: what follows can only be
slow, interrupted or refused by memory, and either way every request ends as exactly one row.
"""

import gc
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

from patchscopes.cached import cached_property
from patchscopes.engine import shape_of
from patchscopes.errors import ModelChangedError, OptionError, RunChangedError
from patchscopes.foreign import running
from patchscopes.guard import Guard
from patchscopes.mappings import Transfer
from patchscopes.models import Model
from patchscopes.plan import Budget, Explanation, Plan, Runner, compile_plan, longest_text
from patchscopes.provenance import provenance
from patchscopes.resolve import Resolved, resolve
from patchscopes.results import Results
from patchscopes.rows import Made, row_of, with_baselines
from patchscopes.spec import Cell, Request, Result, Row, Sweep
from patchscopes.speed import measure_speed
from patchscopes.store import Head, Writer, open_writer
from patchscopes.trust import TrustedEngine, distrust, settle


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
class Work:
    """What remains to be done.

    `idle` are requests that need no run; `plan` holds each distinct cell of the others once, and `askers[k]` are the
    requests that ask for cell k of it. `baselines[k]` is the cell that k's candidates are compared with.
    """

    idle: tuple[int, ...]
    plan: Plan
    askers: tuple[tuple[int, ...], ...]
    baselines: Mapping[int, int]


@dataclass(eq=False)
class Inspection:
    """A resolved sweep on a model, or from one to another, and the runner to run it with.

    `folder` keeps rows where there is one. Where a model has changed since the sweep was resolved, it is resolved anew
    before it runs: identities are those of the model that runs (rule 0).
    """

    transfer: Transfer
    sweep: Sweep
    resolved: Resolved
    make_runner: Callable[[Transfer], Runner]
    runner_name: str
    budget: Budget
    folder: Path | None = None

    def __post_init__(self) -> None:
        self._state = self.transfer.state

    def follow(self) -> None:
        """Resolve the sweep anew where a model is no longer what it was when that was done.

        Raises UnsupportedModelError where a model cannot be run as it is, and a SpecError where the sweep does not fit.
        """
        self.transfer.current()
        state = self.transfer.state
        if state == self._state:
            return
        self._state = state
        self.sweep = self.transfer.named(self.sweep)
        self.resolved = resolve(self.transfer, self.sweep)
        for name in ("identities", "work"):
            self.__dict__.pop(name, None)

    @property
    def model(self) -> Model:
        """The model that states are read from."""
        return self.transfer.source

    @property
    def target(self) -> Model:
        """The model that they are written into."""
        return self.transfer.target

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know: of the request, and of what is attached to a model."""
        slow = [distrust(model, self._longest) for model in self.transfer.models] if self._by_engine else []
        return (*self.resolved.warnings, *filter(None, slow))

    @property
    def _by_engine(self) -> bool:
        return self.runner_name == TrustedEngine.name

    @property
    def _longest(self) -> int:
        return longest_text(request.cell for request in self.requests if request.cell is not None)

    def guard(self) -> Guard:
        """Watch the models, which are to be what they were when the sweep was resolved."""
        return Guard(self.transfer, [epoch for epoch, _ in self._state], compares=self._by_engine)

    @property
    def requests(self) -> tuple[Request, ...]:
        """One per row, in the order of Results."""
        return self.resolved.requests

    @cached_property
    def identities(self) -> tuple[str | None, ...]:
        """The identity of each request's cell; None where it has none."""
        found: list[str | None] = []
        last: Request | None = None
        for request in self.requests:
            # The candidates of a cell follow each other.
            same = last is not None and request.cell is last.cell
            found.append(found[-1] if same else None if request.cell is None else request.cell.identity())
            last = request
        return tuple(found)

    @cached_property
    def work(self) -> Work:
        """All that is asked for. Raises OptionError where one row alone is over the budget."""
        return self.remaining(())

    @property
    def plan(self) -> Plan:
        """The plan of all that is asked for, with its cost."""
        return self.work.plan

    def explain(self) -> Explanation:
        """What remains to be done, in passes, tokens and bytes, and how long it takes, beside one cell at a time.

        Times the model for a second or two. Raises as `session` does.
        """
        with self.session() as session:
            plan = session.work.plan
        groups = [group for wave in plan.waves for group in wave.groups]
        n_rows = max((group.n_rows for group in groups), default=1)
        with running(self.target.id):
            return plan.explain(measure_speed(self.target, n_rows=n_rows, top_k=self.sweep.readout.top_k))

    def compile(self) -> Plan:
        """Make the plan now. Raises OptionError where one row alone is over the budget."""
        return self.plan

    def remaining(self, done: Collection[int]) -> Work:
        """What is asked for by requests other than `done`: equal identities run once and give a row each.

        Raises OptionError where one row alone is over the budget.
        """
        idle: list[int] = []
        cells: dict[str, Cell] = {}
        askers: dict[str, list[int]] = {}
        compared: dict[str, str] = {}
        for index, request in enumerate(self.requests):
            if index in done:
                continue
            identity = self.identities[index]
            if request.cell is None or identity is None or request.status != "ok":
                idle.append(index)
                continue
            if request.baseline is not None and identity not in compared:
                # Ahead of the cells that wait for it, whether or not anyone asked for it.
                compared[identity] = baseline = request.baseline.identity()
                cells.setdefault(baseline, request.baseline)
                askers.setdefault(baseline, [])
            cells.setdefault(identity, request.cell)
            askers.setdefault(identity, []).append(index)
        settle(self.runner_name, self.transfer.models, self._longest)
        shapes = shape_of(self.target), shape_of(self.model)
        plan = compile_plan(tuple(cells.values()), shapes[0], self.budget, source_shape=shapes[1])
        number = {identity: k for k, identity in enumerate(cells)}
        baselines = {number[identity]: number[baseline] for identity, baseline in compared.items()}
        return Work(tuple(idle), plan, tuple(map(tuple, askers.values())), baselines)

    def run(self, work: Work, between: Callable[[], None] = lambda: None) -> Iterator[tuple[int, Row]]:
        """Yield (index of the request, row) as rows finish: first those that need no run.

        `between` is called between the plan's waves.
        """
        for index in work.idle:
            yield index, self.row(index)
        if not work.plan.cells:
            return
        with running(self.target.id):
            results = _between_waves(self.make_runner(self.transfer).run(work.plan), work.plan, between)
            for result, baseline in with_baselines(results, work.baselines):
                for index in work.askers[result.index]:
                    yield index, self.row(index, result, baseline=baseline)

    @contextmanager
    def session(self) -> Iterator["Session"]:
        """Open `folder`, where there is one, and find out what remains.

        Raises what `patchscopes.store.open_writer` raises, and OptionError where a row is over the budget.
        """
        self.follow()
        if self.folder is None:
            yield Session(self, None, self.work)
            return
        self._refuse_unhashed()
        with open_writer(self.folder, self.head()) as writer:
            self._check(writer)
            yield Session(self, writer, self.remaining(writer.done) if writer.done else self.work)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Every row with the index of its request: first those that were kept, then the others as they finish."""
        with self.session() as session:
            yield from session.kept().items()
            yield from session.rows()

    def results(self, rows: Mapping[int, Row] | None = None) -> Results:
        """All rows in order; runs what there is where none are given.

        A request without its row was interrupted: it is skipped, and the results are not complete.
        """
        if rows is None:
            with collector_paused():
                rows = dict(self.rows())
        done = rows
        skipped = "interrupted before this cell was run"
        ordered = [
            done[index] if index in done else self.row(index, skipped=skipped) for index in range(len(self.requests))
        ]
        return Results(
            ordered,
            model=self.model.describe(),
            spec=self.spec(),
            complete=len(done) == len(self.requests),
            warnings=self.warnings,
        )

    def spec(self) -> dict[str, object]:
        """The full specification, what states go through, and the software that ran it (rule 22), as plain JSON."""
        return provenance(self.sweep, runner=self.runner_name) | self.transfer.describe()

    def head(self) -> Head:
        """What a run of this is of, as a store needs to know it."""
        sweep = asdict(self.sweep)
        made_by = {key: value for key, value in self.spec().items() if key not in sweep}
        model = self.model
        return Head(sweep, model.identity, model.describe(), made_by, len(self.requests), self.warnings)

    def _refuse_unhashed(self) -> None:
        """Raise OptionError where a run directory could not tell what is attached to a model from something else."""
        for model in self.transfer.models:
            if found := model.unhashed:
                raise OptionError(
                    f"{model.id} has {found[0]}, which holds something that cannot be hashed, so that a run directory "
                    'could not tell its rows from others. Name what is attached: variant="NAME" (--variant NAME); the '
                    "name then stands for it, and another needs another name."
                )

    def _check(self, writer: Writer) -> None:
        """Raise RunChangedError where a kept row is of another cell than its request by now asks for."""
        for index, row in writer.done.items():
            if index >= len(self.requests) or row.cell != self.identities[index]:
                raise RunChangedError(
                    f"{self.folder} has, at row {index}, another cell than is asked for: the same specification is "
                    "resolved otherwise here (another tokenizer or version?). Give another directory."
                )

    def row(
        self, index: int, result: Result | None = None, *, skipped: str | None = None, baseline: Result | None = None
    ) -> Row:
        """The request at `index` with its result, or with the reason why it has none."""
        request = self.requests[index]
        if skipped is not None:
            request = replace(request, status="skipped", reason=skipped)
        made = Made(self.identities[index], self.model.id, self.target.id, self.sweep.seed)
        return row_of(request, result, made, baseline=baseline)


@dataclass(frozen=True, slots=True)
class Session:
    """An inspection that is open to be run. `writer` keeps what finishes, where the inspection has a folder."""

    inspection: Inspection
    writer: Writer | None
    work: Work

    @property
    def n_kept(self) -> int:
        """How many rows were there before."""
        return len(self.writer.done) if self.writer is not None else 0

    def kept(self) -> dict[int, Row]:
        """The rows that were there before, by the index of their request."""
        return self.writer.stored() if self.writer is not None else {}

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Run what remains, keep it, and yield (index of the request, row) as rows finish.

        A row is kept once the model was seen to be what it was when the run began. Raises ModelChangedError where it is
        not; the rows given since it last was are not kept.
        """
        guard = self.inspection.guard()
        given: deque[tuple[int, Row]] = deque()
        ended = False
        try:
            for index, row in self.inspection.run(self.work, lambda: self._hold(guard, given)):
                given.append((index, row))
                if guard.due:
                    self._hold(guard, given)
                yield index, row
            self._hold(guard, given)
            ended = True
        finally:
            for model in self.inspection.transfer.models:
                model.ran()
            # Interrupted or left alone: what was given is kept where the model is still what it was.
            if not ended and given and guard.holds():
                self._keep(given)

    def _hold(self, guard: Guard, given: deque[tuple[int, Row]]) -> None:
        """Look at the model, and keep what was given since the last look; it is then no longer in `given`."""
        indices = [index for index, _ in given]
        try:
            guard.hold(indices, kept=self.writer is not None)
        except ModelChangedError:
            given.clear()
            raise
        self._keep(given)

    def _keep(self, given: deque[tuple[int, Row]]) -> None:
        while given:
            index, row = given.popleft()  # first: a row that an interruption loses here is done anew, and none is twice
            if self.writer is not None:
                self.writer.append(index, row)


def _between_waves(results: Iterable[Result], plan: Plan, between: Callable[[], None]) -> Iterator[Result]:
    """Yield the results; where those of a wave have all been given, call `between` before the next one is run."""
    ends = set(accumulate(sum(len(group.cells) for group in wave.groups) for wave in plan.waves))
    for n, result in enumerate(results, start=1):
        yield result
        if n in ends and n < len(plan.cells):
            between()


def run_cells(model: Model, runner: Runner, cells: Sequence[Cell], budget: Budget) -> list[Result]:
    """Run `cells`, which must be distinct, and return their results in the same order."""
    settle(runner, (model,), longest_text(cells))
    plan = compile_plan(cells, shape_of(model), budget)
    with running(model.id):
        return sorted(runner.run(plan), key=lambda result: result.index)
