"""The one settings object. The environment is read here and in `cli/`, nowhere else."""

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

HOME_VARIABLE = "PATCHSCOPES_HOME"
SANITIZE_VARIABLE = "PATCHSCOPES_SANITIZE"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are kept on this machine. `home` holds models (`models/`, `gguf/`) and lenses (`lenses/`).

    `sanitize` names the sanitizers that kernels are compiled with, for `make test-asan`: "address,undefined"; else "".
    """

    home: Path
    sanitize: str = ""

    @classmethod
    def from_env(cls) -> "Settings":
        """Settings from the environment: `PATCHSCOPES_HOME`, or the user's cache folder where it is unset or empty."""
        given = os.environ.get(HOME_VARIABLE)
        home = Path(given).expanduser() if given else user_cache_path("patchscopes")
        return cls(home=home.absolute(), sanitize=os.environ.get(SANITIZE_VARIABLE, ""))
