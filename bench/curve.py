"""How the cost of a cell grows with everything that can grow, one thing at a time.

    sources      1, 8, 40 sources × all layers (ℓ* = ℓ)
    layers       next token, 4 sources: ℓ* = ℓ at every fourth layer and at every layer; the same as a product ℓ × ℓ*
    prompt       inspection prompts of about 30, 300 and 1,500 tokens, 2 sources × 8 layers
    new tokens   1, 20, 100, 4 sources × 15 layers
    controls     none, the usual two, all six, 4 sources × 15 layers

A row here is whatever comes back, cells and controls, since controls cost what cells cost: `ms_per_row` is the time of
the whole public call over all rows that were run. Peak memory is watched beside it, against memory after load and the
budget, for every point: it must not grow with any of these. After `--seconds` no point is begun; those left out are
named.

    python -m bench.curve [--model smollm2-135m] [--seconds 120] [--memory-mib 1024]
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import patchscopes as ps
from bench.memory import peak_rss_bytes, reset_peak, settled_rss_bytes
from bench.workloads import MODEL, SOURCES, token_ids

FILLER = "The river runs past the old mill, and on Sundays the children of the village play there until it is dark."
QUESTION = "Syria: Country in the Middle East, Samsung: Korean company, {}"


@dataclass(frozen=True, slots=True)
class Point:
    """One request of the curve; `options` go to `patchscopes.inspect` as they are."""

    axis: str
    value: str
    sources: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Time every point; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--memory-mib", type=int, default=1024)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ps.PatchscopesWarning)
    budget = options.memory_mib * 2**20
    model = ps.load(options.model)
    ps.inspect(model, SOURCES[:1], source_layers=1, controls=(), memory_bytes=budget)
    after_load = settled_rss_bytes()
    begun, measured, left_out = time.perf_counter(), [], []
    for point in points(model.n_layers, model.tokenizer):
        if time.perf_counter() - begun > options.seconds:
            left_out.append(f"{point.axis}: {point.value}")
            continue
        measured.append(measure(model, point, after_load, budget))
        print(f"{point.axis} {point.value}: {measured[-1]['ms_per_row']:.2f} ms", file=sys.stderr)
    memory = {"memory_after_load_bytes": after_load, "memory_budget_bytes": budget}
    print(json.dumps({"model": options.model, **memory, "points": measured, "left_out": left_out}))


def points(n_layers: int, tokenizer: Any) -> Iterator[Point]:
    """All points, those that say most first."""
    all_layers, some = range(1, n_layers + 1), range(0, n_layers + 1, 4)
    half = range(1, n_layers + 1, 2)
    for n_sources in (1, 8, 40):
        yield Point("sources", f"{n_sources}", SOURCES[:n_sources], {"source_layers": all_layers, "controls": ()})
    next_token = {"prompt": "token-identity", "readout": "next-token", "controls": ()}
    for value, sources, targets in (
        (f"{len(some)} ℓ, ℓ* = ℓ", some, "same"),
        (f"{n_layers + 1} ℓ, ℓ* = ℓ", "all", "same"),
        (f"{len(some)} ℓ × {len(some)} ℓ*", some, some),
        (f"{n_layers + 1} ℓ × {n_layers + 1} ℓ*", "all", "all"),
    ):
        yield Point("layers", value, SOURCES[:4], {**next_token, "source_layers": sources, "target_layers": targets})
    for n_tokens in (1, 20, 100):
        options = {"source_layers": half, "controls": (), "max_new_tokens": n_tokens}
        yield Point("new tokens", f"{n_tokens}", SOURCES[:4], options)
    for controls in (
        (),
        ("unpatched", "random-state"),
        ("unpatched", "self", "zero", "random", "random-state", "text-only"),
    ):
        value = f"{len(controls)}" if controls else "none"
        yield Point("controls", value, SOURCES[:4], {"source_layers": half, "controls": controls})
    for n_tokens in (30, 300, 1500):
        prompt = long_prompt(tokenizer, n_tokens)
        value = f"{len(token_ids(tokenizer, prompt.format('x')))} tokens"
        options = {"prompt": prompt, "source_layers": half[:8], "controls": ()}
        yield Point("prompt", value, SOURCES[:2], options)


def long_prompt(tokenizer: Any, n_tokens: int) -> str:
    """An inspection prompt of about `n_tokens` tokens: sentences, cut where it is long enough, before a question."""
    words = FILLER.split()
    tokens_per_word = len(token_ids(tokenizer, FILLER)) / len(words)
    missing = n_tokens - len(token_ids(tokenizer, QUESTION.format("x")))
    return " ".join([*islice(cycle(words), max(0, round(missing / tokens_per_word))), QUESTION])


def measure(model: Any, point: Point, after_load: int, budget: int) -> dict[str, Any]:
    """Time and peak memory of one point."""
    settled_rss_bytes()
    reset_peak()
    start = time.perf_counter()
    rows = ps.inspect(model, point.sources, memory_bytes=budget, **point.options)
    elapsed = time.perf_counter() - start
    peak = peak_rss_bytes()
    n_rows = sum(row.status == "ok" for row in rows)
    return {
        "axis": point.axis,
        "value": point.value,
        "rows": n_rows,
        "seconds": elapsed,
        "ms_per_row": 1e3 * elapsed / n_rows,
        "peak_rss_bytes": peak,
        "memory_within_budget": peak <= after_load + budget,
    }


if __name__ == "__main__":
    main()
