"""The studies: each names Sweeps, scores their Results, and writes tables, figures, findings and a page in words.

    from patchscopes.studies import entity_resolution
    report = entity_resolution.run(model, quick=True, out="entities")

On the command line: `patchscopes study NAME --model M [--data PATH] [--quick] [--out DIR]`.
"""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType

from patchscopes.errors import OptionError

STUDIES: Mapping[str, str] = MappingProxyType(
    {
        "entity-resolution": "at which layer a name becomes the entity that it names",
        "tokenization": "how the split of a name into tokens changes its resolution",
        "attribute-extraction": "what attributes a state holds, beside a probe",
        "next-token": "what comes next, read from one state: token identity beside lenses",
        "cross-model": "what a model makes of another one's states, through maps fitted on text",
        "multi-hop": "whether the first hop's state, written into the second, answers what text does not",
    }
)


def find_study(name: str) -> ModuleType:
    """The module of the study of that name. Raises OptionError where there is none."""
    if name not in STUDIES:
        raise OptionError(f"there is no study {name!r}; the studies are {', '.join(STUDIES)}.")
    return import_module(f"patchscopes.studies.{name.replace('-', '_')}")
