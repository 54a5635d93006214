"""What each step of the engine gains: a part of G and of N with that step undone, all else as it is.

    as it is            everything
    plain head          all logits of a row at once, instead of chunks that are read as they are made
    no kernels          PyTorch's own operations for attention, norms, gated MLPs, rotary embedding and logits
    copied prefix       every row has a copy of the prefix, and the model's own attention sees it
    no repacking        oneDNN with the weights as they are
    MKL                 PyTorch's default for linear layers
    n rows              at most so many rows at once

Each is timed over the whole call, `--repeats` times in turn, so that a machine that slows down slows all of them; the
figure is the median, the ratio that of medians. Steps are undone by replacing what decides them, in this process only.

    python -m bench.steps [--sources 10] [--repeats 3]

The last line of output is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import patchscopes as ps
from bench.workloads import MODEL, workloads
from patchscopes import kv
from patchscopes.compute import compute, head, linear
from patchscopes.kernels import Native
from patchscopes.models import Model
from patchscopes.plan import Budget
from patchscopes.provenance import commit, versions

Undo = Callable[[Model], Iterator[None]]


@contextmanager
def as_it_is(_: Model) -> Iterator[None]:
    """Nothing undone."""
    yield


@contextmanager
def plain_head(_: Model) -> Iterator[None]:
    """One chunk, the whole vocabulary."""
    with patch.object(head, "CHUNK", 10**9):
        yield


@contextmanager
def no_kernels(_: Model) -> Iterator[None]:
    """As on a machine without a compiler."""
    with ExitStack() as stack:
        for place in ("patchscopes.kernels.native", "patchscopes.kernels.ops.native"):
            stack.enter_context(patch(place, lambda: Native(None, "undone")))
        yield


@contextmanager
def copied_prefix(model: Model) -> Iterator[None]:
    """As for a family without the attention interface."""
    before = kv._Found(kv.sharing(model))
    kv.copy_prefixes(model)
    try:
        yield
    finally:
        model.keep(before)


@contextmanager
def no_repacking(_: Model) -> Iterator[None]:
    """As where memory is short."""
    with patch.object(linear, "room_to_repack", lambda _: False):
        yield


@contextmanager
def mkl(_: Model) -> Iterator[None]:
    """Linear layers as PyTorch runs them."""
    with (
        patch.object(linear, "linear_functions", lambda _, repack: {}),
        patch.object(linear, "takes", lambda _: False),
        patch.object(compute, "mlp_function", lambda *_: None),
    ):
        yield


STEPS: dict[str, Any] = {
    "as it is": as_it_is,
    "plain head": plain_head,
    "no kernels": no_kernels,
    "copied prefix": copied_prefix,
    "no repacking": no_repacking,
    "MKL": mkl,
}
ROWS = (60, 120, 240, 960)


def main() -> None:
    """Time every step undone, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = ps.load(MODEL)
    report: dict[str, Any] = {"model": MODEL, "versions": versions(), "commit": commit(), "ms_per_cell": {}}
    for name in ("G", "N"):
        workload = workloads(model.n_layers)[name]
        sources = workload.sources[: options.sources]
        runs: dict[str, list[float]] = {}
        for repeat in range(options.repeats + 1):
            for step, undo in {**STEPS, **{f"{n} rows": at_most(n) for n in ROWS}}.items():
                with undo(model):
                    model._kept.pop(compute.Compute, None)
                    prepared = ps.prepare(model, sources[: 1 if repeat == 0 else None], **workload.options)
                    seconds = timed(prepared)
                if repeat:
                    runs.setdefault(step, []).append(1e3 * seconds / len(prepared.plan.cells))
        report["ms_per_cell"][name] = {step: statistics.median(times) for step, times in runs.items()}
        show(name, report["ms_per_cell"][name])
    print(json.dumps(report))


def at_most(n: int) -> Any:
    """A limit on rows."""

    @contextmanager
    def undo(_: Model) -> Iterator[None]:
        with patch("patchscopes.api.Budget", lambda memory_bytes: Budget(memory_bytes, n)):
            yield

    return undo


def timed(prepared: Any) -> float:
    """Seconds of the whole call but resolving, the weights laid out before."""
    compute.compute_of(prepared.model)
    start = time.perf_counter()
    prepared.results()
    return time.perf_counter() - start


def show(name: str, times: dict[str, float]) -> None:
    """A line per step."""
    print(f"{name}: ms a cell")
    for step, ms in times.items():
        print(f"  {step:<16}{ms:>9.3f}   {ms / times['as it is']:.2f} ×")


if __name__ == "__main__":
    main()
