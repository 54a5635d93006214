"""Does this model obey the semantics? Five claims, proved on the weights at hand.

    self-write   writing a state back where it came from changes no logit
    causal       a write changes logits after it and none before
    lens         the last layer, read through norm and head, is the model's own logits
    batch        padding, neighbours, a shared prefix and the KV cache do not show
    inert        a write at ℓ* = n_layers away from what is read changes nothing

`check_model` runs every layer; with `thorough=False` three layers, as at every load.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import compute_of
from patchscopes.errors import ModelRunError, SelfCheckError
from patchscopes.foreign import is_ours, reason_of, running
from patchscopes.forward import Span, forward
from patchscopes.hooks import Entry, LayerWrite, Places, capture, patch
from patchscopes.kv import Rows, copy_prefixes, recorded, recording_cache, sharing
from patchscopes.layout import Layout
from patchscopes.models import Inputs, Model
from patchscopes.models.architectures import TABLE
from patchscopes.proof import some_ids
from patchscopes.rng import philox
from patchscopes.spec import Ids
from patchscopes.vectors import rescaled

# A write that does something moves some logit by more than this, and by more than rounding moves those before it.
MOVED = 1e-3
LAYERS_AT_ONCE = 8
LENGTH = 9
POSITION = 4
# Logits may differ by rounding: relative to their spread, per dtype.
TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1.5e-1}

# What a claim that fails usually comes from.
LIKELY: Mapping[str, str] = MappingProxyType(
    {
        "self-write": "Two runs of one text differ: dropout, or noise, is on; switch it off.",
        "causal": "It sees later tokens, as encoders do, or runs its blocks in another order; it is not supported.",
        "lens": "It computes its logits, or norms its last layer, in a way that is not known; it is not supported.",
        "batch": "Texts beside a text, padding or its cache change it: activations quantised by the whole batch, or a "
        "state beside keys and values; load it unquantised.",
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim: the largest deviation seen, in units of the logits' standard deviation, and what was allowed."""

    claim: str
    meaning: str
    deviation: float
    tolerance: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of a self-check."""

    model: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every claim held."""
        return all(finding.passed for finding in self.findings)


