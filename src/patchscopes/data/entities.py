"""Entities: from files of names and the words that describe them to entities that a study can use."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchscopes.analysis.matching import fold, matches
from patchscopes.data.agreement import seen, told
from patchscopes.data.entry import Entry, entries_of, unread_note
from patchscopes.data.files import File, escape_note, json_of, mended, read_files, sha256_of
from patchscopes.data.items import DataSet, Entity, Exclusion, counted
from patchscopes.data.repeated import repeated
from patchscopes.errors import DataError

TYPES = ("person", "place", "work", "organisation", "event")
TIERS = (1, 2, 3)

NO_NAME = "name is empty"
AGAIN = "name given twice"
AMBIGUOUS = "name given twice with different entries"
NO_TYPE = f"type is none of {', '.join(TYPES)}"
NO_TIER = "tier is not 1, 2 or 3"
NO_DESCRIPTION = "description is empty"
NO_KEYWORDS = "no keywords"
IN_NAME = "keyword stands in the name"
EMPTY_WORD = "keyword or alias is empty"
OTHER_TYPE = "the two passes disagree on the type"
NOT_TOLD = "no keyword stands in the second description"
NOT_IN_NAME = "part or bare form does not stand in the name"
NO_PART_KEYWORDS = "part without keywords"
NO_PART = "keywords of a part without the part"
PART_NOT_TOLD = "the two passes disagree on the part"

OWN = Path(__file__).with_name("own") / "entities"

_NEEDED = ("name", "type", "tier", "description", "keywords")
_WORDS = ("keywords", "type_keywords", "aliases", "part_keywords")
_ALSO_READ = ("type_keywords", "aliases", "part", "part_keywords", "bare", "where", "second")


@dataclass(frozen=True, slots=True)
class _Read:
    """An entry of a file as it was read; `second` is what a second pass said, None where the file has none."""

    entry: Entry
    second: Entry | None

    @property
    def name(self) -> str:
        return self.entry.text("name")

    @property
    def keywords(self) -> tuple[str, ...]:
        """Those that can be used: the name's own words tell nothing."""
        return tuple(word for word in seen(self.entry.texts("keywords")) if not matches(self.name, [word]))

    @property
    def aliases(self) -> tuple[str, ...]:
        return seen(self.entry.texts("aliases"))


def load_entities(path: str | os.PathLike[str] | None = None) -> DataSet[Entity]:
    """The entities in a .json file or in a folder of such; the project's own for None. See docs/data.md.

    Raises DataError for what cannot be read, for an entry without its keys, and where nothing is left.
    """
    if path is None and not OWN.is_dir():
        raise DataError("no entities are shipped with this version; give the path of a file or folder of entities.")
    files = read_files(OWN if path is None else path, (".json",))
    listings = [_listing(file) for file in files]
    read = [one for listing in listings for one in listing.read]
    reasons = _reasons(read)
    kept = [one for place, one in enumerate(read) if place not in reasons]
    whole = [
        Exclusion(one.name or one.entry.where, reasons[place], "entity")
        for place, one in enumerate(read)
        if place in reasons
    ]
    source = "own" if path is None else os.fspath(path)
    if not kept:
        raise DataError(f"{source} has no entity that can be used ({counted(whole)}); mend it, or give other data.")
    return DataSet(
        name="own entities" if path is None else Path(path).name,
        items=tuple(_entity(one) for one in kept),
        excluded=(*whole, *(exclusion for one in kept for exclusion in _words_left_out(one))),
        sha256=sha256_of(files),
        source=source,
        n_read=len(read),
        notes=tuple(note for listing in listings for note in listing.notes),
    )


@dataclass(frozen=True, slots=True)
class _Listing:
    """What one file holds."""

    read: tuple[_Read, ...]
    notes: tuple[str, ...]


def _listing(file: File) -> _Listing:
    value, n_escaped = mended(json_of(file), file)
    entries = entries_of(value, "entity", file.name)
    for entry in entries:
        entry.need(_NEEDED)
    checked = any("second" in entry.values for entry in entries)
    return _Listing(
        read=tuple(_Read(entry, entry.entry("second") if checked else None) for entry in entries),
        notes=(*escape_note(file, n_escaped), *unread_note(entries, (*_NEEDED, *_ALSO_READ), file.name)),
    )


def _reasons(read: Sequence[_Read]) -> dict[int, str]:
    """Why entities are left out, by their places; the first reason that holds."""
    named = [place for place, one in enumerate(read) if fold(one.name)]
    twice = repeated([read[place].name for place in named], [read[place].entry.values for place in named])
    reasons = {place: NO_NAME for place in range(len(read)) if place not in named}
    reasons |= {named[n]: AGAIN if how == "again" else AMBIGUOUS for n, how in twice.items()}
    for place in named:
        if place not in reasons and (reason := _reason(read[place])):
            reasons[place] = reason
    return reasons


def _reason(one: _Read) -> str | None:
    """Why an entity with a name is left out, if it is."""
    tier = one.entry.values["tier"]
    if one.entry.text("type") not in TYPES:
        return NO_TYPE
    if isinstance(tier, bool) or tier not in TIERS:
        return NO_TIER
    if not one.entry.text("description"):
        return NO_DESCRIPTION
    if not one.keywords:
        return IN_NAME if seen(one.entry.texts("keywords")) else NO_KEYWORDS
    return None if one.second is None else _disagreement(one, one.second)


def _disagreement(one: _Read, second: Entry) -> str | None:
    """Where the second pass does not bear out the first, if so."""
    if fold(second.text("type")) != fold(one.entry.text("type")):
        return OTHER_TYPE
    said = (second.text("description"), *second.texts("facts"))
    return None if told((*one.keywords, *one.aliases), *said) else NOT_TOLD


def _why_no_part(one: _Read) -> str | None:
    """Why the part of a name is left out while the entity stays; None also where there is nothing to leave out."""
    part, keywords = one.entry.text("part"), seen(one.entry.texts("part_keywords"))
    if not part:
        return NO_PART if keywords else None
    if part not in one.name:
        return NOT_IN_NAME
    if not keywords:
        return NO_PART_KEYWORDS
    if one.second is not None and not told(keywords, one.second.text("part")):
        return PART_NOT_TOLD
    return None


def _entity(one: _Read) -> Entity:
    entry = one.entry
    part = "" if _why_no_part(one) else entry.text("part")
    bare = entry.text("bare")
    return Entity(
        name=one.name,
        type=entry.text("type"),
        tier=int(entry.values["tier"]),
        description=entry.text("description"),
        keywords=one.keywords,
        type_keywords=seen(entry.texts("type_keywords")),
        aliases=one.aliases,
        part=part or None,
        part_keywords=seen(entry.texts("part_keywords")) if part else (),
        bare=bare if bare and bare in one.name else None,
        where=entry.text("where"),
    )


def _words_left_out(one: _Read) -> Iterator[Exclusion]:
    """What goes while the entity stays."""
    for word in seen(one.entry.texts("keywords")):
        if word not in one.keywords:
            yield Exclusion(f"{one.name}: {word}", IN_NAME, "keyword")
    words = [word for key in _WORDS for word in one.entry.texts(key)]
    yield from [Exclusion(one.name, EMPTY_WORD, "keyword")] * (len(words) - len(seen(words)))
    if why := _why_no_part(one):
        yield Exclusion(f"{one.name}: {one.entry.text('part')}", why, "part")
    if one.entry.text("bare") not in one.name:
        yield Exclusion(f"{one.name}: {one.entry.text('bare')}", NOT_IN_NAME, "bare")
