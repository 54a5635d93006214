"""The log-probability of given answers: the first token is read where the prompt ends, the others in their own pass."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.forward import Span, forward
from patchscopes.kv import Rows
from patchscopes.spec import Cell


def score(
    compute: Compute,
    rows: Rows,
    cells: Sequence[Cell],
    x: Float[Tensor, "row d_head_in"],
    *,
    at_once: int,
) -> list[list[float]]:
    """Per cell and candidate, the sum of its tokens' log-probabilities.

    `x` is the head's input at the end of each prompt, whose keys and values `rows` has. An answer of n tokens costs
    n − 1 tokens more, beside answers of the same length, `at_once` tokens at a time.
    """
    widest = max(len(cell.candidates) for cell in cells)
    firsts = [[ids[0] for ids in cell.candidates] + [0] * (widest - len(cell.candidates)) for cell in cells]
    found = compute.head.logprobs(x, torch.tensor(firsts, dtype=torch.long, device=x.device)).double().tolist()
    scores = [row[: len(cell.candidates)] for row, cell in zip(found, cells, strict=True)]
    pairs: dict[int, list[tuple[int, int]]] = {}
    for row, cell in enumerate(cells):
        for k, ids in enumerate(cell.candidates):
            if len(ids) > 1:
                pairs.setdefault(len(ids), []).append((row, k))
    for length, several in pairs.items():
        n_pairs = max(1, at_once // (length - 1))
        for first in range(0, len(several), n_pairs):
            part = several[first : first + n_pairs]
            answers = torch.tensor([cells[row].candidates[k] for row, k in part], dtype=torch.long, device="cpu")
            added = _rest(compute, rows, [row for row, _ in part], answers, at_once)
            for (row, k), logprob in zip(part, added, strict=True):
                scores[row][k] += logprob
    return scores


def _rest(compute: Compute, rows: Rows, of: Sequence[int], answers: Tensor, at_once: int) -> list[float]:
    """Return Σ ln p of the answers' tokens but the first, of which `at_once` are read at once."""
    n_run = answers.shape[1] - 1
    branch = rows.copied(torch.tensor(of, dtype=torch.long, device="cpu"), extra=n_run)
    x = forward(compute, branch, Span(0, len(of)), answers[:, :-1], columns="all")
    lines = x.reshape(len(of) * n_run, -1)
    tokens = answers[:, 1:].reshape(-1, 1).to(lines.device)
    parts = zip(torch.split(lines, at_once), torch.split(tokens, at_once), strict=True)
    logprobs = torch.cat([compute.head.logprobs(some, of_them) for some, of_them in parts])
    sums: list[float] = logprobs.view(len(of), n_run).double().sum(1).tolist()
    return sums