def require(report: Report) -> None:
    """Raise SelfCheckError, with the claims that failed, unless all held."""
    failed = [f for f in report.findings if not f.passed]
    if failed:
        lines = "\n".join(
            f"  {f.claim}: {f.meaning}: deviation {f.deviation:.2g}, at most {f.tolerance:.2g} allowed" for f in failed
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

    Raises SelfCheckError where the model does not run as it is run here, OutOfMemoryError where memory runs out.
    """
    try:
        with running(model.id):
            return Report(model.id, tuple(_Check(model, thorough=thorough).findings()))
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


@dataclass(frozen=True, slots=True)
class _Deviations:
    """How far writes at one layer moved logits and states: of the state itself (`own`), and of noise."""

    own: float
    noise_before: float
    noise_at: float
    noise_after: float
    noise_below: float
    noise_above: float


class _Check:
    """One plain run of `ids` gives the logits and every state that the claims compare with."""

    def __init__(self, model: Model, *, thorough: bool) -> None:
        self.model = model
        n = model.n_layers
        self.layers = tuple(range(n + 1)) if thorough else tuple(sorted({0, (n + 1) // 2, n}))
        self.ids = some_ids(model, LENGTH, "first")
        everywhere = Places((0,) * LENGTH, tuple(range(LENGTH)))
        with capture(model, dict.fromkeys(self.layers, everywhere)) as self.states:
            self.logits = model.all_logits(self._tensor(self.ids))[0]
        self.scale = float(self.logits.std()) or 1.0
        self.tolerance = TOLERANCES.get(model.dtype_name, TOLERANCES["bfloat16"])

    def findings(self) -> Iterator[Finding]:
        writes = [
            self._write_at(self.layers[i : i + LAYERS_AT_ONCE]) for i in range(0, len(self.layers), LAYERS_AT_ONCE)
        ]
        written = {layer: deviations for chunk in writes for layer, deviations in chunk.items()}
        yield self._at_most(
            "self-write",
            "writing a state back where it came from changes no logit",
            max(d.own for d in written.values()),
        )
        yield self._causal(written)
        yield self._at_most(
            "lens",
            "the last layer, read through norm and head, is the model's own logits",
            self._deviation(self.model.unembed(self.states[self.model.n_layers]), self.logits),
        )
        yield self._at_most("batch", "padding, neighbours, prefix and cache do not show", self._batch())
        yield self._at_most(
            "inert",
            "a write at the last layer away from what is read changes nothing",
            written[self.model.n_layers].noise_after,
        )

    def _at_most(self, claim: str, meaning: str, deviation: float) -> Finding:
        return Finding(claim, meaning, deviation, self.tolerance, deviation <= self.tolerance)

    def _causal(self, written: "Mapping[int, _Deviations]") -> Finding:
        """Before and below the write nothing moves; after and above it something does (at the last layer, in place)."""
        n = self.model.n_layers
        before = max(max(d.noise_before, d.noise_below) for d in written.values())
        after = min(min(d.noise_at if layer == n else d.noise_after, d.noise_above) for layer, d in written.items())
        moved = after > max(MOVED, 3 * before)
        meaning = "a write changes logits after it and none before"
        return Finding(
            "causal", meaning, before if moved else after, self.tolerance, before <= self.tolerance and moved
        )

    def _write_at(self, layers: Sequence[int]) -> "dict[int, _Deviations]":
        """Write at each of `layers`, all in one batch: row 0 plain, then one with its own state and one with noise."""
        ids = torch.tensor([self.ids] * (1 + 2 * len(layers)), device=self.model.device)
        writes = [
            LayerWrite(
                layer,
                Places((1 + 2 * k, 2 + 2 * k), (POSITION, POSITION)),
                torch.stack([self.states[layer][POSITION].float().cpu(), self._noise(layer)]),
            )
            for k, layer in enumerate(layers)
        ]
        n_rows = 1 + 2 * len(layers)
        watched = dict.fromkeys(self.layers, Places(tuple(range(n_rows)), (POSITION,) * n_rows))
        with compute_of(self.model).installed(), capture(self.model, watched) as states, patch(self.model, writes):
            plain, *rows = self.model.all_logits(ids)
        found = {}
        for k, layer in enumerate(layers):
            own, noisy = rows[2 * k], rows[2 * k + 1]
            below, above = self._spread(states, layer, 2 + 2 * k)
            found[layer] = _Deviations(
                own=self._deviation(own, plain),
                noise_before=self._deviation(noisy[:POSITION], plain[:POSITION]),
                noise_at=self._deviation(noisy[POSITION], plain[POSITION]),
                noise_after=self._deviation(noisy[POSITION + 1 :], plain[POSITION + 1 :]),
                noise_below=below,
                noise_above=above,
            )
        return found

    def _spread(self, states: Mapping[int, Tensor], written: int, row: int) -> tuple[float, float]:
        """How far row `row` moved the states below the layer written (the most) and above it (the least).

        Blocks in any order but the model's own are told by this.
        """
        moved = {layer: float((at[row] - at[0]).float().norm() / at[0].float().norm()) for layer, at in states.items()}
        below = max((moved[layer] for layer in states if layer < written), default=0.0)
        above = min((moved[layer] for layer in states if layer > written), default=float("inf"))
        return below, above

    def _batch(self) -> float:
        """What the engine does, against each row alone: padding, a prefix shared, rows that start at ℓ*, a cache."""
        longer = (*self.ids, self.ids[1])
        alone = self.model.all_logits(self._tensor(longer))[0, -2:]
        return max(self._padding(longer, alone[1]), self._shared_or_copied(alone))

    def _shared_or_copied(self, alone: Float[Tensor, "two d_vocab"]) -> float:
        """Where attention needs what ours does not know (sinks, biases), rows copy their prefix from now on."""
        try:
            return self._rows(alone)
        except NotImplementedError:
            if sharing(self.model) == "copied":
                raise
            copy_prefixes(self.model)
            return self._rows(alone)

    def _padding(self, longer: Ids, alone: Float[Tensor, " d_vocab"]) -> float:
        """Two texts of unequal length in one padded batch."""
        layout = Layout([self.ids[: POSITION + 1], longer])
        device = self.model.device
        inputs = Inputs(layout.ids(device), layout.mask(device), layout.position_ids(device))
        with compute_of(self.model).installed():
            found = self.model.forward(inputs, "last")[:, -1].float()
        return self._deviation(found, torch.stack([self.logits[POSITION], alone]))

    def _rows(self, alone: Float[Tensor, "two d_vocab"]) -> float:
        """Rows on one prefix that start at layers 0, half way and at the last but one; then a token more each.

        As many rows as columns: what a block is given by column must not be taken for what it is given by row.
        """
        model, n = self.model, LENGTH - POSITION
        compute, cache = compute_of(model), recording_cache(model)
        layers = sorted([0, model.n_layers // 2, model.n_layers - 1] * n)[::3]
        suffix = Places((0,) * n, tuple(range(POSITION, LENGTH)))
        with compute.installed(), capture(model, dict.fromkeys(layers, suffix)) as states:
            model.forward(Inputs(self._tensor(self.ids), cache=cache), "last")
        prompt = recorded(cache, 0)
        shared = prompt.shared(POSITION) if sharing(model) == "shared" else []
        rows, n_own = Rows(model, n_rows=n, capacity=LENGTH + 1, shared=shared), 0 if shared else POSITION
        rows.add([n_own] * n)
        rows.put(range(n), 0, prompt, slice(POSITION - n_own, POSITION))
        entry = Entry(layers, torch.stack([states[layer].to(model.device) for layer in layers]))
        ids = self._tensor(self.ids[POSITION:]).expand(n, -1)
        first = compute.head.logits(forward(compute, rows, Span(0, n), ids, entry=entry)[:, 0])
        rows.put(range(n), n_own, prompt, slice(POSITION, LENGTH), layers=layers)
        second = compute.head.logits(forward(compute, rows, Span(0, n), torch.full((n, 1), self.ids[1]))[:, 0])
        return self._deviation(torch.stack([first.float(), second.float()], dim=1), alone)

    def _noise(self, layer: int) -> Float[Tensor, " d_model"]:
        """A vector unlike any state, at the norm of the state at POSITION."""
        noise = torch.from_numpy(philox("self-check", layer).standard_normal(self.model.d_model, dtype="float32"))
        return rescaled(noise, self.states[layer][POSITION].float().cpu())

    def _tensor(self, ids: Ids) -> Tensor:
        return torch.tensor([ids], device=self.model.device)

    def _deviation(self, a: Tensor, b: Tensor) -> float:
        difference = float((a - b).abs().max()) / self.scale
        return float("inf") if math.isnan(difference) else difference
