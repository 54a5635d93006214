"""nnterp's `patchscope_generate` on the cells of G. Runs in an environment of its own and imports nothing of ours.

What is timed is the whole call: source states, and generation in batches. `max_batch_size` is in rows, and a batch is
all sources × as many layers as fit; each of several sizes is timed, and the best counts.

**Layers.** nnterp's layer k is the output of block k, counted from 0: our ℓ = k + 1, read and written. Its layer list
only works where it counts up from 0 (a state is looked up by the layer's number, not by its place in the list), so
the sample is not a random one: all sources, layers 1 to `--layers` of ours. The work of a cell within a batch
does not depend on its layer.

**Same results.** The tokens found go into the output, for a comparison with ours. `generate` goes on for a row that
ended until all have; what follows an end is cut off there.

`make bench-peers` makes that environment; BENCH_PEERS_PYTHON names the Python of another.

    .venv-peers/bin/python bench/peers_nnterp.py [--sizes 40 120 240] [--layers 6] < JSON

with {"folder": …, "sources": […], "prompt": …, "max_new_tokens": 20}. The last line is one JSON object.
"""

import argparse
import json
import logging
import os
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    """Time all sizes; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 120, 240])
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    request = json.load(sys.stdin)
    logging.disable(logging.WARNING)
    import torch
    from nnterp import StandardizedTransformer
    from nnterp.interventions import TargetPrompt, patchscope_generate

    model = StandardizedTransformer(request["folder"], device_map="cpu", dtype=torch.float32)
    target = TargetPrompt(request["prompt"], -1)

    def run(sources: list[str], n_layers: int, size: int) -> dict[int, Any]:
        return patchscope_generate(
            model,
            sources,
            target,
            max_length=request["max_new_tokens"],
            layers=list(range(n_layers)),
            max_batch_size=size,
        )

    run(request["sources"][:2], 1, 2)
    sizes, found = [], {}
    n_cells = len(request["sources"]) * options.layers
    for size in options.sizes:
        start = time.perf_counter()
        found = run(request["sources"], options.layers, size)
        elapsed = time.perf_counter() - start
        sizes.append({"max_batch_size": size, "ms_per_cell": 1e3 * elapsed / n_cells, "seconds": elapsed})
    best = min(sizes, key=lambda one: one["ms_per_cell"])
    n_prompt = len(model.tokenizer(request["prompt"])["input_ids"])
    report = {
        **best,
        "cells": n_cells,
        "sizes": sizes,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("nnterp", "nnsight", "torch", "transformers")},
        "tokens": {str(layer + 1): rows[:, n_prompt:].tolist() for layer, rows in found.items()},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
