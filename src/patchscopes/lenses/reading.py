"""Reading a state through a lens: what enters the model's own head, and the logits that it gives (rule 13).

A lens is a Mappings of one model whose pairs are (ℓ, n_layers); the logit lens is no mapping at all, f the identity.
Layer n_layers needs none: what it gives is the model's own output.

Axes: position, d_model, d_head_in, d_vocab.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.compute import compute_of
from patchscopes.errors import MappingError
from patchscopes.mappings import Mappings
from patchscopes.models import Model, calm

ROWS_AT_ONCE = 512  # of the head: with a chunk of the vocabulary, 4 MiB of logits


def check_lens(lens: Mappings, model: Model) -> None:
    """Raise MappingError where `lens` is for other weights, or is none: all of its pairs must end at n_layers."""
    lens.check(model, model)
    others = [pair for pair in lens.pairs if pair[1] != model.n_layers]
    if others:
        raise MappingError(
            f"this {lens.kind} mapping is no lens: it has (ℓ, ℓ*) = {others[0]}, and a lens leads to the last layer, "
            f"{model.n_layers}, alone. Fit pairs (ℓ, {model.n_layers}), or train one: patchscopes.lenses."
            "fit_tuned_lens."
        )


@calm()
def head_inputs(
    model: Model, lens: Mappings | None, states: Mapping[int, Float[Tensor, "position d_model"]]
) -> dict[int, Float[Tensor, "position d_head_in"]]:
    """What enters the head where states of these layers are read through `lens`; None: the logit lens."""
    return {layer: model.head_input(_mapped(model, lens, layer, x).to(model.dtype)) for layer, x in states.items()}


@calm()
def lens_logits(
    model: Model, lens: Mappings | None, layer: int, states: Float[Tensor, "position d_model"]
) -> Float[Tensor, "position d_vocab"]:
    """The logits that states of `layer` give when they are read through `lens`; None: the logit lens."""
    return model.unembed(_mapped(model, lens, layer, states).to(model.dtype))


def _mapped(model: Model, lens: Mappings | None, layer: int, states: Tensor) -> Tensor:
    return states if lens is None or layer == model.n_layers else lens[layer, model.n_layers](states)


def mean_divergences(
    model: Model, final: Float[Tensor, "position d_head_in"], read: Iterable[Float[Tensor, "position d_head_in"]]
) -> list[float]:
    """The mean over positions of KL(the model's own distribution ‖ the one read), in nats, of each reading."""
    head, final, readings = compute_of(model).head, final.to(model.dtype), list(read)
    if not readings:
        return []
    rows = range(0, len(final), ROWS_AT_ONCE)
    parts = [head.divergences(final[i : i + ROWS_AT_ONCE], _cut(readings, i)) for i in rows]
    return [float(kl) for kl in torch.cat(parts, dim=1).double().mean(1)]


def _cut(readings: Sequence[Tensor], start: int) -> list[Tensor]:
    return [reading[start : start + ROWS_AT_ONCE] for reading in readings]
