"""The kernels' library: compiled once, kept, and never a reason to fail."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import patchscopes
from patchscopes import kernels
from patchscopes.kernels.native import Native, native

module = sys.modules["patchscopes.kernels.native"]  # the package has the function under this name

# A library in a moment, for what does not look inside: it has every function and computes nothing.
EMPTY = "\n".join(f'extern "C" void {name}() {{}}' for name in module._SIGNATURES)
COMPILER = next(filter(None, map(module.shutil.which, module.COMPILERS)), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no compiler here")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A home without a library, and nothing remembered of the one that tests use."""
    monkeypatch.setenv("PATCHSCOPES_HOME", str(tmp_path / "home"))
    before = native()
    native.cache_clear()
    yield tmp_path / "home" / "kernels"
    native.cache_clear()
    monkeypatch.undo()
    assert native().reason == before.reason


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "empty.cpp"
    source.write_text(EMPTY)
    monkeypatch.setattr(module, "SOURCE", source)


def libraries(home: Path) -> list[Path]:
    return sorted(home.iterdir()) if home.is_dir() else []


def compiler_that(tmp_path: Path, does: str) -> str:
    """The folder of a `c++` that does something else."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    script = folder / "c++"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    return str(folder)


def still_computes() -> None:
    x = torch.linspace(-2, 2, 34).view(2, 17)
    assert torch.allclose(kernels.gated(x.clone(), x, "silu"), torch.nn.functional.silu(x) * x)
    assert torch.allclose(kernels.rms_norm(x, torch.ones(17), 0.0).pow(2).mean(-1), torch.ones(2))
    assert kernels.top_k(x, 5, kernels.Top.none(2, 1, x.device)).indices.tolist() == [[21], [21]]
    assert torch.allclose(kernels.softmax_sums(x)[:, 0], x.amax(-1))
    assert torch.allclose(
        kernels.rotary(x.view(2, 1, 17)[..., :16], x[:1, :16] * 0 + 1, x[:1, :16] * 0), x.view(2, 1, 17)[..., :16]
    )


def test_without_a_compiler_the_reason_is_said_and_pytorch_computes(
    monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = native()
    assert found.library is None
    assert found.reason == "no C++ compiler found (c++, g++, clang++)"
    assert libraries(home) == []
    still_computes()


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo 'kernels.cpp:1: error: unknown target' >&2; exit 1", "unknown target"),
        ("exit 7", "non-zero exit status 7"),
        ("exit 0", ""),
    ],
    ids=["says why", "says nothing", "makes nothing"],
)
def test_a_compiler_that_fails_is_no_crash_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path, does: str, said: str
) -> None:
    monkeypatch.setenv("PATH", f"{compiler_that(tmp_path, does)}:/bin:/usr/bin")
    found = native()
    assert found.library is None
    assert found.reason
    assert said in found.reason
    assert not [path for path in libraries(home) if path.stat().st_size], "no half of a library is kept"
    still_computes()


def test_a_compiler_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{compiler_that(tmp_path, 'exec sleep 60')}:/bin:/usr/bin")
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    assert "timed out" in (native().reason or "")
    assert libraries(home) == []


def test_a_home_that_cannot_be_written_is_no_crash(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHSCOPES_HOME", str(tmp_path / "file" / "below"))
    found = native()
    assert found.library is None
    assert found.reason
    still_computes()


@needs_compiler
def test_the_library_is_compiled_once_and_found_again(
    monkeypatch: pytest.MonkeyPatch, home: Path, quick: None, tmp_path: Path
) -> None:
    assert native().library is not None
    (path,) = libraries(home)
    native.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler any more
    assert native().library is not None
    assert libraries(home) == [path], "and nothing is left beside it"


@needs_compiler
def test_another_source_flag_or_processor_has_another_library(
    monkeypatch: pytest.MonkeyPatch, home: Path, quick: None
) -> None:
    def made() -> int:
        native.cache_clear()
        assert native().library is not None
        return len(libraries(home))

    assert made() == 1
    monkeypatch.setattr(module, "_processor", lambda: "another")
    assert made() == 2
    monkeypatch.setattr(module, "FLAGS", (*module.FLAGS, "-O0"))
    assert made() == 3
    module.SOURCE.write_text(f"{EMPTY}\n// newer\n")
    assert made() == 4
    assert made() == 4


@needs_compiler
@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF"], ids=["empty", "text", "cut off"])
def test_a_library_that_is_broken_is_no_crash(home: Path, quick: None, content: bytes) -> None:
    """Cut off by a full disk, say."""
    assert native().library is not None
    (path,) = libraries(home)
    path.unlink()  # not in place: this process has it mapped
    path.write_bytes(content)
    native.cache_clear()
    found = native()
    assert found.library is not None or found.reason
    if found.library is None:
        still_computes()


@needs_compiler
def test_a_library_without_one_of_the_functions_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    source = tmp_path / "less.cpp"
    source.write_text('extern "C" void ps_rms_norm() {}')
    monkeypatch.setattr(module, "SOURCE", source)
    found = native()
    assert found.library is None
    assert "undefined symbol" in (found.reason or "")
    still_computes()


CHILD = """
import sys
from pathlib import Path
import patchscopes.kernels.native
module = sys.modules["patchscopes.kernels.native"]
module.SOURCE = Path(sys.argv[1])
found = module.native()
print(found.library is not None, found.reason)
"""


@needs_compiler
def test_two_processes_may_compile_at_once(home: Path, quick: None, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(patchscopes.__file__).parents[1])}
    command = [sys.executable, "-c", CHILD, str(module.SOURCE)]
    children = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [child.communicate(timeout=120)[0].strip() for child in children] == ["True None"] * 2
    assert len(libraries(home)) == 1


def test_what_the_tests_run_with_is_there_or_says_why_not() -> None:
    found = native()
    assert isinstance(found, Native)
    assert (found.library is None) == (found.reason is not None)
