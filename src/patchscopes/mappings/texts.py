"""Texts to fit on: split into parts by section, read by both models, and their states a few texts at a time.

Axes: text, position, d_source, d_target.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from patchscopes.data import Passage, split_sections
from patchscopes.errors import DataError, MappingError, OptionError, PositionError
from patchscopes.mappings.agreeing import Agreeing, agreeing_positions
from patchscopes.mappings.mapping import Kind, Pair
from patchscopes.mappings.moments import States
from patchscopes.models import Model
from patchscopes.numbers import plain
from patchscopes.passes import TextStates, text_states
from patchscopes.provenance import commit, versions
from patchscopes.spec import Bos

POSITIONS_AT_ONCE = 1024  # of one product of states
TOKENS_AT_ONCE = 2048  # of the texts whose states are in memory together

UNSOUND = "character offsets that do not fit the ids"

Texts = Sequence[str | Passage]


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to fit, beside what.

    `ridge` is the penalty on weights of inputs of unit variance (None: the best of RIDGES on a part of the fit texts).
    `held_out` is the share of the text that qualities are computed on (0: none). Positions below `min_position` are
    left out. `tell` hears what happens.
    """

    ridge: float | None = None
    held_out: float = 0.1
    seed: int = 0
    min_position: int = 1
    bos: Bos = "auto"
    tell: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        for name in ("seed", "min_position"):
            object.__setattr__(self, name, plain(getattr(self, name)))  # NumPy's are no JSON
        if not 0 <= self.held_out < 1:
            raise OptionError(f"held_out is {self.held_out}; it is a share of the text: at least 0 and less than 1.")
        if self.ridge is not None and not 0 < self.ridge < float("inf"):
            raise OptionError(f"ridge is {self.ridge}; it must be above 0. Without a ridge, fit the kind affine.")
        if self.min_position < 0:
            raise OptionError(f"min_position is {self.min_position}; positions begin at 0.")


DEFAULTS = FitOptions()


@dataclass(frozen=True)
class FitTexts:
    """Texts in parts ("fit", and "validation" and "held_out" where there are such), as both models read them."""

    parts: dict[str, tuple[Agreeing, ...]]
    fitted: dict[str, object]

    @classmethod
    def of(
        cls, source: Model, target: Model, texts: Texts, options: FitOptions, *, validation: float = 0.0
    ) -> "FitTexts":
        """Split `texts` by section and tokenise them.

        Raises MappingError where nothing is left, with the reason.
        """
        given = _passages(texts)
        passages = list({passage.text: passage for passage in reversed(given)}.values())[::-1]
        left_out: Counter[str] = Counter({"text given twice": len(given) - len(passages)})
        read = {
            name: tuple(_read(source, target, part, options, left_out))
            for name, part in _split(passages, options, validation).items()
        }
        every = [one for part in read.values() for one in part]
        _refuse_unusable(source, target, every, len(passages), left_out)
        parts = {name: tuple(one for one in part if one.positions) for name, part in read.items()}
        left_out["no position to fit on"] = len(every) - sum(map(len, parts.values()))
        fitted = {
            "texts_sha256": _hash(passages),
            "n_texts": {name: len(part) for name, part in parts.items()},
            "n_tokens": {name: _n_positions(part) for name, part in parts.items()},
            "left_out": {reason: n for reason, n in left_out.items() if n},
            "seed": options.seed,
            "min_position": options.min_position,
            "bos": options.bos,
            "versions": versions(),
            "commit": commit(),
        }
        return cls(parts, fitted)

    def check_size(self, d_source: int, kinds: Sequence[Kind]) -> None:
        """Raise MappingError where there are too few positions to determine a map of these kinds."""
        strict = [kind for kind in kinds if kind != "ridge"]
        n, needed = _n_positions(self.parts["fit"]), 2 * (d_source + 1)
        if strict and n < needed:
            raise MappingError(
                f"{n} positions in {len(self.parts['fit'])} texts are too few for a map of kind {strict[0]} from "
                f"{d_source} dimensions: it takes at least {d_source + 1} to be determined at all, and {needed} are "
                "asked for. Give more text, or fit the kind ridge."
            )
        empty = [name for name, part in self.parts.items() if not part]
        if empty:
            raise MappingError(
                f"no position is left in the {empty[0].replace('_', '-')} part of the texts; give more text."
            )

    def counts(self) -> str:
        """How many positions each part has, in words."""
        return ", ".join(
            f"{_n_positions(part):,} positions of {len(part):,} texts {_PART[name]}"
            for name, part in self.parts.items()
        )


