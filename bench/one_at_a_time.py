"""The engine against the official way, per cell.

What is counted: all layers (ℓ* = ℓ) of 8 sources, entity-description, 20 new tokens, float32, no controls. The engine
is timed over the whole call, planning and source passes included. The official way is one source pass per cell, then
one cached `generate` with a hook that writes during prefill; it is timed on a random sample of the same cells. Cells
that are inert (ℓ* = n_layers) are in neither.

    python bench/one_at_a_time.py [--model smollm2-135m] [--repeats 3]

The last line of output is one JSON object.
"""

import argparse
import json
import platform
import random
import time
from typing import Any

import torch

import patchscopes as ps
from patchscopes.models import Model
from patchscopes.provenance import commit, versions
from patchscopes.spec import Cell, State

SOURCES = (
    "Diana, Princess of Wales",
    "Alexander the Great of Macedon",
    "the city of New York",
    "Barack Obama was the president",
    "the Eiffel Tower in Paris",
    "William Shakespeare the playwright",
    "the Roman Empire in Europe",
    "the painter Leonardo da Vinci",
)
SAMPLE = 24


def main() -> None:
    """Time both, in turn, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = ps.load(options.model)
    cells = [r.cell for r in ps.prepare(model, SOURCES, controls=()).requests if r.cell and r.status == "ok"]
    ps.inspect(model, SOURCES[:1], controls=())
    engine, official = [], []
    for repeat in range(options.repeats):
        engine.append(1e3 * seconds(lambda: ps.inspect(model, SOURCES, controls=())) / len(cells))
        sample = random.Random(repeat).sample(cells, SAMPLE // options.repeats)
        official.append(1e3 * seconds(lambda sample=sample: [one_cell(model, cell) for cell in sample]) / len(sample))
        print(f"engine {engine[-1]:.1f} ms a cell, one at a time {official[-1]:.0f}, {official[-1] / engine[-1]:.1f} ×")
    ratios = sorted(a / b for a, b in zip(official, engine, strict=True))
    report = {
        "workload": "all layers of 8 sources, 20 new tokens, float32",
        "model": model.describe(),
        "cells": len(cells),
        "ms_per_cell": min(engine),
        "official_ms_per_cell": min(official),
        "speedup_vs_one_at_a_time": ratios[len(ratios) // 2],
        "spread": [ratios[0], ratios[-1]],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "commit": commit(),
    }
    print(json.dumps(report))


def seconds(work: Any) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def one_cell(model: Model, cell: Cell) -> list[int]:
    """The official way: a source pass with hidden states, then `generate` with a hook that writes once."""
    assert cell.write is not None
    state, layer = cell.write.vectors[0], cell.write.site.layer
    assert isinstance(state, State)
    hidden = model.hf(torch.tensor([state.ids]), output_hidden_states=True).hidden_states
    vector = hidden[state.layer][0, state.position]
    if layer == 0:
        vector, block, position = hidden[0][0, state.position], model.blocks[0], cell.write.positions[0]
    else:
        block, position = model.blocks[layer - 1], cell.write.positions[0]
    written = []

    def write(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor | None = None) -> None:
        stream = inputs[0] if output is None else output
        if not written:
            stream[0, position] = vector
            written.append(True)

    handle = block.register_forward_pre_hook(write) if layer == 0 else block.register_forward_hook(write)
    prompt = torch.tensor([cell.target_ids])
    try:
        output = model.hf.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=cell.decoding.max_new_tokens,
        )
    finally:
        handle.remove()
    return output[0, prompt.shape[1] :].tolist()


if __name__ == "__main__":
    main()
