"""What multi-hop runs: which queries, by which methods, read and written where, and how it is thinned.

    plain           [π2][π1] as text; and with "Let's think step by step." before or behind it
    two-prompts     S ← π1, T ← π2 x: the state at π1's end is written over x
    back-patching   S = T = [π2][π1]: a late state at π1's end is written early at the token before π1, with π2 masked
                    from the source and π1 from the target

Queries end as this model is best asked: with nothing, "is" or "is called", whichever brings out the most second hops.
A query's subject of resampling is its bridge: all that pass through France are one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from patchscopes.analysis.matching import fold
from patchscopes.data import Composition, Exclusion, Query
from patchscopes.errors import PatchscopesError
from patchscopes.prompts import resolve_mask, resolve_positions, tokenize
from patchscopes.rng import philox
from patchscopes.spec import InspectionPrompt, Source, Sweep
from patchscopes.studies.setup import Setup, Stage

DRAWS = 5
N_FOLDS = 5
FEWEST = DRAWS + 1  # queries of a type: each needs so many donors
COT = "Let's think step by step."
ENDINGS = ("", " is", " is called")  # behind [π2][π1]; one for all queries of a model

# How a method is called on the page.
METHODS: Mapping[str, str] = MappingProxyType(
    {"two-prompts": "S ← π1, T ← π2 x", "back-patching": "back-patching in [π2][π1]"}
)
TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "plain": "the query as text",
        "cot-before": f"“{COT}” before the query",
        "cot-after": f"“{COT}” behind the query",
    }
)
THOUGHTS = ("cot-before", "cot-after")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run. Layers are given as shares of the depth."""

    sources: tuple[float, ...]  # ℓ
    targets: tuple[float, ...]  # ℓ*
    n_asked: int  # queries of a type that the model is asked the hops of
    n_queries: int  # that are run, over all types
    max_new_tokens: int
    long: int  # new tokens where the model may think


FULL = Scale(
    sources=(0.1, 0.23, 0.37, 0.5, 0.63, 0.77, 0.9, 1.0),
    targets=(0.0, 0.07, 0.13, 0.23, 0.37, 0.5, 0.7),
    n_asked=200,
    n_queries=200,
    max_new_tokens=10,
    long=60,
)
QUICK = Scale(
    sources=(0.23, 0.5, 0.9),
    targets=(0.0, 0.13, 0.37),
    n_asked=25,
    n_queries=36,
    max_new_tokens=8,
    long=30,
)


@dataclass(frozen=True, slots=True)
class Item:
    """A query with the type that it is of, and how it ends."""

    type: str
    query: Query
    ending: str = ""

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.type}: {self.query.subject}"

    @property
    def text(self) -> str:
        """[π2][π1], to be answered."""
        return f"{self.query.text}{self.ending}"

    @property
    def thinking(self) -> dict[str, str]:
        """The same with a thought before or behind it."""
        return {"cot-before": f"{COT} {self.text}", "cot-after": f"{self.query.text}. {COT}"}

    def as_text(self, name: str) -> str:
        """The text of one of TEXTS, or of that with "-long" behind it."""
        return self.thinking.get(name, self.text)

    @property
    def first_text(self) -> str:
        """π1 as a text of its own, which ends with the subject."""
        return self.query.first[:1].upper() + self.query.first[1:]

    @property
    def second_text(self) -> str:
        """π2 of the bridge."""
        return f"{self.query.second} {self.query.bridge}"

    @property
    def subject(self) -> str:
        """Over what intervals are made."""
        return fold(self.query.bridge)


