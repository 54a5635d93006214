"""Results: an immutable sequence of rows, with what made them."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args, overload

from patchscopes.errors import OptionError
from patchscopes.results.rows import COLUMNS, plain, row_from_json, row_to_json
from patchscopes.spec import SCHEMA, Row, Status

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderableType

_INTEGERS = ("source_index", "position", "source_layer", "target_layer", "draw", "sample", "rank", "seed")
_NUMBERS = (
    "entropy", "logprob", "logprob_per_token", "logprob_minus_unpatched", "answer_surprisal", "surprisal_under_source",
    "surprisal_under_patched",
)  # fmt: skip
_STRINGS = (
    "cell", "source", "token", "prompt", "control", "text", "finish_reason", "candidate", "source_next", "status",
    "reason", "model", "target_model", "mapping", "schema",
)  # fmt: skip
_BOOLEANS = ("agrees", "expected")


class Results(Sequence[Row]):
    """Rows in the order of the request: all cells, then the controls as asked. A slice of it is Results again.

    `model` and `spec` say what made them (rule 22); `complete` is False after an interruption; `warnings` are what the
    user should know before believing a row. Warnings are no part of the JSON document.
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
        self.model: Mapping[str, Any] = dict(model)
        self.spec: Mapping[str, Any] = dict(spec)
        self.complete: bool = complete
        self.warnings: Sequence[str] = tuple(warnings)

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
        counts = ", ".join(f"{n:,} {status}" for status, n in self.counts.items())
        partly = "" if self.complete else ", not complete"
        return f"<Results: {len(self):,} rows ({counts or 'none'}){partly}, model {self.model.get('id')!r}>"

    def __str__(self) -> str:
        from patchscopes.results.table import as_text, terminal_width

        return as_text(self, terminal_width())

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["RenderableType"]:
        from patchscopes.results.table import as_rich

        yield from as_rich(self, options.max_width)

    def _repr_html_(self) -> str:
        from patchscopes.results.table import as_html

        return as_html(self)

    @property
    def cells(self) -> "Results":
        """The rows that are no controls, sources that failed included."""
        return self._with(tuple(row for row in self if row.control is None))

    @property
    def controls(self) -> "Results":
        """The rows that are controls."""
        return self._with(tuple(row for row in self if row.control is not None))

    @property
    def counts(self) -> Mapping[str, int]:
        """How many rows have each status that occurs, ok first (rule 21)."""
        found = Counter(row.status for row in self)
        return {status: found[status] for status in get_args(Status) if status in found}

    def to_json(self, indent: int | None = None) -> str:
        """The one document: schema, model, spec, complete, and the rows as "cells"."""
        document = {**self._head(), "cells": [row_to_json(row) for row in self]}
        return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Read a document that `to_json` wrote. Raises OptionError for anything else."""
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise OptionError(f"this is no JSON document: {error}; give the text that to_json() wrote.") from error
        keys = {"schema", "model", "spec", "complete", "cells"}
        if not isinstance(document, dict) or document.get("schema") != SCHEMA or not keys.issubset(document):
            raise OptionError(
                f"this is no document of schema {SCHEMA} with {', '.join(sorted(keys))}; was it written by another "
                "version? (A JSONL file has no such document: read its lines with row_from_json.)"
            )
        rows = [row_from_json(row) for row in document["cells"]]
        return cls(rows, model=document["model"], spec=document["spec"], complete=document["complete"])

    def to_csv(self) -> str:
        """One line a row, with a header; lists are JSON inside a field, null is empty."""
        lines = [_csv_line(COLUMNS)]
        for row in self:
            values = row_to_json(row).values()
            lines.append(_csv_line([json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in values]))
        return "".join(lines)

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a line per row and nullable dtypes, so that a missing layer is <NA> and no float.

        Lists stay lists, `top` a list of dicts. The head of the document (schema, model, spec, complete) is in
        `.attrs["patchscopes"]`.
        """
        import pandas

        frame = pandas.DataFrame([row_to_json(row) for row in self], columns=list(COLUMNS), dtype=object)
        kinds = {"Int64": _INTEGERS, "string": _STRINGS, "boolean": _BOOLEANS, "Float64": _NUMBERS}
        frame = frame.astype({column: kind for kind, columns in kinds.items() for column in columns})
        frame.attrs["patchscopes"] = self._head()
        return frame

    def to_arrow(self) -> "pyarrow.Table":
        """An Arrow table; schema, model, spec and complete are in its schema's metadata, as JSON.

        The keys there are b"patchscopes.schema" and so on.
        """
        import pyarrow as pa

        top = pa.struct([("token", pa.string()), ("token_id", pa.int64()), ("logprob", pa.float64())])
        kinds = {
            **dict.fromkeys(_INTEGERS, pa.int64()),
            **dict.fromkeys(_STRINGS, pa.string()),
            "target_positions": pa.list_(pa.int64()),
            "token_ids": pa.list_(pa.int64()),
            "flags": pa.list_(pa.string()),
            "top": pa.list_(top),
            **dict.fromkeys(_NUMBERS, pa.float64()),
            **dict.fromkeys(_BOOLEANS, pa.bool_()),
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

        With readout "candidates", what the write adds to each candidate's log-probability, by layer, controls under it.
        Where ℓ* is not ℓ, `target_layer` chooses ℓ*. Returns a matplotlib Figure, which a notebook shows; elsewhere
        use its `savefig`. Raises OptionError where there is no such cell.
        """
        from patchscopes.results.plot import figure

        return figure(self, source_index=source_index, position=position, prompt=prompt, target_layer=target_layer)

    def _head(self) -> dict[str, Any]:
        head = {"schema": SCHEMA, "model": self.model, "spec": self.spec, "complete": self.complete}
        return {key: plain(value) for key, value in head.items()}

    def _with(self, rows: Sequence[Row]) -> "Results":
        return Results(rows, model=self.model, spec=self.spec, complete=self.complete, warnings=self.warnings)


def _csv_line(values: Sequence[Any]) -> str:
    r"""One CSV line that ends in \n. A carriage return in a field is quoted only by a writer that ends lines in one."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\r\n").writerow(values)
    return file.getvalue()[:-2] + "\n"
