"""The TSV form of the paper's own code: a relation a file, named after it; a row is a subject in one source sentence.

`prompt_target` asks for the object, with "x" or the subject where the subject belongs. `prompt_source` is a sentence
with the subject; what follows the subject cannot change its state, so that a context ends there. The other columns tell
what one model made of it (`is_correct_baseline`, tokens and positions) and are not read.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from patchscopes.analysis.matching import fold
from patchscopes.data.drafts import Draft, Sample
from patchscopes.data.files import File, escape_note, text_of, unescaped
from patchscopes.data.items import Exclusion
from patchscopes.errors import DataError

NOT_ALL_COLUMNS = "row does not have the columns of the header"

_NEEDED = ("subject", "object", "prompt_target")
_READ = (*_NEEDED, "prompt_source")
_PLACEHOLDER = re.compile(r"(?<!\w)x(?!\w)")

Row = dict[str, str]


def draft_from_table(file: File) -> Draft:
    """The relation in a TSV file; raises DataError for missing columns and for quotes that do not close."""
    name = re.sub("[_-]+", " ", PurePosixPath(file.name).stem)
    rows: list[Row] = []
    broken: list[Exclusion] = []
    n_escaped = 0
    for line, read in _read_rows(file):
        if read is None:
            broken.append(Exclusion(f"{name}: line {line}", NOT_ALL_COLUMNS))
            continue
        row = {column: unescaped(text).strip() for column, text in read.items()}
        n_escaped += sum(unescaped(text) != text for text in read.values())
        rows.append(row)
    samples = _samples(rows)
    return Draft(
        file=file.name,
        name=name,
        templates=tuple(dict.fromkeys(map(_template, rows))),
        samples=samples,
        broken=tuple(broken),
        notes=(*escape_note(file, n_escaped), *_row_note(file, rows, samples)),
    )


def _read_rows(file: File) -> Iterator[tuple[int, Row | None]]:
    """Line numbers and the columns that are needed of each row; None for a row that is not as long as the header."""
    # Strict, since a quote that never closes would else take the rest of the file into one field.
    reader = csv.reader(io.StringIO(text_of(file), newline=""), delimiter="\t", strict=True)
    try:
        header = next(reader, [])
        if missing := [column for column in _NEEDED if column not in header]:
            raise DataError(
                f"{file.name} has no column {', '.join(missing)}; it needs {', '.join(_NEEDED)}, named in its first "
                "line and separated by tabs (docs/data.md)."
            )
        places = {column: header.index(column) for column in _READ if column in header}
        for row in filter(None, reader):
            fits = len(row) == len(header)
            yield reader.line_num, {column: row[place] for column, place in places.items()} if fits else None
    except csv.Error as error:
        raise DataError(
            f"{file.name} is not a table that can be read: {error}, at line {reader.line_num}; a text that holds a "
            'quote, a tab or a line break stands in double quotes, with "" for each quote in it.'
        ) from error


def _template(row: Row) -> str:
    """What asks for the object, with {} for the subject; as it stands where neither placeholder nor subject is."""
    text = row["prompt_target"]
    if "{}" in text:
        return text
    if places := list(_PLACEHOLDER.finditer(text)):
        return f"{text[: places[-1].start()]}{{}}{text[places[-1].end() :]}"
    return text.replace(row["subject"], "{}") if row["subject"] else text


def _samples(rows: list[Row]) -> tuple[Sample, ...]:
    """One sample for each subject and object; the rows that repeat them are its contexts."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for number, row in enumerate(rows):
        subject, answer = fold(row["subject"]), fold(row["object"])
        # A row without one of them is a sample by itself, so that each is counted.
        found.setdefault((subject, answer, -1 if subject and answer else number), []).append(row)
    return tuple(
        Sample(same[0]["subject"], same[0]["object"], contexts=tuple(dict.fromkeys(filter(None, map(_context, same)))))
        for same in found.values()
    )


def _context(row: Row) -> str:
    """The source sentence up to its subject, with {} there; "" where no word stands before the subject, or none at all.

    The subject must be a whole word, as in "over Brazil"; not "a Brazilian". Line breaks become spaces.
    """
    text = " ".join(row.get("prompt_source", "").split())
    for place in re.finditer(rf"(?<!\w){re.escape(row['subject'])}(?!\w)", text) if row["subject"] else ():
        before = text[: place.start()]
        if before.strip() and "{}" not in before:
            return f"{before}{{}}"
    return ""


def _row_note(file: File, rows: list[Row], samples: tuple[Sample, ...]) -> tuple[str, ...]:
    if len(rows) == len(samples):
        return ()
    without = sum(not _context(row) for row in rows)
    return (
        f"{file.name}: {len(rows)} rows are {len(samples)} samples; in {without} of the rows the subject has no words "
        "before it, so that they give no context",
    )