@dataclass(frozen=True)
class Design:
    """The scale, on a model: layers, queries and stages."""

    setup: Setup
    scale: Scale

    @classmethod
    def of(cls, setup: Setup) -> "Design":
        """The design of the setup's scale."""
        return cls(setup, QUICK if setup.quick else FULL)

    @property
    def sources(self) -> tuple[int, ...]:
        """ℓ of the grid."""
        return self._layers(self.scale.sources)

    @property
    def targets(self) -> tuple[int, ...]:
        """ℓ* of the grid."""
        return self._layers(self.scale.targets)

    @property
    def placements(self) -> list[tuple[int, int]]:
        """Every (ℓ, ℓ*) of the grid, ℓ* running fastest."""
        return [(source, target) for source in self.sources for target in self.targets]

    def region(self, placement: tuple[int, int]) -> tuple[str, str]:
        """Which third of the depth a placement reads from, and which it writes to."""
        names = ("early", "middle", "late")
        n = self.setup.model.n_layers
        read, written = (min(3 * layer // n, 2) for layer in placement)
        return names[read], names[written]

    def text(self, name: str, texts: Sequence[str], max_new_tokens: int) -> Stage:
        """Texts that the model goes on with, nothing written: each the inspection prompt of a source of its own."""
        sources = tuple(Source(text, prompt=InspectionPrompt(text, at="last")) for text in dict.fromkeys(texts))
        sweep = self._sweep(sources, (), (), ("unpatched",))
        return Stage(f"text/{name}", replace(sweep, decoding=self.setup.decoding(max_new_tokens)))

    def grid(self, method: str, items: Sequence[Item]) -> Stage:
        """All placements of a method."""
        sources = self.texts(method, items)
        return Stage(f"grid/{method}", self._sweep(sources, self.sources, self.targets, ("unpatched", "shuffled")))

    def chosen(self, method: str, items: Sequence[Item], placement: tuple[int, int]) -> Stage:
        """The other controls at one placement, which a training fold chose."""
        source, target = placement
        controls = ("self", "zero", "random", "random-state", "mean")
        sweep = self._sweep(self.texts(method, items), (source,), (target,), controls)
        return Stage(f"chosen/{method}-{source}-{target}", sweep)

    def texts(self, method: str, items: Sequence[Item]) -> tuple[Source, ...]:
        """A source with an inspection prompt of its own for each item."""
        make = {"two-prompts": two_prompts, "back-patching": back_patching}[method]
        return tuple(make(item) for item in items)

    def _layers(self, shares: Sequence[float]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(round(share * self.setup.model.n_layers) for share in shares))

    def _sweep(
        self, sources: tuple[Source, ...], layers: Sequence[int], targets: Sequence[int], controls: Sequence[str]
    ) -> Sweep:
        return Sweep(
            sources,
            (),
            tuple(layers),
            target_layers=tuple(targets),
            decoding=self.setup.decoding(self.scale.max_new_tokens),
            controls=tuple(controls),
            draws=DRAWS,
            seed=self.setup.seed,
        )


def two_prompts(item: Item) -> Source:
    """π1 read at its end; π2 with a placeholder behind it."""
    prompt = InspectionPrompt(f"{item.query.second} {{}}{item.ending}", placeholder="x")
    return _source(item, Source(item.first_text, at="last", prompt=prompt))


def back_patching(item: Item) -> Source:
    """The query read at π1's end without seeing π2; written at the token before π1, which nothing behind sees."""
    before = rf"re:\A{re.escape(item.query.second)}"
    behind = rf"re:{re.escape(item.query.first)}(?={re.escape(item.ending)}\Z)"
    prompt = InspectionPrompt(item.text, at=before, mask=behind)
    return _source(item, Source(item.text, at=behind, mask=before, prompt=prompt))


def _source(item: Item, source: Source) -> Source:
    query = item.query
    return replace(source, expect=query.answers, item=query.subject, kind=item.type)


def dealt(setup: Setup, composition: Composition) -> list[Item]:
    """The queries of a type in an order that has nothing to do with their content."""
    order = philox("queries", setup.seed, composition.name).permutation(len(composition.queries))
    return [Item(composition.name, composition.queries[k]) for k in order]


def items_of(design: Design, compositions: Sequence[Composition]) -> tuple[list[Item], list[Exclusion]]:
    """The queries whose hops the model is asked for; those that leak, or cannot be read and masked, are left out."""
    items: list[Item] = []
    excluded: list[Exclusion] = []
    for composition in compositions:
        found = dealt(design.setup, composition)
        leaking = [item for item in found if item.query.leaks]
        excluded += [_left(item, "an answer stands in the query") for item in leaking]
        clean = [item for item in found if not item.query.leaks]
        beyond = f"beyond the {design.scale.n_asked} queries of a type that the model is asked for"
        excluded += [_left(item, beyond) for item in clean[design.scale.n_asked :]]
        for item in clean[: design.scale.n_asked]:
            if reason := _unreadable(design, item):
                excluded.append(_left(item, reason))
            else:
                items.append(item)
    return items, excluded


def _unreadable(design: Design, item: Item) -> str:
    """Why the query cannot be read and masked on this model, however it ends; "" where it can."""
    model = design.setup.model
    try:
        for ending in ENDINGS:
            source = back_patching(replace(item, ending=ending))
            assert isinstance(source.prompt, InspectionPrompt)
            text = tokenize(model, source.text, bos="auto")
            for at in (source.at, source.prompt.at):
                assert at is not None
                resolve_positions(model, text, at)
            for mask in (source.mask, source.prompt.mask):
                resolve_mask(model, text, str(mask))
    except PatchscopesError as error:
        return f"the phrases of a query cannot be told apart in its tokens: {str(error).splitlines()[0]}"
    return ""


def _left(item: Item, reason: str) -> Exclusion:
    return Exclusion(item.name, reason, "query")
