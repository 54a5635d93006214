"""What the values of options mean that are more than a word: formats, controls, candidates, memory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from patchscopes.errors import OptionError
from patchscopes.sizes import parse_bytes

FORMATS = ("table", "json", "jsonl", "csv")
BY_SUFFIX: Mapping[str, str] = MappingProxyType({".json": "json", ".jsonl": "jsonl", ".csv": "csv"})
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


def chosen_format(given: str | None, out: str | None) -> str:
    """The format that was asked for, else the one that the ending of `out` names, which is told, else a table."""
    if given is not None:
        return given
    by_suffix = BY_SUFFIX.get(Path(out).suffix.lower()) if out is not None else None
    if by_suffix is None:
        return "table"
    click.echo(f"{out} is written as {by_suffix}, by its ending; --format takes another", err=True)
    return by_suffix


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
    return tuple(value.split(","))


def _candidates_file(path: str) -> tuple[str, ...]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"--candidates {path} is not UTF-8 (byte {error.start}); convert it.") from error
    except OSError as error:
        raise OptionError(
            f"--candidates {path} cannot be read: {error.strerror}; give a file of one a line."
        ) from error
    candidates = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not candidates:
        raise OptionError(f"--candidates {path} holds no candidate; give one a line.")
    return candidates
