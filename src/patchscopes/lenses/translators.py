"""What a tuned lens learns, and what one step of it costs: a translator per layer, and a sample of the vocabulary.

A translator is f(h) = h A + b + (z V + c) · t. A and b are where it starts: the identity, or the least-squares map to
the last layer. z is h without its mean, in coordinates in which all of its directions vary alike, and t how much each
dimension of the last layer varies: there, steps of one size are right for all weights, though a few dimensions of the
stream may be ten thousand times larger than the rest. V and c begin at 0.

A step sees the tokens that are likely at its positions, all of them, and some of the others drawn anew, each of which
counts for as many as it stands for: of 262,144 logits a few thousand are computed.

Axes: position, d_model, d_head_in, token (of the sample).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from patchscopes.mappings import Mapping
from patchscopes.mappings.moments import LeastSquares
from patchscopes.models import Model, calm

DAMPING = 0.1  # of unit variance: directions that hardly vary are not blown up to those that do


@dataclass(frozen=True)
class Coordinates:
    """The coordinates that one layer's translator learns in: `mean` and `turn` take h to z, `scale` is t."""

    mean: Float[Tensor, " d_model"]
    turn: Float[Tensor, "d_model d_model"]
    scale: Float[Tensor, " d_model"]

    @classmethod
    def of(
        cls, mean: Float[Tensor, " d_model"], solver: LeastSquares, deviation: Float[Tensor, " d_model"]
    ) -> "Coordinates":
        """From a layer's mean and correlations, and the deviations of the last layer's dimensions."""
        inverse = torch.where(solver.deviation > 0, 1 / solver.deviation, 0)
        turn = inverse[:, None] * solver.vectors / (solver.values.clamp(min=0) + DAMPING).sqrt()
        return cls(mean.float(), turn.float(), deviation.float())


class Translator:
    """One layer's f, while it is trained."""

    def __init__(self, start: Mapping, coordinates: Coordinates, device: torch.device) -> None:
        self._start_weight, self._start_bias = start.weight.to(device), start.bias.to(device)
        self._mean, self._turn = coordinates.mean.to(device), coordinates.turn.to(device)
        self._scale = coordinates.scale.to(device)
        d = len(start.bias)
        self.change = torch.zeros(d, d, dtype=torch.float32, device=device, requires_grad=True)
        self.shift = torch.zeros(d, dtype=torch.float32, device=device, requires_grad=True)

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained: V and c."""
        return [self.change, self.shift]

    def __call__(self, states: Float[Tensor, "position d_model"]) -> Float[Tensor, "position d_model"]:
        """`states` as the last layer would have them."""
        learned = (states - self._mean) @ self._turn @ self.change + self.shift
        return states @ self._start_weight + self._start_bias + learned * self._scale

    @calm()
    def mapping(self) -> Mapping:
        """The same as one weight and one bias."""
        change = (self._turn.double() @ self.change.double()) * self._scale
        shift = self.shift.double() * self._scale - self._mean.double() @ change
        weight, bias = self._start_weight.double() + change, self._start_bias.double() + shift
        return Mapping(weight.float().cpu(), bias.float().cpu())


@dataclass(frozen=True)
class Sample:
    """A part of the vocabulary that stands for all of it, and the final distribution over it at some positions.

    `rows` are the head's for these tokens, None where the head is no plain matrix and all of its tokens are taken;
    `weights` hold what each of them counts for, as a logarithm.
    """

    rows: Float[Tensor, "token d_head_in"] | None
    bias: Float[Tensor, " token"] | None
    weights: Float[Tensor, " token"]
    p: Float[Tensor, "position token"]

    def loss(self, model: Model, head_input: Float[Tensor, "position d_head_in"]) -> Float[Tensor, ""]:
        """The mean cross-entropy of what is read with the final distribution: KL up to a constant."""
        return cross_entropy(_logits(model, head_input, self.rows, self.bias) + self.weights, self.p)


def draw_sample(
    model: Model,
    final: Float[Tensor, "position d_head_in"],
    likely: Int[Tensor, "position k"],
    n: int,
    generator: torch.Generator,
) -> Sample:
    """The tokens that are `likely` at these positions, and `n` others; all tokens where that is nearly all."""
    head = model.hf.get_output_embeddings()
    plain = type(head) is nn.Linear
    d_vocab = head.weight.shape[0] if isinstance(head, nn.Linear) else model.d_vocab
    chosen = torch.unique(likely).cpu()
    if not plain or len(chosen) + n >= d_vocab:
        ids, weights = (
            torch.arange(d_vocab, dtype=torch.long, device="cpu"),
            torch.zeros(d_vocab, dtype=torch.float32, device="cpu"),
        )
    else:
        unlikely = torch.ones(d_vocab, dtype=torch.bool, device="cpu")
        unlikely[chosen] = False
        others = unlikely.nonzero()[:, 0]
        drawn = others[torch.randperm(len(others), generator=generator)[:n]]
        ids = torch.cat([chosen, drawn])
        weights = torch.zeros(len(ids), dtype=torch.float32, device="cpu")
        weights[len(chosen) :] = math.log(len(others) / n)
    device = final.device
    rows = bias = None
    if plain:
        at = ids.to(device)
        rows = head.weight.detach()[at].float()
        bias = None if head.bias is None else head.bias.detach()[at].float()
    weights = weights.to(device)
    with calm():
        logits = _logits(model, final, rows, bias) + weights
        return Sample(rows, bias, weights, logits.softmax(-1))


def _logits(
    model: Model, head_input: Tensor, rows: Tensor | None, bias: Tensor | None
) -> Float[Tensor, "position token"]:
    if rows is None:
        return model.scaled_logits(model.hf.get_output_embeddings()(head_input)).float()
    return model.scaled_logits(linear(head_input.float(), rows, bias))
