"""Kill a run with SIGKILL at random moments, over and over, and compare what is kept with an uninterrupted run.

A process of its own, which forks a child for each attempt once the slow imports are done: `python killed.py FOLDER N`.
The last line of output is one JSON object.
"""

import json
import math
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401  # a child must not spend its short life on imports
import torch

import families
from patchscopes import api
from patchscopes.engine import Engine
from patchscopes.errors import PatchscopesWarning
from patchscopes.models import Model, wrap_in_memory
from patchscopes.plan import Plan
from patchscopes.run import Inspection
from patchscopes.spec import Result, Row
from patchscopes.store import open_run, writer

PAUSE_S = 0.002
SOURCES = [f"the cat of {word} is {n}" for word in ("Spain", "Wales", "Syria", "hello") for n in range(4)]
PROMPT = "the capital of {} is"
READOUTS: tuple[dict[str, Any], ...] = (
    {"prompt": PROMPT, "readout": "text", "max_new_tokens": 4, "target_layers": "all"},
    {"prompt": PROMPT, "readout": "next-token", "top_k": 3, "target_layers": "all"},
)


class Slow:
    """The engine, with a pause before each result: a run must last longer than what a kill is aimed at."""

    def __init__(self, model: Model) -> None:
        self.engine = Engine(model)

    def run(self, plan: Plan) -> Iterator[Result]:
        for result in self.engine.run(plan):
            time.sleep(PAUSE_S)
            yield result


def attempt(asked: Inspection, folder: Path, after_s: float) -> bool:
    """Run in a child that is killed after so many seconds; True where that was before it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for _ in replace(asked, folder=folder).rows():
                pass
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + after_s
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    status = ended[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, f"the child failed in {folder}"
    return os.WIFSIGNALED(status)


def duration_of(asked: Inspection, folder: Path) -> float:
    """How long a run takes that is left alone."""
    began = time.monotonic()
    assert not attempt(asked, folder, 60.0), "it does not end"
    return time.monotonic() - began


def differences(kept: list[Row], whole: list[Row]) -> Iterator[str]:
    """Identities and tokens must be the same, numbers within 1e-3."""
    if len(kept) != len(whole):
        yield f"{len(kept)} rows for {len(whole)}"
    for one, other in zip(kept, whole, strict=False):
        same = ("cell", "source_index", "position", "source_layer", "control", "text", "token_ids", "status", "flags")
        for name in same:
            if getattr(one, name) != getattr(other, name):
                yield f"{name}: {getattr(one, name)} for {getattr(other, name)}"
        if not math.isclose(one.entropy or 0.0, other.entropy or 0.0, abs_tol=1e-3):
            yield f"entropy: {one.entropy} for {other.entropy}"
        for top, of in zip(one.top or (), other.top or (), strict=True):
            if top.token_id != of.token_id or not math.isclose(top.logprob, of.logprob, abs_tol=1e-3):
                yield f"top: {top} for {of}"


def main(folder: Path, n_kills: int) -> dict[str, object]:
    torch.set_num_threads(1)
    writer.MAX_SMALL = 3  # kills shall fall into merges, too
    warnings.simplefilter("error", PatchscopesWarning)  # a damaged shard would be one, and there must be none
    api.RUNNERS = {**api.RUNNERS, "slow": Slow}  # type: ignore[assignment]
    model = wrap_in_memory(families.build("llama"), families.tiny_tokenizer())
    moments = random.Random(7)
    inspections = [api.prepare(model, SOURCES, runner="slow", **options) for options in READOUTS]
    whole = [list(asked.results()) for asked in inspections]
    longest_s = duration_of(inspections[0], folder / "timed")  # a busy machine takes longer, and is killed later
    kills = runs = resumed = 0
    found: list[str] = []
    while kills < n_kills or runs % len(READOUTS):
        asked, of = inspections[runs % len(READOUTS)], whole[runs % len(READOUTS)]
        run = folder / f"run-{runs}"
        while kills < n_kills and attempt(asked, run, moments.uniform(0, longest_s)):
            kills += 1
            resumed += (run / "manifest.json").exists() and 0 < len(open_run(run)) < len(of)
        if not complete(run):
            assert not attempt(asked, run, 60.0), "it does not end"
        found += differences(list(open_run(run)), of)
        runs += 1
    return {"kills": kills, "runs": runs, "resumed": resumed, "rows": sum(map(len, whole)), "differences": found[:9]}


def complete(run: Path) -> bool:
    return (run / "manifest.json").exists() and open_run(run).complete


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
