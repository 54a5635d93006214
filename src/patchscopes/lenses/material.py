"""What a tuned lens learns from: states at every layer with the model's own final distribution, as they stream by.

Axes: position, d_model, d_head_in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.compute import compute_of
from patchscopes.mappings import Agreeing
from patchscopes.models import Model
from patchscopes.passes import text_states
from patchscopes.rng import philox

LIKELY = 8  # tokens of each position that every step sees
BUFFER_TOKENS = 4096  # whose states are in memory together: of SmolLM2's 30 layers, 280 MiB


@dataclass(frozen=True)
class Material:
    """States at some positions by layer, in float32, and what enters the model's head there."""

    states: dict[int, Float[Tensor, "position d_model"]]
    final: Float[Tensor, "position d_head_in"]

    def __len__(self) -> int:
        return len(self.final)

    def at(self, positions: Int[Tensor, " position"]) -> "Material":
        """Some of them."""
        return Material({layer: x[positions] for layer, x in self.states.items()}, self.final[positions])

    def likely(self, model: Model) -> Int[Tensor, "position k"]:
        """The likeliest tokens at each position by the model's own final distribution."""
        head, k = compute_of(model).head, min(LIKELY, model.d_vocab)
        parts = [head.distribution(x, k).tokens for x in self.final.to(model.dtype).split(512)]  # type: ignore[no-untyped-call]
        return torch.cat(parts)


def material_of(model: Model, texts: Sequence[Agreeing], layers: Sequence[int]) -> Material:
    """All usable positions of `texts`; the shortest texts first."""
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    final = []
    for text in text_states(model, [one.source for one in texts], layers):
        at = torch.tensor([i for i, _ in texts[text.index].positions], dtype=torch.long, device=text.head_input.device)
        for layer in layers:
            states[layer].append(text.states[layer][at])
        final.append(text.head_input[at])
    return Material({layer: torch.cat(parts) for layer, parts in states.items()}, torch.cat(final))


def drawn(model: Model, texts: Sequence[Agreeing], layers: Sequence[int], n: int, *key: int | str) -> Material:
    """`n` positions of `texts`, or all where there are fewer, drawn by `key`."""
    places = [(text, k) for text, one in enumerate(texts) for k in range(len(one.positions))]
    order = philox("lens-positions", *key).permutation(len(places))[:n]
    chosen: dict[int, list[int]] = {}
    for place in sorted(order):
        text, k = places[place]
        chosen.setdefault(text, []).append(k)
    kept = [
        Agreeing(texts[text].source, texts[text].target, tuple(texts[text].positions[k] for k in ks))
        for text, ks in chosen.items()
    ]
    return material_of(model, kept, layers)


def buffers(texts: Sequence[Agreeing], *key: int | str) -> list[list[Agreeing]]:
    """The texts of one epoch in an order drawn by `key`, as many together as make up BUFFER_TOKENS."""
    found: list[list[Agreeing]] = []
    n = BUFFER_TOKENS
    for place in philox("lens-order", *key).permutation(len(texts)):
        if n >= BUFFER_TOKENS:
            found.append([])
            n = 0
        found[-1].append(texts[place])
        n += len(texts[place].source)
    return found


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Int[Tensor, " position"]]:
    """`n` positions in a drawn order, in `n_batches` parts of about `size`."""
    yield from torch.randperm(n, generator=generator).tensor_split(n_batches(n, size))


def n_batches(n: int, size: int) -> int:
    """How many batches of about `size` positions `n` positions make."""
    return max(1, round(n / size))
