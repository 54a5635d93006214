"""What tokenization runs: names as they are, the same names in other forms, and the layers of each.

The entities, their carrier, the choice of ℓ* and of the headline's ℓ are those of entity-resolution. Donors are names
of the same type in the same form.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from patchscopes.data import Entity, Exclusion
from patchscopes.studies.entities import (
    DRAWS,
    FEWEST,
    PROMPTS,
    EntityDesign,
    EntityScale,
    Parts,
    need_layers,
)
from patchscopes.studies.setup import Setup, Stage
from patchscopes.studies.tokenization.forms import FORMS, Form, NotFormedError, another_split, form_of

PROMPT = PROMPTS[0]
FEWEST_LAYERS = 2  # of a model: a resolution layer needs two, and ℓ 0 is never chosen
TOO_FEW = f"fewer than {FEWEST} names of its type in this form: each needs {DRAWS} donors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(EntityScale):
    """How much is run."""

    form_step: int  # between the ℓ that other forms are read at
    n_shown: int  # names whose neighbours are listed


FULL = Scale(
    n_reported=None,
    n_choosing=60,
    max_new_tokens=12,
    step=2,
    form_step=3,
    target_shares=(0.0, 1 / 30, 0.1, 0.2),
    n_shown=12,
)
QUICK = Scale(
    n_reported=40,
    n_choosing=30,
    max_new_tokens=10,
    step=4,
    form_step=5,
    target_shares=(0.0, 0.1),
    n_shown=12,
)


@dataclass(frozen=True, kw_only=True)
class Design(EntityDesign):
    """The entities that choose, the names that are reported, and those of them that each form is another split of."""

    scale: Scale
    names: tuple[Form, ...]
    forms: dict[str, tuple[Form, ...]]  # by form; "spaced" has the entities of "no-space"

    @classmethod
    def of(cls, setup: Setup, entities: Sequence[Entity]) -> "Design":
        """Deal the entities, and put those that are reported into every form.

        Raises OptionError for a model with too few layers.
        """
        need_layers(setup, FEWEST_LAYERS)
        scale = QUICK if setup.quick else FULL
        parts = Parts.deal(entities, n_choosing=scale.n_choosing, n_reported=scale.n_reported, seed=setup.seed)
        model, seed = setup.model, setup.seed
        names, excluded = enough(parts.reported, partial(form_of, model, form="plain", seed=seed), "")
        forms: dict[str, tuple[Form, ...]] = {}
        reported = [name.entity for name in names]
        for form in FORMS:
            make = partial(another_split, model, form=form, seed=seed)
            forms[form], lost = enough(reported, make, f": {form}")
            excluded += lost
        forms["spaced"] = tuple(form_of(model, made.entity, "spaced", seed=seed) for made in forms["no-space"])
        return cls(
            setup=setup, scale=scale, choosing=parts.choosing, excluded=(*parts.excluded, *excluded), seen=parts.seen,
            names=names, forms=forms,
        )  # fmt: skip

    @property
    def form_layers(self) -> tuple[int, ...]:
        """The ℓ that other forms are read at: 0 and, also in a model of few layers, one above it."""
        return tuple(range(0, self.n_layers, min(self.scale.form_step, self.n_layers - 1)))

    def stages(self, target_layer: int | None, headline: int) -> list[Stage]:
        """All stages after the choice: names, their controls at the headline's placement, and each form."""
        plain = [name.source for name in self.names]
        star = None if target_layer is None else (target_layer,)
        stages = [
            Stage("names", self.sweep(plain, self.every_layer, star, ("unpatched", "shuffled"))),
            Stage("controls", self.sweep(plain, (headline,), star, ("random", "random-state"))),
        ]
        for form, made in self.forms.items():
            if made:
                sources = [one.source for one in made]
                stages.append(Stage(form, self.sweep(sources, self.form_layers, star, ("unpatched", "shuffled"))))
        return stages


def enough(
    entities: Sequence[Entity], make: Callable[[Entity], Form], label: str
) -> tuple[tuple[Form, ...], list[Exclusion]]:
    """The forms of entities of types that have enough of them to be each other's donors; the others, and why."""
    made: list[Form] = []
    excluded: list[Exclusion] = []
    for entity in entities:
        try:
            made.append(make(entity))
        except NotFormedError as error:
            excluded.append(Exclusion(f"{entity.name}{label}", str(error), "entity"))
    # Donors are counted by their places: two names that become the same text are one.
    counts = Counter(kind for kind, _ in {(form.entity.type, form.tokenized.ids) for form in made})
    kept = tuple(form for form in made if counts[form.entity.type] >= FEWEST)
    excluded += [
        Exclusion(f"{f.entity.name}{label}", TOO_FEW, "entity") for f in made if counts[f.entity.type] < FEWEST
    ]
    return kept, excluded
