"""How fast a model runs here, by running it: the engine's own passes, and one text alone, about a second in all."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from patchscopes.compute import compute_of
from patchscopes.compute.attention import SharedKeys
from patchscopes.forward import Span, forward
from patchscopes.kv import Rows, recorded, recording_cache, sharing
from patchscopes.models import Inputs, Model, calm
from patchscopes.plan import Speed

REPEATS = 3
FEW = 8
SHORT, LONG = 4, 64
PREFIX = 40


def measure_speed(model: Model, *, n_rows: int, top_k: int = 10) -> Speed:
    """Time passes of `n_rows` rows and of few, the head for as many, and one text alone."""
    compute = compute_of(model)
    n_rows = max(n_rows, 2 * FEW)
    few, many = (_pass_s(model, rows) for rows in (FEW, n_rows))
    block_s = max(many - few, 1e-9) / (n_rows - FEW) / model.n_layers
    width = model.unembed_width
    x = torch.randn(n_rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    x = x.to(model.device, model.dtype)
    short, long = (_median_s(partial(_alone, model, n_tokens)) for n_tokens in (SHORT, LONG))
    per_token = max(long - short, 0.0) / (LONG - SHORT)
    return Speed(
        pass_s=max(few - FEW * model.n_layers * block_s, 0.0),
        block_token_s=block_s,
        token_s=_median_s(lambda: compute.head.best(x)) / n_rows,
        distribution_s=_median_s(lambda: compute.head.distribution(x, top_k)) / n_rows,
        single_s=max(short - SHORT * per_token, 0.0),
        single_token_s=per_token,
    )


def _pass_s(model: Model, n_rows: int) -> float:
    """A decoding pass without the head."""
    compute = compute_of(model)
    shared = _some_prefix(model) if sharing(model) == "shared" else []
    rows = Rows(model, n_rows=n_rows, capacity=2 * (REPEATS + 2), shared=shared)
    rows.add([0] * n_rows)
    ids = torch.zeros(n_rows, 1, dtype=torch.long, device="cpu")
    return _median_s(lambda: forward(compute, rows, Span(0, n_rows), ids))


@calm()
def _some_prefix(model: Model) -> list[SharedKeys]:
    """A prefix as long as those of most inspection prompts."""
    cache = recording_cache(model)
    model.forward(Inputs(torch.zeros(1, PREFIX, dtype=torch.long, device=model.device), cache=cache), "last")
    return recorded(cache, 0).shared(PREFIX)


@calm()
def _alone(model: Model, n_tokens: int) -> None:
    """One text by transformers' own modules, as a loop over cells would run it."""
    ids = torch.zeros(1, n_tokens, dtype=torch.long, device=model.device)
    model.forward(Inputs(ids, cache=recording_cache(model)), "last")


def _median_s(run: Callable[[], object]) -> float:
    """The middle of a few runs, after one to warm up."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times)
