"""SIGTERM and SIGHUP are as Ctrl-C: what is done is written, nothing hidden stays, the exit code says which it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import patchscopes
from patchscopes.cli.interrupts import EXIT_INTERRUPTED, SIGNALS, Interrupts, uninterrupted

PROMPT = ["--prompt", "the capital of {} is"]


def started(command: list[str], tmp_path: Path) -> "subprocess.Popen[str]":
    """A command that has begun to run rows."""
    # These tests may run under nohup, which children inherit.
    default = "import runpy, signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    default += "; runpy.run_module('patchscopes', run_name='__main__')"
    process = subprocess.Popen([sys.executable, "-c", default, *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("distinct cells" in line for line in process.stderr), "it never began"
    time.sleep(1)
    return process


def many(tmp_path: Path) -> Path:
    file = tmp_path / "sources.txt"
    file.write_text("".join(f"the cat of {word} {n}\n" for word in ("Spain", "Wales", "Syria") for n in range(80)))
    return file


SLOW = ["--runner", "reference", "--max-new-tokens", "60", "--controls", "none", "--target-layers", "all"]


@pytest.mark.parametrize(
    ("sent", "name", "code"), [(signal.SIGTERM, "rows.parquet", 143), (signal.SIGHUP, "rows.jsonl", 129)]
)
def test_what_is_done_is_written(tiny_folder: Path, tmp_path: Path, sent: int, name: str, code: int) -> None:
    out = tmp_path / name
    command = [
        "inspect",
        "--sources",
        str(many(tmp_path)),
        "--model",
        str(tiny_folder),
        *PROMPT,
        *SLOW,
        "--out",
        str(out),
    ]
    with started(command, tmp_path) as process:
        for _ in range(2):  # terminals and service managers send a second one at once
            os.kill(process.pid, sent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if name.endswith("parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(out)
        assert table.schema.metadata[b"patchscopes.complete"] == b"false"
        statuses = set(table.column("status").to_pylist())
    else:
        statuses = {line.partition('"status": "')[2][:2] for line in out.read_text().splitlines()}
        statuses = {"ok" if status == "ok" else "skipped" for status in statuses}
    assert {"ok", "skipped"} <= statuses
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_run_keeps_what_is_done(tiny_folder: Path, tmp_path: Path) -> None:
    import json

    spec, out = tmp_path / "spec.json", tmp_path / "run"
    sources = many(tmp_path).read_text().splitlines()
    options = {"runner": "reference", "max_new_tokens": 60, "controls": [], "target_layers": "all"}
    spec.write_text(json.dumps({"model": str(tiny_folder), "sources": sources, "prompt": PROMPT[1], **options}))
    with started(["run", str(spec), "--out", str(out)], tmp_path) as process:
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "the same command goes on from here" in err
    assert len(patchscopes.open_run(out)) > 0
    assert not list(out.rglob(".*"))


def test_the_code_is_that_of_the_first_signal_and_its_twin_is_let_pass() -> None:
    interrupts = Interrupts()
    assert interrupts.code(EXIT_INTERRUPTED) == EXIT_INTERRUPTED
    with pytest.raises(KeyboardInterrupt):
        interrupts._interrupt(signal.SIGTERM, None)
    interrupts._interrupt(signal.SIGHUP, None)
    assert [interrupts.code(code) for code in (EXIT_INTERRUPTED, 0, 2)] == [143, 0, 2]
    interrupts._last_s -= 100
    with pytest.raises(KeyboardInterrupt):  # whoever comes later means it
        interrupts._interrupt(signal.SIGINT, None)


def test_while_results_are_written_nothing_interrupts() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with uninterrupted():
        for number in SIGNALS:
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_nohup_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", lambda number, _: taken.append(number))
    Interrupts().install()
    assert taken == [signal.SIGINT]
