"""What next-token runs: methods, places, layers, controls, prompts of 1 to 10 pairs; and how it is thinned.

Every method is cells of a sweep: a state is read at ℓ at a place of a passage and written over the placeholder, the
last token of a token-identity prompt, whose next token is compared with the one of the passage's own run.

    token identity    ℓ* = ℓ, f = I; the paper's prompt, and one of random words
    logit lens        ℓ* = n_layers, f = I: what the head makes of the state
    affine, tuned     ℓ* = n_layers, f fitted on text
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from patchscopes.data import DataSet, Exclusion, Passage
from patchscopes.mappings import Mappings, Transfer
from patchscopes.spec import InspectionPrompt, Readout, Sweep
from patchscopes.studies.entities import need_layers
from patchscopes.studies.next_token.passages import Amount, Dealt, Place, deal
from patchscopes.studies.next_token.prompts import FIXED, N_FIXED_PAIRS, identity_prompt, words_of
from patchscopes.studies.setup import Setup, Stage

DRAWS = 5
CONTROLS = ("unpatched", "random", "random-state", "shuffled", "mean", "zero")
FEWEST_LAYERS = 3
MOST_PAIRS = 10

# Names as findings and folders have them, and in words.
FIXED_PROMPT, RANDOM_PROMPT = "token-identity", "token-identity-random"
IDENTITY = (FIXED_PROMPT, RANDOM_PROMPT)
LOGIT_LENS, AFFINE, TUNED = "logit-lens", "affine", "tuned-lens"
LENSES = (LOGIT_LENS, AFFINE, TUNED)
FITTED = (AFFINE, TUNED)
METHODS = (*IDENTITY, *LENSES)
LABELS: Mapping[str, str] = MappingProxyType(
    {
        FIXED_PROMPT: "token identity, the paper's prompt",
        RANDOM_PROMPT: "token identity, random words",
        LOGIT_LENS: "logit lens",
        AFFINE: "affine map",
        TUNED: "tuned lens",
    }
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run."""

    n_places: int
    n_passages: int  # that have them
    n_fit: int  # positions that maps are fitted on, at most
    epochs: int  # of the tuned lens over them
    n_controlled: int  # passages whose first place has controls
    n_layers: int | None  # how many ℓ, None for all
    n_coarse: int  # how many ℓ have controls
    n_paired: int  # passages whose first place is read by prompts of 1 to 10 pairs
    n_paired_layers: int
    pairs: tuple[int, ...]
    n_draws: int  # prompts for each number of pairs


FULL = Scale(
    n_places=1150,
    n_passages=1150,
    n_fit=60_000,
    epochs=2,
    n_controlled=500,
    n_layers=None,
    n_coarse=9,
    n_paired=100,
    n_paired_layers=5,
    pairs=tuple(range(1, MOST_PAIRS + 1)),
    n_draws=3,
)
QUICK = Scale(
    n_places=150,
    n_passages=60,
    n_fit=6_000,
    epochs=1,
    n_controlled=60,
    n_layers=10,
    n_coarse=4,
    n_paired=24,
    n_paired_layers=3,
    pairs=(1, 3, MOST_PAIRS),
    n_draws=2,
)


