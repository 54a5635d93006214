"""Specification of a vector → the vector that is written: states as they are, and the controls' (rule 16).

Everything is computed in float32; the hook casts to the block's dtype when it writes (rule 4).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.models import Model
from patchscopes.rng import philox
from patchscopes.spec import Mean, Neutral, Noise, State, Vector


def make_vectors(
    vectors: Sequence[Vector], rows_of: Callable[[Sequence[State]], Tensor], model: Model
) -> Float[Tensor, "vector d_model"]:
    """The vectors to write, in float32; `rows_of` gives the states that States name, one a row."""
    made = torch.zeros(len(vectors), model.d_model, device=model.device)

    def put(kind: type, make: Callable[[list[Any]], Tensor]) -> None:
        at = [k for k, vector in enumerate(vectors) if type(vector) is kind]
        if at:
            made[at] = make([vectors[k] for k in at]).to(made)

    def noise(found: list[Noise]) -> Tensor:
        drawn = torch.from_numpy(np.stack([gaussian(vector, model.d_model) for vector in found])).to(made)
        return rescaled(drawn, rows_of([vector.like for vector in found]))

    def means(found: list[Mean]) -> Tensor:
        # One after the other: the states of all of them at once might be a thousand times the memory of their means.
        return torch.stack([rows_of(vector.states).float().mean(dim=0) for vector in found])

    put(State, rows_of)
    put(Noise, noise)
    put(Neutral, lambda found: rescaled(rows_of([v.state for v in found]), rows_of([v.like for v in found])))
    put(Mean, means)
    return made


def rescaled(v: Float[Tensor, "*batch d_model"], like: Float[Tensor, "*batch d_model"]) -> Tensor:
    """`v` at the norm of `like`; as it is where it is zero."""
    norms = v.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, v * (like.norm(dim=-1, keepdim=True) / norms), v)


def gaussian(noise: Noise, d_model: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Standard normal float32 from Philox keyed by SHA-256 of (seed, draw, source ids, position, ℓ)."""
    like = noise.like
    generator = philox("random", noise.seed, noise.draw, like.ids, like.position, like.layer)
    return generator.standard_normal(d_model, dtype=np.float32)
