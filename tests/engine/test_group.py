"""Continuous batching: rows that end leave and others take their places, and memory that runs out halves them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import ceil
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from cells import AMPLE, PROMPTS, SOURCES, fresh, grid, make_cell, state_cell
from conftest import tiny_model
from patchscopes import errors
from patchscopes.compute import Compute
from patchscopes.engine import Engine, group, start
from patchscopes.engine import candidates as scoring
from patchscopes.forward import Span, forward
from patchscopes.hooks import returns_tuples
from patchscopes.kv import Rows
from patchscopes.models import Model
from patchscopes.plan import Budget, compile_plan
from patchscopes.readouts import Writing
from patchscopes.reference import Reference
from patchscopes.run import run_cells, shape_of
from patchscopes.spec import Cell, Result, Site, State, Write


@dataclass
class Passes:
    """What ran, in order: ("start" | "decode" | "answers", rows); `before` may refuse a pass."""

    seen: list[tuple[str, int]] = field(default_factory=list)
    before: Callable[[str, int], None] = lambda _, __: None

    def of(self, kind: str) -> list[int]:
        return [count for what, count in self.seen if what == kind]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    found = Passes()

    def watched(kind: str) -> Callable[..., Tensor]:
        def run(compute: Compute, rows: Rows, span: Span, ids: Tensor, **options: Any) -> Tensor:
            found.before(kind, span.count)
            found.seen.append((kind, span.count))
            return forward(compute, rows, span, ids, **options)

        return run

    for module, kind in ((start, "start"), (group, "decode"), (scoring, "answers")):
        monkeypatch.setattr(module, "forward", watched(kind))
    return found


def of_lengths(model: Model, lengths: Sequence[int]) -> list[Cell]:
    """Cells on one prompt that end after so many tokens each, all different."""
    n = model.n_layers + 1
    cells = [state_cell(model, k % 3, 0, (k % n, (k // n) % n)) for k in range(len(lengths))]
    return [
        replace(cell, decoding=replace(cell.decoding, max_new_tokens=length, eos_ids=()))
        for cell, length in zip(cells, lengths, strict=True)
    ]


@cache
def expected_of(cell: Cell) -> Result:
    return Reference(tiny_model("llama")).run_cell(cell)


def check(model: Model, cells: Sequence[Cell], results: Sequence[Result]) -> None:
    """They are the reference's, one for each cell."""
    assert [result.index for result in results] == list(range(len(cells)))
    assert model is tiny_model("llama")
    for cell, result in zip(cells, results, strict=True):
        expected = expected_of(cell)
        if min(expected.gaps, default=1) > 1e-3:
            assert (result.text, result.token_ids) == (expected.text, expected.token_ids)
            assert result.finish_reason == expected.finish_reason


LENGTHS = (9, 1, 4, 4, 2, 7, 1, 1, 3, 8, 5, 2, 6, 1, 9, 3, 2, 2)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5])
def test_the_batch_is_full_as_long_as_cells_wait(passes: Passes, max_rows: int) -> None:
    model = tiny_model("llama")
    cells = of_lengths(model, LENGTHS)
    plan = compile_plan(cells, shape_of(model), Budget(AMPLE, max_rows))
    ((one,),) = (wave.groups for wave in plan.waves)
    check(model, cells, sorted(Engine(model).run(plan), key=lambda result: result.index))
    started = 0
    for kind, count in passes.seen:
        started += count if kind == "start" else 0
        assert count <= one.n_rows
        if kind == "decode" and started < len(cells):
            assert count == one.n_rows, "no place is empty while a cell waits"
    assert started == len(cells), "each cell starts once"
    steps = sum(LENGTHS) - len(cells)
    assert sum(passes.of("decode")) == steps, "a row runs no token more than it writes"
    assert ceil(steps / one.n_rows) <= len(passes.of("decode")) <= steps / one.n_rows + max(LENGTHS)


