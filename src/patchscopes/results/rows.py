"""A Row as plain JSON, and back."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

from patchscopes.errors import OptionError
from patchscopes.spec import SCHEMA, Row, TopToken


@runtime_checkable
class Record(Protocol):
    """Rows with what made them, as tables and figures need them: what Results is to those who draw it."""

    model: Mapping[str, Any]
    spec: Mapping[str, Any]
    complete: bool
    warnings: Sequence[str]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...

    @property
    def counts(self) -> Mapping[str, int]:
        """How many rows have each status."""
        ...


COLUMNS = tuple(field.name for field in fields(Row))
_LISTS = ("target_positions", "token_ids", "flags")


def row_to_json(row: Row) -> dict[str, Any]:
    """The fields of `row`, in order, as plain JSON (see `plain`); `top` is a list of {token, token_id, logprob}."""
    values = {name: plain(getattr(row, name)) for name in COLUMNS}
    if row.top is not None:
        values["top"] = [plain({"token": t.token, "token_id": t.token_id, "logprob": t.logprob}) for t in row.top]
    return values


def row_from_json(values: Mapping[str, Any]) -> Row:
    """The inverse of `row_to_json`; a `logprob` of null was −∞.

    Raises OptionError for a row of another schema or with other fields.
    """
    if values.get("schema") != SCHEMA or set(values) != set(COLUMNS):
        raise OptionError(
            f"this is no row of schema {SCHEMA}: it has schema {values.get('schema')!r} and the fields "
            f"{', '.join(map(str, values))}; was it written by another version?"
        )
    read = dict(values)
    for name in _LISTS:
        read[name] = None if read[name] is None else tuple(read[name])
    if read["top"] is not None:
        read["top"] = tuple(_top_token(top) for top in read["top"])
    return Row(**read)


def plain(value: Any) -> Any:
    """`value` as JSON that every reader and every encoder takes.

    Tuples are lists. A number that is not finite is null. Half of a surrogate pair, which stands in a text that was not
    UTF-8 and which no file can hold, is written out as its Python escape.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _top_token(values: Mapping[str, Any]) -> TopToken:
    logprob = values["logprob"]
    return TopToken(values["token"], values["token_id"], -math.inf if logprob is None else float(logprob))
