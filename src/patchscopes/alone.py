"""One text on the model as it is, in the two phases of its own `generate`: the prompt whole, then a token a pass.

Nothing stands in for a module, nothing is shared with another text, and columns count from the text's start. What a
hook of the caller's gives here is what it gives in the model's own `generate` (rule 0).

`batched` says whether a model with something attached may run texts in batches all the same.

Axes: row (always one), column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.foreign import running
from patchscopes.kv import own_cache
from patchscopes.models import Inputs, Model


class Alone:
    """A text that is run alone. Hooks that are set around a call of `prompt` or `token` act on that pass.

    Of `masked` positions of the prompt nothing is seen but by themselves (rule 6).
    """

    def __init__(self, model: Model, ids: Sequence[int], masked: Sequence[int] = ()) -> None:
        self._model, self._ids, self._masked = model, list(ids), tuple(masked)
        self._cache = own_cache(model)

    def prompt(self) -> Float[Tensor, "row d_vocab"]:
        """Run the prompt; the logits behind its last token, in float32."""
        return self._run(self._ids)

    def token(self, token: int) -> Float[Tensor, "row d_vocab"]:
        """Run one token more; the logits behind it, in float32."""
        self._ids.append(token)
        return self._run([token])

    def _run(self, new: Sequence[int]) -> Float[Tensor, "row d_vocab"]:
        device, length = self._model.device, len(self._ids)
        ids = torch.tensor([list(new)], dtype=torch.long, device=device)
        # As `generate` hands them over: a hook may read or change them.
        positions = torch.arange(length - len(new), length, dtype=torch.long, device=device)[None]
        mask = None
        if self._masked or self._model.counts_mask:
            mask = torch.ones(1, length, dtype=torch.long, device=device)
            mask[0, list(self._masked)] = 0
            mask[0, -1] = 1  # the last token sees itself, whether or not later ones may see it
        return self._model.forward(Inputs(ids, mask, positions, self._cache), "last")[:, -1].float()


@dataclass(frozen=True, slots=True)
class Batched:
    """The outcome of comparing batches with rows alone where something is attached, for texts of up to `n_tokens`."""

    of_attached: ClassVar[bool] = True
    same: bool
    n_tokens: int = 0


def batched(model: Model, n_tokens: int) -> bool:
    """Return whether texts of so many tokens may run together: nothing is attached, or it was seen to bear that."""
    with running(model.id):
        if not model.is_private(n_tokens):
            return False
    found = model.found(Batched)
    return not model.attached or (found is not None and found.same and found.n_tokens >= n_tokens)
