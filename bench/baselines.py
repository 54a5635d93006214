"""The official ways to do what the workloads do, on plain transformers, written after the paper's protocol.

Nothing here knows the package. Cells come in as plain numbers, and what comes out is the time and the tokens that were
found. Each way is what the paper's experiments need when every cell is done by itself:

    one-at-a-time     G: the source prompt in full; then `generate` on the inspection prompt, with its cache, and a hook
                      that writes the state while the prompt is read.
    official-batched  N: 64 cells at once, each with its own source prompt, ℓ and ℓ*: the source prompts in full, then
                      the inspection prompt for every cell in full; logits at all positions of both, as the published
                      evaluation has them.
    full-forward      C: per cell and candidate the source prompt in full, then the inspection prompt with the
                      candidate behind it, in full, and the log-probabilities of its tokens.

States are taken by a hook, which costs nothing; `output_hidden_states` would give the last layer after the final norm.
Layer ℓ is the stream after ℓ blocks, as everywhere. Cells come in random order and are run, in turn, for at least the
time asked for, after one that is not timed; `ms_per_cell` is the mean (of C: per cell and candidate).

    python -m bench.baselines one-at-a-time [--seconds 20] < JSON

with {"folder": …, "cells": […], "max_new_tokens": 20, "candidate_ids": […]}. The last line is one JSON object.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

BATCH = 64

Cell = dict[str, Any]
Job = list[Cell]


def main() -> None:
    """Time one way; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    request = json.load(sys.stdin)
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32, local_files_only=True).eval()
    jobs = jobs_of(options.way, request)
    with torch.inference_mode():
        print(json.dumps(timed(lambda job: WAYS[options.way](model, job), jobs, options.seconds)))


def jobs_of(way: str, request: dict[str, Any]) -> list[Job]:
    """What is timed as one: a cell, 64 cells, or a cell with one candidate."""
    cells = [cell | {"max_new_tokens": request.get("max_new_tokens")} for cell in request["cells"]]
    if way == "official-batched":
        return [cells[start : start + BATCH] for start in range(0, len(cells), BATCH)]
    if way == "full-forward":
        candidates = itertools.cycle(request["candidate_ids"])
        return [[cell | {"candidate": candidate}] for cell, candidate in zip(cells, candidates, strict=False)]
    return [[cell] for cell in cells]


def timed(run: Callable[[Job], list[list[int]]], jobs: Sequence[Job], seconds: float) -> dict[str, Any]:
    """Run jobs in turn until the time is over, from the first again where they do not suffice."""
    run(jobs[0])
    times, n_cells, same, compared = [], 0, 0, 0
    begun = time.perf_counter()
    for job in itertools.cycle(jobs):
        start = time.perf_counter()
        found = run(job)
        times.append((time.perf_counter() - start) / len(job))
        n_cells += len(job)
        for cell, tokens in zip(job, found, strict=True):
            if cell["came_out"] is not None and tokens:
                compared += 1
                same += tokens == cell["came_out"]
        if time.perf_counter() - begun >= seconds:
            break
    mean = statistics.fmean(times)
    return {
        "ms_per_cell": 1e3 * mean,
        "cells": n_cells,
        "seconds": time.perf_counter() - begun,
        "standard_error": statistics.stdev(times) / len(times) ** 0.5 / mean if len(times) > 1 else None,
        "compared": compared,
        "same_tokens": same,
    }


def one_at_a_time(model: Any, job: Job) -> list[list[int]]:
    """The source prompt, then `generate` with a hook that writes while the prompt is read."""
    (cell,) = job
    vector = states(model, job)
    prompt = torch.tensor([cell["target_ids"]])
    with writing(model, job, vector, n_columns=prompt.shape[1]):
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=cell["max_new_tokens"],
            pad_token_id=0,
        )
    return [output[0, prompt.shape[1] :].tolist()]


