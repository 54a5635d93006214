"""Results keep every row and field, in order, through each format."""

import csv
import io
import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.errors import OptionError
from patchscopes.results import Results, row_from_json, row_to_json
from patchscopes.spec import SCHEMA, Row, TopToken
from rows import FAILED, NEXT, make_row, results

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# Plain values: what is made of them is checked by beartype, which draws random numbers of its own.
changes = st.fixed_dictionaries(
    {
        "text": st.none() | texts,
        "source": st.none() | texts,
        "source_layer": st.none() | st.integers(0, 99),
        "token_ids": st.none() | st.lists(st.integers(0, 10**6)).map(tuple),
        "entropy": st.none() | st.floats(0, 20),
        "expected": st.none() | st.booleans(),
        "flags": st.lists(st.sampled_from(["sink", "leaked"])).map(tuple),
        "top": st.none() | st.lists(st.tuples(texts, st.integers(0, 99), st.floats(-50, 0))),
        "status": st.sampled_from(["ok", "inert", "failed", "skipped"]),
        "candidate": st.none() | texts,
        "logprob": st.none() | st.floats(-50, 0),
        "rank": st.none() | st.integers(1, 99),
    }
)


@given(changes)
def test_a_row_survives_json(changes: dict[str, Any]) -> None:
    top = changes["top"]
    row = make_row(**changes | {"top": top if top is None else tuple(TopToken(*one) for one in top)})
    assert row_from_json(json.loads(json.dumps(row_to_json(row)))) == row
    assert list(row_to_json(row)) == [field.name for field in fields(Row)]


def test_numbers_that_json_has_not_become_null() -> None:
    text = results(NEXT).to_json()
    assert "Infinity" not in text
    assert json.loads(text)["cells"][0]["top"][1]["logprob"] is None
    assert row_from_json(row_to_json(NEXT)) == NEXT


def test_the_document_survives_json() -> None:
    given = results(make_row(), NEXT, FAILED, complete=False)
    again = Results.from_json(given.to_json(indent=2))
    assert again == given
    assert again.complete is False
    with pytest.raises(OptionError, match="no document of schema"):
        Results.from_json('{"schema": "patchscopes.rows/0", "cells": []}')
    with pytest.raises(OptionError, match="no document"):
        Results.from_json("[1, 2]")
    with pytest.raises(OptionError, match="no row of schema"):
        row_from_json({"schema": SCHEMA, "text": "a"})


def test_csv_keeps_every_field() -> None:
    lines = list(csv.DictReader(io.StringIO(results(NEXT, FAILED, make_row(text='a,"b"\nc')).to_csv())))
    assert [line["text"] for line in lines] == ["Madrid", "", 'a,"b"\nc']
    assert json.loads(lines[0]["flags"]) == ["sink", "leaked"]
    assert json.loads(lines[0]["top"])[0]["token"] == " Madrid"


def test_pandas_and_arrow_keep_nulls_as_nulls() -> None:
    given = results(make_row(), FAILED, NEXT)
    frame, table = given.to_pandas(), given.to_arrow()
    assert list(frame.columns) == table.column_names == [field.name for field in fields(Row)]
    assert frame.source_layer.isna().tolist() == [False, True, False]
    assert str(frame.source_layer.dtype) == "Int64"
    assert frame.expected.tolist()[2] is True
    assert table.column("target_layer").to_pylist() == [2, None, 2]
    assert table.column("top").to_pylist()[2][0] == TopToken(" Madrid", 5, -0.25)._asdict()
    assert json.loads(table.schema.metadata[b"patchscopes.model"])["id"] == "tiny"
    assert len(results().to_pandas()) == results().to_arrow().num_rows == 0


def test_results_are_a_sequence_with_counts() -> None:
    given = results(make_row(), make_row(control="random"), FAILED)
    assert (len(given), given[1].control, len(given[:2])) == (3, "random", 2)
    assert isinstance(given[:2], Results)
    assert given.counts == {"ok": 2, "failed": 1}
    assert [row.control for row in given.controls] == ["random"]
    assert len(given.cells) == 2
    assert repr(given) == "<Results: 3 rows (2 ok, 1 failed), model 'tiny'>"
