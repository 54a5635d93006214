"""What studies of entities share: the carrier, who chooses and who is reported, the layers, the stage that chooses.

Every name stands at the end of a carrier sentence, so that it is never the first token (rule 6). Donors are entities of
the same type. One part of the entities only chooses ℓ* and the ℓ of the headline; figures come from the others. The
same entities and seed are dealt alike in every study.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from patchscopes.analysis.matching import matches
from patchscopes.data import DataSet, Entity, Exclusion
from patchscopes.errors import DataError, OptionError
from patchscopes.prompts import find_prompt
from patchscopes.rng import philox
from patchscopes.spec import Readout, Source, Sweep
from patchscopes.studies.setup import Setup, Stage, at_end

CARRIER = "All of them were talking about {}"
# The first is the paper's and the one that chooses; the range over all three is rule 23's uncertainty.
PROMPTS = ("entity-description", "sentence-description", "question-description")
DRAWS = 5
FEWEST = DRAWS + 1  # of a type in a part: each needs so many donors

Thin = Callable[[Sequence[Entity], int | None], list[Entity]]


def first_of(entities: Sequence[Entity], n: int | None) -> list[Entity]:
    """The first `n`; all for None."""
    return list(entities if n is None else entities[:n])


@dataclass(frozen=True)
class Parts:
    """The entities that choose, those that are reported, those left out with the reason; `seen` before thinning."""

    choosing: tuple[Entity, ...]
    reported: tuple[Entity, ...]
    excluded: tuple[Exclusion, ...]
    seen: int

    @classmethod
    def deal(
        cls,
        entities: Sequence[Entity],
        *,
        n_choosing: int,
        n_reported: int | None,
        seed: int,
        thin: Thin = first_of,
    ) -> "Parts":
        """Deal the entities, types evenly; `thin` picks who is reported where that is not all of them (None)."""
        usable, excluded = usable_entities(entities)
        by_type: dict[str, list[Entity]] = {}
        for index in philox("entities", seed).permutation(len(usable)):
            by_type.setdefault(usable[index].type, []).append(usable[index])
        choosing: list[Entity] = []
        reported: list[Entity] = []
        for kind, group in by_type.items():
            if len(group) < 2 * FEWEST:
                reason = f"fewer than {2 * FEWEST} entities of its type: each part needs {DRAWS} donors"
                excluded.extend(Exclusion(entity.name, reason, "entity") for entity in group)
                by_type[kind] = []
                continue
            n = min(max(n_choosing // len(by_type), FEWEST), len(group) - FEWEST)
            choosing.extend(group[:n])
            most = None if n_reported is None else max(n_reported // len(by_type), FEWEST)
            reported.extend(thin(group[n:], most))
        return cls(tuple(choosing), tuple(reported), tuple(excluded), sum(map(len, by_type.values())))


def usable_entities(entities: Sequence[Entity]) -> tuple[list[Entity], list[Exclusion]]:
    """Entities that the inspection prompts do not already speak of, and the others."""
    usable, excluded = [], []
    texts = [find_prompt(name).text for name in PROMPTS]
    for entity in entities:
        if any(matches(text, (entity.name, *entity.keywords)) for text in texts):
            excluded.append(Exclusion(entity.name, "the name or a keyword stands in an inspection prompt", "entity"))
        else:
            usable.append(entity)
    return usable, excluded


def source(
    entity: Entity, *, name: str | None = None, carrier: str = CARRIER, candidates: tuple[str, ...] = ()
) -> Source:
    """The sentence whose last word is the entity (by another form where `name` is given), read at that word."""
    said = name or entity.name
    text = carrier.replace("{}", said)
    return Source(
        text,
        at=at_end(text, said),
        expect=entity.keywords,
        item=entity.name,
        kind=entity.type,
        candidates=candidates,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityScale:
    """How much a study of entities runs. `None` for a number of entities is all of them."""

    n_reported: int | None
    n_choosing: int
    max_new_tokens: int
    step: int  # between the ℓ that the choice looks at
    target_shares: tuple[float, ...]  # the ℓ* to choose from, as shares of depth


@dataclass(frozen=True, kw_only=True)
class EntityDesign:
    """What a study of entities runs on a model, with the stage that chooses. Layers are ℓ and ℓ*, 0…n_layers."""

    setup: Setup
    scale: EntityScale
    choosing: tuple[Entity, ...]
    excluded: tuple[Exclusion, ...]
    seen: int  # entities with data, before they were thinned

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return self.setup.model.n_layers

    @property
    def target_candidates(self) -> tuple[int, ...]:
        """The early ℓ* to choose from."""
        return tuple(dict.fromkeys(round(share * self.n_layers) for share in self.scale.target_shares))

    @property
    def every_layer(self) -> tuple[int, ...]:
        """ℓ from 0 to the last but one: written at the last layer, most prompts are read elsewhere (rule 12)."""
        return tuple(range(self.n_layers))

    @property
    def stepped(self) -> tuple[int, ...]:
        """Every `step`-th ℓ. A model of few layers has one above 0 too, which can be chosen."""
        return tuple(range(0, self.n_layers, min(self.scale.step, self.n_layers - 1)))

    def choice(self) -> Stage:
        """What chooses: the choosing part at every candidate ℓ*."""
        return self._choice("choice", self.target_candidates)

    def choice_same(self) -> Stage:
        """The same at ℓ* = ℓ, where that is a candidate too."""
        return self._choice("choice-same", None)

    def _choice(self, name: str, targets: Sequence[int] | None) -> Stage:
        sources = [source(entity) for entity in self.choosing]
        return Stage(name, self.sweep(sources, self.stepped, targets, ("unpatched", "shuffled")))

    def sweep(
        self,
        sources: Sequence[Source],
        layers: Sequence[int],
        targets: Sequence[int] | None,
        controls: Sequence[str],
        *,
        prompts: Sequence[str] = PROMPTS[:1],
        readout: Readout | None = None,
    ) -> Sweep:
        """A sweep of the study's own decoding, draws and seed; ℓ* = ℓ where `targets` is None."""
        return Sweep(
            tuple(sources),
            tuple(find_prompt(name) for name in prompts),
            tuple(layers),
            target_layers=None if targets is None else tuple(targets),
            readout=readout or Readout(),
            decoding=self.setup.decoding(self.scale.max_new_tokens),
            controls=tuple(controls),
            draws=DRAWS,
            seed=self.setup.seed,
        )


def need_layers(setup: Setup, fewest: int) -> None:
    """Raises OptionError for a model with fewer layers."""
    if setup.model.n_layers < fewest:
        raise OptionError(
            f"{setup.model.id} has {setup.model.n_layers} layers; this study needs a model with {fewest}."
        )


def too_few(data: DataSet[Entity], excluded: Sequence[Exclusion]) -> DataError:
    """The error where no entity is left to report on; `excluded` by what came after loading."""
    reasons = Counter(exclusion.reason for exclusion in (*data.excluded, *excluded))
    return DataError(
        f"{data.source} has {len(data.items)} entities, and no type with {2 * FEWEST} of them that can be read: half "
        f"choose, half are reported, and each half needs {FEWEST}. What was left out: {dict(reasons) or 'nothing'}."
    )


def without(entities: Sequence[Entity], missing: Mapping[int, str]) -> list[Exclusion]:
    """The entities that lack a result, each with the reason."""
    return [Exclusion(entities[item].name, reason.splitlines()[0], "entity") for item, reason in missing.items()]
