"""Made-up entities whose names the tests' own tokenizer splits into one, two and many tokens."""

import json
from functools import cache
from pathlib import Path

import families
from patchscopes.models import Model, wrap_in_memory

FIRST = ("Spain", "Wales", "hello", "capital", "cat", "Brno")
REST = ("", " of Spain", " 1135", " hello")
# What a random model writes, and no prompt of the library holds.
SIGNS = ("(", "@", "<", "F", "k", "D", "Z", "T", ")", "E", "8", "6", "S")


@cache
def roomy_model() -> Model:
    """A tiny Llama that has room for the prompts of the library, which its tokenizer makes long."""
    model = wrap_in_memory(families.build("llama"), families.tiny_tokenizer())
    model.max_context = 400
    return model


def entities(n_of_type: int = 24) -> list[dict[str, object]]:
    """As a file of entities holds them; a type each for persons and places, all names different."""
    found: list[dict[str, object]] = []
    for kind, ending in (("person", ""), ("place", " b")):
        names = [f"{first}{rest}{ending}" for rest in REST for first in FIRST if rest.strip() != first]
        more = [f"{first} a{k}{ending}" for k in range(9) for first in FIRST]
        for k, name in enumerate((names + more)[:n_of_type]):
            keywords = [SIGNS[(k + step) % len(SIGNS)] for step in (0, 1, 3, 4, 7, 8, 9)]
            found.append(
                {
                    "name": name,
                    "type": kind,
                    "tier": 1 + k % 2,
                    "description": f"{kind} number {k}",
                    "keywords": keywords,
                    "bare": "",
                }
            )
    return found


def written(folder: Path, listed: list[dict[str, object]] | None = None) -> Path:
    """The entities in a file."""
    path = folder / "entities.json"
    path.write_text(json.dumps(entities() if listed is None else listed), encoding="utf-8")
    return path
