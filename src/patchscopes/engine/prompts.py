"""Inspection prompts, each run once: keys and values of all its tokens, and the states that its rows start from.

Below ℓ* a row's run is that of the prompt as it is (rule 15). So a row begins at ℓ*, from the prompt's own states of
the placeholder and what follows it, with the write made; its keys and values below ℓ* are the prompt's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.compute.attention import SharedKeys
from patchscopes.forward import without_head
from patchscopes.hooks import Places, capture
from patchscopes.kv import KeysValues, recorded, recording_cache
from patchscopes.models import Inputs, Model
from patchscopes.plan import MAX_TOKENS, Prompt, PromptKey, text
from patchscopes.spec import Cell, Ids


@dataclass(frozen=True, slots=True)
class RunPrompt:
    """A prompt that has been run: `states[ℓ*]` holds the tokens of its text from `start` on, the first placeholder.

    Shapes: keys and values (kv_head, token, d_head), states (token, d_model).
    """

    start: int
    keys_values: KeysValues
    states: Mapping[int, Float[Tensor, "token d_model"]]


class RunPrompts:
    """The prompts of a wave, by their keys; those of one length run together, so that nothing is padded."""

    def __init__(
        self, model: Model, compute: Compute, prompts: Sequence[Prompt], *, tokens_at_once: int = MAX_TOKENS
    ) -> None:
        self._model, self._compute = model, compute
        self._found: dict[PromptKey, RunPrompt] = {}
        self._shared: dict[Ids, list[SharedKeys]] = {}
        by_length: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_length.setdefault(len(prompt.ids), []).append(prompt)
        for length, several in by_length.items():
            at_once = max(1, tokens_at_once // length)
            for first in range(0, len(several), at_once):
                self._found.update(_run(model, compute, several[first : first + at_once]))

    def of(self, cell: Cell) -> RunPrompt:
        """The prompt of a cell."""
        return self._found[cell.target_ids, cell.masked]

    def shared(self, prefix: Ids) -> list[SharedKeys]:
        """Keys and values of `prefix`, from any prompt that begins with it; none where it is empty."""
        if not prefix:
            return []
        if prefix not in self._shared:
            begun = (prompt for key, prompt in self._found.items() if _begins(key, prefix))
            if (prompt := next(begun, None)) is None:  # all that begin with it and are written were in another wave
                ((_, prompt),) = _run(self._model, self._compute, [Prompt(prefix, 0, ())])
            self._shared[prefix] = prompt.keys_values.shared(len(prefix))
        return self._shared[prefix]


def _begins(key: PromptKey, prefix: Ids) -> bool:
    """Whether the prompt begins with `prefix`, and nothing of that is masked."""
    ids, masked = key
    return ids[: len(prefix)] == prefix and min(masked, default=len(ids)) >= len(prefix)


def _run(model: Model, compute: Compute, prompts: Sequence[Prompt]) -> Iterable[tuple[PromptKey, RunPrompt]]:
    rows, columns = len(prompts), len(prompts[0].ids)
    layers = sorted({layer for prompt in prompts for layer in prompt.layers})
    everywhere = Places(tuple(row for row in range(rows) for _ in range(columns)), tuple(range(columns)) * rows)
    cache = recording_cache(model)
    inputs = replace(_inputs(model, prompts), cache=cache)
    with compute.installed(), without_head(model), capture(model, dict.fromkeys(layers, everywhere)) as captured:
        model.forward(inputs, "last")
    for row, prompt in enumerate(prompts):
        keys_values = recorded(cache, row)
        at: Any = slice(prompt.start, None)
        if prompt.masked:
            kept = text(prompt.ids, prompt.masked).positions
            keys_values, at = keys_values.only(kept), list(kept[prompt.start :])
        states = {layer: captured[layer].view(rows, columns, -1)[row, at].clone() for layer in prompt.layers}
        yield prompt.key, RunPrompt(prompt.start, keys_values, states)


def _inputs(model: Model, prompts: Sequence[Prompt]) -> Inputs:
    """The prompts' tokens; where some are masked, all but the last are hidden from every other, and positions stay."""
    ids = torch.tensor([prompt.ids for prompt in prompts], dtype=torch.long, device=model.device)
    if not any(prompt.masked for prompt in prompts):
        return Inputs(ids)
    mask = torch.ones_like(ids)
    for row, prompt in enumerate(prompts):
        mask[row, list(prompt.masked)] = 0
    mask[:, -1] = 1
    return Inputs(ids, mask, torch.arange(ids.shape[1], dtype=torch.long, device=model.device).expand_as(ids))
