"""`patchscopes run`, `show` and `inspect --run`: what is done is kept, and the same command does only what remains."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import patchscopes
from cli_run import run
from patchscopes.spec import Row

OPTIONS = {"prompt": "the capital of {} is", "max_new_tokens": 5, "controls": ["unpatched", "random-state"]}
# Two sources, five layers, a random state each, and one unpatched row.
N_ROWS = 2 * 5 * 2 + 1


def spec_of(folder: Path, model: Path, /, **changes: Any) -> Path:
    file = folder / "spec.json"
    sources = ["say the cat", {"text": "go to Spain", "at": "Spain", "expect": ["cat"]}]
    file.write_text(json.dumps({"model": str(model), "sources": sources, **OPTIONS, **changes}))
    return file


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "patchscopes", *arguments]


def uninterrupted(model: Path, sources: list[Any], **options: Any) -> list[Row]:
    return list(patchscopes.inspect(patchscopes.load(str(model)), sources, **options))


def test_a_run_is_kept_shown_and_not_done_twice(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = spec_of(tmp_path, tiny_folder), str(tmp_path / "run")
    first = run(["run", str(spec), "--out", out], capsys)
    assert (first.code, first.out) == (0, ""), first.err
    assert f"0 of {N_ROWS} rows were there; {N_ROWS} remain" in first.err
    assert f"{N_ROWS} of {N_ROWS} rows (17 ok, 4 inert) are in {out}" in first.err
    again = run(["run", str(spec), "--out", out], capsys)
    assert again.code == 0
    assert f"{N_ROWS} of {N_ROWS} rows were there; 0 remain: 0 distinct cells" in again.err
    assert "0 were done now" in again.err
    sources = ["say the cat", patchscopes.Source("go to Spain", at="Spain", expect=("cat",))]
    results = patchscopes.open_run(out)
    assert list(results) == uninterrupted(tiny_folder, sources, **OPTIONS)
    assert results.complete


def test_show_tells_and_exports(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert run(["run", str(spec_of(tmp_path, tiny_folder)), "--out", out], capsys).code == 0
    rows = [json.loads(line) for line in run(["show", out, "--format", "jsonl"], capsys).out.splitlines()]
    shown = run(["show", out], capsys).out
    assert f"{N_ROWS} of {N_ROWS} rows (100.0%), complete" in shown
    for words in ("17 ok, 4 inert", "rows/s", "1 shards", "“say the cat”", "random-state", "unpatched"):
        assert words in shown
    document = run(["show", out, "--format", "json"], capsys)
    assert json.loads(document.out)["cells"] == rows
    assert json.loads(document.out)["complete"] is True
    assert "100.0%" in document.err
    assert len(list(csv.DictReader(io.StringIO(run(["show", out, "--format", "csv"], capsys).out)))) == N_ROWS
    for kind in ("table", "jsonl", "csv"):
        file = tmp_path / f"export.{kind}"
        assert run(["show", out, "--format", kind, "--out", str(file)], capsys).out == ""
        assert "say the cat" in file.read_text()
        assert json.loads((tmp_path / f"export.{kind}.meta.json").read_text())["complete"] is True
    assert run(["show", str(tmp_path)], capsys).code == 2
    assert "is no run directory" in run(["show", str(tmp_path / "absent")], capsys).err


def test_inspect_keeps_and_goes_on(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["inspect", "say the cat", "go to hello", "--model", str(tiny_folder), "--prompt", "the capital of {} is"]
    kept = [*base, "--format", "json", "--run", str(tmp_path / "run")]
    whole = json.loads(run([*base, "--format", "json"], capsys).out)
    first, again = run(kept, capsys), run(kept, capsys)
    assert json.loads(first.out)["cells"] == json.loads(again.out)["cells"] == whole["cells"]
    assert "0 of 21 rows were there" in first.err
    assert "21 of 21 rows were there; 0 remain" in again.err
    lines = run([*base, "--format", "jsonl", "--run", str(tmp_path / "run")], capsys).out.splitlines()
    assert [json.loads(line) for line in lines] == whole["cells"], "rows that were there are among the results"


def test_rows_that_failed_are_results(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, out = spec_of(tmp_path, tiny_folder, sources=["say the cat", "hello"], at="cat"), str(tmp_path / "run")
    assert "1 failed" in run(["run", str(spec), "--out", out], capsys).err
    assert "0 remain" in run(["run", str(spec), "--out", out], capsys).err
    assert "occurs 0 times" in run(["show", out], capsys).out


def test_another_specification_or_model_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert run(["run", str(spec_of(tmp_path, tiny_folder)), "--out", out], capsys).code == 0

    def refused(said: str, **changes: Any) -> None:
        done = run(["run", str(spec_of(tmp_path, tiny_folder, **changes)), "--out", out], capsys)
        assert (done.code, done.out) == (2, ""), done.err
        assert said in done.err

    refused("decoding.max_new_tokens: 5 there, 6 asked for", max_new_tokens=6)
    refused('controls: ["unpatched", "random-state"] there, [] asked for', controls=[])
    refused('model.dtype: "float32" there, "bfloat16" asked for', dtype="bfloat16")
    other = tmp_path / "other-model"
    other.mkdir()
    for file in tiny_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    refused('model.weights: "sha256:', model=str(other))
    # What decides no result may change: memory, runner.
    spec = spec_of(tmp_path, tiny_folder, memory_bytes=50_000_000, runner="reference")
    assert run(["run", str(spec), "--out", out], capsys).code == 0


def test_bad_specifications_are_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(name: str, text: str, *said: str) -> None:
        (tmp_path / name).write_text(text)
        done = run(["run", str(tmp_path / name), "--out", str(tmp_path / "run")], capsys)
        assert (done.code, done.out) == (2, "")
        assert all(words in done.err for words in said), done.err
        assert not (tmp_path / "run").exists()

    refused("a.toml", 'model = "none/such"\nsources = ["a"]\nmax_new_token = 3', "'max_new_token'", "max_new_tokens?")
    refused("a.yaml", "model: none/such\nsources: [a]\nreadout: txt", "readout is", "did you mean 'text'")
    refused("a.json", '{"model": "none/such", "sources": ["a"], "seed": 1.5}', "seed is 1.5", "a whole number")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    done = run(["run", str(tmp_path / "a.toml"), "--out", str(tmp_path / "full")], capsys)
    assert (done.code, "holds thesis.tex" in done.err) == (2, True)


LONG: dict[str, Any] = {
    "sources": [f"say the cat of {word} {n}" for word in ("Spain", "Wales") for n in range(40)],
    "target_layers": "all",
    "runner": "reference",
    "max_new_tokens": 40,
}


def started(spec: Path, out: Path, n_rows: int) -> "subprocess.Popen[str]":
    """A run in a process of its own, of which at least `n_rows` rows are on disk."""
    process = subprocess.Popen(command("run", str(spec), "--out", str(out)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "manifest.json").exists() and json.loads((out / "manifest.json").read_text())["n_rows"] >= n_rows:
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"it never began: {process.communicate()[1]}")


def test_ctrl_c_keeps_what_is_done_and_a_second_writer_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = spec_of(tmp_path, tiny_folder, **LONG), tmp_path / "run"
    with started(spec, out, 5) as process:
        refused = run(["run", str(spec), "--out", str(out)], capsys)
        assert (refused.code, "another process is writing" in refused.err) == (2, True)
        shown = run(["show", str(out)], capsys)
        assert "being written" in shown.out
        assert "left" in shown.out
        assert "say the cat of Spain 0" in shown.out
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted; the same command goes on from here" in err
    assert "Traceback" not in err
    results = patchscopes.open_run(out)
    assert not results.complete
    assert f"{len(results):,} of" in err, "every row that was counted is there"
    assert {row.status for row in results} <= {"ok", "inert"}, "what was not run is no row"
    assert "not complete, and no writer" in run(["show", str(out)], capsys).out


def test_a_killed_run_goes_on(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {**LONG, "sources": LONG["sources"][:4], "max_new_tokens": 12}
    spec, out = spec_of(tmp_path, tiny_folder, **short), tmp_path / "run"
    with started(spec, out, 5) as process:
        process.kill()
        process.communicate()
    kept = len(patchscopes.open_run(out))
    done = run(["run", str(spec), "--out", str(out)], capsys)
    assert (done.code, f"{kept:,} of " in done.err) == (0, True), done.err
    assert kept >= 5
    asked = {**OPTIONS, **short, "runner": "engine"}
    whole = uninterrupted(tiny_folder, asked.pop("sources"), **asked)
    assert [(row.cell, row.token_ids) for row in patchscopes.open_run(out)] == [(r.cell, r.token_ids) for r in whole]
