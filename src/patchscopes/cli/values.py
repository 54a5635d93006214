"""What the values of options mean that are more than a word: formats, controls, candidates, memory."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from patchscopes import textfile
from patchscopes.errors import OptionError
from patchscopes.sizes import parse_bytes

FORMATS = ("table", "json", "jsonl", "csv", "parquet", "arrow")
# Files of bytes, which no terminal shows, and which hold what made them.
BINARY = ("parquet", "arrow")
SELF_CONTAINED = ("json", *BINARY)
BY_SUFFIX: Mapping[str, str] = MappingProxyType(
    {".txt": "table", **{f".{name}": name for name in FORMATS if name != "table"}}
)
# A single candidate with one of these endings is a file that is not there, and no answer.
TEXT_SUFFIXES = (".txt", ".text", ".list", ".csv", ".tsv", ".json", ".jsonl")


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where results go, and how they are written."""
    for option in (
        click.option("--out", default=None, help="Write here instead of standard output."),
        click.option(
            "--format",
            "as_format",
            type=click.Choice(FORMATS),
            default=None,
            help="How rows are written.  [default: by the ending of --out, else table]",
        ),
    ):
        command = option(command)
    return command


def chosen_format(given: str | None, out: str | None, by_suffix: Mapping[str, str] = BY_SUFFIX) -> str:
    """The format that was asked for, else the one that the ending of `out` names, which is told, else a table.

    Raises OptionError for an ending that is not known, and for a file of bytes on standard output.
    """
    if given is not None:
        if given in BINARY and out is None:
            raise OptionError(f"--format {given} makes a file of bytes; say where to, e.g. --out rows.{given}.")
        return given
    if out is None:
        return "table"
    suffix = Path(out).suffix
    found = by_suffix.get(suffix.lower(), "table" if not suffix else None)
    if found is None:
        raise OptionError(
            f"--out {out}: the ending {suffix} names no format; the endings are {', '.join(by_suffix)}, and --format "
            "takes any."
        )
    click.echo(f"{out} is written as {found}, by its ending; --format takes another", err=True)
    return found


class _Words(click.types.StringParamType):
    """Text on the command line, as UTF-8 also where the locale says otherwise."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return in_utf8(str(super().convert(value, param, ctx)))


WORDS = _Words()


def in_utf8(argument: str) -> str:
    """An argument whose bytes the locale could not read, as the UTF-8 that it is; as it is where it is none.

    In the C locale without Python's UTF-8 mode that is every sign beyond ASCII.
    """
    try:
        return os.fsencode(argument).decode() if any("\udc80" <= sign <= "\udcff" for sign in argument) else argument
    except UnicodeError:
        return argument


def read_values(controls: str, candidates: str | None, memory: str | None) -> dict[str, Any]:
    """These options as `prepare` takes them."""
    return {
        "controls": _controls(controls),
        "candidates": () if candidates is None else read_candidates(candidates),
        "memory_bytes": None if memory is None else parse_bytes(memory),
    }


def _controls(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(","))
    if "none" in names and len(names) > 1:
        others = ",".join(name for name in names if name != "none")
        raise OptionError(f"--controls is {value!r}; none stands alone. Give none, or {others or 'the others'}.")
    return () if names == ("none",) else names


def read_candidates(value: str) -> tuple[str, ...]:
    """The lines of a file, blank ones left out, where `value` is the path of one; else what commas part.

    Raises OptionError where a file cannot be read or has no candidate, and for what is like a file's name and is none.
    """
    try:
        is_file = Path(value).exists() and not Path(value).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a null character
        is_file = False
    if is_file:
        return _candidates_file(value)
    if "," not in value and value.lower().endswith(TEXT_SUFFIXES):
        raise OptionError(f"--candidates {value}: there is no such file; give a file of one a line, or a,b,c.")
    return tuple(in_utf8(value).split(","))


def _candidates_file(path: str) -> tuple[str, ...]:
    try:
        text = textfile.text_of(Path(path).read_bytes())
    except OSError as error:
        raise OptionError(
            f"--candidates {path} cannot be read: {error.strerror}; give a file of one a line."
        ) from error
    except ValueError as error:
        raise OptionError(f"--candidates {path} {error}") from error
    candidates = tuple(line.strip() for line in textfile.lines_of(text) if line.strip())
    if not candidates:
        raise OptionError(f"--candidates {path} holds no candidate; give one a line.")
    return candidates
