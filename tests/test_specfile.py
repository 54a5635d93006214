"""A specification file: three formats say the same, and every fault is told by its key."""

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from patchscopes.api import InspectOptions, load
from patchscopes.errors import SpecFileError
from patchscopes.spec import InspectionPrompt, Source
from patchscopes.specfile import INSPECT_OPTIONS, LOAD_OPTIONS, read_spec

TOML = """
model = "gemma3-270m"
dtype = "bfloat16"
sources = ["I went to Spain", {text = "I went to Japan", at = "Japan", expect = ["Tokyo"]}]
prompt = ["token-identity", {text = "The capital of {}", placeholder = "x"}]
source_layers = [0, 4]
temperature = 1
stop = "\\n"
memory_bytes = 1000000
"""
YAML = """
model: gemma3-270m
dtype: bfloat16
sources:
  - I went to Spain
  - {text: I went to Japan, at: Japan, expect: [Tokyo]}
prompt: [token-identity, {text: "The capital of {}", placeholder: x}]
source_layers: [0, 4]
temperature: 1
stop: "\\n"
memory_bytes: 1000000
"""


def written(folder: Path, values: dict[str, Any] | str, name: str = "spec.json") -> Path:
    file = folder / name
    file.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return file


def refused(file: Path) -> str:
    with pytest.raises(SpecFileError) as error:
        read_spec(file)
    assert file.name in str(error.value)
    return str(error.value)


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    import tomllib

    specs = [
        read_spec(written(tmp_path, TOML, "a.toml")),
        read_spec(written(tmp_path, YAML, "a.yaml")),
        read_spec(written(tmp_path, YAML, "a.YML")),
        read_spec(written(tmp_path, tomllib.loads(TOML), "a.json")),
    ]
    assert specs[1:] == specs[:1] * 3
    spec = specs[0]
    assert (spec.model, spec.load_options) == ("gemma3-270m", {"dtype": "bfloat16"})
    assert spec.sources == (Source("I went to Spain"), Source("I went to Japan", at="Japan", expect=("Tokyo",)))
    assert spec.options == {
        "prompt": ["token-identity", InspectionPrompt("The capital of {}", placeholder="x")],
        "source_layers": [0, 4],
        "temperature": 1,
        "stop": "\n",
        "memory_bytes": 1_000_000,
    }


def test_the_keys_are_the_options_of_load_and_inspect() -> None:
    assert set(INSPECT_OPTIONS) == set(get_type_hints(InspectOptions)) - {"run"}
    assert set(LOAD_OPTIONS) - {"model"} == set(get_type_hints(load)) - {
        "name_or_hf_model",
        "tokenizer",
        "notify",
        "variant",  # which is an option of inspect as well
        "return",
    }


def test_sources_in_a_file_of_their_own_are_found_beside_the_specification(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "words.txt").write_text("the cat\nhello\n")
    spec = read_spec(written(tmp_path, {"sources_file": "data/words.txt"}))
    assert spec.sources == (Source("the cat"), Source("hello"))
    assert spec.model == "smollm2-135m"
    assert "cannot read" in refused(written(tmp_path, {"sources_file": "data/absent.txt"}))


