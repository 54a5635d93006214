"""Whole numbers, whoever reckoned them: Python's, NumPy's, and whatever else Python takes as an index."""

import operator
from typing import Any


def whole(value: object) -> int | None:
    """Return a whole number as a plain int; None for anything else, and for truth values, which Python counts as 0, 1.

    What is hashed and stored must look the same everywhere, so that no other type of number goes further than here.
    """
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def plain(value: Any) -> Any:
    """Return a whole number as a plain int, and anything else as it is."""
    return value if (number := whole(value)) is None else number
