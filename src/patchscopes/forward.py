"""One forward pass of rows: each from its own layer on, and what it gives is the head's input, not logits."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchscopes.compute import Compute
from patchscopes.hooks import Entry, enter, replaced, returns_tuples
from patchscopes.kv import Rows
from patchscopes.models import Columns, Model


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start`…`start + count − 1` of a Rows, which a pass runs.

    `positions`, of shape (row, column), are those of the new tokens; None for right behind what each row has.
    """

    start: int
    count: int
    positions: Tensor | None = None


@torch.no_grad()
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
        without_head(model) as taken,
        compute.installed(),
        rows.running(span.start, span.count, ids.shape[1]),
        nullcontext() if entry is None else enter(model, entry),
    ):
        model.forward(rows.inputs(ids, span.positions), columns)
    return taken[0][:, -1:] if columns == "last" else taken[0]


@contextmanager
def without_head(model: Model) -> Iterator[list[Float[Tensor, "row column d_head_in"]]]:
    """While open, forward passes leave out the head's product; what would enter it is put in the list."""
    taken: list[Tensor] = []
    head = model.hf.get_output_embeddings()
    assert isinstance(head, nn.Module)
    with replaced({head: partial(_take, taken)}):
        yield taken


def _take(taken: list[Tensor], x: Tensor) -> Tensor:
    taken.append(x)
    return x[..., :1]  # stands in for logits, which nobody reads
