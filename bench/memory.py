"""The peak of a process's resident memory from a given moment on.

What the operating system keeps (`ru_maxrss`) is the peak since the process began, and that is usually the loading of
weights. Linux lets a process put its mark back: then the mark is the peak since. Where that cannot be done the peak
since the beginning is given instead, which is never less than what was asked for.
"""

import ctypes
import gc
import resource
import sys
from pathlib import Path

import psutil

_SELF = Path("/proc/self")


def settled_rss_bytes() -> int:
    """Resident memory now, when what Python and the allocator can give back has been given back."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Begin anew; False where the system does not allow it."""
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_rss_bytes() -> int:
    """The peak since `reset_peak`, or since the process began where that was not possible."""
    try:
        lines = (_SELF / "status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
