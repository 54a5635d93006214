"""Do the engine's passes still give what the model's own forward gives? One prompt row and one step, at two ℓ*.

The third of the checks behind rule 0: what stands in for modules may be of other weights than those in memory, and
structure and samples of content may not have seen why.

Axes: row, step (the prompt's last token and one token more).
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import compute_of, plain_compute
from patchscopes.errors import ModelChangedError
from patchscopes.forward import Span, forward, without_head
from patchscopes.hooks import Entry, Places, capture, returns_tuples
from patchscopes.kv import Rows, copy_prefixes, recorded, recording_cache, shared_or_copied, sharing
from patchscopes.models import Inputs, Model, calm
from patchscopes.rng import philox
from patchscopes.spec import Ids

LENGTH, POSITION = 9, 4
# Of a log-probability, in nats, in float32.
WITHIN = 1e-4
TOP = 50


@dataclass(frozen=True, slots=True)
class Proven:
    """The largest error seen, in nats; it is kept until the model changes."""

    error: float


def prove(model: Model) -> None:
    """Compare the numbers, once for each state of the model. Raises ModelChangedError where they are not the model's.

    What stands in for modules is given up first, where it is what differs; then our attention, so that rows copy their
    prefix. A plan counts on the latter, so this comes before it is made.
    """
    if model.found(Proven) is None:
        model.current()  # a copy is made of weights that were looked at
        model.kept(Proven, _prove)


def disproof(model: Model) -> str | None:
    """Compare the numbers now; say by how much they differ, None where they are the model's."""
    if model.attached or model.dtype != torch.float32:
        return None
    error = largest_error(model)
    return None if error <= WITHIN else f"log-probabilities differ by {error:.2g} nats from its own forward's"


def _prove(model: Model) -> Proven:
    if model.attached:  # compared otherwise: trust.py
        return Proven(0.0)
    error = largest_error(model)
    if model.dtype != torch.float32:  # by the yardstick, at load; here it was settled how rows have their prefix
        return Proven(error)
    if not error <= WITHIN:
        model.keep(plain_compute(model))
        error = largest_error(model)
    if not error <= WITHIN and sharing(model) == "shared":
        copy_prefixes(model)
        error = largest_error(model)
    if not error <= WITHIN:
        raise ModelChangedError(
            f"{model.id} no longer runs here as it runs by itself: log-probabilities of one short prompt differ by "
            f"{error:.2g} nats, and {WITHIN:g} are allowed. Load it anew; if that does not help, use "
            "runner='reference', which runs its own modules alone."
        )
    return Proven(error)


@calm()
def largest_error(model: Model) -> float:
    """Return how far the engine's passes are from the model's own forward, at the most, in nats."""
    ids = some_ids(model, LENGTH + 1, "numbers")
    own = model.all_logits(_tensor(model, ids))[0, -2:]
    ours = shared_or_copied(model, partial(engine_logits, model, ids, sorted({0, model.n_layers // 2})))
    return error_of(ours, own)


def error_of(ours: Float[Tensor, "row step d_vocab"], own: Float[Tensor, "step d_vocab"]) -> float:
    """Return the largest difference of a log-probability between rows of logits and the model's own, in nats.

    Of the TOP likeliest tokens of the model's own: far down in the tail float32 itself is as coarse as the bar.
    """
    expected = own.float().log_softmax(-1).topk(min(TOP, own.shape[-1]), dim=-1)
    found = ours.float().log_softmax(-1).gather(-1, expected.indices.expand(len(ours), -1, -1))
    difference = float(differences(found, expected.values).abs().max())
    return math.inf if math.isnan(difference) else difference


def differences(found: Tensor, expected: Tensor) -> Tensor:
    """Return found − expected, NaN where one is no number; 0 where both are −inf, as of tokens that a hook forbids."""
    return torch.where((found == expected) & (found < math.inf), torch.zeros_like(found), found - expected)


@calm()
def engine_logits(model: Model, ids: Ids, layers: list[int]) -> Float[Tensor, "row step d_vocab"]:
    """Return the logits of rows that start at `layers`, ascending, behind a prefix: the prompt's, and one step more.

    The prompt is `ids` but the last; each row starts with the prompt's own states.
    """
    *prompt_ids, last = ids
    n, length = len(layers), len(prompt_ids)
    compute, cache = compute_of(model), recording_cache(model)
    returns_tuples(model)  # known before anything is replaced
    suffix = Places((0,) * (length - POSITION), tuple(range(POSITION, length)))
    with compute.installed(), without_head(model), capture(model, dict.fromkeys(layers, suffix)) as states:
        model.forward(Inputs(_tensor(model, tuple(prompt_ids)), cache=cache), "last")
    prompt = recorded(cache, 0)
    shared = prompt.shared(POSITION) if sharing(model) == "shared" else []
    rows, n_own = Rows(model, n_rows=n, capacity=length + 1, shared=shared), 0 if shared else POSITION
    rows.add([n_own] * n)
    rows.put(range(n), 0, prompt, slice(POSITION - n_own, POSITION))
    entry = Entry(layers, torch.stack([states[layer].to(model.device) for layer in layers]))
    new = _tensor(model, tuple(prompt_ids[POSITION:])).expand(n, -1)
    first = compute.head.logits(forward(compute, rows, Span(0, n), new, entry=entry)[:, 0])
    rows.put(range(n), n_own, prompt, slice(POSITION, length), layers=layers)
    step = torch.full((n, 1), last, dtype=torch.long, device="cpu")
    second = compute.head.logits(forward(compute, rows, Span(0, n), step)[:, 0])
    return torch.stack([first.float(), second.float()], dim=1)


def some_ids(model: Model, n: int, key: str) -> Ids:
    """`n` ids of ordinary tokens, drawn by `key`."""
    special = set(model.tokenizer.all_special_ids) | model.eos_ids
    size = min(model.d_vocab, len(model.tokenizer))
    drawn = philox("ids", key).permutation(size)[: n + len(special)].tolist()
    return tuple(int(id) for id in drawn if id not in special)[:n]


def _tensor(model: Model, ids: Ids) -> Tensor:
    return torch.tensor([ids], dtype=torch.long, device=model.device)
