"""The one settings object. The environment is read here and in `cli/`, nowhere else."""

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from patchscopes.errors import HomeError

HOME_VARIABLE = "PATCHSCOPES_HOME"
SANITIZE_VARIABLE = "PATCHSCOPES_SANITIZE"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are kept on this machine. `home` holds models (`models/`, `gguf/`), lenses and kernels.

    `sanitize` names the sanitizers that kernels are compiled with, for `make test-asan`: "address,undefined"; else "".
    """

    home: Path
    sanitize: str = ""

    @classmethod
    def from_env(cls) -> "Settings":
        """Settings from the environment: `PATCHSCOPES_HOME`, or the user's cache folder where it is unset or empty.

        A user whom the system lists no home for, as in many containers, gets settings whose `home` raises HomeError:
        what needs none goes on.
        """
        given = os.environ.get(HOME_VARIABLE)
        sanitize = os.environ.get(SANITIZE_VARIABLE, "")
        try:
            home = Path(given).expanduser() if given else user_cache_path("patchscopes").expanduser()
        except RuntimeError:
            return _Homeless(sanitize)
        return cls(home.absolute(), sanitize)


class _Homeless(Settings):
    """Settings of a user without a home."""

    __slots__ = ()

    def __init__(self, sanitize: str) -> None:
        object.__setattr__(self, "sanitize", sanitize)

    @property
    def home(self) -> Path:
        """Raise HomeError."""
        raise HomeError(
            "this user has no home folder to keep models, lenses and kernels in (HOME is not set, and the system lists "
            f"none); set {HOME_VARIABLE} to a folder that can be written."
        )
