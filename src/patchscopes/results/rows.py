"""A Row as plain JSON, and back."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from patchscopes.errors import OptionError
from patchscopes.spec import SCHEMA, Row, TopToken

COLUMNS = tuple(field.name for field in fields(Row))
_LISTS = ("target_positions", "token_ids", "flags")


def row_to_json(row: Row) -> dict[str, Any]:
    """The fields of `row`, in order, as plain JSON; a number that is not finite becomes null."""
    plain = {name: _plain(getattr(row, name)) for name in COLUMNS}
    if row.top is not None:
        plain["top"] = [
            {"token": top.token, "token_id": top.token_id, "logprob": _plain(top.logprob)} for top in row.top
        ]
    return plain


def row_from_json(plain: Mapping[str, Any]) -> Row:
    """The inverse of `row_to_json`. Raises OptionError for a row of another schema or with other fields."""
    if plain.get("schema") != SCHEMA or set(plain) != set(COLUMNS):
        raise OptionError(f"this is no row of schema {SCHEMA}: {sorted(plain)}; was it written by another version?")
    values = dict(plain)
    for name in _LISTS:
        values[name] = None if values[name] is None else tuple(values[name])
    if values["top"] is not None:
        values["top"] = tuple(TopToken(**_number(top)) for top in values["top"])
    return Row(**values)


def _number(top: Mapping[str, Any]) -> dict[str, Any]:
    return {**top, "logprob": -math.inf if top["logprob"] is None else top["logprob"]}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value
