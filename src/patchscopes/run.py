"""The one loop: requests → those without a row → distinct cells → Plan → Runner → rows, kept as they finish.

An `Inspection` is a request that has been resolved and found good. Nothing has run yet: what follows can only be
slow, interrupted or refused by memory, and either way every request ends as exactly one row.
"""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from patchscopes.compute import columns_at_once
from patchscopes.compute.attention import (
    OWN_MASK_BYTES,
    OWN_SCORE_BYTES,
    PLAIN_MASK_BYTES,
    PLAIN_SCORE_BYTES,
    kernel_runs,
)
from patchscopes.errors import RunChangedError
from patchscopes.kv import sharing
from patchscopes.mappings import Transfer
from patchscopes.models import Model
from patchscopes.plan import Budget, Explanation, ModelShape, Plan, Runner, compile_plan
from patchscopes.provenance import provenance
from patchscopes.resolve import Resolved
from patchscopes.results import Results
from patchscopes.rows import Made, row_of, with_baselines
from patchscopes.spec import Cell, Request, Result, Row, Sweep
from patchscopes.speed import measure_speed
from patchscopes.store import Head, Writer, open_writer


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


@dataclass(frozen=True)
class Inspection:
    """A resolved sweep on a model, or from one to another, and the runner to run it with.

    `folder` keeps rows where there is one.
    """

    transfer: Transfer
    sweep: Sweep
    resolved: Resolved
    make_runner: Callable[[Transfer], Runner]
    runner_name: str
    budget: Budget
    folder: Path | None = None

    @property
    def model(self) -> Model:
        """The model that states are read from."""
        return self.transfer.source

    @property
    def target(self) -> Model:
        """The model that they are written into."""
        return self.transfer.target

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
        shapes = shape_of(self.target), shape_of(self.model)
        plan = compile_plan(tuple(cells.values()), shapes[0], self.budget, source_shape=shapes[1])
        number = {identity: k for k, identity in enumerate(cells)}
        baselines = {number[identity]: number[baseline] for identity, baseline in compared.items()}
        return Work(tuple(idle), plan, tuple(map(tuple, askers.values())), baselines)

    def run(self, work: Work) -> Iterator[tuple[int, Row]]:
        """Yield (index of the request, row) as rows finish: first those that need no run."""
        for index in work.idle:
            yield index, self.row(index)
        if not work.plan.cells:
            return
        results = self.make_runner(self.transfer).run(work.plan)
        for result, baseline in with_baselines(results, work.baselines):
            for index in work.askers[result.index]:
                yield index, self.row(index, result, baseline=baseline)

    @contextmanager
    def session(self) -> Iterator["Session"]:
        """Open `folder`, where there is one, and find out what remains.

        Raises what `patchscopes.store.open_writer` raises, and OptionError where a row is over the budget.
        """
        if self.folder is None:
            yield Session(self, None, self.work)
            return
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
            warnings=self.resolved.warnings,
        )

    def spec(self) -> dict[str, object]:
        """The full specification, what states go through, and the software that ran it (rule 22), as plain JSON."""
        return provenance(self.sweep, runner=self.runner_name) | self.transfer.describe()

    def head(self) -> Head:
        """What a run of this is of, as a store needs to know it."""
        sweep = asdict(self.sweep)
        made_by = {key: value for key, value in self.spec().items() if key not in sweep}
        model = self.model
        return Head(sweep, model.identity, model.describe(), made_by, len(self.requests), self.resolved.warnings)

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
        """Run what remains, keep it, and yield (index of the request, row) as rows finish."""
        for index, row in self.inspection.run(self.work):
            if self.writer is not None:
                self.writer.append(index, row)
            yield index, row


def shape_of(model: Model) -> ModelShape:
    """What a plan needs to know of `model`."""
    row_pair_bytes, text_pair_bytes = _pair_bytes(model)
    return ModelShape(
        n_layers=model.n_layers,
        d_model=model.d_model,
        d_vocab=model.d_vocab,
        kv_bytes_per_token=model.kv_bytes_per_token,
        n_matrix_parameters=model.n_matrix_parameters,
        itemsize=model.dtype.itemsize,
        shares_prefix=sharing(model) == "shared",
        head_columns=columns_at_once(model),
        row_pair_bytes=row_pair_bytes,
        text_pair_bytes=text_pair_bytes,
    )


def _pair_bytes(model: Model) -> tuple[int, int]:
    """Return what attention makes for each pair of tokens: of rows beside their prefix, and of whole texts."""
    config = model.hf.config.get_text_config(decoder=True)
    n_heads = int(config.num_attention_heads)
    d_head = int(getattr(config, "head_dim", None) or model.d_model // n_heads)
    eager = config._attn_implementation in ("eager", None)  # the others have no scores in memory, but may have a mask
    texts = OWN_MASK_BYTES + (OWN_SCORE_BYTES * n_heads if eager else 0)
    if sharing(model) != "shared":
        return texts, texts
    like = [
        torch.empty(1, d, dtype=model.dtype, device=model.device)
        for d in (d_head, int(getattr(config, "v_head_dim", None) or d_head))
    ]
    return 0 if kernel_runs(*like) else PLAIN_MASK_BYTES + PLAIN_SCORE_BYTES * n_heads, texts


def run_cells(model: Model, runner: Runner, cells: Sequence[Cell], budget: Budget) -> list[Result]:
    """Run `cells`, which must be distinct, and return their results in the same order."""
    plan = compile_plan(cells, shape_of(model), budget)
    return sorted(runner.run(plan), key=lambda result: result.index)
