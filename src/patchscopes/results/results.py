"""Results: an immutable sequence of rows, with what made them."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from patchscopes.errors import OptionError
from patchscopes.results.rows import COLUMNS, row_from_json, row_to_json
from patchscopes.spec import SCHEMA, Row

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderableType


class Results(Sequence[Row]):
    """Rows in the order of the request: all cells, then the controls as asked.

    `model` and `spec` say what made them (rule 22); `complete` is False after an interruption; `warnings` are what the
    user should know before believing a row.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        model: Mapping[str, Any],
        spec: Mapping[str, Any],
        complete: bool,
        warnings: Sequence[str] = (),
    ) -> None:
        self._rows = tuple(rows)
        self.model, self.spec = dict(model), dict(spec)
        self.complete, self.warnings = complete, tuple(warnings)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Results": ...
    def __getitem__(self, index: int | slice) -> "Row | Results":
        return self._with(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Results) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {status}" for status, n in self.counts.items())
        return f"<Results: {len(self)} rows ({counts or 'none'}), model {self.model.get('id')!r}>"

    def __str__(self) -> str:
        from patchscopes.results.table import as_text

        return as_text(self)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["RenderableType"]:
        from patchscopes.results.table import as_rich

        yield from as_rich(self, options.max_width)

    def _repr_html_(self) -> str:
        from patchscopes.results.table import as_html

        return as_html(self)

    @property
    def cells(self) -> "Results":
        """The rows that are no controls."""
        return self._with(tuple(row for row in self if row.control is None))

    @property
    def controls(self) -> "Results":
        """The rows that are controls."""
        return self._with(tuple(row for row in self if row.control is not None))

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each status (rule 21)."""
        return dict(Counter(str(row.status) for row in self))

    def to_json(self, *, indent: int | None = None) -> str:
        """The one document: schema, model, spec, complete, and the rows as "cells"."""
        return json.dumps(
            {**self._head(), "cells": [row_to_json(row) for row in self]}, ensure_ascii=False, indent=indent
        )

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Read a document that `to_json` wrote. Raises OptionError for anything else."""
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise OptionError(f"this is no document of schema {SCHEMA}; was it written by another version?")
        rows = [row_from_json(row) for row in document["cells"]]
        return cls(rows, model=document["model"], spec=document["spec"], complete=document["complete"])

    def to_csv(self) -> str:
        """One line a row, with a header; lists are JSON inside a field, null is empty."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self:
            values = row_to_json(row).values()
            writer.writerow([json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in values])
        return file.getvalue()

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a line per row and nullable dtypes, so that a missing layer is <NA> and no float."""
        import pandas

        frame = pandas.DataFrame([row_to_json(row) for row in self], columns=list(COLUMNS))
        kinds = {"Int64": _INTEGERS, "string": _STRINGS, "boolean": ("expected",), "Float64": ("entropy",)}
        return frame.astype({column: kind for kind, columns in kinds.items() for column in columns})

    def to_arrow(self) -> "pyarrow.Table":
        """An Arrow table; schema, model, spec and complete are in its schema's metadata, as JSON."""
        import pyarrow as pa

        top = pa.struct([("token", pa.string()), ("token_id", pa.int64()), ("logprob", pa.float64())])
        kinds = {
            **dict.fromkeys(_INTEGERS, pa.int64()),
            **dict.fromkeys(_STRINGS, pa.string()),
            "target_positions": pa.list_(pa.int64()),
            "token_ids": pa.list_(pa.int64()),
            "flags": pa.list_(pa.string()),
            "top": pa.list_(top),
            "entropy": pa.float64(),
            "expected": pa.bool_(),
        }
        head = {f"patchscopes.{key}": json.dumps(value, ensure_ascii=False) for key, value in self._head().items()}
        schema = pa.schema([(name, kinds[name]) for name in COLUMNS], metadata=head)
        return pa.Table.from_pylist([row_to_json(row) for row in self], schema=schema)

    def plot(
        self,
        *,
        source_index: int | None = None,
        position: int | None = None,
        prompt: str | None = None,
        target_layer: int | None = None,
    ) -> "Figure":
        """Layers against texts, controls beside, for one (source, position, prompt): the first unless said.

        Where ℓ* is not ℓ, `target_layer` chooses ℓ*. Returns a matplotlib Figure.
        """
        from patchscopes.results.plot import figure

        return figure(self, source_index=source_index, position=position, prompt=prompt, target_layer=target_layer)

    def _head(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "model": self.model, "spec": self.spec, "complete": self.complete}

    def _with(self, rows: Sequence[Row]) -> "Results":
        return Results(rows, model=self.model, spec=self.spec, complete=self.complete, warnings=self.warnings)


_INTEGERS = ("source_index", "position", "source_layer", "target_layer", "draw", "sample", "seed")
_STRINGS = (
    "cell", "source", "token", "prompt", "control", "text", "finish_reason", "status", "reason", "model", "schema",
)  # fmt: skip
