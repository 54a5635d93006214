"""What a caller of the library is likely to get wrong, and what it is told."""

import inspect as pyinspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import patchscopes as ps
from patchscopes.api import InspectOptions, prepare
from patchscopes.errors import OptionError
from patchscopes.models import Model


def test_the_first_argument_is_a_model() -> None:
    """In a process of its own: here beartype speaks first."""
    code = "import patchscopes as ps; ps.inspect('smollm2-135m', 'I saw a cat')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "OptionError: the first argument is a model from load(), not a str" in done.stderr


def test_sources_are_texts(llama: Model) -> None:
    for wrong in (None, 5, {"text": "hi"}, [5]):
        with pytest.raises((OptionError, TypeError), match=r"text|Source|Type-check"):
            ps.inspect(llama, wrong)  # type: ignore[arg-type]


WRONG_TYPES = """
import json
import numpy as np
from conftest import tiny_model
from patchscopes import InspectionPrompt, Source, inspect
from patchscopes.errors import MappingError, SourceError, SpecError
from patchscopes.lenses import lens_table
from patchscopes.mappings import fit

def told(source=None, **options):
    given = [Source("go to Spain", **source)] if source else "go to Spain"
    try:
        print(len(inspect(tiny_model("llama"), given, **{"prompt": "x of {}", **options})), "rows")
    except SpecError as error:
        print(error)

told({"prompt": 5})
told({"mask": 5})
for option in ("placeholder", "source_mask", "target_mask"):
    told(**{option: 5})
odd = InspectionPrompt("x of {}", at=1.5, chat="no")
told({"prompt": odd})
told(prompt=odd)
told({"prompt": InspectionPrompt(5)})
model = tiny_model("llama")
at = np.int64(1)
odd = InspectionPrompt("x of the cat", at=at)
text = "go to Spain"
for source, options in ((Source(text, at=at), {}), (text, {"at": at}), (text, {"prompt": odd})):
    found = inspect(model, source, **{"prompt": "x of {}", "controls": (), "max_new_tokens": 2, **options})
    print(json.loads(found.to_json())["complete"])
try:
    fit(model, model, ["the cat"], [1, 2])
except MappingError as error:
    print(error)
try:
    lens_table(model, 5)
except SourceError as error:
    print(error)
"""


def test_what_is_of_a_wrong_type_is_told() -> None:
    """In a process of its own, as above."""
    done = subprocess.run(
        [sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    odd = "the inspection prompt 'x of {}' cannot be used: chat must be true or false, not 'no'; "
    odd += "at must be a text or a whole number, not 1.5."
    assert done.stdout.splitlines() == [
        "the prompt of a source is a text, an InspectionPrompt or None, not a int: 5.",
        "the mask of a source is a text or None, not a int: 5.",
        *(f"{option} is 5; it must be a text, or None." for option in ("placeholder", "source_mask", "target_mask")),
        odd,
        odd,
        "the inspection prompt 5 cannot be used: text must be a text, not 5.",
        *["True"] * 3,  # positions that NumPy has reckoned are no fault, and JSON takes them
        "pairs of layers are (ℓ, ℓ*), such as [(5, 5), (5, 10)], not [1, 2].",
        "a lens reads one text, not a int: 5.",
    ], done.stderr


def test_an_unknown_option_raises(llama: Model) -> None:
    with pytest.raises(TypeError, match="foo"):
        ps.inspect(llama, "the cat", foo=1)  # type: ignore[call-arg]


def test_inspect_and_stream_show_the_options_of_prepare() -> None:
    options = {p.name for p in pyinspect.signature(prepare).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert options == set(InspectOptions.__annotations__)
    for verb in (ps.inspect, ps.stream):
        assert options < set(pyinspect.signature(verb).parameters)
        assert "source_layers" in (verb.__doc__ or "")


def test_a_path_loads(tiny_folder: Path) -> None:
    assert ps.load(tiny_folder).id == str(tiny_folder)


def test_stream_yields_the_rows_of_inspect(llama: Model) -> None:
    options: Any = {"prompt": "the capital of {} is", "max_new_tokens": 3, "controls": ("zero",)}
    rows = list(ps.stream(llama, "the cat", **options))
    assert sorted(rows, key=repr) == sorted(ps.inspect(llama, "the cat", **options), key=repr)


def test_the_signature_of_load_is_the_one_that_scripts_depend_on() -> None:
    parameters = pyinspect.signature(ps.load).parameters
    assert list(parameters)[:6] == [
        "name_or_hf_model", "tokenizer", "revision", "trust_remote_code", "dtype", "device",
    ]  # fmt: skip
    assert (parameters["dtype"].default, parameters["device"].default) == ("float32", "auto")
