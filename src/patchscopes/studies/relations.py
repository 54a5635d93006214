"""What studies of relations share: a relation with a prompt that works, the sentence of a subject, what a model knows.

For each relation: a carrier sentence that ends with the subject, whose last token is read; a template with the
placeholder in the subject's stead, which is written into. Donors are the relation's other subjects.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from patchscopes.analysis.matching import fold, matches
from patchscopes.data import Exclusion, Fact, Relation
from patchscopes.errors import PatchscopesError
from patchscopes.models import Model
from patchscopes.prompts import resolve_positions, resolve_target, tokenize
from patchscopes.results import Results
from patchscopes.rng import philox
from patchscopes.spec import InspectionPrompt, Source
from patchscopes.studies.setup import Setup, at_end
from patchscopes.studies.texts import Score, Table

UNKNOWN = "the model does not give the object from text"


@dataclass(frozen=True, slots=True)
class Case:
    """A relation with the inspection prompt that works here, and the facts of it that are run."""

    relation: Relation
    prompt: InspectionPrompt
    facts: tuple[Fact, ...]

    @property
    def name(self) -> str:
        """The relation's name."""
        return self.relation.name

    @property
    def slug(self) -> str:
        """The name as a folder's: another name has another folder, whatever letters it is written in."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        if plain.replace("-", " ") == self.name:
            return plain
        return f"{plain or 'relation'}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    def accepts(self, item: int) -> frozenset[str]:
        """The answers that are right for fact number `item`, as they are compared."""
        return frozenset(fold(answer) for answer in self.facts[item].answers)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Whose facts they are, over whom intervals are made."""
        return tuple(fact.subject for fact in self.facts)

    def without(self, fact: Fact, reason: str) -> Exclusion:
        """That `fact` is left out, and why."""
        return Exclusion(f"{self.name}: {fact.subject}", reason)


def source(case: Case, fact: Fact, context: int | None = None) -> Source:
    """The sentence that ends with the subject, read at the subject's last token, its last occurrence."""
    sentences = case.relation.contexts_of(fact)
    template = case.relation.carrier if context is None else sentences[context % len(sentences)]
    text = template.replace("{}", fact.subject)
    return Source(text, at=at_end(text, fact.subject), expect=fact.answers, item=fact.subject)


def naming(case: Case) -> Score:
    """Scores 1 where the text holds the fact's object or an alias of it (rule 18)."""
    return lambda item, row: float(matches(row.text or "", case.facts[item].answers))


def shuffled_facts(setup: Setup, relation: Relation) -> list[Fact]:
    """The relation's facts in an order that has nothing to do with their content."""
    order = philox("facts", setup.seed, relation.name).permutation(len(relation.facts))
    return [relation.facts[index] for index in order]


def prompt_of(relation: Relation, models: Sequence[Model]) -> InspectionPrompt | None:
    """The first of the relation's templates with room for a one-token placeholder on all `models`; None for none."""
    for template in relation.prompt_templates:
        prompt = InspectionPrompt(template, placeholder="x")
        try:
            for model in models:
                resolve_target(model, prompt, bos="auto")
        except PatchscopesError:
            continue
        return prompt
    return None


def unreadable(model: Model, sentence: Source) -> str:
    """Why the subject's last token cannot be read in its sentence; "" where it can."""
    assert sentence.at is not None
    try:
        resolve_positions(model, tokenize(model, sentence.text, bos="auto"), sentence.at)
    except PatchscopesError as error:
        return f"the subject cannot be read in a sentence: {str(error).splitlines()[0]}"
    return ""


def known_facts(case: Case, results: Results) -> tuple[list[Fact], list[Exclusion]]:
    """The facts whose object the model gives from text, by the rows of `phrase-only`, and the others."""
    table = Table.of(results, case.prompt.label, len(case.facts))
    known, excluded = [], []
    for index, fact in enumerate(case.facts):
        row = table.rows.get(("phrase-only", index, (None, None), 0))
        if index in table.missing or row is None:
            reason = (table.missing.get(index) or "the subject as text could not be run").splitlines()[0]
            excluded.append(case.without(fact, reason))
        elif matches(row.text or "", fact.answers):
            known.append(fact)
        else:
            excluded.append(case.without(fact, UNKNOWN))
    return known, excluded
