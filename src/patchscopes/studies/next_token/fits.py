"""The maps of the lenses, each from ℓ to n_layers, fitted on passages of sections that are not reported."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

from patchscopes.lenses import Schedule, TunedOptions, fit_tuned_lens
from patchscopes.lenses.tuned import training_cost
from patchscopes.mappings import FitOptions, Mappings, fit
from patchscopes.mappings.texts import FitTexts
from patchscopes.studies.next_token.design import AFFINE, LOGIT_LENS, TUNED, Design

HELD_OUT = 0.1  # of the passages that are fitted on: what the quality of a map is told by


def fit_lenses(design: Design) -> dict[str, Mappings | None]:
    """The maps of each lens, None for the logit lens; those that are kept in `out` are not fitted again.

    Raises MappingError where there is too little text to determine a map.
    """
    makers: Mapping[str, Callable[[Design], Mappings]] = {AFFINE: _affine, TUNED: _tuned}
    found: dict[str, Mappings | None] = {LOGIT_LENS: None}
    for name, make in makers.items():
        design.setup.tell(f"maps of the {name.replace('-', ' ')}")
        found[name] = design.setup.fitted(name, _key(design, name), partial(make, design))
    return found


def fitting_s(design: Design) -> float:
    """How long both fits take here, at the most. Raises MappingError where there is too little text."""
    model, options = design.setup.model, _tuned_options(design)
    data = FitTexts.of(model, model, design.dealt.fit, _affine_options(design), validation=HELD_OUT)
    data.check_size(model.d_model, ("affine",))
    # Least squares is a pass and its moments; a training that hardly learns takes no less.
    hardly = Schedule(epochs=1, replays=1, sampled=1, looks=1)
    least_squares = replace(options, n_validation=1, n_held_out=1, schedule=hardly)
    return sum(training_cost(model, data, one).estimated_s for one in (least_squares, options))


def _affine(design: Design) -> Mappings:
    """Closed-form least squares, which the paper calls a tuned lens."""
    model = design.setup.model
    pairs = [(layer, design.n_layers) for layer in design.layers]
    return fit(model, model, design.dealt.fit, pairs, kind="affine", options=_affine_options(design))


def _affine_options(design: Design) -> FitOptions:
    return FitOptions(held_out=HELD_OUT, seed=design.setup.seed, tell=design.setup.tell)


def _tuned(design: Design) -> Mappings:
    """A translator for each ℓ, trained by KL divergence until a part of the passages says that it is enough."""
    return fit_tuned_lens(design.setup.model, design.dealt.fit, options=_tuned_options(design))


def _tuned_options(design: Design) -> TunedOptions:
    setup = design.setup
    schedule = Schedule(epochs=design.scale.epochs)
    return TunedOptions(layers=design.layers, seed=setup.seed, schedule=schedule, tell=setup.tell)


def _key(design: Design, name: str) -> dict[str, object]:
    """All that decides the maps."""
    digest = hashlib.sha256()
    for passage in design.dealt.fit:
        digest.update(f"{passage.section}\0{passage.text}\0".encode())
    return {
        "lens": name,
        "model": design.setup.model.identity,
        "passages_sha256": digest.hexdigest(),
        "layers": list(design.layers),
        "held_out": HELD_OUT,
        "schedule": asdict(_tuned_options(design).schedule),
        "seed": design.setup.seed,
    }
