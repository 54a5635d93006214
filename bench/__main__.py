"""Run the bench: every part in a process of its own, one after the other; a table, and last one JSON line.

A part has its own process so that its memory is its own, and so that nothing that one does to the model (weights laid
out anew) reaches another. A part that fails is named with its reason, and the others run. Speed-ups are the baseline's
mean time over the engine's median time; the roofline fraction is explained in `workloads` and `roofline`. The rate of
the machine is measured first and, on its best route, once more at the end: the better of the two is the roof, and
their difference says how steady the machine was.

    python -m bench [--quick] [--only G N C first-text curve] [--memory-mib 1024]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import patchscopes
from bench.table import print_tables
from bench.workloads import (
    MODEL,
    NEW_TOKENS,
    MatrixParameters,
    candidates_flops,
    next_token_flops,
    text_flops,
    workloads,
)
from patchscopes.prompts import find_prompt
from patchscopes.provenance import commit, versions

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
PARTS = ("G", "N", "C", "first-text", "curve")
WAYS = {"G": "one-at-a-time", "N": "official-batched", "C": "full-forward"}
SPEEDUPS = {
    "G": "speedup_vs_one_at_a_time",
    "N": "speedup_vs_official_batched",
    "C": "speedup_vs_full_forward",
}
CURVE_MODELS = (MODEL, "gemma3-270m")

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is run: of the sources, and how long (seconds) each part may take."""

    fraction: float = 1.0
    repeats: int = 3
    engine_s: float = 60.0
    baseline_s: float = 20.0
    rate_s: float = 2.0
    rate_rows: tuple[int, ...] = (240, 480, 1024)
    reference_cells: int = 6
    nnterp: tuple[str, ...] = ("--sizes", "40", "120", "240", "--layers", "6")
    curve_s: float = 90.0


QUICK = Extent(0.25, 2, 10.0, 8.0, 1.0, (480,), 2, ("--sizes", "80", "--layers", "2"), 20.0)


def main() -> None:
    """Run what was asked for; the last line is one JSON object."""
    options = parse()
    extent = QUICK if options.quick else Extent()
    begun = time.perf_counter()
    report: Report = {"bench": "quick" if options.quick else "full", **machine()}
    model = patchscopes.load(MODEL, notify=say)
    folder, n_layers = model.hf.name_or_path, model.n_layers
    del model
    rate = roof(folder, extent)
    done = []
    for name in (name for name in WAYS if name in options.only):
        say(f"{name}: {workloads(n_layers)[name].about}")
        done.append(run_workload(name, extent, options.memory_mib, folder))
    if "first-text" in options.only:
        report["first_text"] = part("first_text")
    if "curve" in options.only:
        report["curve"] = [curve(name, extent, options.memory_mib) for name in CURVE_MODELS]
    steady(rate, folder)
    report["workloads"] = [finished(one, rate) for one in done]
    report["rate"] = rate
    report["noise"] = {one["workload"]: one.get("noise") for one in done} | {"rate": rate.get("noise")}
    report["minutes"] = (time.perf_counter() - begun) / 60
    print_tables(report)
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="G and N with a quarter of the cells, about 2 minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    parser.add_argument("--memory-mib", type=int, default=1024, help="the budget that calls are given")
    options = parser.parse_args()
    options.only = options.only or (PARTS[:2] if options.quick else PARTS)
    return options


def part(module: str, *arguments: object, given: Report | None = None, python: Any = None) -> Report:
    """Run a part in a process of its own and return the JSON object of its last line, or `error`, why there is none.

    `module` is one of this package; with `python`, another interpreter, it is run as a script.
    """
    command = [python, f"bench/{module}.py"] if python else [sys.executable, "-m", f"bench.{module}"]
    say(f"  {module} {' '.join(map(str, arguments))}")
    environment = {name: value for name, value in os.environ.items() if not python or name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command), *map(str, arguments)],
        input=json.dumps(given) if given is not None else None,
        stdin=None if given is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        why = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        say(f"  {module} failed: {why}")
        return {"error": why}
    return json.loads(lines[-1])


