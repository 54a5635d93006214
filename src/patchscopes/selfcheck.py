"""Does this model obey the semantics? Five claims, proved on the weights at hand.

    self-write   writing a state back where it came from changes no logit
    causal       a write changes logits after it and none before
    lens         the last layer, read through norm and head, is the model's own logits
    batch        padding, neighbours, a shared prefix and the KV cache do not show
    inert        a write at ℓ* = n_layers away from what is read changes nothing

`check_model` runs every layer; with `thorough=False` three layers, as at every load.

In float32 a deviation is the largest one of logits, in units of their standard deviation. In bfloat16 and float16 it is
the spread of log-probabilities, in units of what the model's own ways of running a text differ by (`yardstick.py`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.alone import batched
from patchscopes.compute import compute_of, plain_compute
from patchscopes.errors import ModelRunError, SelfCheckError
from patchscopes.foreign import is_ours, reason_of, running
from patchscopes.hooks import LayerWrite, Places, capture, patch
from patchscopes.kv import copy_prefixes, shared_or_copied, sharing
from patchscopes.layout import Layout
from patchscopes.models import Inputs, Model, calm
from patchscopes.models.architectures import TABLE
from patchscopes.proof import LENGTH, POSITION, WITHIN, Proven, differences, engine_logits, error_of, some_ids
from patchscopes.rng import philox
from patchscopes.spec import Ids
from patchscopes.vectors import rescaled
from patchscopes.yardstick import ADMITTED, TOP, Spread, Yardstick, measure

# A write that does something moves some logit by more than this, and by more than rounding moves those before it.
MOVED = 1e-3
LAYERS_AT_ONCE = 8
# In float32 logits may differ by rounding: so much of their standard deviation.
TOLERANCE = 1e-3
# Off float32 what must not move between two passes of one shape may move by so many times what two ways differ by: on
# most devices it does not at all, and in a model that draws at random it does by all of that.
AGAIN = 0.25
TIMES = " times what the model's own ways differ by"

# What a claim that fails usually comes from.
LIKELY: Mapping[str, str] = MappingProxyType(
    {
        "self-write": "Two runs of one text differ: dropout or noise is on, or a hook counts its calls; switch it off.",
        "causal": "It sees later tokens, as encoders do, or runs its blocks in another order; it is not supported.",
        "lens": "It computes its logits, or norms its last layer, in a way that is not known; it is not supported.",
        "batch": "Texts beside a text, padding or its cache change it: activations quantised by the whole batch, or a "
        "state beside keys and values; load it unquantised.",
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim: the largest deviation seen, what was allowed, and behind both numbers their `unit`."""

    claim: str
    meaning: str
    deviation: float
    tolerance: float
    passed: bool
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of a self-check, and off float32 what they are measured by."""

    model: str
    findings: tuple[Finding, ...]
    yardstick: Yardstick | None = None

    @property
    def passed(self) -> bool:
        """Whether every claim held."""
        return all(finding.passed for finding in self.findings)


def require(report: Report) -> None:
    """Raise SelfCheckError, with the claims that failed, unless all held."""
    failed = [f for f in report.findings if not f.passed]
    if failed:
        lines = "\n".join(
            f"  {f.claim}: {f.meaning}: deviation {f.deviation:.2g}{f.unit}, at most {f.tolerance:.2g} allowed"
            for f in failed
        )
        raise SelfCheckError(
            f"{report.model} does not obey the semantics, so what its states say could not be trusted:\n{lines}\n"
            f"{' '.join(_likely(failed))} See docs/semantics.md."
        )


def _likely(failed: Sequence[Finding]) -> Iterator[str]:
    """Yield what such failures usually come from, and what to do."""
    if any(math.isinf(finding.deviation) for finding in failed):
        yield 'Its logits are not finite: its numbers may not fit the dtype; load it with dtype="float32".'
        return
    for finding in failed:
        if finding.claim in LIKELY:
            yield LIKELY[finding.claim]


def check_model(model: Model, *, thorough: bool = True) -> Report:
    """Prove the five claims on `model`. Costs 7 forward passes of 9 tokens and up to 17 rows; one more per 8 layers.

    Off float32 it costs what `yardstick.measure` does as well. A model with something attached that does not bear
    batches is checked one row at a time, on the claims that are left. Raises SelfCheckError where the model does not
    run as it is run here, or its logits are not finite off float32, and OutOfMemoryError where memory runs out.
    """
    try:
        with running(model.id):
            check = _kind_of_check(model)(model, thorough=thorough)
            return Report(model.id, tuple(check.findings()), check.yardstick)
    except ModelRunError as error:
        raise SelfCheckError(str(error)) from error.__cause__
    except NotImplementedError as error:
        # Of our own attention, which refuses what it does not know; what the model's own raises is a ModelRunError.
        raise SelfCheckError(f"{model.id} computes attention in a way that is not supported: {error}.") from error
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if model.architecture.family in TABLE or not is_ours(error):
            raise
        raise SelfCheckError(
            f"{model.id} is of a family that is not in the architecture table ({model.architecture.family}), and it "
            f"does not run as the self-check needs it to: {type(error).__name__}: {reason_of(error)} It is not "
            "supported; see docs/semantics.md."
        ) from error


def _kind_of_check(model: Model) -> "type[_Check]":
    if not batched(model, LENGTH + 1):
        return _AloneCheck
    return _Check if model.dtype.itemsize >= 4 else _HalfCheck


@dataclass(frozen=True, slots=True)
class _Deviations:
    """How far writes at one layer moved logits and states: of the state itself (`own`), and of noise."""

    own: float
    noise_before: float
    noise_at: float
    noise_after: float
    noise_below: float
    noise_above: float


@dataclass(frozen=True, slots=True)
class _Written:
    """Logits of one text as it is, with its own state written at one layer, and with noise there.

    `moved` says, per layer watched, by how much of its norm the noise moved the state at POSITION.
    """

    plain: Float[Tensor, "token d_vocab"]
    own: Float[Tensor, "token d_vocab"]
    noisy: Float[Tensor, "token d_vocab"]
    moved: Mapping[int, float]


class _Check:
    """One plain run of `ids` gives the logits and every state that the claims compare with."""

    yardstick: Yardstick | None = None
    tolerance = again = TOLERANCE
    unit = ""
    state_unit = 1.0  # of how far a state moved, so that `again` is a bar for it too

    def __init__(self, model: Model, *, thorough: bool) -> None:
        self.model = model
        n = model.n_layers
        self.layers = tuple(range(n + 1)) if thorough else tuple(sorted({0, (n + 1) // 2, n}))
        self.ids = some_ids(model, LENGTH, "first")
        everywhere = Places((0,) * LENGTH, tuple(range(LENGTH)))
        with capture(model, dict.fromkeys(self.layers, everywhere)) as self.states:
            self.logits = model.all_logits(self._tensor(self.ids))[0]
        numbers = self.logits[self.logits.isfinite()]
        self.scale = (float(numbers.std()) if len(numbers) > 1 else 0.0) or 1.0
        self._nats = 0.0

    @calm()
    def findings(self) -> list[Finding]:
        """The claims, each with what was seen."""
        return list(self._findings())

    def _findings(self) -> Iterator[Finding]:
        written: dict[int, _Deviations] = {}
        for i in range(0, len(self.layers), LAYERS_AT_ONCE):
            layers = self.layers[i : i + LAYERS_AT_ONCE]
            for layer, found in zip(layers, self._written(layers), strict=True):
                written[layer] = self._deviations(layer, found)
        yield self._at_most(
            "self-write",
            "writing a state back where it came from changes no logit",
            max(d.own for d in written.values()),
            self.again,
        )
        yield self._causal(written)
        yield from self._of_logits_and_batches()
        yield self._at_most(
            "inert",
            "a write at the last layer away from what is read changes nothing",
            written[self.model.n_layers].noise_after,
            self.again,
        )

    def _of_logits_and_batches(self) -> Iterator[Finding]:
        yield self._at_most(
            "lens",
            "the last layer, read through norm and head, is the model's own logits",
            self._deviation(self.model.unembed(self.states[self.model.n_layers]), self.logits),
        )
        yield self._batched()

    def _at_most(self, claim: str, meaning: str, deviation: float, tolerance: float | None = None) -> Finding:
        allowed = self.tolerance if tolerance is None else tolerance
        return Finding(claim, meaning, deviation, allowed, deviation <= allowed, self.unit)

    def _causal(self, written: "Mapping[int, _Deviations]") -> Finding:
        """Before and below the write nothing moves; after and above it something does (at the last layer, in place)."""
        n = self.model.n_layers
        before = max(max(d.noise_before, d.noise_below) for d in written.values())
        after = min(min(d.noise_at if layer == n else d.noise_after, d.noise_above) for layer, d in written.items())
        moved = after > max(MOVED, 3 * before)
        meaning = "a write changes logits after it and none before"
        shown = before if moved else after
        return Finding("causal", meaning, shown, self.again, before <= self.again and moved, self.unit)

    def _deviations(self, layer: int, found: _Written) -> "_Deviations":
        plain, noisy = found.plain, found.noisy
        # Blocks in any order but the model's own are told by what moves below the write, and does not above it.
        below = max((by for at, by in found.moved.items() if at < layer), default=0.0)
        above = min((by for at, by in found.moved.items() if at > layer), default=float("inf"))
        return _Deviations(
            own=self._deviation(found.own, plain),
            noise_before=self._deviation(noisy[:POSITION], plain[:POSITION]),
            noise_at=self._deviation(noisy[POSITION], plain[POSITION]),
            noise_after=self._deviation(noisy[POSITION + 1 :], plain[POSITION + 1 :]),
            noise_below=below / self.state_unit,
            noise_above=above / self.state_unit,
        )

    def _written(self, layers: Sequence[int]) -> Iterator[_Written]:
        """Write at each of `layers`, all in one batch: row 0 plain, then one with its own state and one with noise."""
        n_rows = 1 + 2 * len(layers)
        writes = [
            LayerWrite(
                layer,
                Places((1 + 2 * k, 2 + 2 * k), (POSITION, POSITION)),
                torch.stack([self.states[layer][POSITION].float().cpu(), self._noise(layer)]),
            )
            for k, layer in enumerate(layers)
        ]
        (plain, *rows), states = self._run(n_rows, writes)
        for k in range(len(layers)):
            moved = {at: _moved(parts[0], parts[2 + 2 * k]) for at, parts in states.items()}
            yield _Written(plain, rows[2 * k], rows[2 * k + 1], moved)

    def _run(self, n_rows: int, writes: Sequence[LayerWrite]) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits of `n_rows` times the same text, and of each layer watched the states at POSITION, by row."""
        ids = torch.tensor([self.ids] * n_rows, dtype=torch.long, device=self.model.device)
        watched = dict.fromkeys(self.layers, Places(tuple(range(n_rows)), (POSITION,) * n_rows))
        with compute_of(self.model).installed(), capture(self.model, watched) as states, patch(self.model, writes):
            return self.model.all_logits(ids), states

    def _batched(self) -> Finding:
        deviation = self._batch()
        if not self._nats <= WITHIN:  # what stands in for modules is given up, where it is what differs
            self.model.keep(plain_compute(self.model))
            deviation = self._batch()
        if not self._nats <= WITHIN and sharing(self.model) == "shared":  # then our attention
            copy_prefixes(self.model)
            deviation = self._batch()
        self.model.keep(Proven(self._nats))
        meaning = "padding, neighbours, prefix and cache do not show"
        if not self._nats <= WITHIN and deviation <= self.tolerance:  # in the bar of every call, in nats
            return Finding("batch", meaning, self._nats, WITHIN, passed=False, unit=" nats")
        return self._at_most("batch", meaning, deviation)

    def _batch(self) -> float:
        """What the engine does, against each row alone: padding, a prefix shared, rows that start at ℓ*, a cache."""
        longer = (*self.ids, self.ids[1])
        alone = self.model.all_logits(self._tensor(longer))[0, -2:]
        return max(self._padding(longer, alone[1]), self._rows(longer, alone))

    def _padding(self, longer: Ids, alone: Float[Tensor, " d_vocab"]) -> float:
        """Two texts of unequal length in one padded batch."""
        layout = Layout([self.ids[: POSITION + 1], longer])
        device = self.model.device
        inputs = Inputs(layout.ids(device), layout.mask(device), layout.position_ids(device))
        with compute_of(self.model).installed():
            found = self.model.forward(inputs, "last")[:, -1].float()
        return self._deviation(found, torch.stack([self.logits[POSITION], alone]))

    def _rows(self, longer: Ids, alone: Float[Tensor, "two d_vocab"]) -> float:
        """Rows on one prefix that start at layers 0, half way and at the last but one; then a token more each.

        As many rows as columns: what a block is given by column must not be taken for what it is given by row.
        """
        n = self.model.n_layers
        layers = sorted([0, n // 2, n - 1] * (LENGTH - POSITION))[::3]
        found = shared_or_copied(self.model, partial(engine_logits, self.model, longer, layers))
        self._nats = error_of(found, alone)
        return self._deviation(found, alone)

    def _noise(self, layer: int) -> Float[Tensor, " d_model"]:
        """A vector unlike any state, at the norm of the state at POSITION."""
        noise = torch.from_numpy(philox("self-check", layer).standard_normal(self.model.d_model, dtype="float32"))
        return rescaled(noise, self.states[layer][POSITION].float().cpu())

    def _tensor(self, ids: Ids) -> Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self.model.device)

    def _deviation(self, a: Tensor, b: Tensor) -> float:
        difference = float(differences(a, b).abs().max()) / self.scale
        return float("inf") if math.isnan(difference) else difference


class _HalfCheck(_Check):
    """The claims in bfloat16 and float16, where rounding is told from faults by what the model's own ways differ by.

    A text that is written to is compared with itself in a pass of the same shape, which rounds alike: on most devices
    nothing at all moves before a write, however large the yardstick is.
    """

    tolerance, again, unit = ADMITTED, AGAIN, TIMES

    def __init__(self, model: Model, *, thorough: bool) -> None:
        self._measured = self.yardstick = measure(model)
        super().__init__(model, thorough=thorough)
        self.state_unit = torch.finfo(model.dtype).eps

    def _written(self, layers: Sequence[int]) -> Iterator[_Written]:
        """Write at each of `layers`, each in a row of its own: a pass as it is, one with own states, one with noise."""
        plain, before = self._run(len(layers), [])
        places = [Places((row,), (POSITION,)) for row in range(len(layers))]
        rows = list(zip(layers, places, strict=True))
        own = [LayerWrite(layer, at, before[layer][list(at.rows)]) for layer, at in rows]
        noise = [LayerWrite(layer, at, self._noise(layer)[None]) for layer, at in rows]
        (of_own, _), (of_noise, after) = self._run(len(layers), own), self._run(len(layers), noise)
        for row in range(len(layers)):
            moved = {at: _moved(before[at][row], after[at][row]) for at in before}
            yield _Written(plain[row], of_own[row], of_noise[row], moved)

    def _batched(self) -> Finding:
        found = self._measured
        meaning = "padding, neighbours, prefix and cache do not show"
        if found.faults:
            meaning += f" (the model's own forward gives something else: {', '.join(found.faults)})"
        deviation = max([found.ratio, *(found.routes[name].over(found.theirs) for name in found.faults)])
        passed = deviation <= self.tolerance and not found.faults
        return Finding("batch", meaning, deviation, self.tolerance, passed, self.unit)

    def _deviation(self, a: Tensor, b: Tensor) -> float:
        expected = b.log_softmax(-1).topk(min(TOP, b.shape[-1]), dim=-1)
        found = a.log_softmax(-1).gather(-1, expected.indices)
        return Spread.of(differences(found, expected.values)).over(self._measured.theirs)


class _AloneCheck(_Check):
    """The claims about writes, a row at a time: what is attached to the model gives something else in a batch."""

    def _run(self, n_rows: int, writes: Sequence[LayerWrite]) -> tuple[Tensor, dict[int, Tensor]]:
        logits, states = [], dict[int, list[Tensor]]()
        for row in range(n_rows):
            mine = [one for write in writes for one in _of_row(write, row)]
            watched = dict.fromkeys(self.layers, Places((0,), (POSITION,)))
            with capture(self.model, watched) as found, patch(self.model, mine):
                logits.append(self.model.all_logits(self._tensor(self.ids))[0])
            for layer, state in found.items():
                states.setdefault(layer, []).append(state[0])
        return torch.stack(logits), {layer: torch.stack(of_rows) for layer, of_rows in states.items()}

    def _of_logits_and_batches(self) -> Iterator[Finding]:
        return iter(())


def _of_row(write: LayerWrite, row: int) -> Iterator[LayerWrite]:
    """Yield what is written to one row of a batch, as it is written to that row alone."""
    for k, (at, column) in enumerate(zip(write.places.rows, write.places.columns, strict=True)):
        if at == row:
            yield LayerWrite(write.layer, Places((0,), (column,)), write.vectors[k : k + 1])


def _moved(before: Float[Tensor, " d_model"], after: Float[Tensor, " d_model"]) -> float:
    """How far a state moved, in units of its norm."""
    return float((after - before).float().norm() / before.float().norm())
