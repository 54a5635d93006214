"""What Python callers hand over for texts: DataFrames, open files, and what holds no texts."""

import io
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import patchscopes as ps
from patchscopes.api import InspectOptions
from patchscopes.errors import OptionError, PatchscopesWarning, StoreError
from patchscopes.given import several, several_sources, texts
from patchscopes.models import Model
from patchscopes.spec import Source
from patchscopes.studies.setup import Setup, StudyOptions

TWO = ["the cat", "hello"]
FAST: Any = MappingProxyType({"prompt": "x {} ->", "source_layers": 1, "max_new_tokens": 2, "controls": ()})


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"text": TWO}),
        pd.DataFrame({"text": TWO, "label": ["a", "b"], "n": [1, 2]}),
        pd.DataFrame({"n": [1, 2], "name": TWO}),
        pd.DataFrame({"text": pd.array(TWO, dtype="string")}),
        pd.DataFrame({0: TWO}),
        pd.Series(TWO),
        pa.table({"text": TWO}),
        np.array(TWO),
        iter(TWO),
    ],
)
def test_the_texts_of_tables_and_sequences(table: object) -> None:
    assert texts(table, "sources") == tuple(TWO)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pd.DataFrame({"a": TWO, "b": TWO}), r"several \(columns: a, b\)"),
        (pd.DataFrame({"n": [1, 2]}), r"no such column \(columns: n\)"),
        (pd.DataFrame({"text": ["the cat", None]}), "row 1 of the column 'text' is (nan|None), not a text"),
        (pd.DataFrame({"text": [1, 2]}), "row 0 of the column 'text' is 1"),
        (pd.DataFrame([TWO], columns=["text", "text"]), "give one column"),
        (b"the cat", "must be text, not bytes; decode it"),
        (bytearray(b"the cat"), "not bytearray"),
        (torch.tensor([1, 2]), r"a Tensor of torch.int64 and shape \(2,\) holds no list of texts"),
        (np.arange(3), "tokenizer.decode"),
        (np.array("the cat"), "holds no list of texts"),
        (np.array([TWO]), r"shape \(1, 2\)"),
        ({"text": TWO}, "not a dict"),
        (None, "not a NoneType"),
        (Path("cat.txt"), "not a PosixPath"),
        (5, "not a int"),
        (io.BytesIO(b"the cat"), "open for bytes; open it as text"),
    ],
)
def test_what_holds_no_texts_is_refused(table: object, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        several_sources(table)
    with pytest.raises(OptionError, match=said):
        several(table, "expect")


def test_columns_that_would_be_lost_are_told() -> None:
    with pytest.warns(PatchscopesWarning, match="only the column 'text' is taken, not at, expect"):
        assert several(pd.DataFrame({"text": TWO, "at": [0, 1], "expect": TWO}), "sources") == TWO


def test_an_open_file_is_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "sources"
    file.write_text("\ufeffpage\x0cbreak\nhello\n", encoding="utf-8")
    with file.open(encoding="utf-8") as opened:
        assert several_sources(opened) == [Source("page\x0cbreak"), Source("hello")]
    assert several_sources(io.StringIO('{"text": "a", "at": 0}\n')) == [Source("a", at=0)]
    assert texts(io.StringIO("a\n\nb"), "expect") == ("a", "b")
    with pytest.raises(OptionError, match="cannot be read"):
        several_sources(opened)
    with file.open("a") as writing, pytest.raises(OptionError, match="cannot be read"):
        several_sources(writing)
    with file.open(encoding="ascii") as wrong, pytest.raises(OptionError, match="is not ascii"):
        several_sources(wrong)


def test_a_data_frame_is_inspected_by_its_texts(llama: Model) -> None:
    sources: Any = pd.DataFrame({"text": ["the cat", "go to Spain"], "n": [1, 2]})
    assert [row.source for row in ps.inspect(llama, sources, **FAST)] == ["the cat", "go to Spain"]


def test_none_is_the_default_of_every_option(llama: Model) -> None:
    nothing: Any = dict.fromkeys(InspectOptions.__annotations__)
    given = {**nothing, "prompt": "x {} ->", "max_new_tokens": 2}
    source = Source("the cat", expect=None, candidates=None, split=None)  # type: ignore[arg-type]
    prompt = ps.InspectionPrompt("x {} ->", reply=None, chat=None)  # type: ignore[arg-type]
    wanted = ps.inspect(llama, "the cat", prompt="x {} ->", max_new_tokens=2)
    assert ps.inspect(llama, source, **given) == wanted
    assert list(ps.stream(llama, source, **given)) == list(ps.stream(llama, "the cat", prompt=prompt, max_new_tokens=2))


def test_numbers_of_other_libraries_are_taken(llama: Model) -> None:
    numbers = {"draws": 2, "seed": 3, "top_k": 4, "n_samples": 1, "max_new_tokens": 2, "at": 1, "memory_bytes": 2**28}
    options: Any = {"prompt": "x {} ->", "controls": ("random",), "readout": "next-token", "source_layers": [1, 2]}
    wanted = ps.inspect(llama, "the cat is", **options, **numbers)
    for kind in (np.int64, torch.tensor):
        given: Any = {**options, **{name: kind(number) for name, number in numbers.items()}}
        given["source_layers"] = kind([1, 2]) if kind is torch.tensor else np.array([1, 2])
        assert ps.inspect(llama, "the cat is", **given) == wanted
    for name in numbers:
        with pytest.raises(ps.PatchscopesError):
            ps.inspect(llama, "the cat is", **{**options, **numbers, name: True})


@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature", "hot"), ("temperature", True), ("memory_bytes", "8GiB"), ("controls", {"zero": 1}), ("stop", 3),
     ("expect", b"x"), ("candidates", {"a": 1}), ("runner", ["engine"]), ("bos", ["auto"]), ("source_layers", b"\x01")],
)  # fmt: skip
def test_other_types_are_told_in_words(llama: Model, option: str, value: object) -> None:
    with pytest.raises(ps.PatchscopesError):
        ps.inspect(llama, "the cat", **{**FAST, option: value})


