"""Shards: rows, each with the index of its request, as Parquet.

Columns are those of `Results.to_arrow`, which alone knows them, and `request` in front.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchscopes.results import Results, row_from_json
from patchscopes.results.rows import plain
from patchscopes.spec import SCHEMA, Row
from patchscopes.store.folder import write_atomically

if TYPE_CHECKING:
    import pyarrow

REQUEST = "request"
N_NAME_DIGITS = 16


class ShardError(Exception):
    """A shard that cannot be used; the message says why. `foreign` where it is whole, and of another run."""

    def __init__(self, reason: str, *, foreign: str | None = None) -> None:
        super().__init__(reason)
        self.foreign = foreign


@dataclass(frozen=True, slots=True)
class Shard:
    """A closed shard: its file name, how many rows and bytes it has, and the SHA-256 of the bytes."""

    name: str
    rows: int
    n_bytes: int
    sha256: str


def to_table(rows: Sequence[tuple[int, Row]]) -> "pyarrow.Table":
    """Rows with the indices of their requests, as a table."""
    import pyarrow as pa

    schema = _schema()
    columns = [[index for index, _ in rows]]
    columns += [[getattr(row, name) for _, row in rows] for name in schema.names[1:]]
    return pa.table([_array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def to_rows(table: "pyarrow.Table") -> dict[int, Row]:
    """The inverse of `to_table`. Raises OptionError for rows of another schema."""
    requests = table.column(REQUEST).to_pylist()
    return {
        index: row_from_json(row)
        for index, row in zip(requests, table.drop_columns([REQUEST]).to_pylist(), strict=True)
    }


def merged(tables: Sequence["pyarrow.Table"]) -> "pyarrow.Table":
    """One table of all rows in the order of requests, each request once."""
    import numpy as np
    import pyarrow as pa

    table = pa.concat_tables(tables)
    _, first = np.unique(table.column(REQUEST).to_numpy(), return_index=True)
    return table.take(pa.array(first))


def write_shard(folder: Path, number: int, table: "pyarrow.Table", run: str) -> Shard:
    """Close a shard of `run`, a Head's digest. Raises OSError where the disk does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({"patchscopes.schema": SCHEMA, "patchscopes.run": run}), sink, compression="zstd"
    )
    data = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(data).hexdigest()
    shard = Shard(f"{number:06d}-{digest[:N_NAME_DIGITS]}.parquet", table.num_rows, len(data), digest)
    write_atomically(folder / shard.name, data)
    return shard


def read_shard(path: Path, run: str, *, columns: Sequence[str] | None = None) -> tuple[Shard, "pyarrow.Table"]:
    """A shard and its table, verified.

    Raises ShardError where it is damaged, missing or of another run than `run`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ShardError("it is missing") from error
    except OSError as error:
        raise ShardError(f"it cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(data).hexdigest()
    if path.stem.rpartition("-")[2] != digest[:N_NAME_DIGITS]:
        raise ShardError("its bytes have not the hash that its name tells")
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        found = _metadata(file.schema_arrow)
        if found.get("patchscopes.schema") != SCHEMA or file.schema_arrow.names != _schema().names:
            raise ShardError(f"its rows are of schema {found.get('patchscopes.schema')}, not of {SCHEMA} as here")
        if found.get("patchscopes.run") != run:
            raise ShardError("it is of another run", foreign=found.get("patchscopes.run"))
        table = file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"it is no Parquet file ({str(error).splitlines()[0]})") from error
    return Shard(path.name, table.num_rows, len(data), digest), table.replace_schema_metadata(None)


def number_of(name: str) -> int:
    """The number that a shard's name begins with; 0 where it has none."""
    head = name.partition("-")[0]
    return int(head) if head.isdecimal() else 0


@cache
def _schema() -> "pyarrow.Schema":
    """The columns of a shard and their types, as Results have them."""
    import pyarrow as pa

    columns = Results([], model={}, spec={}, complete=False).to_arrow().schema.remove_metadata()
    return columns.insert(0, pa.field(REQUEST, pa.int64()))


def _array(values: list[Any], kind: "pyarrow.DataType") -> "pyarrow.Array":
    """A column, made without the detour through JSON: an engine may finish thousands of rows in a second."""
    import pyarrow as pa

    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        parts = attrgetter(*(field.name for field in kind.value_type.fields))
        values = [None if entries is None else [parts(entry) for entry in entries] for entries in values]
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # half of a surrogate pair, from a text that was not UTF-8
        return pa.array(plain(values), kind)


def _metadata(schema: "pyarrow.Schema") -> Mapping[str, str]:
    return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
