"""kernels.cpp → a shared library of this machine, compiled at first use and kept."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from patchscopes.errors import HomeError
from patchscopes.settings import Settings

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
# Later options win: what is looked for shows at -O1 as well, in a tenth of the time. The first fault ends the process.
SANITIZED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 120

_INT, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIGNATURES = {
    "ps_rms_norm": (_POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT),
    "ps_silu_gated": (_POINTER, _POINTER, _POINTER, _INT),
    "ps_gelu_gated": (_POINTER, _POINTER, _POINTER, _INT),
    "ps_rotary": (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT, _INT),
    "ps_attend": (_POINTER,),
    "ps_top_k": (_POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER, _POINTER),
    "ps_differing": (_POINTER, _POINTER, _POINTER, _POINTER, _INT),
    "ps_softmax_sums": (_POINTER, _INT, _INT, _INT, _POINTER),
}


class AttentionArguments(ctypes.Structure):
    """`struct Attention` of kernels.cpp: the same fields in the same order."""

    _fields_ = (
        *((name, _POINTER) for name in ("q", "k", "v", "prefix_k", "prefix_v", "own_k", "own_v", "out", "lengths")),
        *((name, _INT) for name in ("rows", "t", "heads", "kv_heads", "d", "capacity", "prefix", "prefix_padded")),
        ("window", _INT),
        *((f"{which}_{axis}", _INT) for which in "qkv" for axis in ("row", "t", "head")),
        ("scale", _FLOAT),
        ("softcap", _FLOAT),
    )


@dataclass(frozen=True, slots=True)
class Native:
    """The compiled library, or None with the reason why there is none."""

    library: ctypes.CDLL | None
    reason: str | None = None


@cache
def native() -> Native:
    """The library of this machine, compiled where it is not yet there. Never raises: `reason` says what is missing."""
    try:
        settings = Settings.from_env()
        return Native(_load(settings.home / "kernels", flags(settings.sanitize)))
    except (OSError, subprocess.SubprocessError, AttributeError, HomeError) as error:
        detail = getattr(error, "stderr", None) or str(error)[-300:]  # which ends with what was wrong
        return Native(None, " ".join(str(detail).split())[:300])


def flags(sanitize: str) -> tuple[str, ...]:
    """Return the compiler's options, with those of sanitizers such as "address,undefined" where any are named."""
    return (*FLAGS, *SANITIZED, f"-fsanitize={sanitize}") if sanitize else FLAGS


def _load(folder: Path, options: tuple[str, ...]) -> ctypes.CDLL:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    # A library is good for this source, these flags, this kind of processor and this system, and for nothing else.
    source = SOURCE.read_text(encoding="utf-8")
    key = hashlib.sha256("|".join((source, *options, _processor(), platform.platform())).encode())
    path = folder / f"kernels-{key.hexdigest()[:24]}{'.dll' if sys.platform == 'win32' else '.so'}"
    if not path.is_file():
        if compiler is None:
            raise OSError(f"no C++ compiler found ({', '.join(COMPILERS)})")
        _compile(compiler, options, path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # damaged, or of another system after all: made anew, once
        if compiler is None:
            raise
        _compile(compiler, options, path)
        library = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    library.ps_attend.restype = ctypes.c_int32  # not 0: refused
    library.ps_differing.restype = ctypes.c_int64
    return library


def _compile(compiler: str, options: tuple[str, ...], path: Path) -> None:
    """Compile beside `path` and rename, so that two processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        command = [compiler, *options, str(SOURCE), "-o", str(temporary)]
        subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_S)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _processor() -> str:
    """What instructions this processor has: a home folder may be shared by machines of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    named = ("flags", "Features", "model name")
    return "|".join(dict.fromkeys(line for line in lines if line.split("\t")[0].split(":")[0].strip() in named))
