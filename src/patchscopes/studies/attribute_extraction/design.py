"""What attribute-extraction runs: which relations and facts, read and written where, and how it is thinned.

For each relation: a carrier sentence that ends with the subject, whose last token is read at ℓ; the relation's first
template with the placeholder in the subject's stead, written at ℓ*. Donors are the relation's other subjects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from patchscopes.data import Exclusion, Fact, Relation
from patchscopes.spec import Readout, Source, Sweep
from patchscopes.studies.relations import Case, prompt_of, shuffled_facts, source, unreadable
from patchscopes.studies.setup import Setup, Stage

DRAWS = 5
N_FOLDS = 5
FEWEST = (
    2 * N_FOLDS
)  # facts that the model knows; with fewer, a placement cannot be chosen without those it is scored on
# Of these every country that is known is run: their tables are read country by country.
CAPITAL, LARGEST = "country capital", "country largest city"
UNCAPPED = (CAPITAL, LARGEST)
QUICK_RELATIONS = (CAPITAL, LARGEST, "country language", "landmark country")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run. Layers are given as shares of the depth."""

    sources: tuple[float, ...]  # ℓ of the grid
    targets: tuple[float, ...]  # ℓ* of the grid
    coarse: tuple[float, ...]  # ℓ at which the other controls are run over all ℓ*
    n_asked: int  # facts of a relation that the model is asked for
    n_total: int  # facts that are run, over all relations
    n_per_relation: int
    n_coarse: int  # facts of a relation at the coarse ℓ
    n_contexts: int
    n_objects: int  # candidates of a relation
    n_cities: int  # countries whose capitals and largest cities are compared, those where they differ first
    max_new_tokens: int


FULL = Scale(
    sources=(0.0, 0.07, 0.13, 0.23, 0.33, 0.47, 0.6, 0.77, 0.93),
    targets=(0.0, 0.07, 0.2, 0.33, 0.53, 0.8),
    coarse=(0.13, 0.47),
    n_asked=200,
    n_total=600,
    n_per_relation=30,
    n_coarse=12,
    n_contexts=5,
    n_objects=40,
    n_cities=200,
    max_new_tokens=10,
)
QUICK = Scale(
    sources=(0.0, 0.13, 0.33, 0.6),
    targets=(0.0, 0.1, 0.33),
    coarse=(0.13,),
    n_asked=60,
    n_total=60,
    n_per_relation=12,
    n_coarse=6,
    n_contexts=1,
    n_objects=16,
    n_cities=24,
    max_new_tokens=8,
)


