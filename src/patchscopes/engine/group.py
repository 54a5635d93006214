"""One group of a plan: rows start, decode together, leave as they end, and others take their places."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.engine.candidates import score
from patchscopes.engine.compare import compare
from patchscopes.engine.prompts import RunPrompts
from patchscopes.engine.start import start_rows
from patchscopes.engine.states import States
from patchscopes.forward import Span, forward
from patchscopes.kv import Rows
from patchscopes.models import Model
from patchscopes.plan import DRAWN_AT_ONCE, Group, Plan, suffix_of
from patchscopes.readouts import NextTokens, Writing, candidates_result, draw, tops_as_results, with_comparison
from patchscopes.spec import Cell, Result

# New rows start when so large a share of the places is free: each start is a pass of its own.
FREE_SHARE = 1 / 8


class GroupRun:
    """Runs the cells of one group."""

    def __init__(self, model: Model, compute: Compute, plan: Plan, group: Group) -> None:
        self._model, self._compute, self._plan, self._group = model, compute, plan, group
        self.n_rows, self._n_started = group.n_rows, group.n_started
        self._queue = deque(group.cells)
        self._rows: Rows | None = None
        self._writings: list[tuple[int, Writing]] = []

    def halve(self) -> bool:
        """Give up the rows that run and go on with half as many at once; False where one is too many."""
        if self.n_rows == 1:
            return False
        # In the group's order: rows have moved since they started, and rows that start together do so by their layer.
        left = {*self._queue, *(index for index, _ in self._writings)}
        self._queue = deque(index for index in self._group.cells if index in left)
        self._rows, self._writings = None, []
        self.n_rows = self.n_rows // 2
        self._n_started = max(1, min(self._n_started, self.n_rows))
        return True

    @property
    def done(self) -> bool:
        """Whether every cell has given its result."""
        return not self._queue and not self._writings

    def step(self, states: States, prompts: RunPrompts) -> Iterator[Result]:
        """Start rows where there is room for them, else run one more token of those that run."""
        free = self.n_rows - len(self._writings)
        if self._queue and (free >= FREE_SHARE * self.n_rows or not self._writings):
            yield from self._start(min(free, self._n_started), states, prompts)
        else:
            yield from self._decode()

    def _start(self, at_most: int, states: States, prompts: RunPrompts) -> Iterator[Result]:
        indices = self._next(at_most)
        cells = [self._plan.cells[index] for index in indices]
        kind = cells[0].readout.kind
        if self._rows is None or kind != "text":
            self._rows = Rows(
                self._model,
                n_rows=self.n_rows if kind == "text" else len(cells),
                capacity=self._group.capacity,
                shared=prompts.shared(self._group.prefix),
            )
        x = start_rows(self._compute, self._rows, cells, states, prompts)
        found = self._next_tokens(cells, indices, x, states) if kind == "next-token" else self._read(cells, indices, x)
        for _ in indices:  # only now: where memory ran out, they are still to be started
            self._queue.popleft()
        yield from found

    def _next(self, at_most: int) -> list[int]:
        """The next cells of the queue, of one length of suffix."""
        lengths = ((index, suffix_of(self._plan.cells[index], len(self._group.prefix))) for index in self._queue)
        _, same = next(groupby(lengths, key=itemgetter(1)))
        return [index for index, _ in islice(same, at_most)]

    def _next_tokens(
        self, cells: Sequence[Cell], indices: Sequence[int], x: Float[Tensor, "row d_head_in"], states: States
    ) -> Sequence[Result]:
        found = self._compute.head.distribution(x, max(cell.readout.top_k for cell in cells))
        tops = NextTokens(found.logprobs, found.tokens, found.entropy)
        results = tops_as_results(self._model, tops, cells, indices)
        compared = [row for row, cell in enumerate(cells) if cell.compare is not None]
        if compared:
            wanted = [state for cell in cells if (state := cell.compare) is not None]
            beside = compare(self._compute.head, states, x[compared], tops.of(compared), wanted)
            for row, comparison in zip(compared, beside, strict=True):
                results[row] = with_comparison(self._model, results[row], comparison)
        return results

    def _read(
        self, cells: Sequence[Cell], indices: Sequence[int], x: Float[Tensor, "row d_head_in"]
    ) -> Sequence[Result]:
        assert self._rows is not None
        if cells[0].readout.kind == "candidates":
            scores = score(self._compute, self._rows, cells, x, at_once=2 * self.n_rows)
            return [candidates_result(one, index) for one, index in zip(scores, indices, strict=True)]
        new = [(index, Writing(self._model, cell)) for index, cell in zip(indices, cells, strict=True)]
        tokens = self._choose(x, [writing for _, writing in new])
        self._writings.extend(new)
        return self._add(len(self._writings) - len(new), tokens)

    def _decode(self) -> Sequence[Result]:
        assert self._rows is not None
        last = [[writing.token_ids[-1]] for _, writing in self._writings]
        x = forward(self._compute, self._rows, Span(0, len(last)), torch.tensor(last, dtype=torch.long, device="cpu"))
        return self._add(0, self._choose(x[:, 0], [writing for _, writing in self._writings]))

    def _choose(self, x: Float[Tensor, "row d_head_in"], writings: Sequence[Writing]) -> list[int | None]:
        """The next token of each row; None where its logits are not finite."""
        best = self._compute.head.best(x)
        finite: list[bool] = best.logits.isfinite().tolist()
        tokens: list[int] = best.tokens.tolist()
        drawn = [row for row, writing in enumerate(writings) if writing.cell.decoding.temperature > 0 and finite[row]]
        for first in range(0, len(drawn), DRAWN_AT_ONCE):
            part = drawn[first : first + DRAWN_AT_ONCE]
            logits = self._compute.head.logits(x[part])
            for row, row_logits in zip(part, logits, strict=True):
                tokens[row] = draw(row_logits, writings[row].cell, len(writings[row].token_ids))
        return [token if ok else None for token, ok in zip(tokens, finite, strict=True)]

    def _add(self, first: int, tokens: Sequence[int | None]) -> Sequence[Result]:
        """Give the rows from `first` on their tokens; those that end leave, and others move into their places."""
        assert self._rows is not None
        ended = []
        for row, token in enumerate(tokens, start=first):
            if self._writings[row][1].add(token):
                ended.append(row)
        results = [self._writings[row][1].result(self._writings[row][0]) for row in ended]
        if ended:
            gone = set(ended)
            kept = [row for row in range(len(self._writings)) if row not in gone]
            order = self._rows.keep(kept)
            self._writings = [self._writings[row] for row in order]
        return results
