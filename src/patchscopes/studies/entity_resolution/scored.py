"""The results of entity-resolution as arrays: hits and scores by stage, prompt, entity and ℓ."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from patchscopes.analysis.resolution import Resolved, resolution_layers
from patchscopes.cached import cached_property
from patchscopes.data import Entity
from patchscopes.studies.entities import PROMPTS
from patchscopes.studies.entity_resolution.design import Design
from patchscopes.studies.scored import ScoredEntities
from patchscopes.studies.scores import SCORES, Curves, curves_of, naming, places_of, tables_of, uncopied
from patchscopes.studies.texts import Score, Table

# ℓ* = ℓ is read through the first prompt, the fixed ℓ* through all three.
STAGES = {"same": PROMPTS[:1], "fixed": PROMPTS}
DISTINCTIVE = "distinctive"  # hits by the keywords that no other entity of the data has


@dataclass(frozen=True)
class Scored(ScoredEntities):
    """The results of all stages, with the entities that have every result of the main stages."""

    design: Design
    name_logprobs: Mapping[str, tuple[float, int]]  # (mean ln p per token, tokens) of each name
    _curves: dict[tuple[str, str, str], Curves] = field(default_factory=dict, repr=False)

    @property
    def entities(self) -> list[Entity]:
        """The entities that are reported on, in the order of all arrays."""
        return [self.design.reported[item] for item in self.items]

    @property
    def subjects(self) -> list[str]:
        """The names of the entities."""
        return [entity.name for entity in self.entities]

    def target(self, stage: str) -> int | None:
        """ℓ* of a main stage; None where ℓ* = ℓ."""
        return None if stage == "same" else self.choice.fixed

    @cached_property
    def tables(self) -> dict[str, dict[str, Table]]:
        """The main stages' rows, by stage and prompt."""
        n = len(self.design.reported)
        return {stage: tables_of(self.results[stage], prompts, n) for stage, prompts in STAGES.items()}

    @cached_property
    def keyword(self) -> dict[tuple[str, str], Curves]:
        """Keyword hits by (stage, prompt)."""
        return {(stage, prompt): self.curves(stage, prompt, "keyword") for stage in STAGES for prompt in STAGES[stage]}

    @cached_property
    def layers_of(self) -> dict[tuple[str, str], list[Resolved]]:
        """Resolution layers by (stage, prompt)."""
        return {key: resolution_layers(curves.hits, self.design.every_layer) for key, curves in self.keyword.items()}

    def measure(self, score: str) -> Score:
        """One of SCORES, or DISTINCTIVE."""
        if score == DISTINCTIVE:
            return naming(self.design.reported, self.design.distinctive)
        return SCORES[score](self.design.reported)

    def asked(self, score: str, prompt: str) -> list[int]:
        """Positions among the entities that have words for the score which cannot be copied from name or prompt."""
        words = {
            "type": lambda e: e.type_keywords, "part": lambda e: e.part_keywords, DISTINCTIVE: self.design.distinctive,
        }.get(score)  # fmt: skip
        if words is None:
            return list(range(len(self.items)))
        return [k for k, entity in enumerate(self.entities) if uncopied(tuple(words(entity)), entity.name, prompt)]

    @property
    def n_copied(self) -> int:
        """Words of kinds and parts that are not searched for in some prompt, since they can be copied (rule 18)."""
        words = [(e.name, word) for e in self.entities for word in (*e.type_keywords, *e.part_keywords)]
        return sum(any(not uncopied((word,), name, prompt) for prompt in PROMPTS) for name, word in words)

    def curves(self, stage: str, prompt: str, score: str) -> Curves:
        """The curves of a main stage by one of SCORES, or DISTINCTIVE."""
        key = stage, prompt, score
        if key not in self._curves:
            places = places_of(self.design.every_layer, self.target(stage))
            self._curves[key] = curves_of(self.tables[stage][prompt], self.measure(score), self.items, places)
        return self._curves[key]

    @cached_property
    def described(self) -> dict[str, Table]:
        """The rows of the entities' descriptions, by stage."""
        stages, n = ("surprisal", "surprisal-controls"), len(self.design.described())
        return {stage: Table.of(self.results[stage], PROMPTS[2], n) for stage in stages}

    @property
    def described_items(self) -> list[int]:
        """The described entities that have all of those rows."""
        lost = {item for table in self.described.values() for item in table.missing}
        return [item for item in range(len(self.design.described())) if item not in lost]
