"""May the engine run a model that something is attached to? Only where that gave the same in a batch as alone (rule 0).

A hook may count columns, act on the first pass only, or look at its neighbours. So the first call that meets it runs a
few cells twice: as the engine does, batched, behind a shared prefix, each from its own ℓ* on; and alone, in the two
phases of the model's own `generate`. Where they differ, the model runs one row at a time from then on.

    texts      as long as the call's longest, and a short one; what follows the placeholder is one token or several
    sources    short ones and ones as long as the longest text, of unequal length, read side by side
    cells      two sources and two ℓ*, 0 and n_layers − 1, so that each block has rows that run it and rows that wait
    readouts   an answer of three tokens (the prompt's end and two steps), and the next token beside the source's
"""

from collections.abc import Iterable, Iterator

import torch

from patchscopes.alone import Batched
from patchscopes.engine import Engine, shape_of
from patchscopes.foreign import running
from patchscopes.kv import copy_prefixes, sharing
from patchscopes.mappings import Transfer
from patchscopes.models import Model, first_of
from patchscopes.plan import Budget, Plan, Runner, compile_plan, longest_text
from patchscopes.proof import prove, some_ids
from patchscopes.reference import Reference
from patchscopes.spec import Cell, Decoding, Ids, Readout, Result, Site, State, Write

# Of a log-probability, in nats; off float32 a batch rounds otherwise than a row.
SAME = {torch.float32: 3e-4, torch.float16: 3e-2, torch.bfloat16: 2.5e-1}
# Tokens of the texts that are compared at the least; the long ones do for most calls.
SHORT, LONG = 9, 24
SOURCES = (5, 7)
MEMORY_BYTES, MAX_ROWS = 1 << 30, 6
# What a hook that was written for one text may raise on several.
OF_HOOKS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class TrustedEngine:
    """Runs a plan by the engine; by the reference where a model has something attached that does not bear batches."""

    name = "engine"

    def __init__(self, model: Model | Transfer) -> None:
        self._transfer = Transfer.of(model)

    def run(self, plan: Plan) -> Iterator[Result]:
        """Yield one Result per cell."""
        models = {self._transfer.source, self._transfer.target}
        trusted = all(is_trusted(model, longest_text(plan.cells)) for model in models)
        return (Engine if trusted else Reference)(self._transfer).run(plan)


def settle(runner: Runner | str, models: Iterable[Model], n_tokens: int) -> None:
    """Find out how the engine may run the models, before a plan counts on it; nothing for other runners.

    Raises ModelChangedError where its numbers are not those of a model.
    """
    if (runner if isinstance(runner, str) else getattr(runner, "name", "")) == TrustedEngine.name:
        for model in models:
            with running(model.id):
                if is_trusted(model, n_tokens):
                    prove(model)


def is_trusted(model: Model, n_tokens: int = LONG) -> bool:
    """Return whether the engine may run texts of `n_tokens`; compared once for what is attached."""
    with running(model.id):
        if not model.is_private(n_tokens) or not model.attached:
            return model.is_private()
        found = model.kept(Batched, lambda _: Batched(same=True))
        if found.same and found.n_tokens < n_tokens:
            n_tokens = max(LONG, n_tokens)
            with model.running_attached():
                found = Batched(_same_in_batches(model, n_tokens), n_tokens)
            model.keep(found)
        return found.same


def distrust(model: Model, n_tokens: int = LONG) -> str | None:
    """Return what the user should know where a model runs one row at a time, None where it does not."""
    if is_trusted(model, n_tokens):
        return None
    slow = "So each row runs by itself, as in the model's own generate, which is many times slower."
    if not model.is_private():
        named = first_of(list(map(str, model.attached))) or "hooks that the process has on every module"
        return f"{model.id} has {named}: a run cannot have copies of its modules that act alike. {slow}"
    return (
        f"{model.id} has {first_of(list(map(str, model.attached)))}: in a batch, behind a shared prefix or in a later "
        f"pass it gives something else than alone. {slow}"
    )


