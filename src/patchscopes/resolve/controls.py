"""The controls of rule 16: cells like any other, with something else in the place of the source's state.

How many rows each has: `unpatched` one a prompt; `self` and `zero` one a (ℓ*, prompt), `zero` one a (ℓ, ℓ*, prompt)
where a mapping makes something of it; `text-only` and `phrase-only` one a (source, position, prompt); `mean` one a
cell; `random`, `random-state` and `shuffled` one a cell and draw. Where sources have candidates of their own, those
without a source have these rows for every set of candidates.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from patchscopes.models import Model
from patchscopes.prompts import Target, fill, tokenize
from patchscopes.resolve.donors import Donors
from patchscopes.resolve.grid import Grid, Point, Variant
from patchscopes.resolve.neutral import NEUTRAL_SENTENCES
from patchscopes.rng import philox
from patchscopes.spec import Bos, Ids, Neutral, Noise, Own, Request, State, Vector, Zero


def unpatched(grid: Grid) -> Iterator[Request]:
    """The inspection prompt as it is."""
    for target, variant in _without_source(grid, "unpatched"):
        yield grid.unwritten(target, target.tokenized, variant, point=None)


def self_(grid: Grid) -> Iterator[Request]:
    """Each placeholder's own state, written back over it: must change nothing."""
    apart = not grid.transfer.within or grid.transfer.mappings is not None

    def own(target: Target, layer: int) -> tuple[Vector, ...]:
        states = [State(target.tokenized.ids, position, layer, target.masked) for position in target.positions]
        return tuple(map(Own, states)) if apart else tuple(states)

    return _per_target_layer(grid, "self", own)


def zero(grid: Grid) -> Iterator[Request]:
    """The zero vector, and through a mapping its bias."""

    def zeros(target: Target, _: int) -> tuple[Vector, ...]:
        return (Zero(),) * len(target.positions)

    return _per_target_layer(grid, "zero", zeros, mapped=grid.transfer.mappings is not None)


def random(grid: Grid) -> Iterator[Request]:
    """Isotropic noise with the norm of the state that the cell writes."""
    return _per_cell(grid, "random", lambda _, state, draw: Noise(state, grid.sweep.seed, draw))


def random_state(grid: Grid) -> Iterator[Request]:
    """The state, at the cell's own layer, of a place in an unrelated neutral sentence, at the norm of the cell's."""
    places = neutral_places(grid.transfer.source, grid.sweep.bos)

    def neutral(point: Point, state: State, draw: int) -> Vector:
        # The key has no layer: one draw is one place, read at every layer.
        generator = philox("random-state", grid.sweep.seed, draw, point.tokenized.ids, point.position)
        ids, position = places[int(generator.integers(len(places)))]
        return Neutral(State(ids, position, state.layer), state)

    return _per_cell(grid, "random-state", neutral)


def shuffled(grid: Grid) -> Iterator[Request]:
    """The raw state of a donor, a place of another item's source, at the cell's own layer: one donor for each draw."""
    donors = Donors(grid, "shuffled")
    donors.check_draws(grid.points)
    drawn = {(point.source_index, point.position): donors.drawn(point) for point in grid.points}

    def donated(point: Point, state: State, draw: int) -> Vector:
        ids, position, masked = drawn[point.source_index, point.position][draw]
        return State(ids, position, state.layer, masked)

    return _per_cell(grid, "shuffled", donated)


def mean(grid: Grid) -> Iterator[Request]:
    """The mean of all donors' states at the cell's own layer; the item's own are left out."""
    donors = Donors(grid, "mean")
    return _per_cell(grid, "mean", lambda point, state, _: donors.mean(point, state.layer), draws=1)


def text_only(grid: Grid) -> Iterator[Request]:
    """The source's own text up to the token, in the placeholder's stead, and nothing written."""
    return _as_text(grid, "text-only", lambda point: point.text, "no text stands before the end of")


def phrase_only(grid: Grid) -> Iterator[Request]:
    """The phrase that marks the token, in the placeholder's stead, and nothing written."""
    return _as_text(grid, "phrase-only", lambda point: point.marked, "no text is marked by")


CONTROLS: Mapping[str, Callable[[Grid], Iterator[Request]]] = MappingProxyType(
    {
        "unpatched": unpatched,
        "self": self_,
        "zero": zero,
        "random": random,
        "random-state": random_state,
        "shuffled": shuffled,
        "mean": mean,
        "text-only": text_only,
        "phrase-only": phrase_only,
    }
)


def _without_source(grid: Grid, control: str) -> Iterator[tuple[Target, Variant]]:
    """Each prompt and sample, once for every set of candidates that there is."""
    for target in grid.targets:
        sets = grid.candidate_sets(target)
        for sample in grid.samples:
            for candidates in sets:
                yield target, Variant(control, sample=sample, candidates=candidates)


def _per_target_layer(
    grid: Grid, control: str, vectors: Callable[[Target, int], tuple[Vector, ...]], *, mapped: bool = False
) -> Iterator[Request]:
    """A request per ℓ* and prompt; per (ℓ, ℓ*) where what is written is `mapped`."""
    pairs = grid.sweep.layer_pairs()
    for layers in dict.fromkeys((source if mapped else None, target) for source, target in pairs):
        for target, variant in _without_source(grid, control):
            yield grid.request(target, vectors(target, layers[1]), layers, variant)


def _per_cell(
    grid: Grid, control: str, vector: Callable[[Point, State, int], Vector], *, draws: int | None = None
) -> Iterator[Request]:
    """A request per cell and draw (the sweep's draws where none are given), in the order of the cells, then by draw."""
    n_draws = grid.sweep.draws if draws is None else draws
    for point in grid.points:
        targets = grid.targets_of(point)
        for layers in grid.sweep.layer_pairs():
            vectors = [vector(point, point.state(layers[0]), draw) for draw in range(n_draws)]
            for target in targets:
                for sample in grid.samples:
                    for draw, made in enumerate(vectors):
                        copies = (made,) * len(target.positions)
                        yield grid.request(target, copies, layers, Variant(control, draw, sample), point=point)


def _as_text(grid: Grid, control: str, text_of: Callable[[Point], str], nothing: str) -> Iterator[Request]:
    """A text of each point in the placeholder's stead, tokenised with the prompt; failed where it has `nothing`."""
    for point in grid.points:
        text = text_of(point)
        for target in grid.targets_of(point):
            for sample in grid.samples:
                variant = Variant(control, sample=sample)
                if target.placeholder is None:
                    reason = f"{control} needs a placeholder, and the prompt {target.prompt.label!r} has none"
                    yield grid.unresolvable(target, variant, point=point, reason=reason)
                elif text:
                    tokenized = fill(grid.model, target.prompt, text, bos=grid.sweep.bos)
                    yield grid.unwritten(target, tokenized, variant, point=point)
                else:
                    reason = f"{nothing} token {point.position} ({point.token!r})"
                    yield grid.unresolvable(target, variant, point=point, reason=reason)


def neutral_places(model: Model, bos: Bos) -> list[tuple[Ids, int]]:
    """Every place that `random-state` may draw: (ids, position ≥ 1 and no special token) of a neutral sentence."""
    texts = [tokenize(model, sentence, bos=bos) for sentence in NEUTRAL_SENTENCES]
    return [(text.ids, i) for text in texts for i in range(1, len(text)) if not text.special[i]]
