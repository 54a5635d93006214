"""A workload through the public call: its time, its memory, and whether its results are the reference's.

**Time** is that of the whole `patchscopes.inspect(...)`: resolving, planning, source passes, prefix, decoding and
making rows. It is repeated as long as the time allowed lasts; what is reported is the median, and the spread (largest
less smallest, as a share of the median) is the noise.

**Memory** is resident memory, in this process, which does nothing else. `memory_after_load_bytes` is read after the
model is loaded and one cell of the workload has been run, so that weights that the engine lays out anew are part of
it. `peak_rss_bytes` is the peak during the timed calls, and what they return is part of that. The promise is that it
is never above the first plus the budget that the calls were given.

**Agreement**: a random sample of the cells is run again, one at a time, by `runner="reference"`, and compared with the
rows of the last timed call. Texts are compared token
by token up to the first near-tie (two highest logits closer than 1e-4, rule 9 of docs/semantics.md), next-token
distributions by their log-probabilities (within 1e-3) and first token, anything else number by number (within 1e-3).

    python -m bench.engine G [--fraction 1] [--repeats 3] [--seconds 60] [--memory-mib 1024] [--reference-cells 6]
"""

import argparse
import gc
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import patchscopes as ps
from bench.memory import peak_rss_bytes, reset_peak, settled_rss_bytes
from bench.workloads import CANDIDATES, MODEL, Workload, check_lengths, token_ids, workloads

NEAR_TIE = 1e-4
LOGPROB_TOLERANCE = 1e-3
SEED = 0
# What of a result is compared as text and next tokens; the rest is compared number by number.
WRITTEN = ("text", "token_ids", "finish_reason", "top")
# Cells that the baselines may draw on: more than they get through in their time.
SAMPLES = {"G": 60, "N": 20 * 64, "C": 400}


def main() -> None:
    """Run one workload; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=SAMPLES)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the sources")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="after which no repeat is begun")
    parser.add_argument("--memory-mib", type=int, default=1024, help="the budget that calls are given")
    parser.add_argument("--reference-cells", type=int, default=6)
    options = parser.parse_args()
    model = ps.load(options.model)
    check_lengths(model.tokenizer)
    workload = workloads(model.n_layers)[options.workload].part(options.fraction)
    budget = options.memory_mib * 2**20
    report, rows = timed(model, workload, budget=budget, repeats=options.repeats, seconds=options.seconds)
    inspection = ps.prepare(model, workload.sources, **workload.options)
    report |= counts(workload, inspection.requests, rows)
    report["candidate_lengths"] = [len(token_ids(model.tokenizer, text)) for text in CANDIDATES]
    report["candidate_ids"] = [token_ids(model.tokenizer, text) for text in CANDIDATES]
    report["sample"] = sample(inspection.requests, rows, SAMPLES[workload.name])
    report["reference"] = agreement(model, workload, inspection.requests, rows, options.reference_cells)
    report |= {"folder": model.hf.name_or_path, "model": model.describe()}
    print(json.dumps(report))


def timed(model: Any, workload: Workload, *, budget: int, repeats: int, seconds: float) -> tuple[dict[str, Any], Any]:
    """Times and memory of the whole call, and the rows of the last one."""
    one = {**workload.options, "source_layers": 1, "target_layers": "same"}
    ps.inspect(model, workload.sources[:1], memory_bytes=budget, **one)
    after_load = settled_rss_bytes()
    since_load = reset_peak()
    times: list[float] = []
    rows: Any = None
    while len(times) < repeats and sum(times) < seconds:
        rows = None
        gc.collect()
        start = time.perf_counter()
        rows = ps.inspect(model, workload.sources, memory_bytes=budget, **workload.options)
        times.append(time.perf_counter() - start)
    peak = peak_rss_bytes()
    median = statistics.median(times)
    return {
        "workload": workload.name,
        "about": workload.about,
        "sources": len(workload.sources),
        "seconds": median,
        "repeats": times,
        "noise": (max(times) - min(times)) / median if len(times) > 1 else None,
        "memory_after_load_bytes": after_load,
        "memory_budget_bytes": budget,
        "peak_rss_bytes": peak,
        "peak_is_since_load": since_load,
        "memory_within_budget": peak <= after_load + budget,
    }, rows


def counts(workload: Workload, requests: Sequence[Any], rows: Any) -> dict[str, Any]:
    """What the needed arithmetic is counted from: distinct cells by ℓ*, and tokens that came back."""
    distinct = {(request.cell.target_ids, request.cell.write): request for request in requests if is_run(request)}
    by_identity = {row.cell: len(row.token_ids or ()) for row in rows}
    return {
        "cells": len(distinct),
        "cells_at": Counter(request.target_layer for request in distinct.values()),
        "generated_tokens": sum(by_identity.values()) if workload.name == "G" else 0,
        "statuses": Counter(row.status for row in rows),
    }


def is_run(request: Any) -> bool:
    """Whether a request is a cell that runs: not inert, not failed, no control."""
    return request.cell is not None and request.cell.write is not None and request.status == "ok"


def sample(requests: Sequence[Any], rows: Any, n_cells: int) -> list[dict[str, Any]]:
    """A random sample of cells, in plain numbers for those who know nothing of this package, with what came out."""
    running = [index for index, request in enumerate(requests) if is_run(request)]
    chosen = random.Random(SEED).sample(running, min(n_cells, len(running)))
    ordered = list(rows)
    return [plain_cell(requests[index], ordered[index]) for index in chosen]


def plain_cell(request: Any, row: Any) -> dict[str, Any]:
    """One cell: ids and places, and the tokens that the engine found (None where it scored candidates)."""
    state = request.cell.write.vectors[0]
    scored = row.candidate is not None
    came_out = None if scored else list(row.token_ids) if row.token_ids else [row.top[0].token_id] if row.top else None
    return {
        "source_index": request.source_index,
        "source_ids": state.ids,
        "source_position": state.position,
        "source_layer": state.layer,
        "target_ids": request.cell.target_ids,
        "target_position": request.cell.write.positions[0],
        "target_layer": request.target_layer,
        "came_out": came_out,
    }


def agreement(model: Any, workload: Workload, requests: Sequence[Any], rows: Any, n_cells: int) -> dict[str, int]:
    """Run a random sample of the cells once more with the reference, and compare with the timed call's rows."""
    running = [request for request in requests if is_run(request)]
    timed_rows = {(row.cell, row.candidate): row for row in rows}
    pairs = []
    agreeing = 0
    for request in random.Random(SEED + 1).sample(running, min(n_cells, len(running))):
        options = {**workload.options, "source_layers": request.source_layer, "target_layers": request.target_layer}
        alone = ps.prepare(model, workload.sources[request.source_index], **options, runner="reference")
        if workload.name == "C":  # rows as well: what is asked is compared with the prompt alone
            scored = list(alone.results())
            agreeing += all(
                abs(row.logprob - timed_rows[row.cell, row.candidate].logprob) <= LOGPROB_TOLERANCE for row in scored
            )
            pairs.append(request)
            continue
        results = alone.make_runner(model).run(alone.plan)
        found = [(timed_rows[alone.plan.cells[result.index].identity(), None], result) for result in results]
        pairs += found
        agreeing += sum(agree(row, result) for row, result in found)
    return {"cells": len(pairs), "agreeing": agreeing}


