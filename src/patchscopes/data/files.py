"""Files of data → text and JSON, with their hash. Whatever cannot be read is refused with its place."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchscopes import textfile
from patchscopes.errors import DataError

_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")


@dataclass(frozen=True, slots=True)
class File:
    """A file that was read; `name` is relative to what the user named."""

    name: str
    data: bytes


def read_files(path: str | os.PathLike[str], suffixes: Sequence[str]) -> tuple[File, ...]:
    """`path` itself, or all files below it with one of `suffixes` (in any case), in the order of their names.

    What is hidden (".ipynb_checkpoints", "._name.json") is not searched. Raises DataError for a path that is not
    there, a file of another kind, and a folder without data.
    """
    root = Path(path)
    kinds = " or ".join(f"*{suffix}" for suffix in suffixes)
    if root.is_dir():
        found = {
            entry.relative_to(root).as_posix(): entry for entry in root.rglob("*") if entry.suffix.lower() in suffixes
        }
        shown = {name: entry for name, entry in found.items() if not re.search(r"(^|/)\.", name) and entry.is_file()}
        if not shown:
            raise DataError(f"{path} holds no data: no {kinds} is in it, or below; name the folder that has them.")
        return tuple(File(name, _bytes(shown[name])) for name in sorted(shown))
    if root.exists() and root.suffix.lower() not in suffixes:
        raise DataError(f"{path} is not a kind of data that can be read; give {kinds}, or a folder of such files.")
    return (File(root.name, _bytes(root)),)


def sha256_of(files: Sequence[File]) -> str:
    """The hash of the bytes of `files`, one after another."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.data)
    return digest.hexdigest()


def text_of(file: File) -> str:
    """The text of `file`, with or without a byte-order mark; raises DataError where it is not UTF-8."""
    try:
        return textfile.text_of(file.data)
    except ValueError as error:
        raise DataError(f"{file.name} {error}") from error


def json_of(file: File) -> Any:
    """What the JSON in `file` says; raises DataError with line and column where it is none."""
    text = text_of(file)
    try:
        return textfile.parsed(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file.name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; mend it there."
        ) from error
    except ValueError as error:
        raise DataError(f"{file.name}: {error}; give one of the forms in docs/data.md.") from error


def unescaped(text: str) -> str:
    r"""`text` with what was escaped twice as what it stands for: the six characters `\u00ed` become "í"."""
    return _ESCAPES.sub(_meant, text)


def _meant(escapes: re.Match[str]) -> str:
    meant: str = json.loads(f'"{escapes[0]}"')
    return meant if _encodes(meant) else escapes[0]  # half of a surrogate pair stands for nothing


def mended(value: Any, file: File) -> tuple[Any, int]:
    """`value` of JSON with every text unescaped and without white space at its ends; and how many were escaped."""
    if isinstance(value, str):
        if not _encodes(value):
            raise DataError(f"{file.name} holds half a character, {value!r}; write it whole.")
        text = unescaped(value)
        return text.strip(), int(text != value)
    if isinstance(value, list):
        pairs = [mended(entry, file) for entry in value]
        return [entry for entry, _ in pairs], sum(n for _, n in pairs)
    if isinstance(value, dict):
        entries, n = mended(list(value.values()), file)
        return dict(zip(value, entries, strict=True)), n
    return value, 0


def escape_note(file: File, n_texts: int) -> tuple[str, ...]:
    r"""The note for texts that were escaped twice; none where there were none."""
    what = "text was escaped twice and is decoded" if n_texts == 1 else "texts were escaped twice and are decoded"
    return (f"{file.name}: {n_texts} {what}",) if n_texts else ()


def _encodes(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a file or a folder of data.") from error