@dataclass(frozen=True)
class Design:
    """The scale on a model and a text: places, layers, prompts, stages."""

    setup: Setup
    scale: Scale
    dealt: Dealt
    words: tuple[tuple[str, ...], ...]  # of each draw, of which a prompt of k pairs has the first k

    @classmethod
    def of(cls, setup: Setup, data: DataSet[Passage]) -> "Design":
        """Deal the passages and draw the words.

        Raises DataError for too little text, OptionError for a model of too few layers or words.
        """
        need_layers(setup, FEWEST_LAYERS)
        scale = QUICK if setup.quick else FULL
        n_fit = max(scale.n_fit, 6 * setup.model.d_model)  # a map of d_model inputs is not determined by fewer
        amount = Amount(scale.n_places, scale.n_passages, n_fit)
        dealt = deal(setup.model, data.items, amount, seed=setup.seed)
        texts = {"like": [passage.text for passage in dealt.fit], "unlike": dealt.texts}
        words = (
            words_of(setup.model, max(scale.pairs), draw=k, seed=setup.seed, **texts) for k in range(scale.n_draws)
        )
        return cls(setup, scale, dealt, tuple(map(tuple, words)))

    # ------------------------------------------------------------------------------------------- what is read

    @property
    def places(self) -> tuple[Place, ...]:
        """Every place that is reported: the items of all arrays."""
        return self.dealt.places

    @property
    def subjects(self) -> list[str]:
        """The passage of each place, over which intervals are made."""
        return [place.passage for place in self.places]

    @property
    def firsts(self) -> list[int]:
        """The first place of each passage."""
        return list({place.passage: k for k, place in reversed(list(enumerate(self.places)))}.values())[::-1]

    @property
    def controlled(self) -> list[int]:
        """The places that have controls."""
        return self.firsts[: self.scale.n_controlled]

    @property
    def paired(self) -> list[int]:
        """The places that are read by prompts of 1 to 10 pairs."""
        return self.firsts[: self.scale.n_paired]

    @property
    def excluded(self) -> tuple[Exclusion, ...]:
        """Passages that are not read."""
        return self.dealt.excluded

    # ------------------------------------------------------------------------------------------- where

    @property
    def n_layers(self) -> int:
        """Blocks of the model; the ℓ* of lenses."""
        return self.setup.model.n_layers

    @property
    def layers(self) -> tuple[int, ...]:
        """The ℓ of curves: from 0 to the last but one. At the last all methods are the model itself."""
        if self.scale.n_layers is None:
            return tuple(range(self.n_layers))
        return (0, *_spread(self.scale.n_layers - 1, range(1, self.n_layers)))

    @property
    def hidden(self) -> list[int]:
        """The columns of `layers` that means are over: without ℓ 0, where the state is the token itself."""
        return [k for k, layer in enumerate(self.layers) if layer > 0]

    @property
    def early(self) -> list[int]:
        """The columns of the first quarter of the depth, without ℓ 0; the first of them in a model of few layers."""
        return [k for k in self.hidden if self.layers[k] <= max(self.n_layers // 4, self.layers[1])]

    @property
    def coarse(self) -> tuple[int, ...]:
        """The ℓ that have controls."""
        return _spread(self.scale.n_coarse, [self.layers[k] for k in self.hidden])

    @property
    def paired_layers(self) -> tuple[int, ...]:
        """The ℓ of prompts of 1 to 10 pairs."""
        return _spread(self.scale.n_paired_layers, [self.layers[k] for k in self.hidden])

    # ------------------------------------------------------------------------------------------- through what

    @property
    def prompts(self) -> dict[str, InspectionPrompt]:
        """The inspection prompt of each method. A lens does not read it: its placeholder comes last."""
        others = dict.fromkeys(LENSES, FIXED)
        return {FIXED_PROMPT: FIXED, RANDOM_PROMPT: identity_prompt(self.words[0][:N_FIXED_PAIRS]), **others}

    @property
    def pair_prompts(self) -> dict[tuple[int, int], InspectionPrompt]:
        """Prompts of random words, by (pairs, draw), no two alike. A small vocabulary may not have words for all."""
        found: dict[InspectionPrompt, tuple[int, int]] = {}
        for n in self.scale.pairs:
            for draw, words in enumerate(self.words):
                if n <= len(words):
                    found.setdefault(identity_prompt(words[:n]), (n, draw))
        return {key: prompt for prompt, key in found.items()}

    @property
    def unmapped(self) -> Transfer:
        """States within the model, as they are."""
        return Transfer.of(self.setup.model)

    def mapped(self, mappings: Mappings | None) -> Transfer | None:
        """States within the model, through `mappings`."""
        return None if mappings is None else Transfer(self.setup.model, self.setup.model, mappings)

    # ------------------------------------------------------------------------------------------- stages

    def identity(self) -> Stage:
        """Token identity with both prompts, at every ℓ and place."""
        prompts = [self.prompts[name] for name in IDENTITY]
        return Stage("main/token-identity", self._sweep(range(len(self.places)), prompts, self.layers, ("unpatched",)))

    def lens(self, name: str, mappings: Mappings | None) -> Stage:
        """A lens at every ℓ and place; the logit lens at n_layers too, where it gives the source's own next token."""
        layers = (*self.layers, self.n_layers) if name == LOGIT_LENS else self.layers
        sweep = self._sweep(range(len(self.places)), [FIXED], layers, (), (self.n_layers,))
        return Stage(f"main/{name}", sweep, transfer=self.mapped(mappings))

    def identity_controls(self) -> Stage:
        """Token identity beside every control."""
        prompts = [self.prompts[name] for name in IDENTITY]
        return Stage("controls/token-identity", self._sweep(self.controlled, prompts, self.coarse, CONTROLS))

    def lens_controls(self, name: str, mappings: Mappings | None) -> Stage:
        """A lens beside every control, whose vectors go through the same map."""
        sweep = self._sweep(self.controlled, [FIXED], self.coarse, CONTROLS, (self.n_layers,))
        return Stage(f"controls/{name}", sweep, transfer=self.mapped(mappings))

    def pairs(self) -> Stage:
        """Prompts of 1 to 10 pairs, several of each number, beside other passages' states."""
        prompts = list(self.pair_prompts.values())
        return Stage("pairs", self._sweep(self.paired, prompts, self.paired_layers, ("unpatched", "shuffled")))

    def stages(self) -> list[Stage]:
        """All of them; lenses without their maps, which cost as much."""
        lenses = [stage for name in LENSES for stage in (self.lens(name, None), self.lens_controls(name, None))]
        return [self.identity(), self.identity_controls(), *lenses, self.pairs()]

    def _sweep(
        self,
        items: Sequence[int],
        prompts: Sequence[InspectionPrompt],
        layers: Sequence[int],
        controls: Sequence[str],
        targets: tuple[int, ...] | None = None,
    ) -> Sweep:
        """A sweep over some places; ℓ* = ℓ where `targets` is None."""
        return Sweep(
            tuple(self.places[item].source for item in items),
            tuple(prompts),
            tuple(layers),
            target_layers=targets,
            readout=Readout("next-token", top_k=1),
            controls=tuple(controls),
            draws=DRAWS,
            seed=self.setup.seed,
        )


def _spread(n: int, among: Sequence[int]) -> tuple[int, ...]:
    """At most `n` of `among`, evenly: each stands for a part of like size, and is in its middle."""
    n = min(n, len(among))
    return tuple(among[int((k + 0.5) * len(among) / n)] for k in range(n))
