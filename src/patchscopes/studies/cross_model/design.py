r"""What cross-model runs: which layer pairs, which texts and facts, and how it is thinned.

M is the source model and M* the target, of another family. Three things are done with one set of maps:

    fit          prose and sentences about names, where both tokenisations agree → f for every (ℓ, ℓ*) and kind
    next token   the beginning of a passage, read in M at its last token, written over the last token of
                 "cat -> cat\n1135 -> 1135\nhello -> hello\n?" in M*: is M*'s next token the one of M?
    facts        a subject in a carrier sentence, read in M, written over "x" in "The capital of x" in M*

Axes: ℓ of M, ℓ* of M*, kind of map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from patchscopes.mappings import LINEAR, Kind, Mappings, Pair, Transfer
from patchscopes.models import Model
from patchscopes.prompts import find_prompt
from patchscopes.spec import InspectionPrompt, Readout, Source, Sweep
from patchscopes.studies.cross_model.openings import Opening
from patchscopes.studies.relations import Case, source
from patchscopes.studies.setup import Setup, Stage

DRAWS = 5
N_FOLDS = 5
FEWEST = 2 * N_FOLDS  # items: with fewer, nothing can be chosen without those that it is scored on
IDENTITY = "token-identity"  # the placeholder is its last token, so that a write at the last layer is read as well
NEXT_TOKEN = Readout("next-token", top_k=1)


class Placement(NamedTuple):
    """Where a state is read (ℓ of M), written (ℓ* of M*), and through which kind of map."""

    kind: Kind
    source: int
    target: int

    @property
    def pair(self) -> Pair:
        """Both layers, (ℓ, ℓ*)."""
        return self.source, self.target

    @property
    def slug(self) -> str:
        """The placement as a folder's name."""
        return f"{self.kind}-{self.source}-{self.target}"

    def __str__(self) -> str:
        return f"{self.kind} {self.source} → {self.target}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run. Layers are given as shares of the depth."""

    sources: tuple[float, ...]  # ℓ of M
    targets: tuple[float, ...]  # ℓ* of M*
    compared: float  # share of the prose whose next tokens are compared
    held_out: float  # share that the R² of maps is taken on
    fitted: float  # share that maps are fitted on; what is left of the prose is not read
    n_sentences: int  # about names that are not asked for, which maps are fitted on too
    n_passages: int
    relations: tuple[str, ...]
    n_asked: int  # facts of a relation that both models are asked for
    n_both: int  # facts of a relation, known to both models, that are run
    n_target_only: int  # known to the target alone
    max_new_tokens: int


FULL = Scale(
    sources=(0.0, 0.07, 0.13, 0.23, 0.4, 0.6, 0.8, 1.0),
    targets=(0.0, 0.07, 0.2, 0.33, 0.55, 0.8, 1.0),
    compared=0.25,
    held_out=0.08,
    fitted=0.67,
    n_sentences=3000,
    n_passages=300,
    relations=(
        "author country", "book author", "city country", "country capital", "country currency", "country language",
        "country largest city", "food from country", "landmark country", "object superclass", "task done by tool",
    ),
    n_asked=100,
    n_both=30,
    n_target_only=10,
    max_new_tokens=10,
)  # fmt: skip
QUICK = Scale(
    sources=(0.0, 0.13, 0.33),
    targets=(0.07, 0.33, 1.0),
    compared=0.06,
    held_out=0.02,
    fitted=0.08,
    n_sentences=500,
    n_passages=50,
    relations=("country capital", "country language", "country largest city"),
    n_asked=25,
    n_both=10,
    n_target_only=4,
    max_new_tokens=8,
)


