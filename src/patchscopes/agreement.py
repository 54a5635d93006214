"""How often two runners give the same tokens where rounding may part them (rule 9): reported in bf16 and fp16."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from patchscopes.api import prepare
from patchscopes.engine import Engine
from patchscopes.models import Model
from patchscopes.reference import Reference
from patchscopes.spec import Result

SOURCES = (
    ("The river runs past the old mill", "My brother plays the violin"),
    ("Paris is the capital of France", "Two and two make four"),
    ("The doctor asked for a glass of water", "Snow fell on the hills all night"),
    ("She sold her bicycle in March", "A whale is not a fish"),
)
PROMPT = "The word {} means"  # short, for models of a short context
N_LAYERS, NEW_TOKENS = 4, 8
NEEDED = 64  # tokens: fewer are no agreement (rule 9)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Tokens that came out the same, of those compared: up to the first that parts a cell's two texts, and it."""

    same: int
    compared: int

    @property
    def rate(self) -> float:
        """The share that agrees; 0 where nothing was compared."""
        return self.same / self.compared if self.compared else 0.0

    @property
    def enough(self) -> bool:
        """Return whether so many tokens were compared that the share says something."""
        return self.compared >= NEEDED


def agreement(model: Model) -> Agreement:
    """Run cells with the engine, batched, and with the reference, one at a time, and count equal tokens.

    Texts are short where they end or part early: so further sources are run until enough tokens are compared, or all
    are.
    """
    found = Agreement(0, 0)
    for sources in SOURCES:
        pairs = list(_pairs(model, sources))
        found = Agreement(
            found.same + sum(same for same, _ in pairs), found.compared + sum(compared for _, compared in pairs)
        )
        if found.enough:
            break
    return found


def _pairs(model: Model, sources: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(equal tokens, tokens compared) of each cell of some sources at a few layers."""
    layers = range(0, model.n_layers, max(1, model.n_layers // N_LAYERS))
    plan = prepare(model, sources, prompt=PROMPT, source_layers=layers, max_new_tokens=NEW_TOKENS, controls=()).plan
    fast, slow = (
        sorted(runner.run(plan), key=lambda result: result.index) for runner in (Engine(model), Reference(model))
    )
    return (_compare(a, b) for a, b in zip(fast, slow, strict=True))


def _compare(fast: Result, slow: Result) -> tuple[int, int]:
    """(equal tokens, tokens compared) of one cell; what follows a difference is another text."""
    a, b = fast.token_ids or (), slow.token_ids or ()
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same, same + (1 if same < max(len(a), len(b)) else 0)
