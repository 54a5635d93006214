"""The bench counts what it says it counts, its baselines are the method, its report can be read. Nothing is timed."""

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.__main__ import finished
from bench.workloads import (
    CANDIDATES,
    SOURCES,
    MatrixParameters,
    Workload,
    candidates_flops,
    check_lengths,
    next_token_flops,
    text_flops,
    workloads,
)

import oracle
import patchscopes as ps
from bench import baselines, curve, engine, roofline, table
from families import build, tiny_tokenizer
from patchscopes.models import Model
from patchscopes.spec import Result, TopToken

BENCH = Path(__file__).resolve().parents[2] / "bench"
PARAMETERS = MatrixParameters(blocks=(10, 20, 30), head=5)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return ps.load(build("llama"), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("path", sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_explains_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"bench.{path.stem}" if path.stem != "__init__" else "bench")
    assert module.__doc__
    if hasattr(module, "main"):
        monkeypatch.setattr("sys.argv", [path.stem, "--help"])
        with pytest.raises(SystemExit) as end:
            module.main()
        assert end.value.code == 0
        assert "usage:" in capsys.readouterr().out


def test_the_peers_script_imports_nothing_of_ours() -> None:
    tree = ast.parse((BENCH / "peers_nnterp.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not {str(name).split(".")[0] for name in imported} & {"bench", "patchscopes", "tests"}


def test_a_generated_token_needs_all_blocks_and_the_head() -> None:
    assert text_flops(PARAMETERS, 7) == 2 * 7 * (10 + 20 + 30 + 5)


def test_a_next_token_needs_the_blocks_above_its_layer_and_the_head() -> None:
    assert next_token_flops(PARAMETERS, {0: 1}) == 2 * 65
    assert next_token_flops(PARAMETERS, {1: 4, 3: 2}) == 2 * (4 * (20 + 30 + 5) + 2 * 5)


def test_candidates_need_their_tokens_but_the_last() -> None:
    cells_at = {2: 3}
    assert candidates_flops(PARAMETERS, cells_at, [1, 1]) == next_token_flops(PARAMETERS, cells_at)
    assert candidates_flops(PARAMETERS, cells_at, [1, 4]) == 2 * 3 * (30 + 5) + 2 * 3 * 3 * 65


def test_matrix_parameters_are_those_of_linear_layers() -> None:
    blocks = [[torch.zeros(2, 3), torch.zeros(4, 2)], [torch.zeros(5, 2)]]
    assert roofline.parameters(blocks, torch.zeros(7, 3)) == MatrixParameters((14, 10), 21)


def test_the_rate_has_a_best_route() -> None:
    rate = roofline.measure([[torch.randn(8, 4), torch.randn(4, 8)]], torch.randn(16, 4), rows=[3], seconds=0.01)
    assert rate["flops_per_s"] > 0
    assert "mkl" in {one["route"] for one in rate["rates"]}
    assert {one["route"] for one in rate["rates"]} | rate["missing_routes"].keys() == set(roofline.ROUTES)


def test_workloads_are_of_the_stated_size() -> None:
    assert {name: len(workload.sources) for name, workload in workloads(30).items()} == {"G": 40, "N": 64, "C": 64}
    assert len(CANDIDATES) == 20
    assert len(workloads(30)["G"].part(0.25).sources) == 10
    assert len(workloads(30)["G"].part(0.01).sources) == 1


def test_lengths_are_checked_with_the_tokenizer() -> None:
    def words(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text.split())))}

    with pytest.raises(ValueError, match="tokens long"):
        check_lengths(words)


@pytest.mark.real
def test_lengths_hold_for_the_model_of_the_bench() -> None:
    check_lengths(ps.load("smollm2-135m").tokenizer)


def test_distinct_cells_and_tokens_that_came_back_are_counted(tiny: Model) -> None:
    options = {"prompt": "The color of {}", "controls": (), "max_new_tokens": 3, "source_layers": "0-2"}
    twice = Workload("G", "", ("the old mill", "the old mill"), options)
    rows = ps.inspect(tiny, twice.sources, **options)
    counted = engine.counts(twice, ps.prepare(tiny, twice.sources, **options).requests, rows)
    assert counted["cells"] == 3
    assert counted["cells_at"] == {0: 1, 1: 1, 2: 1}
    assert counted["generated_tokens"] == sum(len(row.token_ids or ()) for row in rows) / 2
    report, _ = engine.timed(tiny, twice, budget=2**30, repeats=2, seconds=60)
    assert len(report["repeats"]) == 2
    assert report["peak_rss_bytes"] > 0


@pytest.mark.parametrize("target_layers", ["same", "all"])
def test_the_sample_and_the_baselines_are_the_method(tiny: Model, target_layers: str) -> None:
    """One at a time, the official batch and a scored candidate, against the tests' own oracle."""
    sources = ("the old mill", "my brother plays the violin")
    options = {"prompt": "The color of {} is", "controls": (), "max_new_tokens": 4, "target_layers": target_layers}
    requests = ps.prepare(tiny, sources, **options).requests
    cells = [json.loads(json.dumps(cell)) for cell in engine.sample(requests, ps.inspect(tiny, sources, **options), 12)]
    with torch.inference_mode():
        batched = baselines.official_batched(tiny.hf, cells)
        for cell, (first,) in zip(cells, batched, strict=True):
            what = oracle.Source(cell["source_ids"], cell["source_position"], cell["source_layer"])
            target = oracle.Target(cell["target_ids"], [cell["target_position"]], cell["target_layer"])
            run = oracle.patchscope(tiny.hf, what, target, max_new_tokens=4)
            (found,) = baselines.one_at_a_time(tiny.hf, [cell | {"max_new_tokens": 4}])
            assert tuple(found) == tuple(run.token_ids)
            assert first == run.token_ids[0]
            likeliest = baselines.answer_logprob(tiny.hf, cell | {"candidate": list(run.token_ids[:2])})
            assert likeliest > baselines.answer_logprob(tiny.hf, cell | {"candidate": [run.token_ids[0], 3]})


