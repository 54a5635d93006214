"""Fitting f on text: passes over whole texts, moments as they stream by, maps from the moments.

    texts → parts (fit, validation, held-out), no section in two of them      texts.py
          → positions at which both models are about the same characters      agreeing.py
          → states of both, a few texts at a time                             passes.py
          → moments of each part                                              moments.py
          → a Mapping per (ℓ, ℓ*) and kind, with its quality on the held-out part

Axes: text, position, d_source, d_target.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from patchscopes.errors import MappingError, OptionError
from patchscopes.mappings.agreeing import Agreeing
from patchscopes.mappings.mapping import Kind, Mapping, Mappings, Pair, Quality, Side
from patchscopes.mappings.moments import LeastSquares, Moments
from patchscopes.mappings.texts import DEFAULTS, FitOptions, FitTexts, Texts, chunks
from patchscopes.models import Model
from patchscopes.numbers import plain, whole
from patchscopes.passes import steady

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # tried where none is given; of inputs of unit variance
VALIDATION = 0.1  # of the fit texts, which choose the ridge

LINEAR: tuple[Kind, ...] = ("affine", "ridge", "orthogonal")


def fit(
    source: Model,
    target: Model,
    texts: Texts,
    pairs: Iterable[Pair],
    *,
    kind: Kind = "affine",
    options: FitOptions = DEFAULTS,
) -> Mappings:
    """Fit a map of one `kind` from each ℓ of `source` to its ℓ* of `target`, for all (ℓ, ℓ*) of `pairs`.

    `texts` are whole texts, or passages, whose sections are then kept together. Raises MappingError for layers that are
    not there, texts too short or too few, and tokenisations that never agree; OptionError for other options.
    """
    return fit_several(source, target, texts, pairs, kinds=(kind,), options=options)[kind]


def fit_several(
    source: Model,
    target: Model,
    texts: Texts,
    pairs: Iterable[Pair],
    *,
    kinds: Sequence[Kind] = LINEAR,
    options: FitOptions = DEFAULTS,
) -> dict[Kind, Mappings]:
    """As `fit`, for several kinds from the same passes. Raises ModelChangedError where a model changes meanwhile."""
    with steady(source), steady(target):
        return _fitted(source, target, texts, pairs, kinds, options)


def _fitted(
    source: Model, target: Model, texts: Texts, pairs: Iterable[Pair], kinds: Sequence[Kind], options: FitOptions
) -> dict[Kind, Mappings]:
    wanted = _checked(source, target, pairs)
    _check_kinds(kinds, options)
    chooses = "ridge" in kinds and options.ridge is None
    data = FitTexts.of(source, target, texts, options, validation=VALIDATION if chooses else 0.0)
    data.check_size(source.d_model, kinds)
    options.tell(f"{len(wanted)} pairs of layers, {data.counts()}")
    parts = {name: _moments(source, target, part, wanted) for name, part in data.parts.items()}
    fitting = Fitting(parts, options.ridge)
    between = Side.of(source), Side.of(target)
    return {kind: Mappings(kind, *between, fitting.maps(kind), data.fitted | fitting.chosen(kind)) for kind in kinds}


def held_out_quality(
    mappings: Mappings, source: Model, target: Model, texts: Texts, *, options: FitOptions = DEFAULTS
) -> dict[Pair, Quality]:
    """How well each mapping does on `texts`, all of them; the models must be those that it was fitted for."""
    source.current()
    target.current()
    mappings.check(source, target)
    moments = moments_of(source, target, texts, mappings.pairs, options=options)
    return {pair: moments.errors(pair, mappings[pair]).quality() for pair in mappings.pairs}


def moments_of(
    source: Model, target: Model, texts: Texts, pairs: Iterable[Pair], *, options: FitOptions = DEFAULTS
) -> Moments:
    """The moments of `texts`, all of them: what the qualities of several mappings follow from, in one go.

    Raises as `fit` does.
    """
    data = FitTexts.of(source, target, texts, replace(options, held_out=0.0))
    return _moments(source, target, data.parts["fit"], _checked(source, target, pairs))


def _checked(source: Model, target: Model, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """The pairs in order, each once."""
    given: list[Any] = list(pairs)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and None not in map(whole, pair) for pair in given):
        raise MappingError(f"pairs of layers are (ℓ, ℓ*), such as [(5, 5), (5, 10)], not {given!r}.")
    found = tuple(sorted({(plain(layer), plain(target_layer)) for layer, target_layer in given}))
    if not found:
        raise MappingError("no pair of layers (ℓ, ℓ*) was given; give at least one, such as (5, 5).")
    for part, model, side in (("source", source, 0), ("target", target, 1)):
        layers = sorted({pair[side] for pair in found})
        if layers[0] < 0 or layers[-1] > model.n_layers:
            wrong = layers[0] if layers[0] < 0 else layers[-1]
            raise MappingError(
                f"{part} layer {wrong} is out of range: {model.id} has layers 0 (what enters block 1) to "
                f"{model.n_layers}."
            )
    return found


def _check_kinds(kinds: Sequence[Kind], options: FitOptions) -> None:
    unknown = [kind for kind in kinds if kind not in LINEAR]
    if unknown or not kinds:
        raise OptionError(
            f"kind {unknown[0]!r} is not fitted here; there are {', '.join(LINEAR)}; tuned lenses are trained by "
            "patchscopes.lenses."
            if unknown
            else f"no kind of mapping was given; give some of {', '.join(LINEAR)}."
        )
    if options.ridge is not None and "ridge" not in kinds:
        raise OptionError(f"ridge is {options.ridge}, but maps of kind {kinds[0]} have none; fit the kind ridge.")


def _moments(source: Model, target: Model, part: Sequence[Agreeing], pairs: Sequence[Pair]) -> Moments:
    """The moments of one part, from passes over a few of its texts at a time."""
    moments = Moments(pairs)
    for x, y in chunks(source, target, part, pairs):
        moments.add(x, y)
    return moments


class Fitting:
    """Maps from the moments of the parts, each decomposition made once."""

    def __init__(self, parts: dict[str, Moments], ridge: float | None) -> None:
        self._ridge = ridge
        self._held_out = parts.get("held_out")
        self._inner, self._validation = parts["fit"], parts.get("validation")
        self._all = self._inner
        if self._validation is not None:
            self._all = Moments(self._inner.pairs)
            self._all.absorb(self._inner)
            self._all.absorb(self._validation)
        self._solvers: dict[int, LeastSquares] = {}
        self._ridges: dict[Pair, float] = {}

    def maps(self, kind: Kind) -> dict[Pair, Mapping]:
        """A map for each pair, with its quality where text was held out."""
        found = {}
        if kind == "ridge" and self._ridge is None:
            self._choose_ridges()
        for pair in self._all.pairs:
            mapping = self._map(kind, pair)
            if self._held_out is not None:
                mapping = replace(mapping, quality=self._held_out.errors(pair, mapping).quality())
            found[pair] = mapping
        return found

    def chosen(self, kind: Kind) -> dict[str, object]:
        """What `maps` has decided, as plain JSON: the ridge of each pair."""
        if kind != "ridge":
            return {}
        ridges = {f"{a}-{b}": self._ridge or self._ridges[a, b] for a, b in self._all.pairs}
        return {"ridge": ridges, "ridge_chosen": self._ridge is None}

    def _map(self, kind: Kind, pair: Pair) -> Mapping:
        if kind == "orthogonal":
            return self._all.orthogonal(pair)
        if pair[0] not in self._solvers:
            self._solvers[pair[0]] = self._all.solver(pair[0])
        ridge = (self._ridge or self._ridges[pair]) if kind == "ridge" else 0.0
        return self._all.affine(pair, self._solvers[pair[0]], ridge)

    def _choose_ridges(self) -> None:
        """For each pair the ridge with which maps of the inner part do best on the validation part."""
        assert self._validation is not None
        for layer in sorted({a for a, _ in self._inner.pairs}):
            solver = self._inner.solver(layer)
            for pair in (pair for pair in self._inner.pairs if pair[0] == layer):
                r2 = {
                    ridge: self._validation.errors(pair, self._inner.affine(pair, solver, ridge)).mean_r2()
                    for ridge in RIDGES
                }
                self._ridges[pair] = max(RIDGES, key=r2.__getitem__)