def test_texts_that_end_leave_their_places_at_once(passes: Passes) -> None:
    """In batches that wait for the longest this would take 18 passes of decoding."""
    model = tiny_model("llama")
    run_cells(model, Engine(model), of_lengths(model, [10, 1, 1, 1, 1, 1, 1, 1, 10, 1, 1, 1]), Budget(AMPLE, 4))
    assert len(passes.of("decode")) <= 9 + 2


def test_few_free_places_wait_for_others(passes: Passes) -> None:
    """Of 16 places two are to be free before a start, which is a pass of its own."""
    model = tiny_model("llama")
    lengths = [2 + k for k in range(16)] + [3] * 9
    run_cells(model, Engine(model), of_lengths(model, lengths), Budget(AMPLE, 16))
    starts = passes.of("start")
    assert starts[0] == 13, "25 cells are two batches of equal size"
    assert all(count >= 2 for count in starts[:-1])


def test_cells_start_in_the_order_of_their_group_and_end_as_they_end(
    monkeypatch: pytest.MonkeyPatch, passes: Passes
) -> None:
    model = tiny_model("llama")
    cells = of_lengths(model, LENGTHS)
    order: list[Cell] = []
    original = group.start_rows

    def started(compute: Compute, rows: Rows, cells: Sequence[Cell], *rest: Any) -> Tensor:
        order.extend(cells)
        return original(compute, rows, cells, *rest)

    monkeypatch.setattr(group, "start_rows", started)
    plan = compile_plan(cells, shape_of(model), Budget(AMPLE, 4))
    ended = [result.index for result in Engine(model).run(plan)]
    assert order == [cells[index] for index in plan.waves[0].groups[0].cells]
    assert sorted(ended) == list(range(len(cells)))
    assert ended != sorted(ended)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bloom", "gemma3"])
@pytest.mark.parametrize("max_rows", [1, 3, 40])
def test_the_cost_of_a_plan_is_what_runs(
    monkeypatch: pytest.MonkeyPatch, passes: Passes, family: str, max_rows: int
) -> None:
    """Where all texts have their full length; where some end early it is less."""
    model = tiny_model(family)
    cells = of_lengths(model, [5] * 12)
    plan = compile_plan(cells, shape_of(model), Budget(AMPLE, max_rows))
    returns_tuples(model)  # which needs a pass of its own, once
    runs = []
    forward = Model.forward_of
    monkeypatch.setattr(Model, "forward_of", lambda *args: runs.append(1) or forward(*args))
    list(Engine(model).run(plan))
    assert len(runs) == plan.cost.forward_passes
    assert sum(passes.of("decode")) == plan.cost.decoded_tokens


def test_only_the_cells_of_a_waves_own_states_are_captured(monkeypatch: pytest.MonkeyPatch, passes: Passes) -> None:
    """A budget so small that waves are cut: each state and each prompt is run once in each wave that needs it."""
    model = tiny_model("llama")
    prompts = [((*PROMPTS[0][0][:4], 90 + k, *PROMPTS[0][0][5:] * 4), PROMPTS[0][1]) for k in range(24)]
    cells = [
        make_cell(model, Write(Site(layer), positions, (State(*SOURCES[layer % 3], layer),)), ids)
        for ids, positions in prompts
        for layer in range(3)
    ]
    small = Budget(2**20)
    plan = compile_plan(cells, shape_of(model), small)
    assert len(plan.waves) > 2
    captured: list[State] = []
    from patchscopes.engine.states import _Captured

    original = _Captured._capture

    def capture(self: _Captured, batch: Any) -> Any:
        captured.extend(state for source in batch for state in source.states)
        return original(self, batch)

    monkeypatch.setattr(_Captured, "_capture", capture)
    few = run_cells(model, Engine(model), cells, small)
    wanted = [state for wave in plan.waves for batch in wave.source_batches for p in batch for state in p.states]
    assert captured == wanted
    assert len(set(wanted)) == 3
    assert few == run_cells(model, Engine(model), cells, Budget(AMPLE))


