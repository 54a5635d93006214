"""Where sources come from: arguments, a file of lines, JSONL or a JSON array, standard input, a specification file."""

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, get_args, get_type_hints

from patchscopes import textfile
from patchscopes.errors import PatchscopesWarning, SourceError
from patchscopes.numbers import whole
from patchscopes.spec import InspectionPrompt, Source

KEYS = ("text", "at", "expect", "item", "kind", "candidates", "split", "mask", "prompt")
# The fields of an InspectionPrompt and the types that each may have.
PROMPT_FIELDS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {name: get_args(hint) or (hint,) for name, hint in get_type_hints(InspectionPrompt).items() if name != "_"}
)
WORDS: Mapping[type, str] = MappingProxyType({str: "a text", int: "a whole number", bool: "true or false"})


def read_sources(arguments: tuple[str, ...], file: str | None) -> list[Source]:
    """The sources of a command; raises SourceError for none, for both kinds at once, and for unreadable input."""
    if arguments and file is not None:
        raise SourceError("sources were given both as arguments and by --sources; give one of them.")
    if file is not None:
        return read_sources_file(file)
    if not arguments:
        raise SourceError('no source was given; write one, e.g. patchscopes inspect "Diana, Princess of Wales".')
    return [Source(text) for text in arguments]


def read_sources_file(file: str) -> list[Source]:
    """The sources in `file`, lines, JSONL or a JSON array, or in standard input ("-"); raises SourceError.

    Blank lines are left out, with a warning that counts them.
    """
    return sources_in(_read(file), "standard input" if file == "-" else file)


def source_from(entry: Any, where: str) -> Source:
    """A source from a JSON object whose keys are KEYS; raises SourceError, which begins with `where`.

    A key whose value is null is absent: pandas writes all keys of all rows. It also writes whole numbers as 1.0.
    """
    shown = json.dumps(entry, ensure_ascii=False, default=repr)[:80]
    if isinstance(entry, dict):
        entry = {key: value for key, value in entry.items() if value is not None}
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise SourceError(f'{where} needs a "text", as in {{"text": "I went to Spain", "at": "Spain"}}: {shown}')
    if unknown := sorted(map(str, set(entry) - set(KEYS))):
        known = f"{', '.join(KEYS[:-1])} and {KEYS[-1]}"
        raise SourceError(f"{where} has unknown keys {', '.join(unknown)}; the keys are {known}.")
    at = entry.get("at")
    if isinstance(at, float) and at.is_integer():
        at = int(at)
    if not (at is None or isinstance(at, str | int)) or isinstance(at, bool):
        raise SourceError(f'{where}: "at" must be a text or a whole number, not {at!r}.')
    for key in ("item", "kind", "mask"):
        if not isinstance(entry.get(key), str | None):
            raise SourceError(f'{where}: "{key}" must be a text, not {entry[key]!r}.')
    return Source(
        entry["text"],
        at=at,
        expect=_answers(entry, "expect", where),
        item=entry.get("item"),
        kind=entry.get("kind"),
        candidates=_answers(entry, "candidates", where),
        split=_pieces(entry, where),
        mask=entry.get("mask"),
        prompt=_prompt(entry, where),
    )


def _prompt(entry: dict[str, Any], where: str) -> InspectionPrompt | str | None:
    """The source's own inspection prompt: a text, or an object with the fields of an InspectionPrompt."""
    value = entry.get("prompt")
    if isinstance(value, str | None):
        return value
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if part is not None}
    known = list(PROMPT_FIELDS)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not set(value) <= set(known):
        raise SourceError(
            f'{where}: "prompt" must be a text, or an object with text and perhaps {", ".join(known[1:])}: {value!r}.'
        )
    if faults := prompt_faults(value):
        raise SourceError(f'{where}: "prompt" cannot be used: {faults}.')
    return InspectionPrompt(**value)


def prompt_faults(values: Mapping[str, object]) -> str:
    """What is wrong with the fields of an InspectionPrompt, in words: those of another type than theirs; else ""."""
    return "; ".join(
        f"{name} must be {' or '.join(WORDS[kind] for kind in PROMPT_FIELDS[name] if kind in WORDS)}, not {value!r}"
        for name, value in values.items()
        if _kind(value) not in PROMPT_FIELDS[name]
    )


def _kind(value: object) -> type:
    """The type of a value as the fields name it: true is no whole number, and one of NumPy's is."""
    kinds = (bool, str, NoneType)
    return next((kind for kind in kinds if isinstance(value, kind)), object if whole(value) is None else int)


def _pieces(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    pieces = entry.get("split", [])
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise SourceError(f'{where}: "split" must be a list of the pieces of the text, not {pieces!r}.')
    return tuple(pieces)


def _answers(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise SourceError(f'{where}: "{key}" must be an answer or a list of answers, not {value!r}.')
    return tuple(answers)


def _read(file: str) -> str:
    name = "standard input" if file == "-" else file
    try:
        if file == "-" and sys.stdin is None:
            raise SourceError("standard input is closed; give the sources in a file or as arguments.")
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SourceError(
            f"cannot read {name}: {error.strerror}; give a file of lines, JSONL or a JSON array, or -."
        ) from error
    try:
        return textfile.text_of(data)
    except ValueError as error:
        raise SourceError(f"{name} {error}") from error


def sources_in(text: str, name: str) -> list[Source]:
    """Lines as sources; a JSON array where the text is one; JSONL where the first line not blank begins an object.

    Blank lines are left out, with a warning that counts them. `name` is what messages call the text.
    """
    if text.lstrip().startswith("["):
        array = _array(text, name)
        if array is not None:
            return array
    lines = textfile.lines_of(text)
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise SourceError(f"{name} holds no source; give one a line.")
    if blank := len(lines) - len(kept):
        left_out = "1 blank line is left out" if blank == 1 else f"{blank:,} blank lines are left out"
        warnings.warn(f"{name}: {left_out}; {len(kept):,} sources remain.", PatchscopesWarning, stacklevel=2)
    if not kept[0][1].lstrip().startswith("{"):
        return [Source(line) for _, line in kept]
    return [_from_json(line, f"line {number} of {name}") for number, line in kept]


def _array(text: str, name: str) -> list[Source] | None:
    """The texts and objects of a JSON array; None where the text only begins like one, as a line in brackets does."""
    try:
        entries = textfile.parsed(text)
    except json.JSONDecodeError as error:
        if not name.endswith(".json") and text.lstrip()[1:].lstrip()[:1] not in ('"', "{"):
            return None
        raise SourceError(
            f"{name} begins like a JSON array and is none ({error.msg} at line {error.lineno}, column {error.colno}); "
            "mend it, or give one source a line."
        ) from error
    except ValueError as error:
        raise SourceError(f"{name} cannot be used: {error}; mend it.") from error
    if not entries:
        raise SourceError(f"{name} is an empty JSON array; give at least one text.")
    return [
        Source(entry) if isinstance(entry, str) else source_from(entry, f"entry {number} of {name}")
        for number, entry in enumerate(entries, 1)
    ]


def _from_json(line: str, where: str) -> Source:
    try:
        entry = textfile.parsed(line)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where} is not JSON ({error.msg} at column {error.colno}): {line[:80]}") from error
    except ValueError as error:
        raise SourceError(f"{where} cannot be used: {error}; mend it: {line[:80]}") from error
    return source_from(entry, where)
