"""Amounts of memory: what they mean, and what is told of those that mean nothing."""

import pytest

from patchscopes.errors import OptionError
from patchscopes.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("8GiB", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 gib", 3 * 2**29),
        (" 2kb ", 2000),
        ("3KiB", 3072),
        ("1TiB", 2**40),
        ("1TB", 10**12),
        ("7MB", 7_000_000),
        ("1000000", 1_000_000),
        ("12B", 12),
        ("0.1GB", 100_000_000),
    ],
)
def test_amounts(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "8G", "8 apples", "GiB", "-1GiB", "0", "0GiB", "1e9", "1.5", "1,5GiB", "8GiB8", "inf", "٣GiB", "0.0001KB"],
)
def test_what_is_no_amount_is_told_with_what_is(text: str) -> None:
    with pytest.raises(
        OptionError, match=r"is no amount of memory.*KiB, MiB, GiB, TiB, KB, MB, GB, TB.*bytes"
    ) as error:
        parse_bytes(text)
    assert repr(text) in str(error.value)
