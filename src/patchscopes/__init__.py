"""Patchscopes: ask a language model, in words, what its hidden states hold.

    import patchscopes as ps
    model = ps.load("smollm2-135m")
    print(ps.inspect(model, "Diana, Princess of Wales"))

After Ghandeharioun et al. 2024 (arXiv 2401.06102). Importing this package does not import torch; the verbs do.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchscopes.api import inspect, load, prepare, stream
    from patchscopes.errors import PatchscopesError, PatchscopesWarning
    from patchscopes.models import Model
    from patchscopes.results import Results
    from patchscopes.spec import InspectionPrompt, Row, Source
    from patchscopes.store import open_run

__version__ = "0.1.0"

_HOMES = {
    "InspectionPrompt": "spec",
    "Model": "models",
    "PatchscopesError": "errors",
    "PatchscopesWarning": "errors",
    "Results": "results",
    "Row": "spec",
    "Source": "spec",
    "inspect": "api",
    "load": "api",
    "open_run": "store",
    "prepare": "api",
    "stream": "api",
}

__all__ = [
    "InspectionPrompt",
    "Model",
    "PatchscopesError",
    "PatchscopesWarning",
    "Results",
    "Row",
    "Source",
    "__version__",
    "inspect",
    "load",
    "open_run",
    "prepare",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchscopes' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"patchscopes.{_HOMES[name]}"), name)
