"""Inspection prompts, each run once: keys and values of all its tokens, and the states that its rows start from.

Below ℓ* a row's run is that of the prompt as it is (rule 15). So a row begins at ℓ*, from the prompt's own states of
the placeholder and what follows it, with the write made; its keys and values below ℓ* are the prompt's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import Compute
from patchscopes.compute.attention import SharedKeys
from patchscopes.forward import without_head
from patchscopes.hooks import Places, capture
from patchscopes.kv import KeysValues, recorded, recording_cache
from patchscopes.models import Inputs, Model
from patchscopes.plan import MAX_TOKENS, Prompt
from patchscopes.spec import Ids


@dataclass(frozen=True, slots=True)
class RunPrompt:
    """A prompt that has been run: `states[ℓ*]` holds its tokens from `start` on, the first placeholder.

    Shapes: keys and values (kv_head, token, d_head), states (token, d_model).
    """

    start: int
    keys_values: KeysValues
    states: Mapping[int, Float[Tensor, "token d_model"]]


class RunPrompts:
    """The prompts of a wave, by their ids; those of one length run together, so that nothing is padded."""

    def __init__(self, model: Model, compute: Compute, prompts: Sequence[Prompt]) -> None:
        self._model, self._compute = model, compute
        self._found: dict[Ids, RunPrompt] = {}
        self._shared: dict[Ids, list[SharedKeys]] = {}
        by_length: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_length.setdefault(len(prompt.ids), []).append(prompt)
        for length, several in by_length.items():
            at_once = max(1, MAX_TOKENS // length)
            for first in range(0, len(several), at_once):
                self._found.update(_run(model, compute, several[first : first + at_once]))

    def __getitem__(self, ids: Ids) -> RunPrompt:
        return self._found[ids]

    def shared(self, prefix: Ids) -> list[SharedKeys]:
        """Keys and values of `prefix`, from any prompt that begins with it; none where it is empty."""
        if not prefix:
            return []
        if prefix not in self._shared:
            prompt = next((prompt for ids, prompt in self._found.items() if ids[: len(prefix)] == prefix), None)
            if prompt is None:  # all that begin with it and are written were in another wave
                ((_, prompt),) = _run(self._model, self._compute, [Prompt(prefix, 0, ())])
            self._shared[prefix] = prompt.keys_values.shared(len(prefix))
        return self._shared[prefix]


def _run(model: Model, compute: Compute, prompts: Sequence[Prompt]) -> Iterable[tuple[Ids, RunPrompt]]:
    rows, columns = len(prompts), len(prompts[0].ids)
    layers = sorted({layer for prompt in prompts for layer in prompt.layers})
    everywhere = Places(tuple(row for row in range(rows) for _ in range(columns)), tuple(range(columns)) * rows)
    cache = recording_cache(model)
    ids = torch.tensor([prompt.ids for prompt in prompts], device=model.device)
    with without_head(model), compute.installed(), capture(model, dict.fromkeys(layers, everywhere)) as captured:
        model.forward(Inputs(ids, cache=cache), "last")
    for row, prompt in enumerate(prompts):
        states = {
            layer: captured[layer].view(rows, columns, -1)[row, prompt.start :].clone() for layer in prompt.layers
        }
        yield prompt.ids, RunPrompt(prompt.start, recorded(cache, row), states)
