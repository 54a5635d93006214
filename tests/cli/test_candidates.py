"""`--candidates`, `--memory`, and the values of options that are more than a word."""

import csv
import io
import json
from pathlib import Path

import pytest

from cli_run import Run, run
from patchscopes.cli.values import read_candidates
from patchscopes.errors import OptionError

PROMPT = ["--prompt", "the capital of {} is"]


@pytest.fixture
def base(tiny_folder: Path) -> list[str]:
    return ["inspect", "say the cat", "--model", str(tiny_folder), *PROMPT]


def cells(done: Run) -> list[dict[str, object]]:
    assert done.code == 0, done.err
    return list(json.loads(done.out)["cells"])


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *said: str) -> None:
    done = run(arguments, capsys)
    assert (done.code, done.out) == (2, ""), done.err
    assert "Traceback" not in done.err
    for words in said:
        assert words in done.err, done.err


def test_candidates_alone_are_scored(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    json_format = ["--format", "json"]
    given = cells(run([*base, "--candidates", "cat, hello Spain", *json_format], capsys))
    assert [row["candidate"] for row in given[:4]] == ["cat", "hello Spain", "cat", "hello Spain"]
    assert sorted(str(row["rank"]) for row in given[:2]) == ["1", "2"]
    named = cells(run([*base, "--readout", "candidates", "--candidates", "cat,hello Spain", *json_format], capsys))
    assert named == given


def test_a_path_that_exists_is_a_file_of_candidates(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers"
    file.write_text("\ufeffcat\n\n  hello, Spain \r\n \n", encoding="utf-8")
    given = cells(run([*base, "--candidates", str(file), "--format", "json"], capsys))
    assert [row["candidate"] for row in given[:2]] == ["cat", "hello, Spain"]


def test_how_candidates_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    assert read_candidates("cat") == ("cat",), "a folder is no file"
    assert read_candidates("a,b c,d") == ("a", "b c", "d")
    assert read_candidates("U.S.") == ("U.S.",)
    assert read_candidates("x" * 5000) == ("x" * 5000,)
    (tmp_path / "a,b").write_text("c\n")
    assert read_candidates("a,b") == ("c",), "a path that exists is a file"
    for name, data, said in (
        ("e.txt", b"\n \n", "holds no candidate"),
        ("l.txt", b"caf\xe9\n", "is not UTF-8: byte 0xe9 in line 1"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OptionError, match=said):
            read_candidates(name)
    with pytest.raises(OptionError, match=r"absent.txt: there is no such file"):
        read_candidates("absent.txt")


def test_what_is_wrong_with_candidates_is_told(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    scored = [*base, "--candidates"]
    refused([*scored, "cat,hello", "--readout", "text"], capsys, "candidates are given, and readout 'text' does not")
    refused([*scored, "cat", "--readout", "next-token"], capsys, "leave the readout out")
    refused([*base, "--readout", "candidates"], capsys, "readout 'candidates' needs candidates")
    refused([*scored, "cat,,hello"], capsys, "a candidate is empty")
    refused([*scored, ""], capsys, "a candidate is empty")
    refused([*scored, "cat,hello, cat"], capsys, "candidate 'cat' is named twice")


def test_the_table_and_the_other_formats_show_candidates(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    scored = [*base, "--candidates", "cat,hello,Spain", "--expect", "Spain"]
    table = run(scored, capsys).out
    for words in ("likeliest of 3: ln p (Δ)", "raised most", "rank", "✓Spain −", "unpatched: ", "inert"):
        assert words in table
    lines = list(csv.DictReader(io.StringIO(run([*scored, "--format", "csv"], capsys).out)))
    assert len(lines) == 3 * (5 + 1 + 5)
    assert {line["expected"] for line in lines if line["candidate"] == "Spain"} == {"True", ""}


def test_a_failed_source_is_told_once(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    done = run([*base[:1], "hello", *base[1:], "--at", "cat", "--candidates", "cat,hello"], capsys)
    assert done.code == 0
    assert done.err.count("failed: source 0") == done.out.count("failed: source 0") == 1
    assert "1 of 2 sources failed" in done.err


def spec_of(folder: Path, model: Path, **changes: object) -> Path:
    file = folder / "spec.json"
    values = {"model": str(model), "sources": ["say the cat"], "prompt": PROMPT[1], "candidates": ["cat", "hello"]}
    file.write_text(json.dumps(values | changes))
    return file


def test_a_specification_scores_candidates_and_another_budget_goes_on(
    base: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    first = run(["run", str(spec_of(tmp_path, tiny_folder, memory="50MB")), "--out", out], capsys)
    assert first.code == 0, first.err
    again = run(["run", str(spec_of(tmp_path, tiny_folder)), "--out", out, "--memory", "64MiB"], capsys)
    assert (again.code, "; 0 remain" in again.err) == (0, True), again.err
    kept = json.loads(run(["show", out, "--format", "json"], capsys).out)["cells"]
    assert kept == cells(run([*base, "--candidates", "cat,hello", "--format", "json", "--memory", "50MB"], capsys))
    over = run(["run", str(spec_of(tmp_path, tiny_folder)), "--out", f"{out}-2", "--memory", "1KiB"], capsys)
    assert (over.code, "memory budget" in over.err) == (2, True), over.err
    other = run(["run", str(spec_of(tmp_path, tiny_folder, candidates=["cat"])), "--out", out], capsys)
    assert (other.code, "candidates" in other.err) == (2, True), other.err


def test_what_is_wrong_in_a_specification_is_told_by_key(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(said: str, **changes: object) -> None:
        file = str(spec_of(tmp_path, tiny_folder, **changes))
        refused(["run", file, "--out", str(tmp_path / "run")], capsys, said)

    wrong("candidates is 3; it must be a text or a list (of texts).", candidates=3)
    wrong('candidates is ["a", 1]; it must be', candidates=["a", 1])
    wrong("unknown key 'candidate'; did you mean candidates?", candidate=["a"])
    wrong("memory '8G' is no amount of memory", memory="8G")
    wrong("memory 'true' is no amount of memory", memory=True)
    wrong("both memory and memory_bytes are given", memory="8GB", memory_bytes=10**9)
    wrong("does not score them", readout="text")


def test_memory_decides_what_fits_and_not_what_results(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wide = cells(run([*base, "--format", "json"], capsys))
    assert cells(run([*base, "--format", "json", "--memory", "2MiB"], capsys)) == wide
    refused([*base, "--memory", "1KiB"], capsys, "memory budget", "give more memory")
    refused([*base, "--memory", "lots"], capsys, "memory 'lots' is no amount of memory", "GiB", "bytes")
    refused(["run", "absent.toml", "--out", "x"], capsys, "cannot read absent.toml")


def test_the_ending_of_out_chooses_the_format(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = {"a.json": "{", "b.JSONL": '{"cell"', "c.csv": "cell,", "d.txt": "source 0", "e": "source 0"}
    for name, start in starts.items():
        done = run([*base, "--out", str(tmp_path / name)], capsys)
        assert done.code == 0
        assert (tmp_path / name).read_text().startswith(start)
        kind = {"a": "json", "b": "jsonl", "c": "csv"}.get(name[0], "table")
        assert f"is written as {kind}, by its ending" in done.err
    explicit = run([*base, "--format", "table", "--out", str(tmp_path / "a.json")], capsys)
    assert (tmp_path / "a.json").read_text().startswith("source 0")
    assert "by its ending" not in explicit.err


def test_show_exports_by_the_ending_too(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = str(tmp_path / "run"), tmp_path / "rows.json"
    assert run(["run", str(spec_of(tmp_path, tiny_folder)), "--out", out], capsys).code == 0
    assert "is written as json" in run(["show", out, "--out", str(file)], capsys).err
    assert len(json.loads(file.read_text())["cells"]) == 2 * (5 + 1 + 5)
    assert not (tmp_path / "rows.json.meta.json").exists(), "the document has it"


def test_none_stands_alone(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused([*base, "--controls", "none,zero"], capsys, "none stands alone", "Give none, or zero.")
    refused([*base, "--controls", "zero, none, random"], capsys, "Give none, or zero,random.")
    assert len(cells(run([*base, "--controls", " none ", "--format", "json"], capsys))) == 5


def test_occurrences_count_from_one(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        [*base, "--at", "cat#0"], capsys, "occurrences count from 1", "cat#1 is the first", "position     id  token"
    )
    refused([*base, "--at", "cat#-1"], capsys, "occurrences count from 1")
    assert run([*base, "--at", "cat#1", "--format", "json"], capsys).code == 0


def test_a_json_array_is_a_list_of_sources(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*base[:1], *base[2:], "--format", "json", "--source-layers", "1", "--controls", "none", "--sources"]
    file = tmp_path / "sources.txt"

    def written(text: str) -> list[str]:
        file.write_text(text)
        return [*given, str(file)]

    array = '\n[\n  "say the cat",\n  {"text": "the cat of Spain", "at": "cat", "expect": "hello"}\n]\n'
    rows = cells(run(written(array), capsys))
    assert [(row["source"], row["token"]) for row in rows] == [("say the cat", " cat"), ("the cat of Spain", " cat")]
    assert [row["expected"] is None for row in rows] == [True, False]
    assert [row["source"] for row in cells(run(written("[1] the cat\nhello\n"), capsys))] == ["[1] the cat", "hello"]
    refused(written('["the cat",\n "hello"'), capsys, "begins like a JSON array and is none", "line 2")
    refused(written('["the cat", 3]'), capsys, f'entry 2 of {file} needs a "text"')
    refused(written("[]"), capsys, "empty JSON array")
    refused(written('[{"text": "the cat", "where": 3}]'), capsys, f"entry 1 of {file} has unknown keys where")
