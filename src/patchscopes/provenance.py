"""What made a result: the specification, the versions and the commit (rule 22)."""

import platform
import subprocess
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

from patchscopes import __version__
from patchscopes.spec import Sweep

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def provenance(sweep: Sweep, *, runner: str) -> dict[str, object]:
    """The full specification as plain JSON, with the runner, package versions and the source commit."""
    return {**asdict(sweep), "runner": runner, "versions": versions(), "commit": commit()}


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    own = {"patchscopes": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in PACKAGES}


@cache
def commit() -> str | None:
    """The git commit that this package runs from, with "-dirty" where it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
