"""From the head's input to what is read of the logits, a chunk of the vocabulary at a time (rule 13).

A whole row of logits is large (49,152 floats in SmolLM2): made at once for hundreds of rows it costs more in memory
traffic than in arithmetic. Chunks of it are read while they are in the cache, and what is read is joined. So it is in
every dtype, and what the plan counts of a row's logits is a chunk. A head that is more than its matrix (another class,
a forward or hooks of its own) makes all of them at once, and the plan counts those.

Axes: row, d_head_in (what enters the head), d_vocab.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchscopes import kernels
from patchscopes.compute import linear
from patchscopes.models import Model, calm, runs_alone

CHUNK = 2048
CHUNK_ELSEWHERE = 32768  # on other devices than the CPU, where each chunk costs launches and nothing is won by a cache


@dataclass(frozen=True, slots=True)
class Best:
    """Of each row the largest logit (NaN where one is NaN) and its token."""

    logits: Float[Tensor, " row"]
    tokens: Int[Tensor, " row"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of each row: entropy in nats, and the k most likely tokens with their log-probabilities."""

    entropy: Float[Tensor, " row"]
    logprobs: Float[Tensor, "row k"]
    tokens: Int[Tensor, "row k"]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a plain head's matrix, as they are when it is called."""

    module: nn.Linear
    rows: slice

    def __call__(self, x: Tensor) -> Tensor:
        biases: Tensor | None = self.module.bias
        return nn.functional.linear(x, self.module.weight[self.rows], None if biases is None else biases[self.rows])


def columns_at_once(model: Model) -> int:
    """Return how many logits of a row the model's head makes at once, for the plan."""
    module = model.hf.get_output_embeddings()
    return min(_chunk(module), model.d_vocab) if _is_matrix(module) else model.d_vocab


def _is_matrix(module: object) -> TypeGuard[nn.Linear]:
    """Return whether a module computes x·weightᵀ + bias and nothing else happens where it is called."""
    # Not of a subclass: one that is parametrized makes its weight anew at each call.
    return type(module) is nn.Linear and runs_alone(module) and type(module.weight.data) is Tensor


def _chunk(module: nn.Linear) -> int:
    return CHUNK if module.weight.device.type == "cpu" else CHUNK_ELSEWHERE