def run_workload(name: str, extent: Extent, memory_mib: int, folder: str) -> Report:
    """A workload by the engine, and the same cells, or a sample of them, by the others."""
    arguments = [name, "--fraction", extent.fraction, "--repeats", extent.repeats, "--seconds", extent.engine_s]
    arguments += ["--memory-mib", memory_mib, "--reference-cells", extent.reference_cells]
    one = part("engine", *arguments)
    if "error" in one:
        return {"workload": name, **one}
    given = {
        "folder": folder,
        "cells": one.pop("sample"),
        "max_new_tokens": NEW_TOKENS,
        "candidate_ids": one.pop("candidate_ids"),
    }
    one["baseline"] = part("baselines", WAYS[name], "--seconds", extent.baseline_s, given=given)
    if name == "G":
        one["nnterp"] = nnterp(one, extent, folder, given["cells"])
    return one


def nnterp(one: Report, extent: Extent, folder: str, cells: list[Report]) -> Report:
    """G by nnterp, in its own environment, and how many of the sampled cells it says the same of."""
    python = os.environ.get("BENCH_PEERS_PYTHON") or (PEERS if PEERS.exists() else None)
    if python is None:
        return {"error": "not installed (make bench-peers)"}
    workload = workloads(1)["G"]
    prompt = find_prompt(workload.options["prompt"])
    given = {
        "folder": folder,
        "sources": list(workload.sources),
        "prompt": prompt.text.format(prompt.placeholder),
        "max_new_tokens": NEW_TOKENS,
    }
    found = part("peers_nnterp", *extent.nnterp, given=given, python=python)
    tokens = found.pop("tokens", {})
    same = compared = 0
    for cell in cells:
        rows = tokens.get(str(cell["source_layer"]))
        if rows is not None:
            compared += 1
            same += rows[cell["source_index"]][: len(cell["came_out"])] == cell["came_out"]
    return found | ({"compared": compared, "same_tokens": same} if tokens else {})


def curve(model: str, extent: Extent, memory_mib: int) -> Report:
    """The cost curve of one model."""
    found = part("curve", "--model", model, "--seconds", extent.curve_s, "--memory-mib", memory_mib)
    return {"model": model, **found}


def roof(folder: str, extent: Extent) -> Report:
    """The rate of the machine at the start."""
    say("the rate of this machine")
    return part("roofline", folder, "--seconds", extent.rate_s, "--rows", *extent.rate_rows)


def steady(rate: Report, folder: str) -> None:
    """Measure the best rate again, keep the better, and note the difference."""
    if "error" in rate:
        return
    say("the rate of this machine, again")
    again = part("roofline", folder, "--rows", rate["best"]["rows"])
    if "error" not in again:
        first, second = rate["flops_per_s"], again["flops_per_s"]
        rate["noise"] = abs(first - second) / max(first, second)
        rate["flops_per_s"] = max(first, second)


def finished(one: Report, rate: Report) -> Report:
    """The figures of a workload that are made of several parts."""
    if "error" in one:
        return one
    n_candidates = len(one["candidate_lengths"]) if one["workload"] == "C" else 1
    one["ms_per_cell"] = 1e3 * one["seconds"] / one["cells"]
    one["ms_per_candidate"] = one["ms_per_cell"] / n_candidates if one["workload"] == "C" else None
    speedups: Report = dict.fromkeys([*SPEEDUPS.values(), "speedup_vs_nnterp"])
    if "ms_per_cell" in one["baseline"]:
        mine = one["ms_per_cell"] / n_candidates
        speedups[SPEEDUPS[one["workload"]]] = one["baseline"]["ms_per_cell"] / mine
    if "ms_per_cell" in one.get("nnterp", {}):
        speedups["speedup_vs_nnterp"] = one["nnterp"]["ms_per_cell"] / one["ms_per_cell"]
    fraction = None
    if "flops_per_s" in rate:
        fraction = needed_flops(one, rate) / one["seconds"] / rate["flops_per_s"]
    return one | speedups | {"roofline_fraction": fraction}


def needed_flops(one: Report, rate: Report) -> int:
    """What the results of a workload need at the least (see `workloads`)."""
    parameters = MatrixParameters(tuple(rate["block_parameters"]), rate["head_parameters"])
    cells_at = {int(layer): n_cells for layer, n_cells in one["cells_at"].items()}
    match one["workload"]:
        case "G":
            return text_flops(parameters, one["generated_tokens"])
        case "N":
            return next_token_flops(parameters, cells_at)
        case _:
            return candidates_flops(parameters, cells_at, one["candidate_lengths"])


def machine() -> Report:
    """Where and with what this ran."""
    return {
        "machine": {
            "processor": processor(),
            "architecture": platform.machine(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
        "versions": versions(),
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def say(what: str) -> None:
    """Progress, on standard error."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
