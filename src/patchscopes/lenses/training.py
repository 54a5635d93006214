"""Training translators: steps over streamed material, and each layer's best so far on positions that it does not see.

All layers learn from the same passes, in minibatches of positions, by Adam, the rate rising over the first tenth of the
steps and falling to 0 until the last. At some steps the divergence on the validation positions is computed over the
whole vocabulary; what a layer keeps is what did best there, its start included, and one that has not improved for
`patience` such looks is done.

Axes: position, d_model.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from patchscopes.errors import OptionError
from patchscopes.lenses.material import Material, batches, buffers, material_of, n_batches
from patchscopes.lenses.reading import mean_divergences
from patchscopes.lenses.translators import Translator, draw_sample
from patchscopes.mappings import Agreeing, Mapping
from patchscopes.models import Model
from patchscopes.plan import duration
from patchscopes.rng import philox

WARM_UP = 0.1  # of the steps
BETAS = (0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How training goes: over the text `epochs` times, each buffer of it `replays` times, `batch` positions a step.

    `sampled` tokens stand for the unlikely ones at each step; `looks` is how often validation is looked at.
    """

    epochs: int = 1
    replays: int = 4
    batch: int = 256
    rate: float = 5e-4
    sampled: int = 512
    looks: int = 8
    patience: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < float("inf"):
                raise OptionError(f"{name} is {value}; it must be above 0.")


@dataclass
class Layer:
    """One layer in training, and the best of it so far."""

    translator: Translator
    kl: float
    best: Mapping
    step: int = 0
    since: int = 0
    done: bool = False
    curve: list[float] = field(default_factory=list)

    def look(self, kl: float, step: int, patience: int) -> None:
        """Keep what there is now where it is better than before; be done where it has not been for long."""
        self.curve.append(kl)
        if kl < self.kl:
            self.kl, self.best, self.step, self.since = kl, self.translator.mapping(), step, 0
            return
        self.since += 1
        self.done = self.since >= patience


class Training:
    """The translators of some layers, on their way."""

    def __init__(
        self, model: Model, layers: dict[int, Layer], texts: Sequence[Agreeing], schedule: Schedule, seed: int
    ) -> None:
        self._model, self.layers, self._schedule, self._seed = model, layers, schedule, seed
        self._buffers = [buffer for epoch in range(schedule.epochs) for buffer in buffers(texts, seed, epoch)]
        sizes = [sum(len(one.positions) for one in buffer) for buffer in self._buffers]
        self.n_steps = schedule.replays * sum(n_batches(n, schedule.batch) for n in sizes)
        looks = min(schedule.looks, self.n_steps)
        self._looks = {round(self.n_steps * (k + 1) / looks) for k in range(looks)}
        self._generator = torch.Generator().manual_seed(int(philox("lens-steps", seed).integers(2**62)))
        parameters = [p for layer in layers.values() for p in layer.translator.parameters]
        fused = model.device.type in ("cpu", "cuda")
        self._optimizer = torch.optim.Adam(parameters, lr=schedule.rate, betas=BETAS, fused=fused)
        self._rate = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate_at)
        self.step = 0

    def run(self, validation: Material, tell: Callable[[str], None]) -> None:
        """Train until the last step, or until every layer is done."""
        began = time.monotonic()
        for texts in self._buffers:
            material = material_of(self._model, texts, list(self.layers))
            likely = material.likely(self._model)
            for _ in range(self._schedule.replays):
                for part in batches(len(material), self._schedule.batch, self._generator):
                    self._learn(material.at(part), likely[part])
                    if self.step in self._looks and self._look(validation, tell, began):
                        return

    def _learn(self, material: Material, likely: torch.Tensor) -> None:
        """One step of every layer that is not done."""
        model = self._model
        sample = draw_sample(model, material.final, likely, self._schedule.sampled, self._generator)
        for number, layer in self.layers.items():
            parameters = layer.translator.parameters
            if layer.done:
                grads: tuple[torch.Tensor | None, ...] = (None,) * len(parameters)
            else:
                read = model.head_input(layer.translator(material.states[number]).to(model.dtype))
                grads = torch.autograd.grad(sample.loss(model, read), parameters)
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
        self._optimizer.step()
        self._rate.step()
        self.step += 1

    def _rate_at(self, step: int) -> float:
        warm = max(1, round(WARM_UP * self.n_steps))
        return (step + 1) / warm if step < warm else (self.n_steps - step) / max(1, self.n_steps - warm)

    @torch.no_grad()
    def _look(self, validation: Material, tell: Callable[[str], None], began: float) -> bool:
        """See how each layer does on `validation`; True where all are done."""
        model = self._model
        going = {number: layer for number, layer in self.layers.items() if not layer.done}
        read = [model.head_input(layer.translator(validation.states[n]).to(model.dtype)) for n, layer in going.items()]
        for layer, kl in zip(going.values(), mean_divergences(model, validation.final, read), strict=True):
            layer.look(kl, self.step, self._schedule.patience)
        left = (time.monotonic() - began) / self.step * (self.n_steps - self.step)
        mean = sum(layer.kl for layer in self.layers.values()) / len(self.layers)
        tell(
            f"step {self.step} of {self.n_steps}: {mean:.3f} nats on validation text, the mean of {len(self.layers)} "
            f"layers, {sum(not layer.done for layer in self.layers.values())} of which still learn; "
            f"{duration(left)} left"
        )
        return all(layer.done for layer in self.layers.values())
