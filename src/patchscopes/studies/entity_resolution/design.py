"""What entity-resolution runs: which entities, read where, written where, through which inspection prompts.

Every name stands at the end of a carrier sentence, so that it is never the first token (rule 6); the bare name alone is
a stage of its own. Donors are entities of the same type. One part of the entities only chooses ℓ* and the ℓ of the
headline; the figures come from the others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from patchscopes.analysis.matching import fold
from patchscopes.data import Entity
from patchscopes.spec import Readout
from patchscopes.studies.entities import (
    CARRIER,
    DRAWS,
    FEWEST,
    PROMPTS,
    EntityDesign,
    EntityScale,
    Parts,
    need_layers,
    source,
)
from patchscopes.studies.setup import Setup, Stage

FEWEST_LAYERS = 3  # of a model: thirds of its depth are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(EntityScale):
    """How much is run."""

    n_coarse: int  # layers at which every control is run
    n_surprisal: int  # entities whose descriptions are scored, which takes longer than texts
    surprisal_step: int  # between the ℓ at which they are
    surprisal_draws: int  # of the controls there that need a cell for each


FULL = Scale(
    n_reported=None,
    n_choosing=60,
    max_new_tokens=12,
    n_coarse=4,
    step=2,
    target_shares=(0.0, 1 / 30, 0.1, 0.2),
    n_surprisal=80,
    surprisal_step=3,
    surprisal_draws=DRAWS,
)
QUICK = Scale(
    n_reported=30,
    n_choosing=30,
    max_new_tokens=8,
    n_coarse=2,
    step=4,
    target_shares=(0.0, 0.1),
    n_surprisal=20,
    surprisal_step=10,
    surprisal_draws=2,
)


@dataclass(frozen=True, kw_only=True)
class Design(EntityDesign):
    """The entities of each part, with the layers of every stage."""

    scale: Scale
    reported: tuple[Entity, ...]
    shared: frozenset[str]  # keywords of more than one entity of the data, as they are compared

    @classmethod
    def of(cls, setup: Setup, entities: Sequence[Entity]) -> "Design":
        """Deal the entities, types evenly, to the choosing and the reported part.

        Raises OptionError for a model with too few layers.
        """
        need_layers(setup, FEWEST_LAYERS)
        scale = QUICK if setup.quick else FULL
        parts = Parts.deal(
            entities,
            n_choosing=scale.n_choosing,
            n_reported=scale.n_reported,
            seed=setup.seed,
            thin=_with_parts,
        )
        return cls(
            setup=setup, scale=scale, choosing=parts.choosing, excluded=parts.excluded, seen=parts.seen,
            reported=parts.reported, shared=shared_keywords(entities),
        )  # fmt: skip

    def distinctive(self, entity: Entity) -> tuple[str, ...]:
        """The keywords that no other entity of the data has: "Wilbur", and not "American"."""
        return tuple(word for word in entity.keywords if fold(word) not in self.shared)

    def surprisal_layers(self, headline: int) -> tuple[int, ...]:
        """The ℓ at which descriptions are scored, the headline's among them."""
        return tuple(sorted({*range(0, self.n_layers, self.scale.surprisal_step), headline}))

    def described(self) -> list[Entity]:
        """The reported entities whose descriptions are scored: as many of each type as there are donors for."""
        by_type: dict[str, list[Entity]] = {}
        for entity in self.reported:
            by_type.setdefault(entity.type, []).append(entity)
        n = max(self.scale.n_surprisal // len(by_type), FEWEST)
        return [entity for group in by_type.values() for entity in group[:n]]

    def coarse(self, *more: int) -> tuple[int, ...]:
        """The ℓ at which every control is run, and `more`."""
        n = self.scale.n_coarse
        places = (round((k + 0.5) * self.n_layers / n) for k in range(n))
        return tuple(sorted({min(layer, self.n_layers - 1) for layer in places} | set(more)))

    def stages(self, target_layer: int, headline: int) -> list[Stage]:
        """All stages after the choice of ℓ* and of the headline's ℓ."""
        stages = [
            self._stage("same", self.every_layer, None, prompts=PROMPTS[:1]),
            self._stage("fixed", self.every_layer, target_layer),
            self._controls(self.coarse(headline), target_layer),
            self._surprisal("surprisal", self.surprisal_layers(headline), target_layer, ("unpatched", "shuffled")),
            self._surprisal_controls(headline, target_layer),
            self._stage("bare", self.stepped, target_layer, carrier="{}", prompts=PROMPTS[:1]),
        ]
        return [*stages, self._short(target_layer)] if self.paired() else stages

    def paired(self) -> list[Entity]:
        """The reported entities with a shorter, bare form; none where they are too few to be each other's donors."""
        paired = [entity for entity in self.reported if entity.bare]
        return paired if len({entity.bare for entity in paired}) >= FEWEST else []

    def _stage(
        self,
        name: str,
        layers: Sequence[int],
        target: int | None,
        *,
        carrier: str = CARRIER,
        prompts: Sequence[str] = PROMPTS,
    ) -> Stage:
        sources = [source(entity, carrier=carrier) for entity in self.reported]
        controls = ("unpatched", "shuffled", "text-only", "phrase-only")
        targets = None if target is None else (target,)
        return Stage(name, self.sweep(sources, layers, targets, controls, prompts=prompts))

    def _controls(self, layers: Sequence[int], target: int) -> Stage:
        controls = ("self", "zero", "random", "random-state", "mean")
        sources = [source(entity) for entity in self.reported]
        return Stage("controls", self.sweep(sources, layers, (target,), controls))

    def _short(self, target: int) -> Stage:
        """The bare forms, in the carrier: "Diana" where the entity's own name is "Diana, Princess of Wales".

        Few types have enough of them, so that their donors are of any type.
        """
        sources = [replace(source(entity, name=entity.bare), kind=None) for entity in self.paired()]
        return Stage("short", self.sweep(sources, self.stepped, (target,), ("unpatched", "shuffled")))

    def _surprisal_controls(self, headline: int, target: int) -> Stage:
        stage = self._surprisal("surprisal-controls", (headline,), target, ("random", "random-state"))
        return replace(stage, sweep=replace(stage.sweep, draws=self.scale.surprisal_draws))

    def _surprisal(self, name: str, layers: Sequence[int], target: int, controls: Sequence[str]) -> Stage:
        """How surprised the patched model is by the entity's description, the answer to a question."""
        sources = [source(entity, candidates=(entity.description,)) for entity in self.described()]
        sweep = self.sweep(sources, layers, (target,), controls, prompts=PROMPTS[2:], readout=Readout("candidates"))
        return Stage(name, sweep)


def shared_keywords(entities: Sequence[Entity]) -> frozenset[str]:
    """The keywords that more than one of the entities has, as they are compared."""
    counts = Counter(word for entity in entities for word in {fold(word) for word in entity.keywords})
    return frozenset(word for word, n in counts.items() if n > 1)


def _with_parts(entities: Sequence[Entity], n: int | None) -> list[Entity]:
    """`n` entities (None: all), half of them with a misleading part where there are as many."""
    if n is None:
        return list(entities)
    with_part = [entity for entity in entities if entity.part]
    some = with_part[: n // 2]
    others = [entity for entity in entities if entity not in some]
    return some + others[: n - len(some)]
