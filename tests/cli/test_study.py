"""`patchscopes study`: what it refuses, what it writes, and that Ctrl-C leaves what the same command goes on from."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import families
import patchscopes
from cli_run import run
from patchscopes.studies import setup
from patchscopes.studies.entity_resolution import design
from study_cases import SPEED, long_hf, one_kind


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model that has room for the library's prompts."""
    folder = tmp_path_factory.mktemp("long-llama")
    long_hf(3).save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    return folder


def test_what_the_user_can_mend_ends_with_2(
    long_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = run(["study", "entity", "--model", "none/such"], capsys)
    assert (unknown.code, unknown.out) == (2, "")
    assert "there is no study 'entity'; the studies are entity-resolution" in unknown.err
    base = ["study", "entity-resolution", "--model", str(long_folder), "--out"]
    absent = run([*base, str(tmp_path / "out"), "--data", str(tmp_path / "absent.json")], capsys)
    assert (absent.code, absent.out) == (2, "")
    assert f"cannot read {tmp_path / 'absent.json'}" in absent.err
    assert not (tmp_path / "out").exists()
    data = one_kind(tmp_path, 12)
    file = run([*base, str(data), "--data", str(data)], capsys)
    assert (file.code, file.out) == (2, "")
    assert "entities.json is a file; a study needs a directory of its own" in file.err
    few = run([*base, str(tmp_path / "out"), "--data", str(one_kind(tmp_path, 11))], capsys)
    assert (few.code, "no type with 12 of them" in few.err) == (2, True)
    memory = run([*base, str(tmp_path / "out"), "--memory", "8 apples"], capsys)
    assert memory.code == 2
    for refused in (unknown, absent, file, few, memory):
        assert "Traceback" not in refused.err


def test_a_quick_study_says_what_it_costs_and_writes_its_files(
    long_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "measure_speed", lambda *_, **__: SPEED)
    monkeypatch.setattr(design, "QUICK", replace(design.QUICK, max_new_tokens=2))
    monkeypatch.chdir(tmp_path)
    command = [
        "study",
        "entity-resolution",
        "--model",
        str(long_folder),
        "--quick",
        "--data",
        str(one_kind(tmp_path, 12)),
    ]
    first = run(command, capsys)
    assert first.code == 0, first.err
    out = Path("patchscopes-studies") / f"entity-resolution-{long_folder.name}-entities-quick"
    assert {path.name for path in out.iterdir()} == {"summary.json", "page.md", "walk.md", "runs", "tables", "figures"}
    written = (out / "page.md").read_text(encoding="utf-8")
    assert written.startswith(first.out.strip())
    assert "## What made this" in written
    assert first.out.startswith("# Entity resolution in ")
    assert f"all of it is in {out}" in first.err
    assert first.err.index(" cells, about ") < first.err.index("stage choice")
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["provenance"]["quick"], summary["provenance"]["seed"]) == (True, 0)
    again = run(command, capsys)
    assert again.code == 0
    assert again.out == first.out
    assert again.err.count(" 0 remain: 0 distinct cells") == len(list((out / "runs").iterdir()))
    seeded = run([*command, "--seed", "1"], capsys)
    assert (seeded.code, "holds another run than is asked for" in seeded.err) == (2, True), seeded.err


def test_ctrl_c_leaves_a_folder_to_go_on_from(
    long_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = one_kind(tmp_path), tmp_path / "out"
    arguments = ["study", "entity-resolution", "--model", str(long_folder), "--data", str(data), "--out", str(out)]
    manifest = out / "runs" / "fixed" / "manifest.json"
    with subprocess.Popen(
        [sys.executable, "-m", "patchscopes", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and not manifest.exists():
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    assert not (out / "summary.json").exists()
    assert patchscopes.open_run(out / "runs" / "choice").complete
    assert not patchscopes.open_run(out / "runs" / "fixed").complete
    resumed = run([*arguments], capsys)
    assert resumed.code == 0, resumed.err
    assert " 0 remain: 0 distinct cells" in resumed.err
    assert (out / "summary.json").exists()


def test_help_lists_every_study_with_what_it_asks() -> None:
    from patchscopes.cli.study import study_command
    from patchscopes.studies import STUDIES

    shown = " ".join(str(study_command.help).split())
    for name, question in STUDIES.items():
        assert f"{name} {question}" in shown


def test_a_target_model_is_loaded_and_is_for_studies_across_models(
    long_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    long_hf(3, seed=8).save_pretrained(other)
    families.tiny_tokenizer().save_pretrained(other)
    across = ["--model", str(long_folder), "--target-model", str(other), "--out", str(tmp_path / "out")]
    within = run(["study", "entity-resolution", *across], capsys)
    assert (within.code, within.out) == (2, "")
    assert "reads and writes within one model; target_model" in within.err
    (tmp_path / "short.txt").write_text("A sentence that is by far too short to fit a map on it.\n")
    short = run(["study", "cross-model", *across, "--data", str(tmp_path / "short.txt")], capsys)
    assert (short.code, short.out) == (2, "")
    assert "1 passages in 1 sections cannot be split" in short.err
    same = run(["study", "cross-model", *across[:3], str(long_folder), *across[4:]], capsys)
    assert (same.code, same.out) == (2, "")
    assert f"another model, and {long_folder} is the same: both have the weights sha256:" in same.err
    assert not (tmp_path / "out").exists()
