"""The demo: the main job on a real model, hits and misses as they come.

1. One name over all layers with the entity-description prompt, beside its controls.
2. Eight countries, each inside one carrier sentence, asked for their capital and their largest city, beside their
   controls. Nothing in it was chosen by its outcome: the countries are large ones of five continents, half of them
   with a largest city that is not the capital.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from patchscopes.api import inspect
from patchscopes.errors import PatchscopesWarning
from patchscopes.models import Model
from patchscopes.results import Results
from patchscopes.results.table import as_text
from patchscopes.spec import Row, Source

NAME = "Diana, Princess of Wales"
CARRIER = "Last year my sister moved to {}"
CONTROLS = ("unpatched", "text-only", "random-state")
NEW_TOKENS = 10


@dataclass(frozen=True, slots=True)
class Country:
    """A country with the accepted names of its capital and its largest city."""

    name: str
    capital: tuple[str, ...]
    largest_city: tuple[str, ...]


COUNTRIES = (
    Country("Spain", ("Madrid",), ("Madrid",)),
    Country("Japan", ("Tokyo",), ("Tokyo",)),
    Country("Egypt", ("Cairo",), ("Cairo",)),
    Country("Mexico", ("Mexico City",), ("Mexico City",)),
    Country("Australia", ("Canberra",), ("Sydney",)),
    Country("Canada", ("Ottawa",), ("Toronto",)),
    Country("Turkey", ("Ankara",), ("Istanbul",)),
    Country("Nigeria", ("Abuja",), ("Lagos",)),
)


def run_demo(load: Callable[[], Model], say: Callable[[str], None]) -> None:
    """Load a model, run both parts, and `say` everything."""
    model = load()
    start = time.monotonic()
    say(f"{model!r}\n")
    say(f"1. What does the state of {NAME!r} say, layer by layer?\n")
    say(
        "The state of the last token is read at each layer and written over x, at the same layer, in\n"
        "   “Syria: Country in the Middle East, … Samsung: South Korean … corporation, x”\n"
        "and the model goes on. Beside it, what it says with the state of an unrelated sentence there; under it,\n"
        "for the prompt alone and for the name as plain text. A layer tells something only where it differs.\n"
    )
    name = _quietly(model, [NAME], prompt="entity-description", controls=CONTROLS)
    width = max(60, min(140, shutil.get_terminal_size((140, 24)).columns))
    say(as_text(name, width))
    say(f"\n2. Do the states of eight countries, in “{CARRIER.format('…')}”, hold a capital and a largest city?\n")
    for question, prompt, answers in (
        ("capital", "country-capital", [country.capital for country in COUNTRIES]),
        ("largest city", "country-largest-city", [country.largest_city for country in COUNTRIES]),
    ):
        sources = [
            Source(CARRIER.format(country.name), at=country.name, expect=answer)
            for country, answer in zip(COUNTRIES, answers, strict=True)
        ]
        results = _quietly(model, sources, prompt=prompt, controls=CONTROLS, max_new_tokens=NEW_TOKENS)
        say("\n".join(attribute_table(results, question, width)) + "\n")
    say(f"Time: {time.monotonic() - start:.0f} s for both, after loading.\n")
    say(NEXT_STEPS)


def _quietly(model: Model, sources: Sequence[str | Source], **options: object) -> Results:
    """Inspect; the warnings stand in the tables as flags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PatchscopesWarning)
        return inspect(model, sources, **options)  # type: ignore[arg-type]


def attribute_table(results: Results, question: str, width: int) -> Iterator[str]:
    """A line per country: at how many layers the text names the answer, and whether the controls do as well."""
    n_layers = len({row.source_layer for row in results if row.control is None})
    yield f"   {question}: layers (of {n_layers}) at which the text names it\n"
    columns = f"{'country':<10} {'expected':<12} {'state':<22} {'other state':<12} {'as text':<8}"
    yield f"   {columns} first text that names it"
    by_control: dict[str, int] = {"state": 0, "random-state": 0, "text-only": 0}
    for index, country in enumerate(COUNTRIES):
        rows = [row for row in results if row.source_index == index]
        own = [row for row in rows if row.control is None]
        hits = [row for row in own if row.expected]
        other = sum(bool(row.expected) for row in rows if row.control == "random-state")
        text = any(row.expected for row in rows if row.control == "text-only")
        by_control["state"] += bool(hits)
        by_control["random-state"] += other > 0
        by_control["text-only"] += text
        expected = country.capital[0] if question == "capital" else country.largest_city[0]
        shown = f"{len(hits)}" + (f" (layers {spans(hits)})" if hits else "")
        said = repr(hits[0].text) if hits else f"none; e.g. {_middle(own)!r}"
        line = f"   {country.name:<10} {expected:<12} {shown:<22} {other:<12} {'yes' if text else 'no':<8} {said}"
        yield line if len(line) <= width else f"{line[: width - 1]}…"
    n = len(COUNTRIES)
    unpatched = next(row for row in results if row.control == "unpatched")
    yield (
        f"\n   named at some layer: {by_control['state']} of {n} countries; with an unrelated state, "
        f"{by_control['random-state']} of {n};\n   from the source as text, {by_control['text-only']} of {n}."
    )
    yield f"   The prompt alone goes on: {unpatched.text!r}"


def spans(rows: Sequence[Row]) -> str:
    """Layers as ranges: 3-5,9."""
    layers = [row.source_layer for row in rows if row.source_layer is not None]
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def _middle(rows: Sequence[Row]) -> str:
    return rows[len(rows) // 2].text or ""


NEXT_STEPS = """“Named at some layer” takes the best of many layers, which flatters; the unrelated states get the same.
Eight countries are an illustration and no finding, and a miss is not absence: a small model may hold what it cannot
say. See README, “When not to believe it”.

What to try next (after: source .venv/bin/activate)
  patchscopes inspect "Alexander the Great" --controls unpatched,random-state,text-only
  patchscopes inspect "I went to Spain" --at Spain --prompt "The capital city of {}" --expect Madrid
  patchscopes inspect "She plays the violin" --at all --prompt token-identity --readout next-token \\
      --source-layers 15
  patchscopes tokens "Diana, Princess of Wales"
  patchscopes prompts
  patchscopes inspect "Diana, Princess of Wales" --model gemma3-270m"""