def _passages(texts: Texts) -> list[Passage]:
    """Texts as passages; one that is none has a section of its own."""
    if isinstance(texts, str):
        raise MappingError("one text was given; give a list of texts, of which some can be held out.")
    return [text if isinstance(text, Passage) else Passage(text, f"{n:09}") for n, text in enumerate(texts)]


_PART = {"fit": "to fit on", "validation": "to validate on", "held_out": "held out"}


def _split(passages: Sequence[Passage], options: FitOptions, validation: float) -> dict[str, tuple[Passage, ...]]:
    shares = {
        "fit": (1 - options.held_out) * (1 - validation),
        "validation": (1 - options.held_out) * validation,
        "held_out": options.held_out,
    }
    shares = {name: share for name, share in shares.items() if share > 0}
    try:
        parts = split_sections(passages, tuple(shares.values()), seed=options.seed)
    except DataError as error:
        raise MappingError(f"nothing can be held out to tell how good a map is: {error}") from error
    return dict(zip(shares, parts, strict=True))


def _read(
    source: Model, target: Model, passages: Iterable[Passage], options: FitOptions, left_out: Counter[str]
) -> Iterator[Agreeing]:
    for passage in passages:
        try:
            yield agreeing_positions(source, target, passage.text, min_position=options.min_position, bos=options.bos)
        except PositionError:
            left_out[UNSOUND] += 1


def _refuse_unusable(
    source: Model, target: Model, read: Sequence[Agreeing], n_texts: int, left_out: Counter[str]
) -> None:
    if any(len(one.positions) >= 2 for one in read):
        return
    n_tokens = sum(len(one.source) for one in read)
    if source is not target and n_tokens > 2 * n_texts:
        unsound = left_out[UNSOUND]
        offsets = f" ({unsound} texts have character offsets that do not fit)" if unsound else ""
        raise MappingError(
            f"the tokenisations of {source.id} and {target.id} agree at {sum(len(one.positions) for one in read)} of "
            f"{n_tokens} positions of {n_texts} texts{offsets}; give text in a language that both have words of, or "
            "map within one model."
        )
    raise MappingError(
        f"none of {n_texts} texts has 2 positions to fit on ({n_tokens} tokens in all); give whole sentences."
    )


def _n_positions(part: Iterable[Agreeing]) -> int:
    return sum(len(one.positions) for one in part)


def _hash(passages: Sequence[Passage]) -> str:
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(passage.text.encode() + b"\0")
    return digest.hexdigest()


def chunks(
    source: Model, target: Model, part: Sequence[Agreeing], pairs: Sequence[Pair]
) -> Iterator[tuple[States, States]]:
    """States of source and target at the same positions, about POSITIONS_AT_ONCE at a time."""
    ours, theirs = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    within = source is target
    held: list[tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]] = []
    n = 0
    for group in _groups(part):
        layers = sorted({*ours, *theirs}) if within else ours
        x = _by_index(text_states(source, [one.source for one in group], layers))
        y = x if within else _by_index(text_states(target, [one.target for one in group], theirs))
        for index, one in enumerate(group):
            left, right = zip(*one.positions, strict=True)
            held.append((_at(x[index], ours, left), _at(y[index], theirs, right)))
            n += len(left)
            if n >= POSITIONS_AT_ONCE:
                yield _joined([x for x, _ in held]), _joined([y for _, y in held])
                held, n = [], 0
    if held:
        yield _joined([x for x, _ in held]), _joined([y for _, y in held])


def _groups(part: Sequence[Agreeing]) -> Iterator[list[Agreeing]]:
    """Texts of like length, as many as make up TOKENS_AT_ONCE."""
    group: list[Agreeing] = []
    n = 0
    for one in sorted(part, key=lambda one: (len(one.source), one.source)):
        group.append(one)
        n += len(one.source)
        if n >= TOKENS_AT_ONCE:
            yield group
            group, n = [], 0
    if group:
        yield group


def _by_index(texts: Iterable[TextStates]) -> dict[int, TextStates]:
    return {text.index: text for text in texts}


def _at(text: TextStates, layers: Sequence[int], positions: Sequence[int]) -> dict[int, torch.Tensor]:
    index = torch.tensor(positions, dtype=torch.long, device="cpu")
    return {layer: text.states[layer][index.to(text.states[layer].device)] for layer in layers}


def _joined(parts: Sequence[dict[int, torch.Tensor]]) -> dict[int, torch.Tensor]:
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
