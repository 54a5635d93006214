"""Specification of a vector → the vector that is written: states as they are or mapped, and the controls' (rule 16).

Everything is computed in float32; the hook casts to the block's dtype when it writes (rule 4). f is the mapping of the
cell: a control has its vector from it as the cell has, so that a map's bias is in both.

Axes: d_source and d_model, the widths of the source and of the target model.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.rng import philox
from patchscopes.spec import Mean, Neutral, Noise, Own, State, Vector, Zero

Digests = Sequence[str | None]


@runtime_checkable
class StateSource(Protocol):
    """Whoever has states, of the source model and of the target's own runs, and knows the mappings."""

    @property
    def widths(self) -> tuple[int, int]:
        """Both d_source and d_model."""
        ...

    def states(self, wanted: Sequence[State]) -> Float[Tensor, "state d_source"]:
        """States of the source model."""
        ...

    def own_states(self, wanted: Sequence[State]) -> Float[Tensor, "state d_model"]:
        """States of the target model."""
        ...

    def mapped(self, states: Float[Tensor, "row d_source"], maps: Digests) -> Float[Tensor, "row d_model"]:
        """Each state through the mapping of that digest; None leaves it as it is."""
        ...


def make_vectors(
    vectors: Sequence[Vector], of: StateSource, maps: Digests | None = None
) -> Float[Tensor, "vector d_model"]:
    """The vectors to write, in float32; each through the mapping whose digest `maps` has for it, None for none."""
    d_source, d_model = of.widths
    through = [None] * len(vectors) if maps is None else list(maps)
    made: Tensor | None = None

    def put(kind: type, make: Callable[[list[Any], Digests], Tensor]) -> None:
        nonlocal made
        at = [k for k, vector in enumerate(vectors) if type(vector) is kind]
        if at:
            found = make([vectors[k] for k in at], [through[k] for k in at])
            if made is None:
                made = torch.zeros(len(vectors), d_model, device=found.device)
            made[at] = found.to(made)

    def mapped(states: Sequence[State], digests: Digests) -> Tensor:
        return of.mapped(of.states(states).float(), digests)

    def noise(found: list[Noise], digests: Digests) -> Tensor:
        like = mapped([vector.like for vector in found], digests)
        drawn = torch.from_numpy(np.stack([gaussian(vector, d_model) for vector in found])).to(like)
        return rescaled(drawn, like)

    def neutral(found: list[Neutral], digests: Digests) -> Tensor:
        return rescaled(mapped([v.state for v in found], digests), mapped([v.like for v in found], digests))

    def means(found: list[Mean], digests: Digests) -> Tensor:
        # One after the other: the states of all of them at once might be a thousand times the memory of their means.
        return of.mapped(torch.stack([of.states(vector.states).float().mean(dim=0) for vector in found]), digests)

    put(State, mapped)
    put(Own, lambda found, _: of.own_states([vector.state for vector in found]).float())
    put(Zero, lambda found, digests: of.mapped(torch.zeros(len(found), d_source), digests))
    put(Noise, noise)
    put(Neutral, neutral)
    put(Mean, means)
    return torch.zeros(0, d_model) if made is None else made


def rescaled(v: Float[Tensor, "*batch d_model"], like: Float[Tensor, "*batch d_model"]) -> Tensor:
    """`v` at the norm of `like`; as it is where it is zero."""
    norms = v.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, v * (like.norm(dim=-1, keepdim=True) / norms), v)


def gaussian(noise: Noise, d_model: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Standard normal float32 from Philox keyed by SHA-256 of (seed, draw, source ids, position, ℓ)."""
    like = noise.like
    generator = philox("random", noise.seed, noise.draw, like.ids, like.position, like.layer)
    return generator.standard_normal(d_model, dtype=np.float32)
