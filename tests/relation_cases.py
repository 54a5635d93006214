"""What tests of relations share: made-up countries and berries, and runners with a plan."""

import hashlib
from pathlib import Path
from typing import Any

from data_files import write
from patchscopes.spec import Cell, Ids, State
from study_cases import Saying, text_of

COUNTRIES = [
    f"{start}land" for start in ("Bor", "Cas", "Dov", "Fal", "Gor", "Hil", "Jun", "Kol", "Lim", "Mor", "Nar", "Pol")
]
UNKNOWN = ("Quorland", "Rovland")  # the planted runner does not know their cities from text


def facts(ending: str) -> dict[str, str]:
    return {country: f"{country[:3]}{ending}" for country in (*COUNTRIES, *UNKNOWN)}


CAPITALS, LARGEST = facts("burg"), facts("port") | {country: f"{country[:3]}burg" for country in COUNTRIES[:3]}
TEMPLATES = {"capital": "The capital of {}", "largest": "The largest city of {}", "colour": "The colour of {}"}


def relation(name: str, template: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "prompt_templates": [template],
        "carrier": "They spoke of {}",
        "contexts": [f"On day {word} we read about {{}}" for word in ("one", "two", "three", "four", "five")],
        "samples": samples,
    }


def of(pairs: dict[str, str]) -> list[dict[str, Any]]:
    return [{"subject": subject, "object": answer} for subject, answer in pairs.items()]


COLOURS = {f"{start}berry": ("red", "green", "red", "blue")[k % 4] for k, start in enumerate(c[:3] for c in COUNTRIES)}


def folder(path: Path) -> Path:
    """Capitals, largest cities, colours with two bad facts; a relation of one class, and one that is too small."""
    write(path / "capital.json", relation("country capital", TEMPLATES["capital"], of(CAPITALS)))
    write(path / "largest.json", relation("country largest city", TEMPLATES["largest"], of(LARGEST)))
    colours = [*of(COLOURS), {"subject": "", "object": "red"}, {"subject": "Borberry", "object": "blue"}]
    write(path / "colour.json", relation("berry colour", TEMPLATES["colour"], colours))
    same = {f"{country}ish": "old" for country in COUNTRIES}
    write(path / "same.json", relation("age", "The age of {}", of(same)))
    write(path / "few.json", relation("few", "The few of {}", of(dict(list(CAPITALS.items())[:4]))))
    return path


def answers() -> dict[str, dict[str, str]]:
    """By template, what is right of each subject."""
    return {
        TEMPLATES["capital"]: CAPITALS,
        TEMPLATES["largest"]: LARGEST,
        TEMPLATES["colour"]: COLOURS,
        "The age of {}": {f"{country}ish": "old" for country in COUNTRIES},
        "The few of {}": dict(list(CAPITALS.items())[:4]),
    }


def planted(layers: tuple[int, ...], targets: tuple[int, ...], more: dict[str, str] | None = None) -> Saying:
    """Knows all facts as text but UNKNOWN's; a subject's own state says its object from `layers`, put at `targets`.

    `more` are further capitals.
    """
    right = answers()
    right[TEMPLATES["capital"]] = {**CAPITALS, **(more or {})}

    def asked(cell: Cell) -> tuple[dict[str, str], str] | None:
        text = text_of(cell.target_ids)
        for template, known in right.items():
            start = template.replace("{}", "")
            if text.startswith(start):
                return known, text[len(start) :]
        return None

    def found(cell: Cell) -> str | None:
        known, phrase = asked(cell) or ({}, "")
        if cell.write is None:
            return known.get(phrase) if phrase not in UNKNOWN else None
        vector = cell.write.vectors[0]
        if not isinstance(vector, State) or vector.layer not in layers or cell.write.site.layer not in targets:
            return None
        source = text_of(vector.ids)
        return next((answer for subject, answer in known.items() if source.endswith(f" {subject}")), None)

    def say(cell: Cell) -> str:
        return f" is {found(cell) or 'not said'}."

    def score(cell: Cell, ids: Ids) -> float:
        return -1.0 if text_of(ids).strip() == found(cell) else -3.0

    return Saying(say, score)


def guessing() -> Saying:
    """Knows all facts as text; whatever the state, says one of the objects at random."""
    knows = planted((), ())

    def say(cell: Cell) -> str:
        if cell.write is None:
            return knows.say(cell)
        objects = sorted({*CAPITALS.values(), *COLOURS.values()})
        return f" is {objects[int(hashlib.sha256(cell.identity().encode()).hexdigest(), 16) % len(objects)]}"

    def score(cell: Cell, ids: Ids) -> float:
        return -(hashlib.sha256((cell.identity() + str(ids)).encode()).digest()[0] / 64)

    return Saying(say, score)
