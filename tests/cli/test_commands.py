"""What each command prints where all is well: standard output holds the result and nothing else."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_run import run

ROW_KEYS = [
    "cell",
    "source",
    "source_index",
    "position",
    "token",
    "source_layer",
    "target_layer",
    "target_positions",
    "prompt",
    "control",
    "draw",
    "sample",
    "text",
    "token_ids",
    "finish_reason",
    "top",
    "entropy",
    "candidate",
    "logprob",
    "logprob_per_token",
    "logprob_minus_unpatched",
    "rank",
    "answer_surprisal",
    "source_next",
    "agrees",
    "surprisal_under_source",
    "surprisal_under_patched",
    "expected",
    "flags",
    "status",
    "reason",
    "model",
    "target_model",
    "mapping",
    "seed",
    "schema",
]
PROMPT = ["--prompt", "the capital of {} is"]


def patchscopes(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "patchscopes", *arguments]


def test_json_is_one_document_and_nothing_else(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(["inspect", "the cat", "--model", str(tiny_folder), *PROMPT, "--format", "json"], capsys)
    document = json.loads(done.out)
    assert done.code == 0
    assert list(document) == ["schema", "model", "spec", "complete", "cells"]
    assert document["complete"] is True
    assert [list(row) for row in document["cells"]] == [ROW_KEYS] * len(document["cells"])
    assert len(document["cells"]) == 5 + 1 + 5, "five layers, one unpatched, a random state each"
    assert "rows" in done.err, "counts and provenance go to standard error"


def test_jsonl_and_csv_hold_the_same_rows(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["inspect", "the cat", "hello", "--model", str(tiny_folder), *PROMPT]
    document = json.loads(run([*base, "--format", "json"], capsys).out)
    lines = [json.loads(line) for line in run([*base, "--format", "jsonl"], capsys).out.splitlines()]
    table = list(csv.DictReader(io.StringIO(run([*base, "--format", "csv"], capsys).out)))
    key = lambda row: (row["cell"], str(row["source_index"]), str(row["control"]))  # noqa: E731
    assert sorted(lines, key=key) == sorted(document["cells"], key=key)
    assert [row["text"] for row in table] == [row["text"] or "" for row in document["cells"]]
    assert list(table[0]) == ROW_KEYS


def test_next_token_readout(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "the cat", "--model", str(tiny_folder), "--prompt", "cat {}", "--readout", "next-token"]
    document = json.loads(run([*arguments, "--top-k", "3", "--controls", "none", "--format", "json"], capsys).out)
    for row in document["cells"]:
        assert [set(top) for top in row["top"]] == [{"token", "token_id", "logprob"}] * 3
        assert row["text"] == row["top"][0]["token"]
        assert row["finish_reason"] == "length"
        assert row["entropy"] > 0


def test_the_table_shows_layers_texts_and_controls(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(["inspect", "the cat", "--model", str(tiny_folder), *PROMPT, "--expect", "cat"], capsys)
    assert done.code == 0
    for words in ("random-state", "unpatched", "inert"):
        assert words in done.out


def test_out_writes_the_file_whole_with_its_provenance(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["inspect", "the cat", "--model", str(tiny_folder), *PROMPT]
    for kind in ("json", "jsonl", "csv", "table"):
        out = tmp_path / f"rows.{kind}"
        done = run([*base, "--format", kind, "--out", str(out)], capsys)
        assert (done.code, done.out) == (0, "")
        assert out.stat().st_size > 100
        if kind != "json":
            meta = json.loads((tmp_path / f"rows.{kind}.meta.json").read_text())
            assert meta["model"]["weights"].startswith("sha256:")
            assert meta["complete"] is True
    assert not list(tmp_path.glob(".*")), "no temporary file stays"


def test_one_bad_source_among_many_is_a_failed_row(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "sources.jsonl"
    sources.write_text('{"text": "the cat", "at": "cat"}\n{"text": "hello", "at": "cat"}\n{"text": ""}\n')
    arguments = ["inspect", "--sources", str(sources), "--model", str(tiny_folder), *PROMPT, "--format", "json"]
    done = run(arguments, capsys)
    failed = [row for row in json.loads(done.out)["cells"] if row["status"] == "failed"]
    assert done.code == 0
    assert [row["source_index"] for row in failed] == [1, 2]
    assert "occurs 0 times" in failed[0]["reason"]
    assert "2 of 3 sources failed" in done.err


def test_sources_from_lines_and_standard_input(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["--model", str(tiny_folder), *PROMPT, "--format", "json", "--source-layers", "1", "--controls", "none"]
    lines = tmp_path / "lines.txt"
    lines.write_text("the cat\nhello\n")
    from_file = json.loads(run(["inspect", "--sources", str(lines), *base], capsys).out)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\nhello\n")))
    from_stdin = json.loads(run(["inspect", "--sources", "-", *base], capsys).out)
    given = json.loads(run(["inspect", "the cat", "hello", *base], capsys).out)
    assert from_file["cells"] == from_stdin["cells"] == given["cells"]


def test_prompts_tokens_and_models(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = run(["prompts"], capsys)
    assert all(name in prompts.out for name in ("entity-description", "token-identity", "selfie", "country-capital"))
    tokens = run(["tokens", "the cat", "--model", str(tiny_folder)], capsys)
    assert "' cat'" in tokens.out
    assert "attention sink" in tokens.err
    prompt = run(["tokens", "--prompt", "the capital of {} is", "--model", str(tiny_folder)], capsys)
    assert [line for line in prompt.out.splitlines() if line.startswith(">")] == [">    3      298  ' x'"]
    there = ["--target-at", " capital of", "--target-mask", " cat is"]
    prompt = run(["tokens", "--prompt", "the capital of the cat is", *there, "--model", str(tiny_folder)], capsys)
    assert [line[0] for line in prompt.out.splitlines()] == [" ", " ", " ", ">", " ", "-", "-", ">"]
    assert "no later token can attend" in prompt.out
    refused = run(["tokens", "the cat", "--target-at", "cat", "--model", str(tiny_folder)], capsys)
    assert (refused.code, "--target-at is about an inspection prompt" in refused.err) == (2, True)
    assert run(["tokens", "a", "--prompt", "b {}"], capsys).code == run(["tokens"], capsys).code == 2
    models = run(["models"], capsys)
    assert "smollm2-135m (default)" in models.out
    assert "gemma3-270m" in models.out
    check = run(["models", "check", str(tiny_folder)], capsys)
    assert (check.code, check.out.count("ok  ")) == (0, 5)


def test_help_is_quick_and_version_is_told() -> None:
    """Within 0.5 s on a quiet machine: the fastest of a few, since this one may be busy."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(patchscopes("inspect", "--help"), capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert "--source-layers" in done.stdout
    assert min(times) < 0.5
    import patchscopes as package

    version = subprocess.run(patchscopes("--version"), capture_output=True, text=True, check=True).stdout
    assert package.__version__ in version


