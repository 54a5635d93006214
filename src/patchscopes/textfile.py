r"""The bytes of a text file → text, lines and JSON. What is no UTF-8 text is named as what it is.

Lines end at "\n" alone, as those of JSONL do: U+2028, NEL, a form feed or a lone "\r" are text like any other.
Whatever is wrong raises ValueError with words that go behind the file's name.
"""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

# How files begin that are often given for text. Only what cannot be read as text is looked up here.
_BEGINNINGS: Mapping[bytes, str] = MappingProxyType(
    {
        b"\xff\xfe\x00\x00": "UTF-32",
        b"\x00\x00\xfe\xff": "UTF-32",
        b"\xff\xfe": "UTF-16",
        b"\xfe\xff": "UTF-16",
        b"\x1f\x8b": "a gzip archive",
        b"BZh": "a bzip2 archive",
        b"\xfd7zXZ\x00": "an xz archive",
        b"\x28\xb5\x2f\xfd": "a Zstandard archive",
        b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
        b"PK\x03\x04": "a ZIP archive (as .xlsx, .docx and .npz files are)",
        b"PAR1": "a Parquet table",
        b"ARROW1": "an Arrow table",
        b"FEA1": "a Feather table",
        b"ORC": "an ORC table",
        b"\x89HDF": "an HDF5 file",
        b"SQLite format 3\x00": "an SQLite database",
        b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
        b"\x93NUMPY": "a NumPy array",
        b"\x80\x02": "a Python pickle",
        b"\x80\x03": "a Python pickle",
        b"\x80\x04": "a Python pickle",
        b"\x80\x05": "a Python pickle",
        b"%PDF": "a PDF",
        b"GGUF": "a GGUF model",
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"\x7fELF": "a program",
    }
)
# What to do about each kind of file, by a word of its name.
_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "UTF": "convert it, e.g. iconv -f {} -t utf-8",
        "archive": "unpack it",
        "table": "write its texts to JSONL, or give them in Python",
    }
)
_SAMPLE_BYTES = 4096


def text_of(data: bytes) -> str:
    """Return the text of `data`, UTF-8 with or without a byte-order mark."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if (kind := _kind(data)) is not None:
            raise ValueError(_named(kind)) from error
        # With the mark in front, Python counts from behind it.
        start = error.start + len(data) - len(error.object)
        line = data.count(b"\n", 0, start) + 1
        raise ValueError(
            f"is not UTF-8: byte 0x{data[start]:02x} in line {line}; convert it, e.g. iconv -f latin1 -t utf-8."
        ) from error
    if "\x00" in text:
        kind = _kind(data)
        raise ValueError(_named(kind or "no text file (it holds null bytes)"))
    return text


def lines_of(text: str) -> list[str]:
    r"""Return the lines of `text`, which end at "\n" or "\r\n"."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def parsed(text: str) -> Any:
    """Return what the JSON in `text` says; JSONDecodeError, a ValueError, tells where it is none.

    An object with the same key twice is refused: Python's own reader would take the last in silence.
    """
    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the mapping of `pairs`, in which no key may be given twice."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is given twice")
        values[key] = value
    return values


def _kind(data: bytes) -> str | None:
    """Return what `data` is by its first bytes; UTF-16 and UTF-32 without a mark by where their null bytes stand."""
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning):
            return kind
    sample = data[:_SAMPLE_BYTES]
    nulls = [sample[start::4].count(0) / max(len(sample[start::4]), 1) for start in range(4)]
    big, little = min(nulls[:2]) > 0.9 and nulls[3] < 0.1, min(nulls[2:]) > 0.9 and nulls[0] < 0.1
    if big or little:
        return "UTF-32"
    even, odd = (nulls[0] + nulls[2]) / 2, (nulls[1] + nulls[3]) / 2
    return "UTF-16" if max(even, odd) > 0.3 and min(even, odd) < 0.05 else None


def _named(kind: str) -> str:
    """Say what a file is, and what to do about it."""
    advice = next((advice for word, advice in _ADVICE.items() if word in kind), "give a text file")
    return f"is {kind}, not UTF-8 text; {advice.format(kind.lower())}."