def agree(row: Any, result: Any) -> bool:
    """Whether a row holds the reference's result, by rule 9: its text, its next tokens, and all other figures."""
    names = {field.name for field in fields(row)} & {field.name for field in fields(result)} - {
        "index",
        "gaps",
        "failure",
        *WRITTEN,
    }
    return (
        same_text(row.token_ids, result.token_ids, result.gaps)
        and same_next_tokens(row.top, result.top)
        and all(alike(getattr(row, name), getattr(result, name)) for name in names)
    )


def same_text(row: Any, result: Any, gaps: Sequence[float]) -> bool:
    """Whether two texts have the same tokens up to the first near-tie; `gaps` are the top-2 gaps of the steps."""
    if row is None or result is None:
        return row is result
    near_ties = (step for step, gap in enumerate(gaps) if gap < NEAR_TIE)
    compared = next(near_ties, max(len(row), len(result)))
    return tuple(row[:compared]) == tuple(result[:compared])


def same_next_tokens(row: Any, result: Any) -> bool:
    """Whether two lists of likeliest tokens begin with the same, or nearly tied, and give like log-probabilities."""
    if row is None or result is None:
        return row is result
    a, b = ({top.token_id: top.logprob for top in one} for one in (row, result))
    near_tie = len(result) > 1 and result[0].logprob - result[1].logprob < NEAR_TIE
    return (row[0].token_id == result[0].token_id or near_tie) and all(
        abs(a[token] - b[token]) <= LOGPROB_TOLERANCE for token in a.keys() & b.keys()
    )


def alike(a: Any, b: Any) -> bool:
    """Whether two values are the same, floats within the tolerance."""
    if is_dataclass(a):
        names = [field.name for field in fields(a)]
        return type(a) is type(b) and all(alike(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, float):
        return isinstance(b, float) and abs(a - b) <= LOGPROB_TOLERANCE
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


if __name__ == "__main__":
    main()