@dataclass(frozen=True)
class Design:
    """The scale, on a model: layers, and the stages of a case."""

    setup: Setup
    scale: Scale
    cap: int

    @classmethod
    def of(cls, setup: Setup, n_relations: int) -> "Design":
        """The design for so many relations: the more there are, the fewer facts of each are run."""
        scale = QUICK if setup.quick else FULL
        n_run = min(n_relations, len(QUICK_RELATIONS)) if setup.quick else n_relations
        cap = max(min(scale.n_per_relation, scale.n_total // max(n_run, 1)), FEWEST)
        return cls(setup, scale, cap)

    @property
    def sources(self) -> tuple[int, ...]:
        """ℓ of the grid."""
        return self._layers(self.scale.sources)

    @property
    def targets(self) -> tuple[int, ...]:
        """ℓ* of the grid."""
        return self._layers(self.scale.targets)

    @property
    def coarse(self) -> tuple[int, ...]:
        """ℓ at which the best over ℓ* of the other controls is taken."""
        return self._layers(self.scale.coarse)

    @property
    def probed(self) -> tuple[int, ...]:
        """ℓ at which probes are trained: those of the grid that may be chosen, so that both have the same choice."""
        return tuple(layer for layer in self.sources if layer > 0)

    @property
    def eligible(self) -> list[int]:
        """The placements, by number, that may be chosen. Not ℓ = 0: the token's embedding is the subject as text."""
        return [k for k, (source, _) in enumerate(self.placements) if source > 0]

    @property
    def placements(self) -> list[tuple[int, int]]:
        """Every (ℓ, ℓ*) of the grid, ℓ* running fastest."""
        return [(source, target) for source in self.sources for target in self.targets]

    def most(self, case: Case) -> int:
        """How many facts of `case` are run at most."""
        uncapped = case.name in UNCAPPED and not self.setup.quick
        return len(case.facts) if uncapped else min(self.cap, len(case.facts))

    def asked(self, case: Case) -> Stage:
        """Does the model give the object from text? The template with the subject in it, as phrase-only runs it."""
        return Stage(
            f"known/{case.slug}", self._sweep(case, self.texts(case), (0,), (0,), ("unpatched", "phrase-only"))
        )

    def grid(self, case: Case) -> Stage:
        """All placements, in the carrier."""
        controls = ("unpatched", "shuffled", "phrase-only", "text-only")
        return Stage(f"grid/{case.slug}", self._sweep(case, self.texts(case), self.sources, self.targets, controls))

    def best_of(self, case: Case) -> Stage:
        """The controls that need cells of their own, over all ℓ* at the coarse ℓ, for some of the facts."""
        some = Case(case.relation, case.prompt, case.facts[: max(self.scale.n_coarse, DRAWS + 1)])
        controls = ("zero", "random", "random-state", "mean")
        sweep = self._sweep(some, self.texts(some), self.coarse, self.targets, controls)
        return Stage(f"best-of/{case.slug}", replace(sweep, draws=1))

    def chosen(self, case: Case, placement: tuple[int, int]) -> Stage:
        """Every control at one placement, which a training fold chose."""
        source, target = placement
        controls = ("self", "zero", "random", "random-state", "mean")
        sweep = self._sweep(case, self.texts(case), (source,), (target,), controls)
        return Stage(f"chosen/{case.slug}-{source}-{target}", sweep)

    def cell_sweep(self, case: Case, placement: tuple[int, int], controls: Sequence[str]) -> Sweep:
        """The carrier at one placement."""
        source, target = placement
        return self._sweep(case, self.texts(case), (source,), (target,), controls)

    def contexts(self, case: Case, placement: tuple[int, int], number: int) -> Stage:
        """One placement in another source sentence."""
        source, target = placement
        texts = self.texts(case, number)
        sweep = self._sweep(case, texts, (source,), (target,), ("unpatched", "shuffled"))
        return Stage(f"contexts/{case.slug}-{number}-{source}-{target}", sweep)

    def ranked(self, case: Case, target: int, objects: Sequence[str]) -> Stage:
        """How the relation's objects are ranked, by ℓ, at one ℓ*."""
        controls = ("unpatched", "zero", "shuffled", "phrase-only")
        sweep = self._sweep(case, self.texts(case), self.sources, (target,), controls)
        return Stage(f"ranked/{case.slug}", _scoring(sweep, objects))

    def ranked_controls(self, case: Case, placement: tuple[int, int], objects: Sequence[str]) -> Stage:
        """The ranking beside the controls that need cells of their own, at the chosen placement."""
        source, target = placement
        sweep = self._sweep(case, self.texts(case), (source,), (target,), ("random", "random-state", "mean"))
        return Stage(f"ranked-controls/{case.slug}", replace(_scoring(sweep, objects), draws=1))

    def texts(self, case: Case, context: int | None = None) -> list[Source]:
        """A source sentence per fact: the carrier, or context number `context`."""
        return [source(case, fact, context) for fact in case.facts]

    def _layers(self, shares: Sequence[float]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(round(share * self.setup.model.n_layers) for share in shares))

    def _sweep(
        self,
        case: Case,
        sources: Sequence[Source],
        layers: Sequence[int],
        targets: Sequence[int],
        controls: Sequence[str],
    ) -> Sweep:
        return Sweep(
            tuple(sources),
            (case.prompt,),
            tuple(layers),
            target_layers=tuple(targets),
            decoding=self.setup.decoding(self.scale.max_new_tokens),
            controls=tuple(controls),
            draws=DRAWS,
            seed=self.setup.seed,
        )


def _scoring(sweep: Sweep, objects: Sequence[str]) -> Sweep:
    """The sweep with the objects scored, in place of a text."""
    return replace(sweep, readout=Readout("candidates"), candidates=tuple(objects))


def cases_of(setup: Setup, relations: Sequence[Relation], design: Design) -> tuple[list[Case], list[Exclusion]]:
    """Relations with the first of their templates that this model can be asked with, and facts to ask for."""
    cases, excluded = [], []
    chosen = list(relations)
    if setup.quick:
        # Those of QUICK_RELATIONS that there are, and others to make up their number.
        chosen = sorted(relations, key=lambda relation: relation.name not in QUICK_RELATIONS)[: len(QUICK_RELATIONS)]
        left = len(relations) - len(chosen)
        excluded += [Exclusion("relations", "--quick: a relation that was not run")] * left
    for relation in chosen:
        prompt = prompt_of(relation, [setup.model])
        facts = shuffled_facts(setup, relation)
        if prompt is None:
            reason = "no template of the relation has room for a one-token placeholder on this model"
            excluded.extend(Exclusion(f"{relation.name}: {fact.subject}", reason) for fact in facts)
            continue
        asked = facts[: design.scale.n_asked]
        reason = f"beyond the {design.scale.n_asked} facts of a relation that the model is asked for"
        excluded.extend(Exclusion(f"{relation.name}: {fact.subject}", reason) for fact in facts[len(asked) :])
        case = Case(relation, prompt, tuple(asked))
        unread = {fact.subject: why for fact in asked if (why := _unreadable(design, case, fact))}
        excluded.extend(Exclusion(f"{relation.name}: {subject}", why) for subject, why in unread.items())
        if len(unread) < len(asked):
            cases.append(replace(case, facts=tuple(fact for fact in asked if fact.subject not in unread)))
    return cases, excluded


def _unreadable(design: Design, case: Case, fact: Fact) -> str:
    """Why the subject's last token cannot be read in one of its sentences; "" where it can in all of them."""
    for number in (None, *range(design.scale.n_contexts)):
        if reason := unreadable(design.setup.model, source(case, fact, number)):
            return reason
    return ""
