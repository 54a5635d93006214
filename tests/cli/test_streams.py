"""Results are written, and the exit code is true, whatever state the standard streams and the home are in."""

import codecs
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchscopes.cli.streams import PLAIN_ASCII, Escapes, _Forgiving, _plain_ascii, _Waiting

FAST = ["--prompt", "x {} ->", "--source-layers", "1", "--max-new-tokens", "2", "--controls", "none"]
ENDS = "<&- ", ">&- ", "2>&- "
NO_HOME = """
import os, pwd, sys
def gone(_): raise KeyError
pwd.getpwuid = gone
os.environ.pop("HOME", None)
from patchscopes.cli.main import main
main()
"""


def inspect(tiny_folder: Path, *options: str, source: str = "the cat") -> list[str]:
    return [sys.executable, "-m", "patchscopes", "inspect", source, "--model", str(tiny_folder), *FAST, *options]


def shell(command: list[str], redirections: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirections}', "bash", *command], capture_output=True, check=False, timeout=120
    )


def environment(**changes: str) -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"}, **changes}


def test_messages_that_nobody_reads_cost_no_result(tiny_folder: Path) -> None:
    """As in `2>&1 >rows.csv | head` and in closed terminals."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        inspect(tiny_folder, "--format", "csv"), stdout=subprocess.PIPE, stderr=write, check=False, timeout=120
    )
    os.close(write)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2


def test_all_streams_closed_and_a_file_to_write(tiny_folder: Path, tmp_path: Path) -> None:
    """What is opened later must not get the number of a closed stream, into which others print."""
    out = tmp_path / "rows.json"
    assert shell(inspect(tiny_folder, "--out", str(out)), "".join(ENDS)).returncode == 0
    assert json.loads(out.read_text())["complete"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_a_closed_standard_output_is_told_before_anything_runs(tiny_folder: Path, tmp_path: Path) -> None:
    done = shell(inspect(tiny_folder), ">&-")
    assert done.returncode == 2
    assert b"standard output is closed" in done.stderr
    assert b"--out" in done.stderr
    assert b"rows to do" not in done.stderr
    kept = shell(inspect(tiny_folder, "--run", str(tmp_path / "run")), ">&-")
    assert (kept.returncode, b"1 rows (1 ok)" in kept.stderr) == (0, True), kept.stderr


def test_a_closed_standard_input_is_told(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "patchscopes", "inspect", "--sources", "-", "--model", str(tiny_folder)]
    done = shell(command, "<&-")
    assert done.returncode == 2
    assert b"error: standard input is closed" in done.stderr


@pytest.mark.parametrize(("encoding", "as_format"), [("cp1252", "table"), ("ascii", "json"), ("cp932", "csv")])
def test_an_encoding_that_lacks_signs(tiny_folder: Path, encoding: str, as_format: str) -> None:
    """JSON has escapes of its own; in all else what is lacking is escaped, and counted."""
    done = subprocess.run(
        inspect(tiny_folder, "--format", as_format, source="the café ✓"),
        capture_output=True,
        check=False,
        timeout=120,
        env=environment(PYTHONIOENCODING=encoding, PYTHONUTF8="0"),
    )
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0, err
    if as_format == "json":
        assert [row["source"] for row in json.loads(out)["cells"]] == ["the café ✓"]
    elif as_format == "csv":
        assert [row["source"] for row in csv.DictReader(io.StringIO(out))] == ["the caf\\xe9 \\u2713"]
    else:
        assert "the café \\u2713" in out
    assert (f"standard output is {encoding}" in err) == (as_format != "json")


def test_the_c_locale_says_nothing_of_an_encoding(tiny_folder: Path) -> None:
    """Without Python's UTF-8 mode arguments come as ASCII, and files would be read so."""
    done = subprocess.run(
        inspect(tiny_folder, "--expect", "é", "--format", "csv", source="the café"),
        capture_output=True,
        check=False,
        timeout=120,
        env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    )
    assert done.returncode == 0, done.stderr
    assert [row["source"] for row in csv.DictReader(io.StringIO(done.stdout.decode()))] == ["the café"]


def test_who_has_no_home_gets_results_and_is_told_what_needs_one(tiny_folder: Path, tmp_path: Path) -> None:
    def called(*arguments: str) -> subprocess.CompletedProcess[str]:
        # Not a fresh process without HOME: where the system lists root's home, there is one.
        command = [sys.executable, "-c", NO_HOME, *arguments]
        left_out = ("PATCHSCOPES_HOME", "XDG_CACHE_HOME")
        env = {key: value for key, value in os.environ.items() if key not in left_out}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env, cwd=tmp_path)

    listed = called("models")
    assert (listed.returncode, "PATCHSCOPES_HOME" in listed.stdout) == (0, True), listed.stderr
    needed = called("models", "pull", "smollm2-135m")
    assert (needed.returncode, "set PATCHSCOPES_HOME" in needed.stderr) == (2, True)
    explained = called("inspect", "the cat", "--model", str(tiny_folder), *FAST, "--explain")
    assert explained.returncode == 0, explained.stderr
    assert "this is the slow way, without the package's kernels: this user has no home" in explained.stdout
    assert not list(tmp_path.iterdir()), "nothing is made in a folder called ~"


def test_messages_are_lost_and_results_wait() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with (
        io.BufferedWriter(_Waiting(write, "w", closefd=False)) as file,
        subprocess.Popen(["wc", "-c"], stdin=read, stdout=-1) as reader,
    ):
        os.close(read)
        file.write(b"x" * 2**20)
        file.flush()
        os.close(write)
        assert reader.communicate(timeout=30)[0].strip() == b"1048576"
    read, write = os.pipe()
    os.close(read)
    with io.TextIOWrapper(io.BufferedWriter(_Forgiving(write, "w"))) as file:
        print("lost", file=file, flush=True)


def test_escapes_are_counted_and_ascii_stays_ascii() -> None:
    escapes = Escapes("ascii")
    codecs.register_error("patchscopes-test", escapes)
    assert "aé✓".encode("ascii", "patchscopes-test") == b"a\\xe9\\u2713"
    assert escapes.n == 2
    codec = _plain_ascii(PLAIN_ASCII)
    assert codec is not None
    assert codec.name != "ascii", "click writes UTF-8 to what is called so"
    assert (codec.encode("a")[0], _plain_ascii("utf-8")) == (b"a", None)
