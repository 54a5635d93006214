"""The texts around a subject: templates that ask for its object, the carrier and the contexts that it is read in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from patchscopes.data.drafts import Draft
from patchscopes.data.items import Exclusion, Kind
from patchscopes.errors import DataError

NO_PLACE = "template without exactly one {}"
NO_END = "context that does not end with {}, its only one, behind other words"
AGAIN = "text given twice"

# For data without sentences of its own. They fit a name, a noun and a task, name nothing that a relation may ask for,
# and end with the subject at i >= 1 (rule 6).
CARRIER = "They talked for a while about {}"
CONTEXTS = (
    "Nobody in the room had heard of {}",
    "My grandmother often spoke of {}",
    "After dinner the conversation turned to {}",
    "Most of the guests knew very little about {}",
    "That evening she wrote a letter about {}",
    "All week the radio kept mentioning {}",
)


@dataclass(frozen=True, slots=True)
class Kept:
    """Texts that can be used, and what was left out on the way to them."""

    texts: tuple[str, ...]
    excluded: tuple[Exclusion, ...] = ()


def templates_of(draft: Draft) -> Kept:
    """The templates with exactly one {}; raises DataError where there is none."""
    found = _found(draft.templates, lambda text: text.count("{}") == 1)
    if not found:
        raise DataError(
            f"{draft.file} has no template with exactly one {{}} for the subject; give at least one, e.g. "
            '"The capital of {}".'
        )
    return _kept(draft, draft.templates, found, NO_PLACE, "template")


def contexts_of(draft: Draft) -> Kept:
    """The contexts that end with the subject, general ones where none is given; raises DataError where all are bad."""
    if not draft.contexts:
        return Kept(CONTEXTS)
    found = _found(draft.contexts, _ends_with_subject)
    if not found:
        raise DataError(
            f'{draft.file} has no context that ends with {{}}; give some, e.g. "{CONTEXTS[0]}", or leave them out.'
        )
    return _kept(draft, draft.contexts, found, NO_END, "context")


def carrier_of(draft: Draft) -> str:
    """The carrier, a general one where none is given; raises DataError for one that does not end with the subject."""
    if draft.carrier and not _ends_with_subject(draft.carrier):
        raise DataError(
            f'{draft.file}: the carrier must end with {{}}, its only one, behind other words, as "{CARRIER}" does; '
            f"it is {draft.carrier!r}."
        )
    return draft.carrier or CARRIER


def _ends_with_subject(text: str) -> bool:
    return text.count("{}") == 1 and text.endswith("{}") and bool(text[:-2].strip())


def _found(texts: Sequence[str], good: Callable[[str], bool]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if good(text)))


def _kept(draft: Draft, texts: Sequence[str], found: tuple[str, ...], reason: str, kind: Kind) -> Kept:
    """What was `found` among `texts`, and each other text with why it is not."""
    bad = [text for text in texts if text not in found]
    again = [text for text in found for _ in range(texts.count(text) - 1)]
    whys = [*((text, reason) for text in bad), *((text, AGAIN) for text in again)]
    return Kept(found, tuple(Exclusion(f"{draft.name}: {text}", why, kind) for text, why in whys))