class Head:
    """The model's own head, its weight cut into chunks of the vocabulary, with the family's scale and softcap."""

    def __init__(self, model: Model, *, repack: bool) -> None:
        module = model.hf.get_output_embeddings()
        assert isinstance(module, nn.Module)
        self._model = model
        self._chunks: list[tuple[int, linear.LinearFunction]] = []
        if not _is_matrix(module):
            self._chunks.append((0, partial(_last_of_text, module)))
            return
        packs = linear.available() and linear.takes(module.weight)
        for start in range(0, module.weight.shape[0], _chunk(module)):
            part = _Part(module, slice(start, start + _chunk(module)))
            self._chunks.append((start, _packed(part, repack=repack) if packs else part))

    @calm()
    def best(self, x: Float[Tensor, "row d_head_in"]) -> Best:
        """The most likely token of each row."""
        top = kernels.Top.none(x.shape[0], 1, x.device)
        if not self._model.scale_keeps_order:
            for start, part in self._parts(x):
                top = kernels.top_k(part, start, top)
            return Best(top.values[:, 0], top.indices[:, 0])
        for start, chunk in self._chunks:
            top = kernels.top_k(chunk(x).float(), start, top)  # kernels read float32
        return Best(self._model.scaled_logits(top.values[:, 0]), top.indices[:, 0])  # only the largest needs it

    @calm()
    def logits(self, x: Float[Tensor, "row d_head_in"]) -> Float[Tensor, "row d_vocab"]:
        """All logits in float32."""
        return torch.cat([part for _, part in self._parts(x)], dim=-1)

    @calm()
    def distribution(self, x: Float[Tensor, "row d_head_in"], k: int) -> Distribution:
        """The next token's distribution."""
        sums, top = [], kernels.Top.none(x.shape[0], k, x.device)
        for start, part in self._parts(x):
            sums.append(kernels.softmax_sums(part))
            top = kernels.top_k(part, start, top)
        high, total, weighted = torch.stack(sums).double().unbind(-1)
        highest = high.amax(0)
        scale = (high - highest).exp()
        z = (total * scale).sum(0)
        # Σ (x − highest) e^(x − highest), from each chunk's sums around its own largest
        shifted = torch.where(scale > 0, (weighted + (high - highest) * total) * scale, 0).sum(0)
        normalizer = highest + z.log()
        logprobs = top.values.double() - normalizer[:, None]
        return Distribution((z.log() - shifted / z).float(), logprobs.float(), top.indices)

    @calm()
    def logprobs(
        self, x: Float[Tensor, "row d_head_in"], tokens: Int[Tensor, "row token"]
    ) -> Float[Tensor, "row token"]:
        """The log-probabilities of some tokens of each row."""
        sums, found = [], torch.full(tokens.shape, float("-inf"), dtype=torch.float32, device=x.device)
        for start, part in self._parts(x):
            sums.append(kernels.softmax_sums(part))
            found = _where_in(part, start, tokens, found)
        return found - _log_normalizer(sums)[:, None]

    @calm()
    def divergences(
        self, x: Float[Tensor, "row d_head_in"], others: Sequence[Float[Tensor, "row d_head_in"]]
    ) -> Float[Tensor, "other row"]:
        """KL(p ‖ q) in nats, p the distribution that `x` gives and q that of each of `others`; 0 where they are one."""
        normalizer = self._normalizer(x)
        expected = torch.zeros(len(others), x.shape[0], dtype=torch.float64, device=x.device)
        sums: list[list[Tensor]] = [[] for _ in others]
        for _, chunk in self._chunks:
            logits = self._model.scaled_logits(chunk(x)).float()
            p = (logits - normalizer[:, None]).exp()
            for index, other in enumerate(others):
                part = self._model.scaled_logits(chunk(other)).float()
                sums[index].append(kernels.softmax_sums(part))
                expected[index] += (p * (logits - part)).sum(-1).double()
        normalizers = [_log_normalizer(of_other) for of_other in sums]
        return (
            torch.stack([e + n - normalizer for e, n in zip(expected, normalizers, strict=True)]).clamp(min=0).float()
        )

    @calm()
    def ranks(self, x: Float[Tensor, "row d_head_in"], tokens: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """The place of one token of each row among all, by its logit: 1 is the likeliest; ties share the better."""
        logits = self._found(x, tokens[:, None])
        above = [(part > logits).sum(-1) for _, part in self._parts(x)]
        return torch.stack(above).sum(0) + 1

    @calm()
    def token_logits(
        self, x: Float[Tensor, "row d_head_in"], tokens: Int[Tensor, "row token"]
    ) -> Float[Tensor, "row token"]:
        """The logits of some tokens of each row, without those of all others where the head is a plain matrix."""
        module, tokens = self._model.hf.get_output_embeddings(), tokens.to(x.device)
        if not _is_matrix(module):
            return self._found(x, tokens)
        logits = torch.einsum("rd,rtd->rt", x, module.weight[tokens])
        biases: Tensor | None = module.bias
        return self._model.scaled_logits(logits if biases is None else logits + biases[tokens]).float()

    def _found(self, x: Tensor, tokens: Tensor) -> Float[Tensor, "row token"]:
        found = torch.full(tokens.shape, float("-inf"), dtype=torch.float32, device=x.device)
        for start, part in self._parts(x):
            found = _where_in(part, start, tokens, found)
        return found

    def _normalizer(self, x: Tensor) -> Float[Tensor, " row"]:
        return _log_normalizer([kernels.softmax_sums(part) for _, part in self._parts(x)])

    def _parts(self, x: Tensor) -> Iterator[tuple[int, Float[Tensor, "row chunk"]]]:
        for start, chunk in self._chunks:
            yield start, self._model.scaled_logits(chunk(x)).float()


def _last_of_text(module: nn.Module, x: Float[Tensor, "row d_head_in"]) -> Float[Tensor, "row d_vocab"]:
    """Call the head as a decoding step does, with one column a row: a hook on it may count on that."""
    # Contiguous: else PyTorch would copy the whole weight for each row.
    logits: Tensor = module(x.contiguous()[:, None])[:, 0]
    return logits


def _packed(part: _Part, *, repack: bool) -> linear.LinearFunction:
    biases: Tensor | None = part.module.bias
    bias = None if biases is None else biases[part.rows].contiguous()
    return linear.pack(part.module.weight[part.rows].contiguous(), bias, repack=repack)


def _where_in(part: Tensor, start: int, tokens: Tensor, found: Tensor) -> Tensor:
    """Return `found` with the logits of those tokens that stand in `part`, whose columns count from `start`."""
    local = tokens - start
    here = (local >= 0) & (local < part.shape[1])
    return torch.where(here, part.gather(1, local.clamp(0, part.shape[1] - 1)), found)


def _log_normalizer(sums: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(sums))
    return torch.logsumexp(stacked[..., 0] + stacked[..., 1].log(), dim=0)
