"""The tuned lens (Belrose et al. 2023, arXiv 2303.08112): a translator per layer, trained to read as the model ends.

    texts → fit, validation and held-out parts, no section in two of them
          → a pass over the fit part: least-squares maps to the last layer, and each layer's coordinates
          → each layer starts at what reads better on validation text: the identity (the logit lens) or its map
          → training on streamed passes over the fit part                                        training.py
          → KL(the model's own distribution ‖ the lens's) on held-out text, beside that of both starts

The published implementation starts at the identity alone. Least squares costs one pass, and where a stream changes its
scale or basis on its way up, the identity is tens of nats away.

Axes: position, d_model.
"""

import time
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dict
from dataclasses import asdict, dataclass, field, replace
from statistics import median

import torch

from patchscopes.compute import compute_of
from patchscopes.errors import LayerError, OptionError
from patchscopes.lenses.material import Material, drawn
from patchscopes.lenses.reading import mean_divergences
from patchscopes.lenses.training import Layer, Schedule, Training
from patchscopes.lenses.translators import Coordinates, Translator
from patchscopes.mappings import FitOptions, Mapping, Mappings, Moments, Quality, Side
from patchscopes.mappings.texts import FitTexts, Texts, chunks
from patchscopes.models import Model, calm
from patchscopes.numbers import plain
from patchscopes.passes import steady
from patchscopes.plan import duration
from patchscopes.spec import Bos

SHARE = 0.1  # of the text, for validation and for what is held out, each


