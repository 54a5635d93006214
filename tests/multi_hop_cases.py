"""What tests of multi-hop share: made-up stones in made-up countries, and runners with a plan."""

import hashlib
from pathlib import Path

from data_files import write
from patchscopes.spec import Cell, State
from relation_cases import CAPITALS, COUNTRIES, LARGEST, of, relation
from study_cases import Saying, text_of

# Two stones in each country; the last country's two are not known to the runner, and one country is a city's name.
STONES = {f"the {k}stone of {country[:3]}": country for country in COUNTRIES for k in ("Old ", "New ")}
FIRST, CAPITAL, LARGE = "the land of {}", "The capital of", "The largest city of"
NOWHERE = COUNTRIES[-1]
ENDING = " is"


def folder(path: Path) -> Path:
    """Stones in countries, capitals and largest cities: two compositions, of 24 queries each."""
    stones = relation("stone country", "The land of {}", of(STONES))
    write(path / "stones.json", stones | {"object_kind": "country"})
    for name, template, pairs in (
        ("capital", "The capital of {}", CAPITALS),
        ("port", "The largest city of {}", LARGEST),
    ):
        write(path / f"{name}.json", relation(name, template, of(pairs)) | {"subject_kind": "country"})
    return path


def answer(text: str, stone: str) -> str | None:
    """What [π2][π1] of a stone asks for."""
    country = STONES.get(stone)
    if country is None:
        return None
    return CAPITALS[country] if text.startswith(CAPITAL) else LARGEST[country] if text.startswith(LARGE) else None


def stone_of(text: str) -> str | None:
    return next((stone for stone in STONES if text.endswith(stone)), None)


def planted(layers: tuple[int, ...], targets: tuple[int, ...], *, plain: tuple[str, ...] = ()) -> Saying:
    """Knows both hops as text, the second behind ENDING alone, and puts together those of the countries `plain`.

    A state of a stone's end says its country from `layers`, put at `targets`; where the query itself is read and
    written, only where the other part is masked.
    """

    def as_text(text: str) -> str | None:
        ended, bare = text.endswith(ENDING), text.removesuffix(ENDING)
        if bare.startswith("The land of "):
            country = STONES.get(bare.removeprefix("The land of "))
            return country if country != NOWHERE and not ended else None
        known = {
            f"{second} {country}": city
            for second, cities in ((CAPITAL, CAPITALS), (LARGE, LARGEST))
            for country, city in cities.items()
        }
        if bare in known:
            return known[bare] if ended else None
        stone = stone_of(bare)
        return answer(text, stone) if stone and STONES[stone] in plain else None

    def written(cell: Cell, state: State) -> str | None:
        assert cell.write is not None
        read = text_of(state.ids[: state.position + 1])
        masked_read = text_of([state.ids[k] for k in state.masked])
        masked_target = text_of([cell.target_ids[k] for k in cell.masked])
        target = text_of(cell.target_ids)
        stone = stone_of(read)
        whole = read.startswith((CAPITAL, LARGE))
        if whole and (not read.startswith(masked_read) or not masked_read or "the land of" not in masked_target):
            return None
        if whole != bool(cell.masked) or state.layer not in layers or cell.write.site.layer not in targets:
            return None
        return answer(target, stone) if stone else None

    def say(cell: Cell) -> str:
        vector = cell.write.vectors[0] if cell.write else None
        text = text_of(cell.target_ids)
        found = as_text(text) if vector is None else written(cell, vector) if isinstance(vector, State) else None
        return f" {found or 'not said'}."

    return Saying(say, lambda cell, ids: -1.0 - sum(ids) % 7)


def guessing() -> Saying:
    """Knows the hops; whatever is written, says one of the cities at random."""
    knows = planted((), ())
    cities = sorted({*CAPITALS.values(), *LARGEST.values()})

    def say(cell: Cell) -> str:
        if cell.write is None:
            return knows.say(cell)
        return f" {cities[int(hashlib.sha256(cell.identity().encode()).hexdigest(), 16) % len(cities)]}"

    return Saying(say, knows.score)


def always(city: str) -> Saying:
    """Knows the hops; whatever is written, says `city`."""
    knows = planted((), ())
    return Saying(lambda cell: knows.say(cell) if cell.write is None else f" {city}", knows.score)