def test_agreement_ends_at_a_near_tie() -> None:
    row = Result(0, "", (1, 2, 9), "length")
    assert engine.agree(row, Result(5, "", (1, 2, 9), "length", gaps=(1.0, 1.0, 1.0)))
    assert not engine.agree(row, Result(5, "", (1, 2, 3), "length", gaps=(1.0, 1.0, 1.0)))
    assert engine.agree(row, Result(5, "", (1, 2, 3), "length", gaps=(1.0, 1.0, 1e-5)))
    assert not engine.agree(row, Result(5, None, None, None, failure="no"))


def test_next_token_distributions_agree_within_the_tolerance() -> None:
    def next_token(first: float, entropy: float) -> Result:
        return Result(0, None, None, None, top=(TopToken("a", 1, first), TopToken("b", 2, -1.5)), entropy=entropy)

    result = next_token(-0.5, 1.0)
    assert engine.agree(next_token(-0.5004, 1.0004), result)
    assert not engine.agree(next_token(-0.52, 1.0), result)
    assert not engine.agree(next_token(-0.5, 1.1), result)


def test_the_sample_agrees_with_the_reference(tiny: Model) -> None:
    options = {"prompt": "The color of {}", "controls": (), "max_new_tokens": 3}
    workload = Workload("G", "", ("the old mill",), options)
    requests = ps.prepare(tiny, workload.sources, **options).requests
    rows = ps.inspect(tiny, workload.sources, **options)
    assert engine.agreement(tiny, workload, requests, rows, 3) == {"cells": 3, "agreeing": 3}


def test_curve_points_grow_one_thing_at_a_time() -> None:
    def words(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text.split())))}

    points = list(curve.points(30, words))
    assert {point.axis for point in points} == {"sources", "layers", "new tokens", "controls", "prompt"}
    assert [point.value for point in points if point.axis == "prompt"] == ["30 tokens", "300 tokens", "1500 tokens"]
    assert max(len(SOURCES), 40) >= max(len(point.sources) for point in points)


RATE = {
    "flops_per_s": 1e9,
    "best": {"route": "mkl", "rows": 240, "gflops_per_s": 1.0},
    "rates": [{"route": "mkl", "rows": 240, "gflops_per_s": 1.0}],
    "missing_routes": {"repacked": "not in this torch"},
    "block_parameters": [10, 20, 30],
    "head_parameters": 5,
    "threads": 2,
}


def measured(name: str) -> dict[str, Any]:
    return {
        "workload": name,
        "about": "a few cells",
        "sources": 2,
        "cells": 10,
        "cells_at": {"1": 10},
        "generated_tokens": 200,
        "candidate_lengths": [1, 3],
        "seconds": 0.5,
        "repeats": [0.5],
        "noise": None,
        "peak_rss_bytes": 2,
        "memory_after_load_bytes": 1,
        "memory_budget_bytes": 4,
        "memory_within_budget": True,
        "statuses": {"ok": 9, "failed": 1},
        "reference": {"cells": 2, "agreeing": 2},
        "baseline": {"ms_per_cell": 500.0, "seconds": 20.0, "cells": 40, "compared": 40, "same_tokens": 40},
    }


def test_ratios_are_made_of_the_parts() -> None:
    g = finished(measured("G") | {"nnterp": {"ms_per_cell": 100.0}}, RATE)
    assert g["ms_per_cell"] == 50
    assert g["speedup_vs_one_at_a_time"] == 10
    assert g["speedup_vs_nnterp"] == 2
    assert g["roofline_fraction"] == pytest.approx(2 * 200 * 65 / 0.5 / 1e9)
    assert g["speedup_vs_official_batched"] is None
    c = finished(measured("C"), RATE)
    assert c["ms_per_candidate"] == 25
    assert c["speedup_vs_full_forward"] == 20
    assert c["roofline_fraction"] == pytest.approx(2 * 10 * (55 + 2 * 65) / 0.5 / 1e9)


def test_the_report_can_be_read_with_parts_missing(capsys: pytest.CaptureFixture[str]) -> None:
    missing = {"error": "not installed"}
    workload_reports = [
        finished(measured("G") | {"nnterp": missing}, RATE),
        finished(measured("N") | {"baseline": missing}, missing),
        {"workload": "C", "error": "no such readout"},
    ]
    report = {
        "machine": {"processor": "a processor", "cores": 2, "load_average": 0.1},
        "versions": {"torch": "2"},
        "commit": None,
        "rate": RATE,
        "workloads": workload_reports,
        "first_text": {"seconds": 3.0},
        "curve": [{"model": "m", **missing}],
        "minutes": 1.0,
    }
    table.print_tables(report)
    out = capsys.readouterr().out
    for expected in (
        "not installed",
        "no such readout",
        "within the budget",
        "reached",
        "not in this torch",
        "1 failed",
    ):
        assert expected in out