@dataclass(frozen=True, slots=True)
class TunedOptions:
    """How to train, beside on what.

    `layers` are those that get a translator (None: 0…n_layers−1). Of the text, a tenth says when to stop, at
    `n_validation` positions drawn from it, and a tenth is held out, of which `n_held_out` tell the quality.
    """

    layers: Sequence[int] | None = None
    seed: int = 0
    n_validation: int = 512
    n_held_out: int = 1024
    min_position: int = 1
    bos: Bos = "auto"
    schedule: Schedule = field(default_factory=Schedule)
    tell: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        for name in ("seed", "n_validation", "n_held_out", "min_position"):
            object.__setattr__(self, name, plain(getattr(self, name)))  # NumPy's are no JSON
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(map(plain, self.layers)))
        for name in ("n_validation", "n_held_out"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it takes at least one position.")


DEFAULTS = TunedOptions()


def fit_tuned_lens(model: Model, texts: Texts, *, options: TunedOptions = DEFAULTS) -> Mappings:
    """Train a translator for each layer of `model` on `texts`: whole texts, or passages, whose sections stay together.

    The same seed, texts and machine give the same lens. Raises MappingError for texts that are too few or too short,
    LayerError for layers that get no translator, ModelChangedError where the model changes meanwhile.
    """
    with steady(model):
        return _trained(model, texts, options)


def _trained(model: Model, texts: Texts, options: TunedOptions) -> Mappings:
    layers = _layers(model, options)
    data = FitTexts.of(model, model, texts, _fit_options(options), validation=SHARE / (1 - SHARE))
    data.check_size(model.d_model, ("affine",))
    options.tell(
        f"training a tuned lens for {model.id}: {len(layers)} layers, {data.counts()}; "
        f"{training_cost(model, data, options)}"
    )
    starts = _Starts.of(model, data, layers, options)
    training = Training(model, starts.layers(model), data.parts["fit"], options.schedule, options.seed)
    training.run(starts.validation, options.tell)
    return _finished(model, data, training, starts, options)


def _layers(model: Model, options: TunedOptions) -> list[int]:
    layers = sorted(set(range(model.n_layers) if options.layers is None else options.layers))
    if not layers or layers[0] < 0 or layers[-1] >= model.n_layers:
        raise LayerError(
            f"a lens for layers {layers} cannot be trained: {model.id} has translators for layers 0 to "
            f"{model.n_layers - 1}; what layer {model.n_layers} gives is the model's own output."
        )
    return layers


def _fit_options(options: TunedOptions) -> FitOptions:
    return FitOptions(held_out=SHARE, seed=options.seed, min_position=options.min_position, bos=options.bos)


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What a training takes, at the most."""

    flops: float
    estimated_s: float

    def __str__(self) -> str:
        return f"at most {self.flops / 1e12:.0f} TFLOP, some {duration(self.estimated_s)} here"


def training_cost(model: Model, data: FitTexts, options: TunedOptions) -> TrainingCost:
    """What training on `data` takes, timed by the model's own head, half a second at the most."""
    schedule, n_layers = options.schedule, len(_layers(model, options))
    n_tokens = {name: sum(len(one.source) for one in part) for name, part in data.parts.items()}
    n = sum(len(one.positions) for one in data.parts["fit"])
    in_head = 2.0 * model.unembed_width * model.d_vocab
    in_sample = 2.0 * model.unembed_width * min(model.d_vocab, schedule.sampled + 3 * schedule.batch)
    in_blocks = 2.0 * model.n_matrix_parameters - in_head
    a_map = 2.0 * model.d_model**2
    flops = (
        (n_tokens["fit"] * (1 + schedule.epochs) + n_tokens["validation"] + n_tokens["held_out"]) * in_blocks
        + n * n_layers * 4 * a_map  # moments are float64, which takes twice as long
        + n * schedule.epochs * in_head
        + n * schedule.epochs * schedule.replays * n_layers * (2 * in_sample + 4 * a_map)
        + (options.n_validation * (schedule.looks + 2) + options.n_held_out * 3) * n_layers * in_head
    )
    return TrainingCost(flops, flops / _rate(model))


def _rate(model: Model) -> float:
    """FLOP/s of the model's own head: the middle of three tries."""
    head, n, times = compute_of(model).head, 256, []
    x = torch.randn(n, model.unembed_width, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    for _ in range(3):
        began = time.perf_counter()
        head.best(x).tokens.tolist()
        times.append(time.perf_counter() - began)
    return n * 2.0 * model.unembed_width * model.d_vocab / median(times)


@dataclass(frozen=True)
class _Starts:
    """Where layers may start, in which coordinates they learn, and how each start reads on validation text."""

    affine: dict[int, Mapping]
    coordinates: dict[int, Coordinates]
    validation: Material
    identity_kl: dict[int, float]
    affine_kl: dict[int, float]

    @classmethod
    def of(cls, model: Model, data: FitTexts, layers: list[int], options: TunedOptions) -> "_Starts":
        last = model.n_layers
        moments = Moments([(layer, last) for layer in layers])
        for x, y in chunks(model, model, data.parts["fit"], moments.pairs):
            moments.add(x, y)
        affine, coordinates = {}, {}
        for layer in layers:
            solver = moments.solver(layer)
            affine[layer] = moments.affine((layer, last), solver)
            coordinates[layer] = Coordinates.of(moments.mean(layer), solver, moments.deviation(last))
        validation = drawn(model, data.parts["validation"], layers, options.n_validation, "validation", options.seed)
        identity_kl = _divergences(model, validation, dict.fromkeys(layers))
        affine_kl = _divergences(model, validation, affine)
        better = sum(affine_kl[layer] < identity_kl[layer] for layer in layers)
        options.tell(
            f"on validation text the logit lens is {_mean(identity_kl):.3f} nats away and least squares "
            f"{_mean(affine_kl):.3f}, the mean of {len(layers)} layers; {better} of them start at least squares"
        )
        return cls(affine, coordinates, validation, identity_kl, affine_kl)

    def kind(self, layer: int) -> str:
        """Where a layer starts: "affine" or "identity"."""
        return "affine" if self.affine_kl[layer] < self.identity_kl[layer] else "identity"

    def layers(self, model: Model) -> dict[int, Layer]:
        """The layers as training begins."""
        found = {}
        for layer, affine in self.affine.items():
            start = affine if self.kind(layer) == "affine" else _identity(model.d_model)
            kl = min(self.affine_kl[layer], self.identity_kl[layer])
            found[layer] = Layer(Translator(start, self.coordinates[layer], model.device), kl, start)
        return found


def _identity(d: int) -> Mapping:
    return Mapping(torch.eye(d, dtype=torch.float32, device="cpu"), torch.zeros(d, dtype=torch.float32, device="cpu"))


@calm()
def _divergences(model: Model, material: Material, maps: Dict[int, Mapping | None]) -> dict[int, float]:
    """How far from the model's own distribution each layer reads through its map; None: as it is."""
    mapped = {n: material.states[n] if f is None else f(material.states[n]) for n, f in maps.items()}
    read = [model.head_input(x.to(model.dtype)) for x in mapped.values()]
    return dict(zip(maps, mean_divergences(model, material.final, read), strict=True))


def _mean(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values)


def _finished(model: Model, data: FitTexts, training: Training, starts: _Starts, options: TunedOptions) -> Mappings:
    """The best of each layer, judged on text that had no say in it."""
    layers = list(training.layers)
    held_out = drawn(model, data.parts["held_out"], layers, options.n_held_out, "held-out", options.seed)
    best = {number: layer.best for number, layer in training.layers.items()}
    lens, affine, logit = (_divergences(model, held_out, maps) for maps in (best, starts.affine, dict.fromkeys(layers)))
    options.tell(
        f"on {len(held_out):,} positions held out: the tuned lens is {_mean(lens):.3f} nats away, least squares "
        f"{_mean(affine):.3f}, the logit lens {_mean(logit):.3f}"
    )
    by_pair = {
        (number, model.n_layers): replace(mapping, quality=Quality(len(held_out), kl=lens[number]))
        for number, mapping in best.items()
    }
    schedule = asdict(options.schedule) | {"steps": training.n_steps, "stopped_at": training.step}
    by_layer = {
        str(number): {
            "start": starts.kind(number),
            "step": layer.step,
            "kl_logit_lens": logit[number],
            "kl_affine": affine[number],
            "kl_validation": layer.kl,
            "kl_validation_start": min(starts.identity_kl[number], starts.affine_kl[number]),
        }
        for number, layer in training.layers.items()
    }
    used = {"n_validation": len(starts.validation), "n_held_out": len(held_out)}
    fitted = data.fitted | used | {"training": schedule, "layers": by_layer}
    return Mappings("tuned", Side.of(model), Side.of(model), by_pair, fitted)
