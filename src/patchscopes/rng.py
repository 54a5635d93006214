"""Counter-based random numbers, keyed by what they are for: the same on every machine and in any order of use."""

import hashlib

import numpy as np


def philox(*key: int | str | float | tuple[int, ...]) -> np.random.Generator:
    """NumPy's Philox, keyed by SHA-256 of `key` (plain ints, strings, floats and tuples of ints)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))