def test_a_source_has_what_a_source_in_python_has(tmp_path: Path) -> None:
    entry = {"text": "a", "item": "A", "kind": "letter", "candidates": ["b", "c"], "split": ["a"]}
    (tmp_path / "sources.jsonl").write_text(json.dumps(entry))
    for values in ({"sources": [entry]}, {"sources_file": "sources.jsonl"}):
        (source,) = read_spec(written(tmp_path, values)).sources
        assert source == Source("a", item="A", kind="letter", candidates=("b", "c"), split=("a",))
    one = read_spec(written(tmp_path, {"sources": [{"text": "a", "candidates": "b, c"}]}))
    assert one.sources[0].candidates == ("b, c",), "a text is one answer"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sed": 1}, "unknown key 'sed'; did you mean seed?"),
    ({"max_new_token": 1}, "did you mean max_new_tokens?"),
    ({"source-layers": "all"}, "did you mean source_layers?"),
    ({"zzz": 1}, "the keys are model, revision"),
    ({"run": "x"}, "unknown key 'run'"),
    ({"seed": "3"}, 'seed is "3"; it must be a whole number.'),
    ({"seed": True}, "seed is true; it must be a whole number."),
    ({"temperature": "hot"}, 'temperature is "hot"; it must be a number.'),
    ({"readout": "next_token"}, "it must be 'text', 'next-token', 'candidates' (did you mean 'next-token'?)."),
    ({"prompt": 3}, "prompt is 3; it must be a text or a table with text, name, placeholder"),
    ({"prompt": {"txt": "a {}"}}, "prompt is"),
    ({"prompt": ["a {}", 3]}, "prompt is"),
    ({"source_layers": [0, "a"]}, 'source_layers is [0, "a"]; it must be'),
    ({"source_layers": 1.5}, "source_layers is 1.5; it must be a text or a whole number or a list (of whole numbers)."),
    ({"controls": 0}, "controls is 0; it must be a list (of texts)."),
    ({"trust_remote_code": "yes"}, 'trust_remote_code is "yes"; it must be true or false.'),
    ({"model": 7}, "model is 7; it must be a text."),
    ({"sources": "the cat"}, 'sources is "the cat"; it must be a list'),
    ({"sources": []}, "sources is []; it must be a list"),
    ({"sources": ["a", 3]}, 'sources[1] needs a "text"'),
    ({"sources": [{"text": "a", "expct": "b"}]}, "sources[0] has unknown keys expct"),
    ({"sources": [{"text": "a", "at": [1]}]}, 'sources[0]: "at" must be'),
    ({"sources": [{"text": "a", "item": 1}]}, 'sources[0]: "item" must be a text, not 1.'),
    ({"sources": ["a", {"text": "a", "kind": True}]}, 'sources[1]: "kind" must be a text, not True.'),
    ({"sources": [{"text": "a", "candidates": [1]}]}, 'sources[0]: "candidates" must be an answer or a list'),
    ({"sources_file": "words.txt"}, "both sources and sources_file are given"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_what_is_wrong_is_told_by_key(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    import yaml

    values = {"sources": ["the cat"], **change}
    assert said in refused(written(tmp_path, values))
    assert said in refused(written(tmp_path, yaml.safe_dump(values), "spec.yaml"))
    toml = "\n".join(f"{json.dumps(key)} = {_toml(value)}" for key, value in values.items())
    assert said in refused(written(tmp_path, toml, "spec.toml"))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    said = refused(written(tmp_path, {"sed": 1, "draws": "two"}))
    assert all(words in said for words in ("did you mean seed", "draws is", "neither sources nor sources_file"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "model = ", "cannot be read as TOML"),
        ("a.toml", "seed = 1\nseed = 2", "cannot be read as TOML"),
        ("a.yaml", "a: [1", "cannot be read as YAML"),
        ("a.yaml", "seed: 1\nseed: 2", "'seed' is given twice"),
        ("a.json", '{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "[1]", "holds no keys"),
        ("a.yaml", "", "holds no keys"),
        ("a.txt", "", "name it .toml, .yaml, .yml, .json"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, name: str, text: str, said: str) -> None:
    assert said in refused(written(tmp_path, text, name))


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b'model = "caf\xe9"')
    assert "is not UTF-8" in refused(tmp_path / "latin.toml")


def test_a_target_model_and_a_mapping_are_named(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path, {"sources": ["x"], "target_model": "gemma3-270m", "mapping": "f.safetensors"}))
    assert spec.target_model == "gemma3-270m"
    assert spec.options == {"mapping": str(tmp_path / "f.safetensors")}
    plain = read_spec(written(tmp_path, {"sources": ["x"]}))
    assert (plain.target_model, plain.options) == (None, {})
    assert "target_model is 3; it must be a text." in refused(written(tmp_path, {"sources": ["x"], "target_model": 3}))


def test_sources_have_masks_and_prompts_of_their_own(tmp_path: Path) -> None:
    entry = {"text": "a b", "mask": "a", "prompt": {"text": "c d", "at": "d", "mask": "c"}}
    spec = read_spec(written(tmp_path, {"sources": [entry, {"text": "e", "prompt": "f {}"}]}))
    own = InspectionPrompt("c d", at="d", mask="c")
    assert spec.sources == (Source("a b", mask="a", prompt=own), Source("e", prompt="f {}"))
    for prompt in (3, {"txt": "c"}, {"text": "c", "note": ""}):
        assert '"prompt" must be a text, or an object with text' in refused(
            written(tmp_path, {"sources": [{"text": "a", "prompt": prompt}]})
        )


def test_the_fields_of_a_sources_own_prompt_have_types(tmp_path: Path) -> None:
    said = refused(written(tmp_path, {"sources": [{"text": "a", "prompt": {"text": "a {}", "at": 1.5, "chat": "no"}}]}))
    assert 'sources[0]: "prompt" cannot be used: at must be a text or a whole number, not 1.5; chat must be' in said
    assert "at must be a text or a whole number, not True" in refused(
        written(tmp_path, {"sources": [{"text": "a", "prompt": {"text": "a", "at": True}}]})
    )
    nothing = dict.fromkeys(("name", "placeholder", "at", "mask"))
    spec = read_spec(written(tmp_path, {"sources": [{"text": "a", "prompt": {"text": "b {}", **nothing}}]}))
    assert spec.sources[0].prompt == InspectionPrompt("b {}")


def test_null_is_absent_wherever_it_stands(tmp_path: Path) -> None:
    prompt = {"text": "a {}", "reply": None, "at": None}
    source = {"text": "the cat", "expect": None, "prompt": prompt}
    values = {"sources": [source], "prompt": [prompt], "sources_file": None, "memory": None, "dtype": None}
    nothing = dict.fromkeys(set(INSPECT_OPTIONS) - {"prompt"})
    spec = read_spec(written(tmp_path, {**nothing, **values}))
    assert spec.sources == (Source("the cat", prompt=InspectionPrompt("a {}")),)
    assert (spec.load_options, spec.options) == ({}, {"prompt": [InspectionPrompt("a {}")]})
    assert 'sources[0] needs a "text"' in refused(written(tmp_path, {"sources": [None]}))


def test_a_specification_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_bytes(TOML.encode("utf-16"))
    assert "is UTF-16, not UTF-8 text" in refused(tmp_path / "spec.toml")
