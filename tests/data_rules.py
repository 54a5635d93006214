"""What a data set must keep to beyond what loading checks, to be shipped. Each function tells what is broken."""

from collections.abc import Iterator

from patchscopes.analysis.matching import fold, matches
from patchscopes.data import DataSet, Entity, Relation


def broken_relations(data: DataSet[Relation]) -> list[str]:
    return [f"{relation.name}: {broken}" for relation in data.items for broken in _relation(relation)]


def broken_entities(data: DataSet[Entity]) -> list[str]:
    return [f"{entity.name}: {broken}" for entity in data.items for broken in _entity(entity)]


def _relation(relation: Relation) -> Iterator[str]:
    answers = [answer for fact in relation.facts for answer in fact.answers]
    if len(relation.prompt_templates) < 3:
        yield "fewer than three templates (rule 23)"
    if len(relation.contexts) < 5:
        yield "fewer than five contexts"
    if relation.question.count("{}") != 1:
        yield "a question without one place for the subject"
    if relation.n_classes < 2:
        yield "one class"
    if not (relation.subject_kind and relation.object_kind):
        yield "no kinds"
    for text in (relation.carrier, *relation.contexts, *relation.prompt_templates, relation.question):
        if matches(text, answers):
            yield f"{text!r} names an answer"
    for fact in relation.facts:
        if fact.leaks:
            yield f"{fact.subject} leaks"
        if not fact.where:
            yield f"{fact.subject} can be checked nowhere"
        if len(set(map(fold, fact.answers))) < len(fact.answers):
            yield f"{fact.subject} has an answer twice"


def _entity(entity: Entity) -> Iterator[str]:
    words = (*entity.keywords, *entity.type_keywords)
    if len(entity.keywords) < 3 or not entity.type_keywords:
        yield "fewer than three keywords, or none for its type"
    if not entity.description or not entity.where:
        yield "no description, or nowhere to check it"
    if matches(entity.description, [entity.name]):
        yield "the description gives the name"
    for word in (*entity.type_keywords, *entity.part_keywords):
        if matches(entity.name, [word]):
            yield f"{word} stands in the name"
    for word in entity.part_keywords:
        if matches(entity.description, [word]) or fold(word) in map(fold, words):
            yield f"{word} is told of the part and of the whole"
    if entity.name in (entity.bare, entity.part):
        yield "part or bare form is the whole name"