@pytest.mark.parametrize("run", ["", "  ", 3, b"x"])
def test_a_run_has_a_name(llama: Model, run: Any) -> None:
    with pytest.raises(StoreError, match="name a directory"):
        ps.inspect(llama, "the cat", **FAST, run=run)


BY_NUMPY = """
import json, sys
import numpy as np
from conftest import tiny_model
from patchscopes.lenses import TunedOptions, lens_table
from patchscopes.mappings import FitOptions, Mappings, fit

model = tiny_model("llama")
table = lens_table(model, "the cat", layers=np.arange(3), top_k=np.int64(2))
print(table.to_json() == lens_table(model, "the cat", layers=range(3), top_k=2).to_json())
numbers = {"seed": np.int64(1), "min_position": np.int64(1)}
prose = [f"{word} {n} the cat of Spain is hello" for n in range(60) for word in ("go", "a", "B")]
fit(model, model, prose, [(np.int64(1), np.int64(2))], options=FitOptions(**numbers)).save(sys.argv[1])
print(Mappings.load(sys.argv[1]).pairs)
options = TunedOptions(**numbers, layers=np.arange(2))
print(json.dumps([options.layers, options.seed]))
"""


def test_numbers_of_other_libraries_are_taken_by_lenses_and_mappings(tmp_path: Path) -> None:
    """In a process of its own, since here types are checked first. What is written as JSON must hold none of them."""
    command = [sys.executable, "-c", BY_NUMPY, str(tmp_path / "f.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert done.stdout.splitlines() == ["True", "((1, 2),)", "[[0, 1], 1]"], done.stderr


def test_a_study_takes_what_inspect_takes(llama: Model, tmp_path: Path) -> None:
    nothing: Any = dict.fromkeys(StudyOptions.__annotations__)
    nothing["tell"] = print
    assert Setup.of(llama, nothing) == Setup.of(llama, {"tell": print})
    given: Any = {"seed": np.int64(3), "memory_bytes": np.int64(2**28), "out": tmp_path}
    setup = Setup.of(llama, given)
    assert [type(value) for value in (setup.seed, setup.memory_bytes)] == [int, int]
    with pytest.raises(StoreError, match="name a directory"):
        Setup.of(llama, {"out": ""})
