"""`python -OO`: without assertions and docstrings the commands do the same, though transformers needs docstrings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_run import run

PROGRAM = """
import sys
from patchscopes.cli.main import group, run
assert False, "assertions are off"
code = run(["--help"]) or max(run([name, "--help"]) for name in group.commands) or run(sys.argv[1:])
sys.exit(code)
"""


def test_a_run_without_assertions_and_docstrings(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", "the cat", "--model", str(tiny_folder), "--prompt", "x {} ->", "--source-layers", "1-2"]
    arguments += ["--max-new-tokens", "3", "--format", "json", "--out"]
    done = subprocess.run(
        [sys.executable, "-OO", "-c", PROGRAM, *arguments, str(tmp_path / "bare.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Registry name, path or hub id." in done.stdout
    assert "[ERROR]" not in done.stdout + done.stderr, "transformers complains about docstrings"
    assert run([*arguments, str(tmp_path / "full.json")], capsys).code == 0
    bare, full = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("bare", "full"))
    assert bare["cells"] == full["cells"]
