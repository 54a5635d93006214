"""Amounts of memory in words: "8GiB" → bytes."""

import re
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType

from patchscopes.errors import OptionError

UNITS: Mapping[str, int] = MappingProxyType(
    {
        **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
        **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    }
)


def parse_bytes(text: str) -> int:
    """The number of bytes that `text` names: a number with KiB, MiB, GiB, TiB, KB, MB, GB or TB, or whole bytes.

    The case of units and spaces do not matter. Raises OptionError for anything else, as for 0 and for "8G", which
    might be either.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, flags=re.ASCII | re.IGNORECASE)
    units = {unit.lower(): factor for unit, factor in UNITS.items()}
    factor = None if found is None else {"": 1, "b": 1, **units}.get(found[2].lower())
    n_bytes = 0 if found is None or factor is None else int(Fraction(found[1]) * factor)
    if n_bytes < 1 or (factor == 1 and found is not None and "." in found[1]):
        raise OptionError(
            f"memory {text!r} is no amount of memory; give a number above 0 with {', '.join(UNITS)}, such as 8GiB or "
            "1.5GB, or a whole number of bytes."
        )
    return n_bytes
