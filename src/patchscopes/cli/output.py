"""Where results go: standard output or a file, which appears whole or not at all."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, cast, get_args, runtime_checkable

import click

from patchscopes.cli.streams import is_closed
from patchscopes.cli.values import BINARY
from patchscopes.errors import OutputError
from patchscopes.results import Results, row_to_json
from patchscopes.spec import Row, Status


@runtime_checkable
class Sink(Protocol):
    """What results are written to."""

    def write(self, text: str, /) -> int:
        """Take text."""
        ...

    def flush(self) -> None:
        """Pass on what was taken."""
        ...


@runtime_checkable
class Document(Protocol):
    """What a command made: data, and where it comes from. Its JSON holds both, the data as `cells`."""

    def to_json(self) -> str:
        """All of it."""
        ...

    def to_csv(self) -> str:
        """The data, a line each."""
        ...


@contextmanager
def opened(out: str | None) -> Iterator[Sink]:
    """Standard output, or a temporary file beside `out` that takes its place at the end.

    Raises OutputError at once where `out` cannot be written, before anything is computed.
    """
    if out is None:
        if is_closed(sys.stdout):
            sys.stdout.write("")
        yield sys.stdout
        return
    path = Path(out).resolve()  # through a symbolic link, to what it names
    if path.exists() and not path.is_file() and not path.is_dir():
        with _device(path) as file:
            yield file
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "it is write-protected")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror}; give a file in a folder that can be written."
        ) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _device(path: Path) -> Iterator[Sink]:
    """A pipe or a device is written to as it is: there is nothing to replace."""
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}.") from error


def write_row(row: Row, file: Sink) -> None:
    """One JSONL line, at once."""
    file.write(_json(json.dumps(row_to_json(row), ensure_ascii=False), file) + "\n")
    file.flush()


def _json(text: str, file: Sink) -> str:
    """JSON as `file` can hold it: in UTF-8 as it is, else with JSON's own escapes, which every reader knows."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    return text if encoding.lower().startswith("utf") else json.dumps(json.loads(text))


def write_results(results: Document, as_format: str, file: Sink, *, to_file: bool) -> None:
    """All of the results, or of a lens table, as `as_format`: table, json or csv; results also as parquet or arrow."""
    if as_format in BINARY:
        assert isinstance(results, Results), "no table of a lens is written so"
        cast("IO[str]", file).buffer.write(_table_bytes(results, as_format))  # type: ignore[attr-defined]
    elif as_format == "json":
        file.write(_json(results.to_json(), file) + "\n")
    elif as_format == "csv":
        file.write(results.to_csv())
    elif as_format == "table":
        from rich.console import Console

        Console(file=cast("IO[str]", file), width=140 if to_file else None, soft_wrap=False).print(results)


def _table_bytes(results: Results, as_format: str) -> bytes:
    """The results as a Parquet file or an Arrow (Feather) file; what made them is in its schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, sink = results.to_arrow(), pa.BufferOutputStream()
    if as_format == "parquet":
        pq.write_table(table, sink, compression="zstd")
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def write_provenance(results: Document, out: str) -> None:
    """FILE.meta.json beside a format that has no place for it (rule 22)."""
    head = {key: value for key, value in json.loads(results.to_json()).items() if key != "cells"}
    if not Path(out).resolve().is_file() and Path(out).exists():
        return  # a pipe or device has no place beside it
    with opened(f"{out}.meta.json") as file:
        file.write(json.dumps(head, ensure_ascii=False, indent=2) + "\n")


def in_words(counts: Mapping[str, int]) -> str:
    """How many rows have each status, ok first (rule 21)."""
    return ", ".join(f"{counts[status]:,} {status}" for status in get_args(Status) if counts.get(status)) or "none"


def report_counts(results: Results, seconds: float) -> None:
    """Counts by status, failed sources and what ran, on standard error (rules 21 and 22)."""
    unread = [row for row in results if row.status == "failed" and row.control is None and row.position is None]
    failed = list({row.source_index: row for row in unread}.values())  # once, however many candidates there are
    for row in failed:
        click.echo(f"failed: source {row.source_index} ({row.source!r}): {row.reason}", err=True)
    if failed:
        click.echo(
            f"{len(failed)} of {len({r.source_index for r in results if r.source_index is not None})} sources failed",
            err=True,
        )
    counts = in_words(results.counts)
    model, versions = results.model, results.spec.get("versions", {})
    shown = " ".join(
        f"{name} {version}" for name, version in versions.items() if name in ("patchscopes", "torch", "transformers")
    )
    click.echo(
        f"{len(results):,} rows ({counts}) in {seconds:.1f} s · {model.get('id')} {str(model.get('weights'))[:19]} "
        f"{model.get('dtype')} {model.get('device')} · {shown}",
        err=True,
    )
