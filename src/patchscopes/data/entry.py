"""An object of a JSON file whose keys are asked for by type. Errors name the file, the entry and the key."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from patchscopes.errors import DataError


@dataclass(frozen=True, slots=True)
class Entry:
    """A JSON object, and `where` it stands, as an error says it: "sample 3 of capitals.json"."""

    values: dict[str, Any]
    where: str

    def need(self, keys: Sequence[str]) -> None:
        """Raises DataError that names those of `keys` that are not there."""
        if missing := [key for key in keys if key not in self.values]:
            raise DataError(
                f"{self.where} has no {_quoted(missing)}; it needs {_quoted(keys)} (the forms are in docs/data.md)."
            )

    def text(self, key: str) -> str:
        """The text under `key`, "" for none and for null; raises DataError for anything else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f'{self.where}: "{key}" must be a text, not {_shown(value)}; write it in quotes.')
        return value or ""

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts under `key`, none for none and for null; raises DataError for anything else."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise DataError(f'{self.where}: "{key}" must be a list of texts, not {_shown(value)}.')
        return tuple(value)

    def entry(self, key: str) -> "Entry":
        """The object under `key`, an empty one for none and for null; raises DataError for anything else."""
        value = self.values.get(key)
        return entry_of({} if value is None else value, f'"{key}" of {self.where}')


def entry_of(value: Any, where: str) -> Entry:
    """`value` as an entry; raises DataError where it is no JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object with keys, not {_shown(value)} (docs/data.md).")
    return Entry(value, where)


def entries_of(value: Any, what: str, where: str) -> list[Entry]:
    """The objects of a JSON list, each named `what` and its number; raises DataError where it is no such list."""
    if not isinstance(value, list):
        raise DataError(f"{where} must hold a JSON list, one object for each {what}, not {_shown(value)}.")
    return [entry_of(entry, f"{what} {number} of {where}") for number, entry in enumerate(value, 1)]


def unread_note(entries: Iterable[Entry], known: Iterable[str], where: str) -> tuple[str, ...]:
    """The note for keys that nothing here reads, such as a misspelt one."""
    unread = sorted({key for entry in entries for key in entry.values} - set(known))
    return (f"{where}: not read: {_quoted(unread)}",) if unread else ()


def _quoted(keys: Iterable[str]) -> str:
    return ", ".join(f'"{key}"' for key in keys)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]
