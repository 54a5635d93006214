"""Relations: from files of facts to facts that a study can use, and what was left out with the reason."""

import os
from pathlib import Path

from patchscopes.analysis.matching import fold, matches
from patchscopes.data.agreement import agree, seen
from patchscopes.data.drafts import Draft, Sample, draft_from_json
from patchscopes.data.files import File, read_files, sha256_of
from patchscopes.data.items import DataSet, Exclusion, Fact, Relation, counted
from patchscopes.data.repeated import repeated
from patchscopes.data.tables import draft_from_table
from patchscopes.data.wording import carrier_of, contexts_of, templates_of
from patchscopes.errors import DataError

EMPTY = "subject or object is empty"
AGAIN = "subject given twice with the same answer"
AMBIGUOUS = "subject given twice with different answers"
DISAGREE = "the two passes disagree"
NO_ALIAS = "alias is empty"

OWN = Path(__file__).with_name("own") / "relations"


def load_relations(path: str | os.PathLike[str] | None = None) -> DataSet[Relation]:
    """The relations in a .json or .tsv file or in a folder of such; the project's own for None. See docs/data.md.

    Raises DataError for what cannot be read, for a relation without samples or templates, and where nothing is left.
    """
    if path is None and not OWN.is_dir():
        raise DataError("no relations are shipped with this version; give the path of a file or folder of relations.")
    files = read_files(OWN if path is None else path, (".json", ".tsv"))
    drafts = [_draft(file) for file in files]
    _refuse_same_names(drafts)
    made = [_relation(draft) for draft in drafts]
    excluded = tuple(exclusion for _, left_out in made for exclusion in left_out)
    relations = tuple(relation for relation, _ in made if relation.facts)
    source = "own" if path is None else os.fspath(path)
    if not relations:
        raise DataError(f"{source} has no fact that can be used ({counted(excluded)}); mend it, or give other data.")
    return DataSet(
        name="own relations" if path is None else Path(path).name,
        items=relations,
        excluded=excluded,
        sha256=sha256_of(files),
        source=source,
        n_read=sum(len(draft.samples) + len(draft.broken) for draft in drafts),
        notes=(
            *(note for draft in drafts for note in draft.notes),
            *(f"{relation.name}: no fact is left, and so no relation" for relation, _ in made if not relation.facts),
        ),
    )


def _draft(file: File) -> Draft:
    draft = draft_from_table(file) if file.name.lower().endswith(".tsv") else draft_from_json(file)
    if not draft.samples:
        broken = f", only {len(draft.broken)} rows without the columns of its header" if draft.broken else ""
        raise DataError(f"{file.name} has no samples{broken}; give at least one subject with its object.")
    if not fold(draft.name):
        raise DataError(f'{file.name}: "name" is empty; name the relation.')
    return draft


def _refuse_same_names(drafts: list[Draft]) -> None:
    files: dict[str, str] = {}
    for draft in drafts:
        other = files.setdefault(fold(draft.name), draft.file)
        if other != draft.file:
            raise DataError(
                f"{other} and {draft.file} both hold the relation {draft.name!r}; rename one, or take one away."
            )


def _relation(draft: Draft) -> tuple[Relation, list[Exclusion]]:
    """The relation with all facts that can be used, perhaps none, and what was left out of it."""
    templates = templates_of(draft)
    contexts = contexts_of(draft)
    excluded = [*draft.broken, *draft.naming, *templates.excluded, *contexts.excluded]
    reasons = _reasons(draft.samples)
    facts = []
    for place, sample in enumerate(draft.samples):
        item = f"{draft.name}: {sample.subject or f'sample {place + 1}'}"
        if reason := reasons.get(place):
            excluded.append(Exclusion(item, reason))
            continue
        aliases = seen(sample.aliases)
        excluded += [Exclusion(item, NO_ALIAS, "alias")] * (len(sample.aliases) - len(aliases))
        facts.append(_fact(sample, aliases, templates.texts))
    relation = Relation(
        name=draft.name,
        prompt_templates=templates.texts,
        carrier=carrier_of(draft),
        contexts=contexts.texts,
        facts=tuple(facts),
        question=draft.question,
        subject_kind=draft.subject_kind,
        object_kind=draft.object_kind,
    )
    return relation, excluded


def _reasons(samples: tuple[Sample, ...]) -> dict[int, str]:
    """Why samples are left out, by their places; the first reason that holds."""
    empty = {place for place, sample in enumerate(samples) if not (fold(sample.subject) and fold(sample.object))}
    full = [place for place in range(len(samples)) if place not in empty]
    twice = repeated([samples[place].subject for place in full], [fold(samples[place].object) for place in full])
    reasons = dict.fromkeys(empty, EMPTY)
    reasons |= {full[n]: AGAIN if how == "again" else AMBIGUOUS for n, how in twice.items()}
    for place in full:
        sample = samples[place]
        if sample.second is not None and not agree((sample.object, *sample.aliases), sample.second):
            reasons.setdefault(place, DISAGREE)
    return reasons


def _fact(sample: Sample, aliases: tuple[str, ...], templates: tuple[str, ...]) -> Fact:
    return Fact(
        subject=sample.subject,
        object=sample.object,
        aliases=aliases,
        where=sample.where,
        contexts=sample.contexts,
        leaks=_leaks(sample.subject, (sample.object, *aliases), templates),
    )


def _leaks(subject: str, answers: tuple[str, ...], templates: tuple[str, ...]) -> bool:
    """Whether an answer stands in the subject or in a template, or the subject in the object ("Mexico City")."""
    return (
        fold(answers[0]) in fold(subject)
        or matches(subject, answers)
        or matches(answers[0], [subject])
        or any(matches(template, answers) for template in templates)
    )
