"""Prose → what maps are fitted on, and places to read: passages in two parts, no section in both.

A place is a position of a passage that is reported, drawn at random. Axes: passage (over which intervals are made),
place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from patchscopes.data import Exclusion, Passage, split_sections
from patchscopes.errors import DataError
from patchscopes.models import Model
from patchscopes.prompts import Tokenized, tokenize
from patchscopes.rng import philox
from patchscopes.spec import Source

SHARES = (0.6, 0.4)  # of the text: to fit on, to report
# The first tokens have next to no context, and without a BOS the very first is a sink (rule 6).
MIN_POSITION = 4
MAX_POSITION = 127
FEWEST = 12  # passages that are reported, each with five donors among the others
FEWEST_SECTIONS = 3  # to fit on: one to fit, one to say when it is enough, one to tell how good it is

TOO_SHORT = f"no position from {MIN_POSITION} on that another token follows"
NOT_READ = "beyond the passages that are reported"
NOT_FITTED = "beyond the positions that maps are fitted on"


@dataclass(frozen=True, slots=True)
class Place:
    """A position to read. `text` is the passage, cut behind the last of its places; `before` ends with `token`."""

    passage: str
    section: str
    text: str
    position: int
    token: str
    before: str

    @property
    def source(self) -> Source:
        """What a sweep reads. Places of one passage are no donors of each other."""
        return Source(self.text, at=self.position, item=self.passage)


@dataclass(frozen=True, slots=True)
class Dealt:
    """Passages to fit on, the places that are reported with their passages' whole texts, and what was left out."""

    fit: tuple[Passage, ...]
    places: tuple[Place, ...]
    texts: tuple[str, ...]
    excluded: tuple[Exclusion, ...]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is dealt, at most: places, passages that have them, positions to fit on."""

    n_places: int
    n_passages: int
    n_fit: int


def deal(model: Model, passages: Sequence[Passage], amount: Amount, *, seed: int) -> Dealt:
    """Split `passages` by section: of one part what is fitted on, of the other the places.

    Every passage gets a place before any gets a second one. Raises DataError where there are too few.
    """
    fit, reported = split_sections(passages, SHARES, seed=seed)
    if len(sections := {passage.section for passage in fit}) < FEWEST_SECTIONS:
        n = len({passage.section for passage in passages})
        raise DataError(
            f"{len(passages)} passages are in {n} sections, of which {len(sections)} are to fit maps on; at least "
            f"{FEWEST_SECTIONS} are needed there. Give text in 6 files or more, or one file of 300 passages."
        )
    kept, excluded = _to_fit(model, fit, amount.n_fit, seed)
    order = philox("passages", seed).permutation(len(reported))
    read = {int(k): tokenize(model, reported[k].text) for k in order}
    drawn = {k: _positions(tokenized, seed) for k, tokenized in read.items()}
    excluded += [_left_out(reported[k], TOO_SHORT) for k, positions in drawn.items() if not positions]
    usable = {k: positions for k, positions in drawn.items() if positions}
    taken = _in_rounds(dict(list(usable.items())[: amount.n_passages]), amount.n_places)
    excluded += [_left_out(reported[k], NOT_READ) for k in usable if k not in taken]
    if len(taken) < FEWEST:
        raise DataError(
            f"of {len(passages)} passages {len(reported)} are to be reported, and {len(taken)} have a position from "
            f"{MIN_POSITION} on that another token follows; at least {FEWEST} are needed. Give more text."
        )
    places = [
        place
        for k in sorted(taken)
        for place in _places(model, read[k], taken[k], (f"{reported[k].section} #{k}", reported[k].section))
    ]
    return Dealt(kept, tuple(places), tuple(reported[k].text for k in sorted(taken)), tuple(excluded))


def _to_fit(model: Model, part: Sequence[Passage], n: int, seed: int) -> tuple[tuple[Passage, ...], list[Exclusion]]:
    """Passages in a drawn order until they have `n` positions, in the order of the text; the others."""
    kept, held = set(), 0
    for k in philox("fit", seed).permutation(len(part)):
        if held >= n:
            break
        kept.add(int(k))
        held += len(tokenize(model, part[k].text)) - 1
    excluded = [_left_out(passage, NOT_FITTED) for k, passage in enumerate(part) if k not in kept]
    return tuple(passage for k, passage in enumerate(part) if k in kept), excluded


def _positions(tokenized: Tokenized, seed: int) -> list[int]:
    """The positions that can be read, in a drawn order that hangs on the text alone."""
    found = [
        position
        for position in range(MIN_POSITION, min(len(tokenized) - 1, MAX_POSITION + 1))
        if not tokenized.special[position]
    ]
    order = philox("places", seed, tokenized.text).permutation(len(found))
    return [found[k] for k in order]


def _in_rounds(drawn: dict[int, list[int]], n: int) -> dict[int, list[int]]:
    """`n` positions by passage: the first of each, then the second of each, until there are as many."""
    longest = max((len(positions) for positions in drawn.values()), default=0)
    rounds = (
        (k, positions[turn]) for turn in range(longest) for k, positions in drawn.items() if turn < len(positions)
    )
    taken: dict[int, list[int]] = {}
    for _, (k, position) in zip(range(n), rounds, strict=False):
        taken.setdefault(k, []).append(position)
    return taken


def _places(model: Model, tokenized: Tokenized, positions: Sequence[int], named: tuple[str, str]) -> list[Place]:
    """The places of a passage; its text is cut behind the last where that leaves the tokens before as they are."""
    last = max(positions)
    cut = tokenized.text_until(last)
    text = cut if tokenize(model, cut).ids == tokenized.ids[: last + 1] else tokenized.text
    return [
        Place(*named, text, position, tokenized.tokens[position], tokenized.text_until(position))
        for position in positions
    ]


def _left_out(passage: Passage, reason: str) -> Exclusion:
    return Exclusion(f"{passage.section}: {passage.text[:60]}", reason, "passage")
