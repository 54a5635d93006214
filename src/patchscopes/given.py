"""What Python callers hand over for texts: a text, a sequence of texts, the text column of a table, an open file.

pandas, polars, pyarrow and torch are known by how their objects look: none of them is imported here.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from patchscopes import textfile
from patchscopes.errors import OptionError, PatchscopesWarning
from patchscopes.sources import KEYS, sources_in
from patchscopes.spec import InspectionPrompt, Source

COLUMN = "text"


def several(value: Any, what: str) -> list[Any]:
    """Return one thing or a sequence of things as a list: the lines of an open file, a DataFrame's texts.

    `what` is how messages call them. Raises OptionError for what holds no texts, bytes and tensors among it.
    """
    if isinstance(value, str | Source | InspectionPrompt):
        return [value]
    if isinstance(value, bytes | bytearray | memoryview):
        raise OptionError(f"{what} must be text, not {type(value).__name__}; decode it, e.g. value.decode('utf-8').")
    if isinstance(value, Mapping):
        raise _unfit(value, what)
    if hasattr(value, "read") and hasattr(value, "readline"):
        text = _read(value, what)
        return [line for line in textfile.lines_of(text) if line.strip()]
    if (names := _columns(value)) is not None:
        return _column(value, names, what)
    if getattr(value, "ndim", 1) != 1 or not isinstance(value, Iterable):
        raise _unfit(value, what)
    things = list(value)
    if hasattr(value, "dtype") and things and not isinstance(things[0], str | Source | InspectionPrompt):
        raise _unfit(value, what)
    return things


def several_sources(value: Any) -> list[Any]:
    """As `several`, for sources: an open file is read as `--sources` reads one, JSONL and JSON arrays too."""
    if hasattr(value, "read") and hasattr(value, "readline"):
        return list(sources_in(_read(value, "sources"), str(getattr(value, "name", "the open file"))))
    return several(value, "sources")


def texts(value: Any, what: str) -> tuple[str, ...]:
    """As `several`, where nothing but texts will do; () for None."""
    things = () if value is None else several(value, what)
    for one in things:
        if not isinstance(one, str):
            raise OptionError(f"{what}: a text is needed, not a {type(one).__name__}: {one!r}.")
    return tuple(map(str, things))  # NumPy's texts become plain ones


def _unfit(value: Any, what: str) -> OptionError:
    kind = type(value).__name__
    if hasattr(value, "dtype"):
        return OptionError(
            f"{what}: a {kind} of {value.dtype} and shape {tuple(value.shape)} holds no list of texts; give texts, "
            "e.g. what tokenizer.decode makes of token ids."
        )
    return OptionError(f"{what}: a text or a sequence of texts is needed, not a {kind}: {value!r}.")


def _read(file: Any, what: str) -> str:
    """Read what remains of an open text file."""
    name = getattr(file, "name", "the open file")
    try:
        text = file.read()
    except UnicodeDecodeError as error:
        raise OptionError(f"{what}: {name} is not {error.encoding}; open it with its encoding.") from error
    except (OSError, ValueError) as error:  # opened for writing, or closed
        raise OptionError(f"{what}: {name} cannot be read ({error}); open it for reading.") from error
    if not isinstance(text, str):
        raise OptionError(f"{what}: {name} is open for bytes; open it as text: open(path, encoding='utf-8').")
    return text.removeprefix("\ufeff")


def _columns(value: Any) -> list[Any] | None:
    """Return the names of a table's columns (pandas, polars, pyarrow, datasets); None for anything else."""
    if not hasattr(value, "__getitem__"):
        return None
    names = getattr(value, "columns", None) if hasattr(value, "dtypes") else getattr(value, "column_names", None)
    return list(names) if isinstance(names, Iterable) else None


def _column(table: Any, names: list[Any], what: str) -> list[str]:
    """Return the column "text" of a table, or the one that holds texts."""
    kind, shown = type(table).__name__, ", ".join(map(str, names)) or "none"
    found = (
        [COLUMN]
        if COLUMN in names
        else [name for name in names if any(isinstance(v, str) for v in _values(table, name))]
    )
    if len(found) != 1 or names.count(found[0]) != 1:
        raise OptionError(
            f"{what}: of a {kind} the column {COLUMN!r} is taken, or its one column of texts, and it has "
            f"{'no such column' if not found else 'several'} (columns: {shown}); give one column, e.g. table['name']."
        )
    values = _values(table, found[0])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise OptionError(
                f"{what}: row {row} of the column {found[0]!r} is {value!r}, not a text; leave such rows out, e.g. "
                "dropna()."
            )
    if others := [name for name in names if name in KEYS and name != found[0]]:
        warnings.warn(
            f"{what}: of the {kind} only the column {found[0]!r} is taken, not {', '.join(others)}; make each row a "
            "Source where they count.",
            PatchscopesWarning,
            stacklevel=2,
        )
    return values


def _values(table: Any, name: Any) -> list[Any]:
    column = table[name]
    convert = getattr(column, "to_pylist", None) or getattr(column, "to_list", None)
    return list(column) if convert is None else list(convert())
