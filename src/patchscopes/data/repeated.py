"""What is given twice in a data set: once too often, or with two meanings."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from patchscopes.analysis.matching import fold

Repetition = Literal["again", "ambiguous"]


def repeated(keys: Sequence[str], values: Sequence[object]) -> dict[int, Repetition]:
    """Which places of `keys` to leave out, folded alike: with the same value all but the first, with others all."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[fold(key)].append(place)
    found: dict[int, Repetition] = {}
    for same in places.values():
        first = values[same[0]]
        if any(values[place] != first for place in same[1:]):
            found |= dict.fromkeys(same, "ambiguous")
        else:
            found |= dict.fromkeys(same[1:], "again")
    return found