# -------------------------------------------------------------------------------------------------------- out of memory

OUT = [
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4194304000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError("Unable to allocate 3.00 GiB"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4194304 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
    RuntimeError("std::bad_alloc"),
]
# oneDNN's words, whatever the reason.
UNEXPLAINED = [
    RuntimeError("could not create a primitive"),
    RuntimeError("could not execute a primitive"),
    RuntimeError("could not create a memory object"),
]


def refuse_above(k: int, error: Exception) -> Callable[[str, int], None]:
    def before(_: str, count: int) -> None:
        if count > k:
            raise error

    return before


@pytest.mark.parametrize(("most", "error"), [(1, OUT[0]), (2, OUT[1]), (5, OUT[2]), (1, OUT[3]), (2, OUT[4])])
def test_where_memory_runs_out_rows_are_halved_until_they_fit(passes: Passes, error: Exception, most: int) -> None:
    model = tiny_model("llama")
    cells = of_lengths(model, LENGTHS)
    passes.before = refuse_above(most, error)
    check(model, cells, run_cells(model, Engine(model), cells, Budget(AMPLE)))
    rows = passes.of("start") + passes.of("decode")
    assert max(rows) == {1: 1, 2: 2, 5: 4}[most], "18, then 9, 4, 2, 1"


@pytest.fixture(params=["machine", "process"])
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory: by what the machine has left, or by what a process may ask for."""
    if request.param == "machine":
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
        return
    real = torch.empty

    def empty(*size: Any, **options: Any) -> Tensor:
        if options.get("dtype") is torch.uint8:
            raise OUT[0]
        return real(*size, **options)

    monkeypatch.setattr(torch, "empty", empty)


@pytest.mark.parametrize("error", UNEXPLAINED, ids=str)
def test_an_error_without_a_reason_is_of_memory_where_memory_is_short(
    passes: Passes, short: None, error: Exception
) -> None:
    model = tiny_model("llama")
    cells = of_lengths(model, LENGTHS)
    passes.before = refuse_above(2, error)
    check(model, cells, run_cells(model, Engine(model), cells, Budget(AMPLE)))
    assert max(passes.of("start") + passes.of("decode")) == 2


def test_a_product_that_onednn_has_no_way_for_is_never_of_memory(passes: Passes, short: None) -> None:
    """Widths that do not fit, or a dtype: it says so before it asks for memory."""
    model = tiny_model("llama")
    error = RuntimeError("could not create a primitive descriptor for the inner product forward propagation primitive")
    passes.before = refuse_above(2, error)
    with pytest.raises(RuntimeError) as e:
        run_cells(model, Engine(model), of_lengths(model, LENGTHS), Budget(AMPLE))
    assert e.value is error


@pytest.mark.parametrize("error", UNEXPLAINED, ids=str)
def test_an_error_without_a_reason_passes_as_it_is_where_memory_is_not_short(passes: Passes, error: Exception) -> None:
    """Autocast, for one, has oneDNN say it of a dtype."""
    model = tiny_model("llama")
    passes.before = refuse_above(2, error)
    with pytest.raises(RuntimeError) as e:
        run_cells(model, Engine(model), of_lengths(model, LENGTHS), Budget(AMPLE))
    assert e.value is error
    assert passes.seen == [], "and is not tried again"


@pytest.mark.parametrize("at", [0, 1, 3, 6])
@pytest.mark.parametrize("max_rows", [3, 8])
def test_memory_that_runs_out_once_costs_only_time(passes: Passes, at: int, max_rows: int) -> None:
    """In whichever pass it happens: what had not ended begins again."""
    model = tiny_model("llama")
    cells = of_lengths(model, LENGTHS)
    count = [0]

    def before(_: str, __: int) -> None:
        count[0] += 1
        if count[0] == at + 1:
            raise OUT[0]

    passes.before = before
    check(model, cells, run_cells(model, Engine(model), cells, Budget(AMPLE, max_rows)))


@pytest.mark.parametrize("place", ["keep", "add", "put", "best"])
def test_memory_that_runs_out_elsewhere_in_a_step_gives_each_result_once(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Where rows have begun, or have ended, and have not yet left."""
    from patchscopes.compute import Head

    model = tiny_model("llama")
    cells = of_lengths(model, LENGTHS)
    owner = Head if place == "best" else Rows
    original, calls = getattr(owner, place), [0]

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] in (1, 4, 9):
            raise OUT[0]
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, place, failing)
    check(model, cells, run_cells(model, Engine(model), cells, Budget(AMPLE, 9)))
    assert calls[0] > 4


