"""Killed at 50 random moments, what is kept and what is done later are together an uninterrupted run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, so that each need not import torch anew")
def test_a_run_killed_at_random_moments_equals_one_that_was_not(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    command = [sys.executable, str(TESTS / "store" / "killed.py"), str(tmp_path), "50"]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["differences"] == []
    assert told["kills"] == 50
    assert told["runs"] >= 2, "both readouts"
    assert told["resumed"] >= 5, "too few kills fell between the first row and the last to show anything"