@dataclass(frozen=True)
class Design:
    """The scale, from one model to another: layers, and the stages."""

    setup: Setup
    scale: Scale

    @classmethod
    def of(cls, setup: Setup) -> "Design":
        """The design of a setup across two models."""
        return cls(setup, QUICK if setup.quick else FULL)

    @property
    def source(self) -> Model:
        """M, whose states are read."""
        return self.setup.model

    @property
    def target(self) -> Model:
        """M*, whose run they are written into."""
        return self.setup.written

    @property
    def sources(self) -> tuple[int, ...]:
        """ℓ of the grid."""
        return _layers(self.scale.sources, self.source.n_layers)

    @property
    def targets(self) -> tuple[int, ...]:
        """ℓ* of the grid; at the last, only the final norm and the head come behind the write."""
        return _layers(self.scale.targets, self.target.n_layers)

    @property
    def inner_targets(self) -> tuple[int, ...]:
        """ℓ* behind which blocks of the target are still to run."""
        return tuple(layer for layer in self.targets if layer < self.target.n_layers)

    @property
    def pairs(self) -> list[Pair]:
        """Every (ℓ, ℓ*), ℓ* running fastest."""
        return list(product(self.sources, self.targets))

    def placements(self, targets: Sequence[int]) -> list[Placement]:
        """Every kind of map and (ℓ, ℓ*) with an ℓ* of `targets`, ℓ* running fastest."""
        return [Placement(kind, a, b) for kind in LINEAR for a, b in product(self.sources, targets)]

    def through(self, mappings: Mappings) -> Transfer:
        """From M to M*."""
        return Transfer(self.source, self.target, mappings)

    def reads(self, model: Model, openings: Sequence[Opening]) -> Stage:
        """What `model` says next when it reads the openings itself.

        Each is its own inspection prompt, and its last token's state at layer 0 is written back, which changes nothing.
        """
        prompts = [InspectionPrompt(opening.text, at="last") for opening in openings]
        sources = [Source(prompt.text, at="last", prompt=prompt) for prompt in prompts]
        name = "source" if model is self.source else "target"
        sweep = Sweep(tuple(sources), (prompts[0],), (0,), target_layers=(0,), readout=NEXT_TOKEN, seed=self.setup.seed)
        return Stage(f"reads/{name}", sweep, transfer=Transfer.of(model))

    def next_grid(self, openings: Sequence[Opening], mappings: Mappings) -> Stage:
        """All (ℓ, ℓ*) through one kind of map."""
        controls = ("unpatched", "zero", "shuffled")
        sweep = self._next(openings, self.sources, self.targets, controls)
        return Stage(f"next/{mappings.kind}", sweep, transfer=self.through(mappings))

    def next_noise(self, openings: Sequence[Opening], mappings: Mappings, place: Placement) -> Stage:
        """Noise and unrelated states, at a placement that some fold chose, for the openings that are scored there."""
        sweep = self._next(openings, (place.source,), (place.target,), ("random", "random-state"))
        return Stage(f"next-noise/{place.slug}", sweep, transfer=self.through(mappings))

    def next_mean(self, openings: Sequence[Opening], mappings: Mappings, place: Placement) -> Stage:
        """The mean of the other openings' states there, of all of them."""
        sweep = self._next(openings, (place.source,), (place.target,), ("mean",))
        return Stage(f"next-mean/{place.slug}", sweep, transfer=self.through(mappings))

    def next_own(self, openings: Sequence[Opening]) -> Stage:
        """The target's own states of the same tokens, at the same layer, through no map; and these tokens as text."""
        sweep = self._next(openings, self.targets, None, ("phrase-only",))
        return Stage("next-own", sweep, transfer=Transfer.of(self.target))

    def asked(self, model: Model, case: Case) -> Stage:
        """Does `model` give the object from text? The template with the subject in it, as phrase-only runs it."""
        name = "source" if model is self.source else "target"
        sweep = self._facts(case, (0,), (0,), ("phrase-only",), of=model)
        return Stage(f"known-to-{name}/{case.slug}", sweep, transfer=Transfer.of(model))

    def fact_grid(self, case: Case, mappings: Mappings) -> Stage:
        """All (ℓ, ℓ*) through one kind of map, but the last ℓ*, at which a write does not reach what is read."""
        controls = ("unpatched", "zero", "shuffled")
        sweep = self._facts(case, self.sources, self.inner_targets, controls)
        return Stage(f"facts/{case.slug}-{mappings.kind}", sweep, transfer=self.through(mappings))

    def fact_noise(self, case: Case, mappings: Mappings, place: Placement) -> Stage:
        """Noise and unrelated states, at a placement that some fold chose, for the facts that are scored there."""
        sweep = self._facts(case, (place.source,), (place.target,), ("random", "random-state"))
        return Stage(f"facts-noise/{case.slug}-{place.slug}", sweep, transfer=self.through(mappings))

    def fact_mean(self, case: Case, mappings: Mappings, place: Placement) -> Stage:
        """The mean of the other subjects' states there, of all facts of the relation."""
        sweep = self._facts(case, (place.source,), (place.target,), ("mean",))
        return Stage(f"facts-mean/{case.slug}-{place.slug}", sweep, transfer=self.through(mappings))

    def fact_own(self, case: Case) -> Stage:
        """The target's own states of the subjects, read and written at the same layer, through no map."""
        sweep = self._facts(case, self.inner_targets, None, ())
        return Stage(f"facts-own/{case.slug}", sweep, transfer=Transfer.of(self.target))

    def walk_next(self, openings: Sequence[Opening], mappings: Mappings) -> Stage:
        """What the walk shows of one opening: the grid beside bias, another state and the mean of the others."""
        sweep = self._next(openings, self.sources, self.targets, ("zero", "shuffled", "mean"), draws=1)
        return Stage("walk/next", sweep, transfer=self.through(mappings))

    def walk_fact(self, case: Case, mappings: Mappings) -> Stage:
        """The same of one subject."""
        sweep = self._facts(case, self.sources, self.inner_targets, ("zero", "shuffled", "mean"), draws=1)
        return Stage("walk/fact", sweep, transfer=self.through(mappings))

    def _next(
        self,
        openings: Sequence[Opening],
        layers: Sequence[int],
        targets: Sequence[int] | None,
        controls: Sequence[str],
        *,
        draws: int = DRAWS,
    ) -> Sweep:
        return Sweep(
            tuple(Source(opening.text, at="last") for opening in openings),
            (find_prompt(IDENTITY),),
            tuple(layers),
            target_layers=None if targets is None else tuple(targets),
            readout=NEXT_TOKEN,
            controls=tuple(controls),
            draws=draws,
            seed=self.setup.seed,
        )

    def _facts(
        self,
        case: Case,
        layers: Sequence[int],
        targets: Sequence[int] | None,
        controls: Sequence[str],
        *,
        draws: int = DRAWS,
        of: Model | None = None,
    ) -> Sweep:
        return Sweep(
            tuple(source(case, fact) for fact in case.facts),
            (case.prompt,),
            tuple(layers),
            target_layers=None if targets is None else tuple(targets),
            decoding=self.setup.decoding(self.scale.max_new_tokens, of=of),
            controls=tuple(controls),
            draws=draws,
            seed=self.setup.seed,
        )


def _layers(shares: Sequence[float], n_layers: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(round(share * n_layers) for share in shares))
