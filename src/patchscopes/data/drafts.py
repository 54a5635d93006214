"""A relation as its file has it, whatever the form: nothing is checked yet but that the keys are there.

JSON comes in two forms, the project's own and that of LRE (Hernandez et al. 2023), which is the smaller: no carrier, no
contexts, no aliases. LRE has two kinds of templates. `prompt_templates` put the relation into words;
`prompt_templates_zs` are meant for a model without examples, and some of them list the answers ("Is a {} a animal,
bird, …"). So the first kind is taken whole, and of the second what names no object.
"""

from dataclasses import dataclass

from patchscopes.analysis.matching import matches
from patchscopes.data.agreement import seen
from patchscopes.data.entry import Entry, entries_of, entry_of, unread_note
from patchscopes.data.files import File, escape_note, json_of, mended
from patchscopes.data.items import Exclusion

NAMES_ANSWERS = "template names an object of its relation"

_KEYS = ("name", "prompt_templates", "samples")
_ALSO_READ = ("prompt_templates_zs", "properties", "question", "subject_kind", "object_kind", "carrier", "contexts")
_SAMPLE_KEYS = ("subject", "object")
_SAMPLE_ALSO_READ = ("aliases", "where", "second")


@dataclass(frozen=True, slots=True)
class Sample:
    """A fact as it was read. `second` is what a second pass answered: None where there was none for this file."""

    subject: str
    object: str
    aliases: tuple[str, ...] = ()
    where: str = ""
    contexts: tuple[str, ...] = ()
    second: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A relation as it was read from `file`.

    Already left out: `broken` rows of a table, and templates that are `naming` an object.
    """

    file: str
    name: str
    templates: tuple[str, ...]
    samples: tuple[Sample, ...]
    question: str = ""
    subject_kind: str = ""
    object_kind: str = ""
    carrier: str = ""
    contexts: tuple[str, ...] = ()
    broken: tuple[Exclusion, ...] = ()
    naming: tuple[Exclusion, ...] = ()
    notes: tuple[str, ...] = ()


def draft_from_json(file: File) -> Draft:
    """The relation in a JSON file of either form; raises DataError for missing keys and values of a wrong type."""
    value, n_escaped = mended(json_of(file), file)
    entry = entry_of(value, file.name)
    entry.need([key for key in _KEYS if key != "prompt_templates" or "prompt_templates_zs" not in entry.values])
    entries = entries_of(entry.values["samples"], "sample", file.name)
    samples = _samples(entries)
    zero_shot, naming = _zero_shot(entry, samples)
    kinds = entry.entry("properties")
    return Draft(
        file=file.name,
        name=entry.text("name"),
        templates=(*entry.texts("prompt_templates"), *zero_shot),
        samples=samples,
        question=entry.text("question"),
        subject_kind=entry.text("subject_kind") or kinds.text("domain_name"),
        object_kind=entry.text("object_kind") or kinds.text("range_name"),
        carrier=entry.text("carrier"),
        contexts=entry.texts("contexts"),
        naming=tuple(Exclusion(f"{entry.text('name')}: {text}", NAMES_ANSWERS, "template") for text in naming),
        notes=(
            *escape_note(file, n_escaped),
            *unread_note([entry], (*_KEYS, *_ALSO_READ), file.name),
            *unread_note(entries, (*_SAMPLE_KEYS, *_SAMPLE_ALSO_READ), f"samples of {file.name}"),
        ),
    )


def _samples(entries: list[Entry]) -> tuple[Sample, ...]:
    checked = any("second" in entry.values for entry in entries)
    return tuple(_sample(entry, checked=checked) for entry in entries)


def _sample(entry: Entry, *, checked: bool) -> Sample:
    """Where a file has second answers, a sample without them has none that agrees."""
    entry.need(_SAMPLE_KEYS)
    return Sample(
        subject=entry.text("subject"),
        object=entry.text("object"),
        aliases=entry.texts("aliases"),
        where=entry.text("where"),
        second=entry.texts("second") if checked else None,
    )


def _zero_shot(entry: Entry, samples: tuple[Sample, ...]) -> tuple[list[str], list[str]]:
    """LRE's zero-shot templates that are not among the others: those to take, and those that name an object."""
    templates, objects = entry.texts("prompt_templates"), seen([sample.object for sample in samples])
    new = [text for text in entry.texts("prompt_templates_zs") if text not in templates]
    naming = [text for text in new if templates and matches(text.replace("{}", " "), objects)]
    return [text for text in new if text not in naming], naming
