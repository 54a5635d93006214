"""The one loop with a folder: only what remains is planned and run, and what means something else is refused."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import patchscopes
from patchscopes import api
from patchscopes.engine import Engine
from patchscopes.errors import OptionError, RunChangedError, RunInUseError
from patchscopes.models import Model
from patchscopes.plan import Plan
from patchscopes.results import Results
from patchscopes.run import Inspection
from patchscopes.spec import InspectionPrompt, Result, Source, Sweep
from patchscopes.store import Head

SOURCES = ["say the cat", "go to Spain"]
OPTIONS: dict[str, Any] = {"prompt": "the capital of {} is", "max_new_tokens": 4}


class Breaking:
    """The engine, which breaks down after some results; it remembers the plans that it was given."""

    plans: list[Plan]
    lasts: int = 10**9

    def __init__(self, model: Model) -> None:
        self.engine = Engine(model)

    def run(self, plan: Plan) -> Iterator[Result]:
        type(self).plans.append(plan)
        for count, result in enumerate(self.engine.run(plan)):
            if count == type(self).lasts:
                raise RuntimeError("the GPU fell off the bus")
            yield result


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> type[Breaking]:
    monkeypatch.setattr(Breaking, "plans", [], raising=False)
    monkeypatch.setattr(Breaking, "lasts", 3)
    monkeypatch.setattr(api, "RUNNERS", {**api.RUNNERS, "breaking": Breaking})
    return Breaking


def kept(model: Model, folder: Path, **changes: Any) -> Results:
    return patchscopes.inspect(model, SOURCES, run=folder, **{**OPTIONS, **changes})


def test_only_what_remains_is_planned_and_run(llama: Model, tmp_path: Path, breaking: type[Breaking]) -> None:
    with pytest.raises(RuntimeError, match="fell off"):
        kept(llama, tmp_path, runner="breaking")
    before = patchscopes.open_run(tmp_path)
    assert [row.status for row in before].count("ok") == 3
    breaking.lasts = 10**9
    results = kept(llama, tmp_path, runner="breaking")
    whole = patchscopes.inspect(llama, SOURCES, **OPTIONS)
    assert list(results) == list(patchscopes.open_run(tmp_path)) == list(whole)
    first, second = breaking.plans
    assert len(second.cells) == len(first.cells) - 3
    assert {cell.identity() for cell in second.cells}.isdisjoint(row.cell for row in before if row.status == "ok")
    kept(llama, tmp_path, runner="breaking")
    assert len(breaking.plans) == 2, "where nothing remains, no runner is asked"


def test_a_stream_gives_what_was_kept_first(llama: Model, tmp_path: Path, breaking: type[Breaking]) -> None:
    stream = patchscopes.stream(llama, SOURCES, run=tmp_path, **OPTIONS)
    taken = [next(stream) for _ in range(7)]
    with pytest.raises(RunInUseError):
        kept(llama, tmp_path)
    stream.close()  # type: ignore[attr-defined]
    assert set(patchscopes.open_run(tmp_path)) == set(taken)
    again = list(patchscopes.stream(llama, SOURCES, run=tmp_path, **OPTIONS))
    assert set(again[:7]) == set(taken)
    assert len(again) == len(set(again)) == 21


def test_equal_cells_run_once_also_when_one_of_their_rows_is_there(
    llama: Model, tmp_path: Path, breaking: type[Breaking]
) -> None:
    """Two sources with the same text ask for the same cells."""
    stream = patchscopes.stream(llama, ["say the cat", "say the cat"], run=tmp_path, controls=(), **OPTIONS)
    rows = [next(stream) for _ in range(3)]  # two inert rows, and one of two that ask for one cell
    stream.close()  # type: ignore[attr-defined]
    breaking.lasts = 10**9
    options = {**OPTIONS, "controls": (), "runner": "breaking", "run": tmp_path}
    results = patchscopes.inspect(llama, ["say the cat", "say the cat"], **options)
    assert results.complete
    assert [row.text for row in results[:5]] == [row.text for row in results[5:]]
    assert rows[2] in list(results)
    assert len(breaking.plans[0].cells) == 4


def test_another_meaning_of_the_same_specification_is_refused(llama: Model, tmp_path: Path) -> None:
    kept(llama, tmp_path)
    asked = api.prepare(llama, SOURCES, run=tmp_path, **OPTIONS)
    first, *others = asked.requests
    assert first.cell is not None
    moved = replace(first, cell=replace(first.cell, target_ids=(5, *first.cell.target_ids[1:])))
    changed: Inspection = replace(asked, resolved=replace(asked.resolved, requests=(moved, *others)))
    with pytest.raises(RunChangedError, match="at row 0, another cell than is asked for"):
        changed.results()


def test_a_row_over_the_budget_is_told_before_anything_runs(llama: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="memory budget"):
        kept(llama, tmp_path / "run", memory_bytes=1000)
    assert len(patchscopes.open_run(tmp_path / "run")) == 0
    assert kept(llama, tmp_path / "run").complete, "another budget is no other run"


def test_a_run_is_read_without_torch(llama: Model, tmp_path: Path) -> None:
    kept(llama, tmp_path)
    code = (
        "import sys, patchscopes; results = patchscopes.open_run(sys.argv[1]);"
        "print(len(results), results.complete, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["21", "True", "False"]


def test_what_a_run_is_of_has_the_digest_that_it_always_had() -> None:
    """Digits from the first version with rows of this schema: shards carry it."""
    sources = (Source("I went to Spain", at="Spain", expect=("Madrid",)), Source("x"))
    sweep = asdict(Sweep(sources, (InspectionPrompt("the {}"),), (0, 1)))
    head = Head(sweep, "sha256:ab|config:cd", {"id": "tiny", "dtype": "float32"}, {}, 6)
    assert head.digest() == "85350aa936af29c82638928ea770970874b9c70a9e604076a47b4f468a66194d"
    named = asdict(Sweep((sources[0], Source("x", item="x")), (InspectionPrompt("the {}"),), (0, 1)))
    assert replace(head, sweep=named).digest() != head.digest()
