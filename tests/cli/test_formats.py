"""Where results go, as what, and how texts come in: endings, dashes, the slow way."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli_run import Run, run
from patchscopes import kernels
from patchscopes.cli.values import in_utf8, read_candidates
from patchscopes.errors import OptionError
from patchscopes.kernels.native import Native

FAST = ["--prompt", "x {} ->", "--source-layers", "1", "--max-new-tokens", "2"]


@pytest.fixture
def base(tiny_folder: Path) -> list[str]:
    return ["inspect", "say the cat", "--model", str(tiny_folder), *FAST]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *said: str) -> Run:
    done = run(arguments, capsys)
    assert (done.code, done.out) == (2, ""), done.err
    for words in said:
        assert words in done.err, done.err
    return done


def test_tables_of_bytes_hold_what_csv_holds_and_what_made_it(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / f"rows.{kind}" for kind in ("json", "parquet", "ARROW")}
    for file in files.values():
        assert run([*base, "--out", str(file)], capsys).code == 0
    document = json.loads(files["json"].read_text())
    with pa.ipc.open_file(files["ARROW"]) as reader:
        arrow = reader.read_all()
    for table in (pq.read_table(files["parquet"]), arrow):
        assert [row["cell"] for row in table.to_pylist()] == [row["cell"] for row in document["cells"]]
        assert json.loads(table.schema.metadata[b"patchscopes.model"]) == document["model"]
        assert table.schema.metadata[b"patchscopes.complete"] == b"true"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.ARROW", "rows.json", "rows.parquet"]


def test_show_and_explicit_formats_write_them_too(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.bin"
    assert run([*base, "--run", str(tmp_path / "run"), "--out", str(out), "--format", "parquet"], capsys).code == 0
    assert run(["show", str(tmp_path / "run"), "--out", str(tmp_path / "again.parquet")], capsys).code == 0
    assert pq.read_table(out).num_rows == pq.read_table(tmp_path / "again.parquet").num_rows == 3


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv.gz", "rows.xlsx", "rows.pq", "rows.v2"])
def test_an_ending_that_is_not_known_is_refused(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    known = ".txt, .json, .jsonl, .csv, .parquet, .arrow"
    for command in (base, ["show", str(tmp_path / "run")]):
        refused([*command, "--out", str(tmp_path / name)], capsys, "names no format", known, "--format")
    refused(["lens", "logit", "cat", "--out", str(tmp_path / name)], capsys, "the endings are .txt, .json, .csv")
    assert not list(tmp_path.iterdir())


def test_a_file_of_bytes_needs_a_place(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused([*base, "--format", "arrow"], capsys, "--format arrow makes a file of bytes", "--out rows.arrow")


@pytest.mark.parametrize("source", ["-5 degrees", "-5", "--and then the cat", "- the cat", "-", "-é", "--", "-5=x"])
def test_a_source_may_begin_with_a_dash(tiny_folder: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    options = ["--model", str(tiny_folder), *FAST, "--format", "json", "--controls", "none"]
    behind = ["inspect", *options, "--", "the cat", source]
    calls = [behind] if source == "--" else [["inspect", "the cat", source, *options], behind]
    for arguments in calls:
        done = run(arguments, capsys)
        assert [row["source"] for row in json.loads(done.out)["cells"]] == ["the cat", source], done.err


def test_values_of_options_may_begin_with_a_dash_and_typos_are_told(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny_folder), "--prompt", "- x {} ->", "--at", "-2", "--source-layers=1", "--format=json"]
    done = run(["inspect", *options, "say the cat", "--controls", "none"], capsys)
    assert [row["position"] for row in json.loads(done.out)["cells"]] == [3], done.err
    refused(["inspect", "cat", "--layers", "3"], capsys, "No such option '--layers'", "goes behind --")
    refused(["inspect", "cat", "--at"], capsys, "requires an argument")
    assert run(["tokens", "-5 cats", "--model", str(tiny_folder)], capsys).code == 0
    assert run(["lens", "logit", "-5 cats", "--model", str(tiny_folder)], capsys).code == 0


def test_where_no_compiler_is_there_it_is_said(
    base: list[str],
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"model": str(tiny_folder), "sources": ["say the cat"], "prompt": "x {} ->"}))
    commands = (
        [*base, "--explain"],
        ["run", str(spec), "--out", str(tmp_path / "run"), "--explain"],
        ["models", "check", str(tiny_folder)],
    )
    said = "this is the slow way, without the package's kernels: no C++ compiler found"
    for module in (kernels, kernels.ops):
        monkeypatch.setattr(module, "native", lambda: Native(None, "no C++ compiler found (c++)"))
    assert [said in run(command, capsys).out for command in commands] == [True] * 3
    assert said not in run(["models", "check", str(tiny_folder), "--dtype", "bfloat16"], capsys).out
    monkeypatch.setattr(kernels, "native", lambda: Native(None, None))
    assert said not in run(commands[0], capsys).out


def test_candidates_in_a_file_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "answers"
    file.write_text("a\u2028b\nc\x85d\n\n", encoding="utf-8")
    assert read_candidates(str(file)) == ("a\u2028b", "c\x85d")
    file.write_bytes("cat\n".encode("utf-16"))
    with pytest.raises(OptionError, match="answers is UTF-16, not UTF-8 text"):
        read_candidates(str(file))


def test_arguments_that_the_locale_could_not_read_are_utf_8() -> None:
    read_as_ascii = "café".encode().decode("ascii", "surrogateescape")
    assert (in_utf8(read_as_ascii), in_utf8("café"), in_utf8("\udce9")) == ("café", "café", "\udce9")
    assert read_candidates(f"{read_as_ascii},b") == ("café", "b")


def test_a_run_without_a_name_is_refused(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused([*base, "--run", ""], capsys, "the run directory is ''; name a directory")


def test_blank_lines_are_told(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").write_text("say the cat\n\ngo to Spain\n")
    options = ["--model", str(tiny_folder), *FAST, "--format", "json", "--controls", "none"]
    done = run(["inspect", "--sources", str(tmp_path / "s"), *options], capsys)
    assert [row["source_index"] for row in json.loads(done.out)["cells"]] == [0, 1]
    assert "1 blank line is left out; 2 sources remain" in done.err
