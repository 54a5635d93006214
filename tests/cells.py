"""Cells that tests of runners share: every ℓ × ℓ* of a tiny model, and what the oracle says of them."""

from collections.abc import Sequence
from functools import cache

import families
import oracle
from conftest import tiny_model
from patchscopes.models import Model, wrap_in_memory
from patchscopes.spec import Cell, Decoding, Readout, Site, State, Write

NEW_TOKENS = 6
AMPLE = 2**32
# Mixed lengths: sources of 1 to 7 tokens, prompts of 4 to 9, one and two placeholders, the first and last position too.
SOURCES = (((17, 33, 60, 21, 45, 70, 19), 4), ((52,), 0), ((80, 41, 27), 2))
PROMPTS = (
    ((30, 31, 64, 22, 40, 90, 35, 23, 61), (5,)),
    ((30, 31, 64, 22, 18, 39), (2, 4)),
    ((44, 25, 67, 38), (3,)),
    ((71, 29, 36, 54, 62), (0,)),
)


def make_cell(model: Model, write: Write | None, ids: Sequence[int], kind: str = "text") -> Cell:
    readout = Readout(kind)  # type: ignore[arg-type]
    return Cell(
        model.fingerprint,
        model.dtype_name,
        tuple(ids),
        write,
        readout,
        Decoding(NEW_TOKENS, eos_ids=tuple(model.eos_ids)),
    )


def state_cell(model: Model, source: int, prompt: int, layers: tuple[int, int], kind: str = "text") -> Cell:
    (source_ids, position), (ids, positions) = SOURCES[source], PROMPTS[prompt]
    state = State(source_ids, position, layers[0])
    return make_cell(model, Write(Site(layers[1]), positions, (state,) * len(positions)), ids, kind)


@cache
def grid(family: str) -> tuple[Cell, ...]:
    """All ℓ × ℓ* of a tiny model, sources and prompts in turn, so that every batch mixes lengths."""
    model = tiny_model(family)
    n = model.n_layers + 1
    return tuple(
        state_cell(model, (a + b) % len(SOURCES), (a + 2 * b) % len(PROMPTS), (a, b))
        for a in range(n)
        for b in range(n)
    )


@cache
def oracle_run(family: str, index: int) -> oracle.Run:
    cell = grid(family)[index]
    assert cell.write is not None
    state = cell.write.vectors[0]
    assert isinstance(state, State)
    return oracle.patchscope(
        families.build(family),
        oracle.Source(state.ids, state.position, state.layer),
        oracle.Target(cell.target_ids, cell.write.positions, cell.write.site.layer),
        max_new_tokens=NEW_TOKENS,
    )


def fresh(family: str) -> Model:
    """The same weights in a model that nothing has been found out about yet."""
    return wrap_in_memory(families.build(family), families.tiny_tokenizer())
