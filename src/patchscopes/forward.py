"""One forward pass of rows: each from its own layer on, and what it gives is the head's input, not logits."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.hooks import Entry, called_by, enter, met_by, returns_tuples
from patchscopes.kv import Rows
from patchscopes.models import Columns, Model, calm


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start`…`start + count − 1` of a Rows, which a pass runs.

    `positions`, of shape (row, column), are those of the new tokens; None for right behind what each row has.
    """

    start: int
    count: int
    positions: Tensor | None = None


@calm()
def forward(
    compute: Compute,
    rows: Rows,
    span: Span,
    ids: Int[Tensor, "row column"],
    *,
    entry: Entry | None = None,
    columns: Columns = "last",
) -> Float[Tensor, "row read d_head_in"]:
    """Run `ids` behind what the rows of `span` have; the head's input at the last column, or at all of them."""
    model = compute.model
    returns_tuples(model)  # known before anything is replaced
    with (
        compute.installed(),
        without_head(model) as taken,
        rows.running(span.start, span.count, ids.shape[1]),
        nullcontext() if entry is None else enter(model, entry),
    ):
        model.forward(rows.inputs(ids, span.positions), columns)
    return taken[0][:, -1:] if columns == "last" else taken[0]


@contextmanager
def without_head(model: Model) -> Iterator[list[Float[Tensor, "row column d_head_in"]]]:
    """While open, forward passes leave out the head's product; what would enter it is put in the list.

    Where the modules that run are the caller's own, the product is made and not read.
    """
    taken: list[Tensor] = []
    with model.running() as tree:
        if tree.private:
            with called_by({tree.head: partial(_take, taken)}):
                yield taken
        else:
            with met_by(tree, tree.head, taken.append):
                yield taken


def _take(taken: list[Tensor], x: Tensor) -> Tensor:
    taken.append(x)
    return x[..., :1]  # stands in for logits, which nobody reads
