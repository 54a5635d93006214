"""Specification of a vector → the vector that is written: states as they are or mapped, and the controls' (rule 16).

Everything is computed in float32; the hook casts to the block's dtype when it writes (rule 4). f is the mapping of the
cell: a control has its vector from it as the cell has, so that a map's bias is in both.

Axes: d_source and d_model, the widths of the source and of the target model.
"""

from collections.abc import Callable, Mapping, Sequence
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
    _, d_model = of.widths
    through = [None] * len(vectors) if maps is None else list(maps)
    rows: dict[type, list[int]] = {kind: [] for kind in _MAKERS}
    for k, vector in enumerate(vectors):
        rows[type(vector)].append(k)
    made: Tensor | None = None
    for kind, at in rows.items():
        if at:
            found = _MAKERS[kind](of, [vectors[k] for k in at], [through[k] for k in at])
            if made is None:
                made = torch.zeros(len(vectors), d_model, dtype=torch.float32, device=found.device)
            made[at] = found.to(made)
    return torch.zeros(0, d_model, dtype=torch.float32, device="cpu") if made is None else made


def _mapped(of: StateSource, states: list[State], maps: Digests) -> Tensor:
    return of.mapped(of.states(states).float(), maps)


def _own(of: StateSource, vectors: list[Own], _: Digests) -> Tensor:
    return of.own_states([vector.state for vector in vectors]).float()


def _zero(of: StateSource, vectors: list[Zero], maps: Digests) -> Tensor:
    d_source, _ = of.widths
    return of.mapped(torch.zeros(len(vectors), d_source, dtype=torch.float32, device="cpu"), maps)


def _noise(of: StateSource, vectors: list[Noise], maps: Digests) -> Tensor:
    like = _mapped(of, [vector.like for vector in vectors], maps)
    _, d_model = of.widths
    drawn = torch.from_numpy(np.stack([gaussian(vector, d_model) for vector in vectors])).to(like)
    return rescaled(drawn, like)


def _neutral(of: StateSource, vectors: list[Neutral], maps: Digests) -> Tensor:
    states, like = [vector.state for vector in vectors], [vector.like for vector in vectors]
    return rescaled(_mapped(of, states, maps), _mapped(of, like, maps))


def _means(of: StateSource, vectors: list[Mean], maps: Digests) -> Tensor:
    # One after the other: the states of all of them at once might be a thousand times the memory of their means.
    return of.mapped(torch.stack([of.states(vector.states).float().mean(dim=0) for vector in vectors]), maps)


_MAKERS: Mapping[type, Callable[[StateSource, list[Any], Digests], Tensor]] = {
    State: _mapped,
    Own: _own,
    Zero: _zero,
    Noise: _noise,
    Neutral: _neutral,
    Mean: _means,
}


def rescaled(v: Float[Tensor, "*batch d_model"], like: Float[Tensor, "*batch d_model"]) -> Tensor:
    """`v` at the norm of `like`; as it is where it is zero."""
    norms = v.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, v * (like.norm(dim=-1, keepdim=True) / norms), v)


def gaussian(noise: Noise, d_model: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Standard normal float32 from Philox keyed by SHA-256 of (seed, draw, source ids, position, ℓ)."""
    like = noise.like
    generator = philox("random", noise.seed, noise.draw, like.ids, like.position, like.layer)
    return generator.standard_normal(d_model, dtype=np.float32)