@pytest.mark.parametrize("kind", ["next-token", "candidates"])
def test_memory_that_runs_out_in_other_readouts(passes: Passes, kind: str) -> None:
    model = tiny_model("llama")
    cells = [state_cell(model, k % 3, k % 4, (k % 5, k // 5), kind) for k in range(20)]
    if kind == "candidates":
        cells = [replace(cell, candidates=((5, 6, 7), (8,), (9, 10))) for cell in cells]
    expected = run_cells(model, Engine(model), cells, Budget(AMPLE))
    passes.before = refuse_above(3, OUT[0])
    found = run_cells(model, Engine(model), cells, Budget(AMPLE))
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert [t.token_id for t in a.top or ()] == [t.token_id for t in b.top or ()]


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
def test_one_row_that_does_not_fit_is_an_error_with_the_figures(passes: Passes, error: Exception) -> None:
    model = tiny_model("llama")
    passes.before = refuse_above(0, error)
    with pytest.raises(
        errors.OutOfMemoryError, match=r"out of memory with one row at a time on cpu, where .* MiB are free"
    ) as e:
        run_cells(model, Engine(model), of_lengths(model, LENGTHS), Budget(AMPLE))
    assert str(error) in str(e.value)
    assert e.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("no"), IndexError("no"), KeyboardInterrupt()]
)
def test_errors_that_are_not_of_memory_pass_through(passes: Passes, error: BaseException) -> None:
    model = tiny_model("llama")

    def before(kind: str, _: int) -> None:
        if kind == "decode":
            raise error

    passes.before = before
    with pytest.raises(type(error)) as e:
        run_cells(model, Engine(model), of_lengths(model, LENGTHS), Budget(AMPLE))
    assert e.value is error
    assert passes.of("start") == [18], "nothing begins again"


def test_results_that_were_there_before_memory_ran_out_are_not_given_again(passes: Passes) -> None:
    model = tiny_model("llama")
    cells = of_lengths(model, LENGTHS)
    failed = [False]

    def before(kind: str, _: int) -> None:
        if kind == "decode" and len(passes.of("decode")) == 5 and not failed[0]:
            failed[0] = True
            raise OUT[0]

    passes.before = before
    plan = compile_plan(cells, shape_of(model), Budget(AMPLE))
    given = [result.index for result in Engine(model).run(plan)]
    assert failed[0]
    assert sorted(given) == list(range(len(cells)))


def test_a_reader_that_stops_leaves_the_model_as_it_was(passes: Passes) -> None:
    model = fresh("llama")
    results: Iterator[Result] = Engine(model).run(compile_plan(grid("llama"), shape_of(model), Budget(AMPLE, 4)))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not any("forward" in module.__dict__ for module in model.hf.modules())
    assert not model.hf.config._attn_implementation.startswith("patchscopes")


def test_writing_ends_by_its_own_count(llama: Model) -> None:
    """What makes the lengths of this file."""
    (cell,) = of_lengths(llama, [2])
    writing = Writing(llama, cell)
    assert [writing.add(5), writing.add(6)] == [False, True]
