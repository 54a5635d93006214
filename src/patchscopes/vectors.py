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
from patchscopes.spec import Neutral, Noise, State, Vector, Zero

StateOf = Callable[[State], Tensor]


def make_vector(vector: Vector, state_of: StateOf, model: Model) -> Float[Tensor, " d_model"]:
    """The vector to write, float32; `state_of` gives the hidden state that a `State` names."""
    match vector:
        case State():
            return state_of(vector).float()
        case Zero():
            return torch.zeros(model.d_model, device=model.device)
        case Noise(like=like):
            w = state_of(like).float()
            return rescaled(torch.from_numpy(gaussian(vector, model.d_model)).to(w.device), w)
        case Neutral(state=state, like=like):
            w = state_of(like).float()
            return rescaled(state_of(state).float().to(w.device), w)


def make_vectors(
    vectors: Sequence[Vector], rows_of: Callable[[Sequence[State]], Tensor], model: Model
) -> Float[Tensor, "vector d_model"]:
    """As `make_vector`, for many at once; `rows_of` gives the float32 states that States name, one a row."""
    made = torch.zeros(len(vectors), model.d_model, device=model.device)

    def put(kind: type, make: Callable[[list[Any]], Tensor]) -> None:
        at = [k for k, vector in enumerate(vectors) if type(vector) is kind]
        if at:
            made[at] = make([vectors[k] for k in at]).to(made)

    def noise(found: list[Noise]) -> Tensor:
        drawn = torch.from_numpy(np.stack([gaussian(vector, model.d_model) for vector in found])).to(made)
        return _rescaled(drawn, rows_of([vector.like for vector in found]))

    put(State, rows_of)
    put(Noise, noise)
    put(Neutral, lambda found: _rescaled(rows_of([v.state for v in found]), rows_of([v.like for v in found])))
    return made


def _rescaled(v: Float[Tensor, "vector d_model"], like: Float[Tensor, "vector d_model"]) -> Tensor:
    norms = v.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, v * (like.norm(dim=-1, keepdim=True) / norms), v)


def rescaled(v: Float[Tensor, " d_model"], like: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """`v` at the norm of `like`."""
    norm = float(v.norm())
    return v * (float(like.norm()) / norm) if norm > 0 else v


def gaussian(noise: Noise, d_model: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Standard normal float32 from Philox keyed by SHA-256 of (seed, draw, source ids, position, ℓ)."""
    like = noise.like
    generator = philox("random", noise.seed, noise.draw, like.ids, like.position, like.layer)
    return generator.standard_normal(d_model, dtype=np.float32)
