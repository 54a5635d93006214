"""Prose → what maps are fitted on and measured on, and openings: beginnings of passages whose next token is compared.

No section is in two parts, so that nothing near an opening was fitted on. An opening ends with a token at which both
tokenisations agree, also where the text ends there, so that both models stand behind the same characters.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from patchscopes.data import DataSet, Exclusion, Passage, split_sections
from patchscopes.errors import DataError, MappingError, PositionError
from patchscopes.mappings import agreeing_positions
from patchscopes.models import Model
from patchscopes.prompts import tokenize
from patchscopes.rng import philox

FIRST, LAST = 8, 48  # tokens of the source model: enough to read, few to run
TRIES = 12  # places of a passage that are looked at

NO_PLACE = f"no token {FIRST} to {LAST} at which both tokenisations agree, also where the text ends there"
AGAIN = "begins as another passage does whose next token is compared"
BRACES = "{} stands in it, which marks a placeholder"
UNSOUND = "character offsets that do not fit the ids"


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a passage, up to the token that is read, and the section it stands in."""

    text: str
    section: str


@dataclass(frozen=True)
class Texts:
    """The openings, what maps are fitted on and what their R² is taken on, and what was left out."""

    openings: tuple[Opening, ...]
    held_out: tuple[Passage, ...]
    fit: tuple[Passage, ...]
    excluded: tuple[Exclusion, ...]


def deal(
    models: tuple[Model, Model],
    data: DataSet[Passage],
    shares: tuple[float, float, float],
    *,
    n_most: int,
    fewest: int,
    seed: int,
) -> Texts:
    """Deal the sections into parts of these shares: for openings, for R², to fit on. The rest is not read.

    Raises DataError where there are fewer sections than parts, or fewer than `fewest` openings are found; MappingError
    where none is.
    """
    source, target = models
    rest = 1 - sum(shares)
    parts = split_sections(data.items, (*shares, rest) if rest > 1e-6 else shares, seed=seed)
    excluded = [_left(passage, "--quick: prose that is not read") for part in parts[3:] for passage in part]
    found: list[Opening] = []
    begun: set[str] = set()
    order = philox("openings", seed).permutation(len(parts[0]))
    passages = [parts[0][k] for k in order]
    for passage in passages:
        if len(found) == n_most:
            excluded.append(_left(passage, f"beyond the {n_most} passages whose next token is compared"))
            continue
        opening = _opening(source, target, passage, seed)
        if not isinstance(opening, Opening):
            excluded.append(_left(passage, opening))
        elif opening.text in begun:
            excluded.append(_left(passage, AGAIN))
        else:
            found.append(opening)
            begun.add(opening.text)
    if not found:
        raise _never_agree(source, target, passages, excluded)
    if len(found) < fewest:
        raise DataError(
            f"{len(found)} passages of {data.source} can be compared, and {fewest} are needed: of {len(data.items)} "
            f"passages {len(passages)} were dealt to those that are compared, the others to fit on "
            f"({dict(Counter(exclusion.reason for exclusion in excluded))}). Give more text, or longer passages."
        )
    return Texts(tuple(found), parts[1], parts[2], tuple(excluded))


def _opening(source: Model, target: Model, passage: Passage, seed: int) -> Opening | str:
    """An opening of the passage at a drawn place, or why it has none."""
    text = passage.text
    try:
        agreeing = agreeing_positions(source, target, text)
        spans = tokenize(source, text).spans
    except PositionError:
        return UNSOUND
    places = [i for i, _ in agreeing.positions if FIRST <= i <= LAST]
    order = philox("opening", seed, text).permutation(len(places))
    for k in order[:TRIES]:
        begun = text[: spans[places[k]][1]]
        alone = agreeing_positions(source, target, begun)
        if alone.positions[-1:] == ((len(alone.source) - 1, len(alone.target) - 1),):
            return BRACES if "{}" in begun else Opening(begun, passage.section)
    return NO_PLACE


def _never_agree(
    source: Model, target: Model, passages: Sequence[Passage], excluded: Sequence[Exclusion]
) -> MappingError:
    """The error where no opening is found, with how often the tokenisations agree."""
    n_agree = n_tokens = 0
    for passage in passages:
        try:
            agreeing = agreeing_positions(source, target, passage.text)
        except PositionError:
            continue
        n_agree, n_tokens = n_agree + len(agreeing.positions), n_tokens + len(agreeing.source)
    reasons = dict(Counter(exclusion.reason for exclusion in excluded))
    return MappingError(
        f"the tokenisations of {source.id} and {target.id} agree at {n_agree} of {n_tokens} positions of "
        f"{len(passages)} passages, and at none where a text could end ({reasons}); give longer text, in a language "
        "that both have words of."
    )


def _left(passage: Passage, reason: str) -> Exclusion:
    return Exclusion(f"{passage.section}: {passage.text[:60]}", reason, "passage")
