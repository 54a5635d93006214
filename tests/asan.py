"""The kernels' tests against a build with AddressSanitizer and UndefinedBehaviorSanitizer: `make test-asan`.

The sanitizer's runtime must be in the process before anything else is, so that the tests run in a child which preloads
it. First a bad access of its own is made there, compiled with the same options: where that is not caught, nothing is.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from patchscopes.kernels.native import flags
from patchscopes.settings import SANITIZE_VARIABLE

SANITIZE = "address,undefined"
COMPILERS = ("g++", "c++")  # GCC: clang keeps its runtime elsewhere and links it otherwise
CAUGHT = "AddressSanitizer: heap-buffer-overflow"

# Reads or writes one float of a block of as many as are there, or one behind them.
SOURCE = """
#include <cstdint>
extern "C" float touch(float *floats, int64_t at) { floats[at] += 1; return floats[at]; }
"""
PROBE = """
import ctypes, sys, torch
touch = ctypes.CDLL(sys.argv[1]).touch
floats = torch.zeros(24)  # of torch's own allocator, as all that the kernels are given
touch(ctypes.c_void_p(floats.data_ptr()), ctypes.c_int64(int(sys.argv[2])))
print("went on")
"""


class NoSanitizerError(Exception):
    """What is missing to run with one."""


def environment() -> dict[str, str]:
    """The environment of a process whose kernels are built with sanitizers. Raises NoSanitizerError."""
    compiler = _compiler()
    # libstdc++ too: what is thrown is looked up when the sanitizer starts, which Python itself does not need.
    runtimes = [_runtime(compiler, name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # the interpreter leaves to the system what it has at its end
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        SANITIZE_VARIABLE: SANITIZE,
    }


def _compiler() -> str:
    """A GCC that compiles, on a system that can preload."""
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None or not sys.platform.startswith("linux"):
        raise NoSanitizerError(f"a C++ compiler is needed ({' or '.join(COMPILERS)}, of GCC), on Linux")
    return found


def _runtime(compiler: str, name: str) -> str:
    said = subprocess.run([compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    path = Path(said.stdout.strip())
    if not path.is_absolute() or not path.is_file():  # a compiler that has none says the bare name back
        raise NoSanitizerError(f"{compiler} has no {name}; install GCC's sanitizer libraries (libasan, libubsan)")
    return str(path.resolve())


def bad_access(folder: Path, at: int) -> subprocess.CompletedProcess[str]:
    """Touch float `at` of 24, in a process with sanitizers."""
    source, library = folder / "touch.cpp", folder / "touch.so"
    source.write_text(SOURCE)
    subprocess.run([_compiler(), *flags(SANITIZE), str(source), "-o", str(library)], check=True)
    command = [sys.executable, "-c", PROBE, str(library), str(at)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def main(arguments: list[str]) -> int:
    """Run the kernels' tests, and say why not where they cannot be run."""
    try:
        with TemporaryDirectory() as folder:
            seen = bad_access(Path(folder), 24)
        if seen.returncode == 0 or CAUGHT not in seen.stderr:
            raise NoSanitizerError(f"a write behind a buffer was not caught here: {seen.stdout}{seen.stderr}")
    except (NoSanitizerError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"make test-asan: nothing was tested: {error}\n")
        return 1
    # What a sanitizer says goes to file descriptor 2, and the process ends: captured there, it would be lost.
    command = [sys.executable, "-m", "pytest", "--capture=sys", *(arguments or ["tests/kernels"])]
    return subprocess.run(command, env=environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