def test_ctrl_c_leaves_a_valid_document(tiny_folder: Path, tmp_path: Path) -> None:
    """Interrupted midway: exit code 130, complete false, what was done kept, the rest skipped; no half-written file."""
    sources = tmp_path / "sources.txt"
    sources.write_text(
        "".join(f"the cat of {word}\n" for word in ("Spain", "Wales", "Syria", "hello") for _ in range(60))
    )
    out = tmp_path / "rows.json"
    arguments = ["inspect", "--sources", str(sources), "--model", str(tiny_folder), *PROMPT, "--target-layers", "all"]
    command = patchscopes(
        *arguments,
        "--runner",
        "reference",
        "--max-new-tokens",
        "60",
        "--controls",
        "random,zero",
        "--draws",
        "4",
        "--format",
        "json",
        "--out",
        str(out),
    )
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("rows to do" in line for line in process.stderr), "it never began"
        assert list(tmp_path.glob(".rows.json.*")), "what is written has a name of its own until it is whole"
        time.sleep(1)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    document = json.loads(out.read_text())
    assert document["complete"] is False
    statuses = {row["status"] for row in document["cells"]}
    assert "skipped" in statuses, "how much was done by then depends on how busy the machine is"
    assert all("interrupted" in row["reason"] for row in document["cells"] if row["status"] == "skipped")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("rows")) == ["rows.json"]


def test_a_reader_that_has_gone_is_no_error(tiny_folder: Path) -> None:
    command = patchscopes("inspect", "the cat", "--model", str(tiny_folder), *PROMPT, "--format", "jsonl")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        assert process.wait(timeout=60) == 0


def test_ctrl_c_while_the_model_loads_leaves_a_valid_document_too(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = patchscopes("inspect", "the cat", "--model", str(tiny_folder), "--format", "json", "--out", str(out))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(tmp_path.glob(".rows.json.*")):
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    document = json.loads(out.read_text())
    assert (document["complete"], document["cells"]) == (False, [])


def test_ctrl_c_leaves_a_table_that_says_so(tiny_folder: Path) -> None:
    arguments = ["inspect", "the cat of Spain is hello", "--at", "all", "--model", str(tiny_folder), *PROMPT]
    command = patchscopes(*arguments, "--target-layers", "all", "--runner", "reference", "--max-new-tokens", "90",
                          "--controls", "random,zero,text-only,unpatched", "--draws", "9")  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("rows to do" in line for line in process.stderr)
        time.sleep(1)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted, not complete" in out


def test_out_goes_through_links_and_into_pipes(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["inspect", "the cat", "--model", str(tiny_folder), *PROMPT, "--format", "jsonl", "--out"]
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("before")
    link.symlink_to(target)
    assert run([*base, str(link)], capsys).code == 0
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == 11
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        assert run([*base, str(pipe)], capsys).code == 0
        assert len(reader.communicate(timeout=30)[0].splitlines()) == 11
    assert pipe.is_fifo()


def test_a_full_disk_is_no_fault_of_ours(tiny_folder: Path) -> None:
    command = patchscopes("inspect", "the cat", "--model", str(tiny_folder), *PROMPT, "--format", "json")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
