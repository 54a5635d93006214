"""The tokens whose input embeddings a hidden state is nearest to, by cosine: what a state looks like before it is read.

An embedding is the token's row as it enters block 1's stream, at layer 0: scaled (Gemma), projected (OPT) and normed
(BLOOM) as the family does it. A cosine does not see a mere scale. Learned positions (GPT-2, OPT) are added at layer 0
and belong to no token, so they are not in the rows: there even a state at layer 0 is not its token's row alone, and its
nearest neighbour need not be the token itself. Elsewhere it is, with a cosine of 1.

The farther up, the less the basis of the embeddings has to be that of the stream: near neighbours are evidence that a
word is there, far ones are none that it is not.

Axes: state, token (of the vocabulary, a chunk at a time), d_model, k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from patchscopes.models import Model, calm
from patchscopes.passes import captured
from patchscopes.spec import State

CHUNK_TOKENS = 8192  # of the vocabulary at a time: with so many states, 32 MiB of cosines
CHUNK_STATES = 1024


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A token of the vocabulary, as it is written there, and the cosine of its embedding with a state."""

    token_id: int
    token: str
    cosine: float


@calm()
def nearest_tokens(model: Model, states: Sequence[State], *, k: int = 10) -> list[tuple[Neighbour, ...]]:
    """The `k` nearest tokens of each state, the nearest first. Each text runs once, whatever layers are asked of it."""
    if not states:
        return []
    found = _Nearest(len(states), min(k, model.d_vocab), model.device)
    unit = normalize(captured(model, states), dim=-1)
    for start in range(0, model.d_vocab, CHUNK_TOKENS):
        ids = torch.arange(start, min(start + CHUNK_TOKENS, model.d_vocab), dtype=torch.long, device=model.device)
        rows = normalize(model.embedded(ids).float(), dim=-1)
        for first in range(0, len(states), CHUNK_STATES):
            part = slice(first, first + CHUNK_STATES)
            found.add(part, unit[part] @ rows.T, ids)
    return found.neighbours(model)


class _Nearest:
    """The k best of what was seen so far, of each state."""

    def __init__(self, n_states: int, k: int, device: torch.device) -> None:
        self._cosines = torch.full((n_states, k), -torch.inf, dtype=torch.float32, device=device)
        self._ids = torch.zeros((n_states, k), dtype=torch.long, device=device)

    def add(self, part: slice, cosines: Float[Tensor, "state token"], ids: Int[Tensor, " token"]) -> None:
        """Take in some tokens' cosines with the states of `part`."""
        k = self._cosines.shape[1]
        best = cosines.topk(min(k, cosines.shape[1]), dim=-1)
        both = torch.cat([self._cosines[part], best.values], dim=-1)
        named = torch.cat([self._ids[part], ids[best.indices]], dim=-1)
        kept = both.topk(k, dim=-1)
        self._cosines[part], self._ids[part] = kept.values, named.gather(-1, kept.indices)

    def neighbours(self, model: Model) -> list[tuple[Neighbour, ...]]:
        """What is left, with the tokens as the vocabulary writes them."""
        names = {id: _name(model, id) for id in set(self._ids.flatten().tolist())}
        return [
            tuple(Neighbour(id, names[id], cosine) for id, cosine in zip(ids, cosines, strict=True))
            for ids, cosines in zip(self._ids.tolist(), self._cosines.tolist(), strict=True)
        ]


def _name(model: Model, id: int) -> str:
    """A token as text where it is some, a space before its word included; else as the vocabulary writes it."""
    entry: object = model.tokenizer.convert_ids_to_tokens(id)
    if entry is None:
        return f"[{id}]"  # rows of the matrix that the tokenizer has no token for
    decoded = str(model.tokenizer.decode([id], clean_up_tokenization_spaces=False))
    if not decoded.strip() or "\ufffd" in decoded:
        return str(entry)
    return decoded if decoded[0] == " " or not str(entry).startswith("▁") else f" {decoded}"