def official_batched(model: Any, job: Job) -> list[list[int]]:
    """All source prompts, then the inspection prompt once a cell; logits everywhere, the last ones read."""
    vectors = states(model, job)
    prompts = torch.tensor([cell["target_ids"] for cell in job])
    with writing(model, job, vectors, n_columns=prompts.shape[1]):
        logits = model(prompts, use_cache=False).logits
    best = torch.softmax(logits[:, -1], dim=-1).max(dim=-1).indices
    return [[int(token)] for token in best]


def full_forward(model: Any, job: Job) -> list[list[int]]:
    """The score of one candidate of one cell; no tokens come of it."""
    (cell,) = job
    answer_logprob(model, cell)
    return [[]]


def answer_logprob(model: Any, cell: Cell) -> float:
    """The source prompt, then the inspection prompt and one candidate; the candidate's log-probability."""
    vector = states(model, [cell])
    answer = cell["candidate"]
    ids = torch.tensor([[*cell["target_ids"], *answer]])
    with writing(model, [cell], vector, n_columns=ids.shape[1]):
        logits = model(ids, use_cache=False).logits
    logprobs = torch.log_softmax(logits[0, -len(answer) - 1 : -1], dim=-1)
    return float(logprobs[torch.arange(len(answer)), torch.tensor(answer)].sum())


WAYS: dict[str, Callable[[Any, Job], list[list[int]]]] = {
    "one-at-a-time": one_at_a_time,
    "official-batched": official_batched,
    "full-forward": full_forward,
}


def states(model: Any, job: Job) -> Tensor:
    """The hidden state of each cell, (cell, d_model), by one full pass over their source prompts."""
    width = max(len(cell["source_ids"]) for cell in job)
    ids = torch.tensor([[*cell["source_ids"]] + [0] * (width - len(cell["source_ids"])) for cell in job])
    mask = torch.tensor([[column < len(cell["source_ids"]) for column in range(width)] for cell in job]).long()
    found: dict[int, Tensor] = {}

    def reader(rows: list[int]) -> Callable[[Tensor], None]:
        def read(stream: Tensor) -> None:
            for row in rows:
                found[row] = stream[row, job[row]["source_position"]].clone()

        return read

    with hooked(model, {layer: reader(rows) for layer, rows in rows_by(job, "source_layer")}):
        # Logits at all positions, as the official code has them: the evaluation reads the source's own as well.
        model(ids, attention_mask=mask, use_cache=False)
    return torch.stack([found[row] for row in range(len(job))])


@contextmanager
def writing(model: Any, job: Job, vectors: Tensor, *, n_columns: int) -> Iterator[None]:
    """While open, a pass over `n_columns` columns gets each cell's state at its place; the steps of a decode do not."""

    def writer(rows: list[int]) -> Callable[[Tensor], None]:
        def write(stream: Tensor) -> None:
            if stream.shape[1] == n_columns:
                for row in rows:
                    stream[row, job[row]["target_position"]] = vectors[row]

        return write

    with hooked(model, {layer: writer(rows) for layer, rows in rows_by(job, "target_layer")}):
        yield


def rows_by(job: Job, key: str) -> list[tuple[int, list[int]]]:
    """The rows of a job that share a layer, by layer."""
    layers = sorted({cell[key] for cell in job})
    return [(layer, [row for row, cell in enumerate(job) if cell[key] == layer]) for layer in layers]


@contextmanager
def hooked(model: Any, actions: dict[int, Callable[[Tensor], None]]) -> Iterator[None]:
    """While open, each action gets the residual stream after that many blocks, and may change it in place."""
    blocks: Sequence[nn.Module] = model.model.layers
    with ExitStack() as stack:
        for layer, act in actions.items():
            if layer == 0:
                handle = blocks[0].register_forward_pre_hook(lambda _, inputs, act=act: act(inputs[0]))
            else:
                handle = blocks[layer - 1].register_forward_hook(
                    lambda _, __, output, act=act: act(output[0] if isinstance(output, tuple) else output)
                )
            stack.callback(handle.remove)
        yield


if __name__ == "__main__":
    main()
