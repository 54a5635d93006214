"""Specification of a vector → the vector that is written: states as they are, and the controls' (rule 16).

Everything is computed in float32; the hook casts to the block's dtype when it writes (rule 4).
"""

from collections.abc import Callable

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


def rescaled(v: Float[Tensor, " d_model"], like: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """`v` at the norm of `like`."""
    norm = float(v.norm())
    return v * (float(like.norm()) / norm) if norm > 0 else v


def gaussian(noise: Noise, d_model: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Standard normal float32 from Philox keyed by SHA-256 of (seed, draw, source ids, position, ℓ)."""
    like = noise.like
    generator = philox("random", noise.seed, noise.draw, like.ids, like.position, like.layer)
    return generator.standard_normal(d_model, dtype=np.float32)
