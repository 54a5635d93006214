"""How often two runners give the same tokens where rounding may part them (rule 9): reported in bf16 and fp16."""

from dataclasses import dataclass

from patchscopes.api import prepare
from patchscopes.engine import Engine
from patchscopes.models import Model
from patchscopes.reference import Reference
from patchscopes.spec import Result

SOURCES = ("The river runs past the old mill", "My brother plays the violin")
N_LAYERS, NEW_TOKENS = 4, 8


@dataclass(frozen=True, slots=True)
class Agreement:
    """Tokens that came out the same, of those compared: up to the first that parts a cell's two texts, and it."""

    same: int
    compared: int

    @property
    def rate(self) -> float:
        """The share that agrees."""
        return self.same / self.compared if self.compared else 1.0


def agreement(model: Model) -> Agreement:
    """Run a few cells with the engine, batched, and with the reference, one at a time, and count equal tokens."""
    step = max(1, model.n_layers // N_LAYERS)
    layers = range(0, model.n_layers, step)
    plan = prepare(model, SOURCES, source_layers=layers, max_new_tokens=NEW_TOKENS, controls=()).plan
    fast, slow = (
        sorted(runner.run(plan), key=lambda result: result.index) for runner in (Engine(model), Reference(model))
    )
    pairs = [_compare(a, b) for a, b in zip(fast, slow, strict=True)]
    return Agreement(sum(same for same, _ in pairs), sum(compared for _, compared in pairs))


def _compare(fast: Result, slow: Result) -> tuple[int, int]:
    """(equal tokens, tokens compared) of one cell; what follows a difference is another text."""
    a, b = fast.token_ids or (), slow.token_ids or ()
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same, same + (1 if same < max(len(a), len(b)) else 0)