def _same_in_batches(model: Model, n_tokens: int) -> bool:
    """Compare engine and reference; with copied prefixes where shared ones do not agree."""
    model.keep(Batched(same=False))
    cells = tuple(_cells(model, n_tokens))
    with running(model.id):
        return _compared(model, cells)


def _compared(model: Model, cells: tuple[Cell, ...]) -> bool:
    alone = _results(Reference(model), compile_plan(cells, shape_of(model), Budget(MEMORY_BYTES, MAX_ROWS)))
    if _engine_gives(model, cells, alone):
        return True
    if sharing(model) == "shared":
        copy_prefixes(model)
        return _engine_gives(model, cells, alone)
    return False


def _engine_gives(model: Model, cells: tuple[Cell, ...], alone: list[Result]) -> bool:
    try:
        batched = _results(Engine(model), compile_plan(cells, shape_of(model), Budget(MEMORY_BYTES, MAX_ROWS)))
    except OF_HOOKS:
        return False
    return all(map(_alike, alone, batched, [SAME.get(model.dtype, SAME[torch.bfloat16])] * len(alone)))


def _results(runner: Runner, plan: Plan) -> list[Result]:
    return sorted(runner.run(plan), key=lambda result: result.index)


def _alike(one: Result, other: Result, tolerance: float) -> bool:
    """Return whether two results of a cell agree in every log-probability that both have."""
    if one.failure or other.failure:
        return one.failure == other.failure
    pairs = list(zip(one.logprobs or (), other.logprobs or (), strict=True))
    if one.top is not None and other.top is not None:
        found = {top.token_id: top.logprob for top in other.top}
        pairs += [(top.logprob, found[top.token_id]) for top in one.top if top.token_id in found]
        pairs += [(one.surprisal_under_patched or 0.0, other.surprisal_under_patched or 0.0)]
        pairs += [(one.surprisal_under_source or 0.0, other.surprisal_under_source or 0.0)]
        if not found.keys() & {top.token_id for top in one.top}:
            return False
    return all(abs(a - b) <= tolerance or a == b for a, b in pairs)


def _cells(model: Model, n_tokens: int) -> Iterator[Cell]:
    """Yield the cells that are compared: two without a write, and two sources at two ℓ* in each prompt."""
    n = model.n_layers
    n_tokens = min(n_tokens, model.max_text - 3)
    short, long = some_ids(model, SHORT, "short"), _long_ids(model, n_tokens)
    answer = some_ids(model, 3, "answer")
    sources = [some_ids(model, length, f"source {length}") for length in SOURCES]
    most = [_long_ids(model, n_tokens - less) for less in (0, 3)]
    places = (short, SHORT // 2, sources), (long, len(long) - 1, most), (long, len(long) // 2, most)
    for ids, position, read in places:
        yield _cell(model, ids, None, answer)
        for layer in (0, n - 1):
            for source in read:
                state = State(source, len(source) - 1, n // 2)
                yield _cell(model, ids, Write(Site(layer), (position,), (state,)), answer)
    write = Write(Site(n // 2), (SHORT // 2,), (State(sources[0], 3, n // 2),))
    yield _cell(model, short, write, (), compare=State(sources[0], 3, n))


def _long_ids(model: Model, n_tokens: int) -> Ids:
    ids = some_ids(model, min(n_tokens, 64), "long")
    return (ids * (n_tokens // len(ids) + 1))[:n_tokens]


def _cell(model: Model, ids: Ids, write: Write | None, answer: Ids, compare: State | None = None) -> Cell:
    readout = Readout("candidates" if answer else "next-token")
    candidates = (answer,) if answer else ()
    identity, decoding = model.identity, Decoding()
    return Cell(identity, model.dtype_name, ids, write, readout, decoding, candidates=candidates, compare=compare)
