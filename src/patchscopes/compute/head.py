"""From the head's input to what is read of the logits, a chunk of the vocabulary at a time (rule 13).

A whole row of logits is large (49,152 floats in SmolLM2): made at once for hundreds of rows it costs more in memory
traffic than in arithmetic. Chunks of it are read while they are in the cache, and what is read is joined.

Axes: row, d_head_in (what enters the head), d_vocab.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchscopes import kernels
from patchscopes.compute import linear
from patchscopes.models import Model

CHUNK = 8192
BLOCK = 64


@dataclass(frozen=True, slots=True)
class Best:
    """Of each row the largest logit (NaN where one is NaN) and its token."""

    logits: Float[Tensor, " row"]
    tokens: Int[Tensor, " row"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of each row: ln Σ e^logit, entropy in nats, and the k most likely tokens with their log-probabilities."""

    log_normalizer: Float[Tensor, " row"]
    entropy: Float[Tensor, " row"]
    logprobs: Float[Tensor, "row k"]
    tokens: Int[Tensor, "row k"]


class Head:
    """The model's own head, its weight cut into chunks of the vocabulary, with the family's scale and softcap."""

    def __init__(self, model: Model, *, repack: bool) -> None:
        module = model.hf.get_output_embeddings()
        assert isinstance(module, nn.Module)
        self._model = model
        packed = type(module) is nn.Linear and linear.available() and linear.takes(module.weight)
        self._chunks: list[tuple[int, linear.LinearFunction]] = []
        if packed:
            biases = module.bias
            for start in range(0, module.weight.shape[0], CHUNK):
                part = slice(start, start + CHUNK)
                bias = None if biases is None else biases[part].contiguous()
                function = linear.pack(module.weight[part].contiguous(), bias, repack=repack)
                self._chunks.append((start, function))
        else:
            self._chunks.append((0, module))

    def best(self, x: Float[Tensor, "row d_head_in"]) -> Best:
        """The most likely token of each row. Scale and softcap keep the order, so they are left out."""
        found = []
        for start, chunk in self._chunks:
            values, indices = kernels.argmax(chunk(x))
            found.append((values, indices + start))
        values = torch.stack([value for value, _ in found])
        # The first chunk that holds the largest: max() gives the first index, and NaN where there is one.
        which = values.max(dim=0)
        tokens = torch.stack([index for _, index in found])
        return Best(which.values, tokens.gather(0, which.indices[None])[0])

    def logits(self, x: Float[Tensor, "row d_head_in"]) -> Float[Tensor, "row d_vocab"]:
        """All logits in float32."""
        return torch.cat([part for _, part in self._parts(x)], dim=-1)

    def distribution(self, x: Float[Tensor, "row d_head_in"], k: int) -> Distribution:
        """The next token's distribution."""
        joined = _Joined(k)
        for start, part in self._parts(x):
            joined.add(start, part)
        return joined.result()

    def logprobs(
        self, x: Float[Tensor, "row d_head_in"], tokens: Int[Tensor, "row token"]
    ) -> Float[Tensor, "row token"]:
        """The log-probabilities of some tokens of each row."""
        sums, found = [], torch.full(tokens.shape, float("-inf"), device=x.device)
        for start, part in self._parts(x):
            sums.append(kernels.softmax_sums(part))
            local = tokens - start
            here = (local >= 0) & (local < part.shape[1])
            found = torch.where(here, part.gather(1, local.clamp(0, part.shape[1] - 1)), found)
        return found - _log_normalizer(sums)[:, None]

    def _parts(self, x: Tensor) -> Iterator[tuple[int, Float[Tensor, "row chunk"]]]:
        for start, chunk in self._chunks:
            yield start, self._model.scaled_logits(chunk(x)).float()


def _log_normalizer(sums: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(sums))
    return torch.logsumexp(stacked[..., 0] + stacked[..., 1].log(), dim=0)


class _Joined:
    """Sums and the best k over chunks."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._sums: list[Tensor] = []
        self._values: list[Tensor] = []
        self._tokens: list[Tensor] = []

    def add(self, start: int, part: Float[Tensor, "row chunk"]) -> None:
        self._sums.append(kernels.softmax_sums(part))
        values, tokens = _top(part, min(self._k, part.shape[1]))
        self._values.append(values)
        self._tokens.append(tokens + start)

    def result(self) -> Distribution:
        sums = torch.stack(self._sums).double()
        high, total, weighted = sums[..., 0], sums[..., 1], sums[..., 2]
        top = high.amax(0)
        scale = (high - top).exp()
        z = (total * scale).sum(0)
        # Σ (x − top) e^(x − top), from each chunk's sums around its own largest
        shifted = ((weighted + (high - top) * total) * scale).sum(0)
        entropy = z.log() - shifted / z
        values, tokens = torch.cat(self._values, -1), torch.cat(self._tokens, -1)
        best = values.topk(min(self._k, values.shape[1]), dim=-1)
        normalizer = top + z.log()
        logprobs = best.values.double() - normalizer[:, None]
        return Distribution(
            normalizer.float(), entropy.float(), logprobs.float(), tokens.gather(1, best.indices)
        )


def _top(x: Float[Tensor, "row n"], k: int) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The k largest of each row: they stand in the k blocks with the largest maxima, so only those are sorted."""
    n = x.shape[1]
    if n < 4 * k * BLOCK or n % BLOCK:
        top = x.topk(k, dim=-1)
        return top.values, top.indices
    blocks = kernels.block_max(x, BLOCK).topk(k, dim=-1).indices
    columns = (blocks[..., None] * BLOCK + torch.arange(BLOCK, device=x.device)).flatten(1)
    top = x.gather(1, columns).topk(k, dim=-1)
    return top.values, columns.gather(1, top.indices)
