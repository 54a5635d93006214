"""`make test-asan` tests something: the sanitizers are in the process, and in the library that is tested."""

import subprocess
from pathlib import Path

import pytest

import asan
from patchscopes.kernels.native import FLAGS, flags, native
from patchscopes.settings import SANITIZE_VARIABLE, Settings


def why_not() -> str:
    try:
        asan.environment()
    except asan.NoSanitizerError as error:
        return str(error)
    return ""


needs_asan = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is one")


@needs_asan
def test_a_write_behind_a_buffer_ends_the_process(tmp_path: Path) -> None:
    inside, outside = (asan.bad_access(tmp_path, at) for at in (23, 24))
    assert (inside.returncode, inside.stdout) == (0, "went on\n"), inside.stderr
    assert outside.returncode != 0
    assert "went on" not in outside.stdout
    assert asan.CAUGHT in outside.stderr
    assert "touch.cpp:3" in outside.stderr, "and the line is named"


def test_the_sanitizers_are_options_of_the_compiler_and_of_no_other_build() -> None:
    assert flags("") == FLAGS
    assert flags("address")[: len(FLAGS)] == FLAGS
    assert flags("address,undefined")[-1] == "-fsanitize=address,undefined"


def test_the_environment_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SANITIZE_VARIABLE, raising=False)
    assert Settings.from_env().sanitize == ""
    monkeypatch.setenv(SANITIZE_VARIABLE, "address")
    assert Settings.from_env().sanitize == "address"


def test_where_sanitizers_are_asked_for_the_library_has_them() -> None:
    """Else every test of this folder would pass under `make test-asan`, and show nothing."""
    sanitize, library = Settings.from_env().sanitize, native().library
    if not sanitize:
        assert library is None or b"__asan_report_" not in Path(library._name).read_bytes()
    else:
        assert library is not None, native().reason
        assert b"__asan_report_" in Path(library._name).read_bytes()


def test_without_a_compiler_nothing_is_tested_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asan.main([]) == 1
    assert "nothing was tested: a C++ compiler is needed (g++ or c++" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["libasan.so", "/nowhere/libasan.so"])
def test_a_compiler_without_the_runtime_is_told_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    script = tmp_path / "g++"
    script.write_text(f"#!/bin/sh\necho {said}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(asan.NoSanitizerError, match=r"has no libasan.so; install"):
        asan.environment()


@needs_asan
def test_a_sanitizer_that_catches_nothing_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = subprocess.CompletedProcess([], 0, "went on\n", "")
    monkeypatch.setattr(asan, "bad_access", lambda *_: unseen)
    assert asan.main([]) == 1
    assert "was not caught here: went on" in capsys.readouterr().err
