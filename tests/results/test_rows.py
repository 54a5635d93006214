"""A row and a document survive JSON whatever stands in them, and no format breaks on it."""

import csv
import io
import json
import math

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchscopes.errors import OptionError
from patchscopes.results import Results, row_from_json, row_to_json
from patchscopes.results.rows import plain
from patchscopes.spec import Row, TopToken
from rows import FAILED, MADE_BY, NEXT, make_row, results

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers(0, 2**40)
# Plain values: nouns are made in the test, since the tests' type checker draws random numbers where it looks at a list.
fields = st.fixed_dictionaries(
    {
        "cell": st.none() | texts,
        "source": st.none() | texts,
        "source_index": st.none() | numbers,
        "position": st.none() | numbers,
        "token": st.none() | texts,
        "source_layer": st.none() | numbers,
        "target_layer": st.none() | numbers,
        "target_positions": st.lists(numbers, max_size=3).map(tuple),
        "prompt": st.none() | texts,
        "control": st.none() | st.sampled_from(["random", "unpatched"]),
        "text": st.none() | texts,
        "token_ids": st.none() | st.lists(numbers, max_size=3).map(tuple),
        "finish_reason": st.sampled_from([None, "eos", "length", "stop"]),
        "top": st.none() | st.lists(st.tuples(texts, numbers, st.floats(-1e3, 0.0) | st.just(-math.inf)), max_size=3),
        "entropy": st.none() | st.floats(0, 20),
        "candidate": st.none() | texts,
        "logprob": st.none() | st.floats(-1e3, 0),
        "logprob_per_token": st.none() | st.floats(-1e3, 0),
        "logprob_minus_unpatched": st.none() | st.floats(-1e3, 1e3),
        "rank": st.none() | st.integers(1, 99),
        "answer_surprisal": st.none() | st.floats(0, 1e3),
        "expected": st.none() | st.booleans(),
        "flags": st.lists(st.sampled_from(["sink", "leaked"]), max_size=2).map(tuple),
        "status": st.sampled_from(["ok", "inert", "failed", "skipped"]),
        "reason": st.none() | texts,
    }
)


def row_of(values: dict[str, object]) -> Row:
    top = values["top"]
    return make_row(**values | {"top": None if top is None else tuple(TopToken(*t) for t in top)})  # type: ignore[attr-defined]


@given(fields)
def test_a_row_survives_json(values: dict[str, object]) -> None:
    row = row_of(values)
    text = json.dumps(row_to_json(row), allow_nan=False)
    assert row_from_json(json.loads(text)) == row


@given(st.lists(fields, max_size=3))
def test_a_document_survives_json_and_every_row_has_its_line_of_csv(values: list[dict[str, object]]) -> None:
    rows = results(*map(row_of, values))
    assert list(Results.from_json(rows.to_json())) == list(rows)
    lines = list(csv.DictReader(io.StringIO(rows.to_csv(), newline="")))
    assert [line["text"] for line in lines] == [row.text or "" for row in rows]


@settings(max_examples=30)
@given(fields)
def test_pandas_and_arrow_hold_the_same(values: dict[str, object]) -> None:
    rows = results(row_of(values))
    assert rows.to_arrow().to_pylist() == [row_to_json(rows[0])]
    line = rows.to_pandas().iloc[0]
    for name, value in row_to_json(rows[0]).items():
        assert line[name] is None or line[name] is pandas.NA if value is None else line[name] == value


def test_nothing_is_a_number_that_is_not_finite() -> None:
    row = make_row(entropy=math.nan, top=(TopToken("a", 1, math.nan), TopToken("b", 2, -math.inf)))
    values = row_to_json(row)
    assert values["entropy"] is None
    assert [top["logprob"] for top in values["top"]] == [None, None]
    given = Results([row], model={"scale": math.inf}, spec={"decoding": {"temperature": math.inf}}, complete=True)
    assert json.loads(given.to_json())["spec"] == {"decoding": {"temperature": None}}
    assert json.loads(given.to_arrow().schema.metadata[b"patchscopes.model"]) == {"scale": None}


def test_half_a_surrogate_pair_breaks_no_format() -> None:
    """It stands in a source that was no UTF-8, which is one failed row among the others."""
    bad = make_row(source="caf\udce9", status="failed", text=None, reason="source 0 is not UTF-8: 'caf\\udce9'")
    given = Results([bad], model={}, spec={"sources": ({"text": "caf\udce9"},)}, complete=True)
    for text in (given.to_json(), given.to_csv(), str(given), given._repr_html_()):
        assert "caf" in text
        text.encode()
    assert given.to_arrow().column("source").to_pylist() == given.to_pandas()["source"].tolist() == ["caf\\udce9"]
    assert Results.from_json(given.to_json()) == given


def test_plain_makes_lists_of_tuples_all_the_way_down() -> None:
    assert plain({"a": ((1, 2.5), {"b": (None, True)})}) == {"a": [[1, 2.5], {"b": [None, True]}]}


def test_a_carriage_return_is_no_new_line_of_csv() -> None:
    text = results(make_row(text=" a\rb"), FAILED).to_csv()
    assert [line["text"] for line in csv.DictReader(io.StringIO(text, newline=""))] == [" a\rb", ""]
    assert "\r\n" not in text


@pytest.mark.parametrize("text", ["", "{", "not json", "null", '{"schema": "patchscopes.rows/1", "cells": []}'])
def test_what_is_no_document_is_refused_in_words(text: str) -> None:
    with pytest.raises(OptionError, match=r"no JSON document|no document of schema"):
        Results.from_json(text)


def test_rows_of_another_schema_or_with_other_fields_are_refused() -> None:
    values = row_to_json(make_row())
    for wrong in (values | {"schema": "patchscopes.rows/1"}, values | {"more": 1}, {"schema": values["schema"]}):
        with pytest.raises(OptionError, match="no row of schema"):
            row_from_json(wrong)


def test_results_do_not_change_with_what_they_were_made_of() -> None:
    rows, model = [make_row()], {"id": "tiny"}
    given = Results(rows, model=model, spec={}, complete=True)
    rows.append(NEXT)
    model["id"] = "other"
    assert len(given) == 1
    assert given.model["id"] == "tiny"
    with pytest.raises(TypeError):
        given[0] = NEXT  # type: ignore[index]


def test_a_slice_is_results_of_the_same_making() -> None:
    given = Results([make_row(), NEXT, FAILED], complete=False, warnings=["w"], **MADE_BY)
    part = given[1:]
    assert isinstance(part, Results)
    assert list(part) == [NEXT, FAILED]
    assert (part.model, part.spec, part.complete, part.warnings) == (given.model, given.spec, False, ("w",))
    assert given[-1] is FAILED


def test_counts_are_in_the_order_of_the_semantics() -> None:
    statuses = ["skipped", "failed", "ok", "inert", "failed"]
    assert list(results(*[make_row(status=s) for s in statuses]).counts.items()) == [
        ("ok", 1), ("inert", 1), ("failed", 2), ("skipped", 1),
    ]  # fmt: skip


def test_pandas_knows_what_made_it() -> None:
    assert results(make_row()).to_pandas().attrs["patchscopes"]["model"]["id"] == "tiny"
