"""Attention of rows that share a prefix: its keys and values are kept once, and each row has its own after them.

The prefix's scores and the row's own go through one softmax. A row's new keys and values join its own first.

Axes: row, column (of the pass), token (of prefix or own), head, kv_head, d_head. Position of own token k: prefix + k.
"""

import ctypes
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes import kernels
from patchscopes.kernels.native import AttentionArguments
from patchscopes.kernels.ops import runs_native

PADDED = 16  # a kernel's vector: keys of the prefix are padded to a multiple of it
MAX_D_HEAD = 512  # what the kernel holds of one query


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """One block's keys, transposed and padded, and values of the prefix; of no tokens where there is none."""

    keys: Float[Tensor, "kv_head d_head padded"]
    values: Float[Tensor, "kv_head token d_head"]

    @classmethod
    def of(
        cls, keys: Float[Tensor, "kv_head token d_head"], values: Float[Tensor, "kv_head token d_head"]
    ) -> "SharedKeys":
        """From keys and values as a cache has them."""
        padding = -keys.shape[1] % PADDED
        turned = torch.nn.functional.pad(keys.transpose(1, 2), (0, padding))
        return cls(turned.contiguous(), values.contiguous())

    @classmethod
    def none(cls, k: Float[Tensor, "row kv_head column d_head"], v: Tensor) -> "SharedKeys":
        """The prefix of no tokens, for keys and values of these shapes."""
        return cls(k.new_empty(k.shape[1], k.shape[3], 0), v.new_empty(v.shape[1], 0, v.shape[3]))

    @property
    def n_tokens(self) -> int:
        """The length of the prefix."""
        return self.values.shape[1]


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """One block's own keys and values of the rows of a pass, views that it writes to, and how many tokens each has."""

    keys: Float[Tensor, "row kv_head capacity d_head"]
    values: Float[Tensor, "row kv_head capacity d_head"]
    lengths: Int[Tensor, " row"]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How scores are made: scale, soft cap (0: none), sliding window in tokens (0: none)."""

    scale: float
    softcap: float = 0.0
    window: int = 0


def attend(
    new: tuple[Float[Tensor, "row head column d_head"], Tensor, Tensor],
    shared: SharedKeys,
    own: OwnKeys,
    scoring: Scoring,
) -> Float[Tensor, "row column head d_head"]:
    """Attention output for `new` queries, keys and values; the keys and values are kept in `own`."""
    if kernel_runs(own.keys):
        q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in new)
        return _native((q, k, v), shared, own, scoring)
    return _plain(new, shared, own, scoring)


def kernel_runs(keys: Tensor) -> bool:
    """Whether the kernel attends to such keys: it never looks at what is masked, which else must be finite."""
    return runs_native(keys) and keys.shape[-1] <= MAX_D_HEAD


def _native(new: tuple[Tensor, Tensor, Tensor], shared: SharedKeys, own: OwnKeys, scoring: Scoring) -> Tensor:
    q, k, v = new
    rows, heads, columns, d = q.shape
    out = q.new_empty(rows, columns, heads, d)
    pointers = (q, k, v, shared.keys, shared.values, own.keys, own.values, out, own.lengths)
    arguments = AttentionArguments(
        *(tensor.data_ptr() for tensor in pointers),
        *(rows, columns, heads, k.shape[1], d, own.keys.shape[2], shared.n_tokens, shared.keys.shape[2]),
        scoring.window,
        *(tensor.stride(axis) for tensor in new for axis in (0, 2, 1)),
        scoring.scale,
        scoring.softcap,
    )
    library = kernels.native().library
    assert library is not None
    library.ps_attend(ctypes.byref(arguments))
    return out


def _plain(new: tuple[Tensor, Tensor, Tensor], shared: SharedKeys, own: OwnKeys, scoring: Scoring) -> Tensor:
    q, k, v = new
    rows, heads, columns, d = q.shape
    kv_heads, prefix = k.shape[1], shared.n_tokens
    at = own.lengths.to(q.device)[:, None] + torch.arange(columns, device=q.device)
    lines = torch.arange(rows, device=q.device)[:, None]
    own.keys[lines, :, at] = k.transpose(1, 2).to(own.keys.dtype)
    own.values[lines, :, at] = v.transpose(1, 2).to(own.values.dtype)
    n_own = int(own.lengths.max()) + columns
    q = q.reshape(rows, kv_heads, heads // kv_heads, columns, d)
    own_keys, own_values = own.keys[:, :, :n_own], own.values[:, :, :n_own]
    scores = (
        torch.cat(
            (
                torch.einsum("rkgcd,kdt->rkgct", q, shared.keys[..., :prefix]),
                torch.einsum("rkgcd,rktd->rkgct", q, own_keys),
            ),
            dim=-1,
        )
        * scoring.scale
    )
    if scoring.softcap:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    weights = torch.softmax(scores.masked_fill(~_visible(at, prefix, n_own, scoring.window), float("-inf")).float(), -1)
    weights = weights.to(q.dtype)
    out = torch.einsum("rkgct,ktd->rckgd", weights[..., :prefix], shared.values)
    out = out + torch.einsum("rkgct,rktd->rckgd", weights[..., prefix:], own_values)
    return out.reshape(rows, columns, heads, d)


def _visible(at: Tensor, prefix: int, n_own: int, window: int) -> Tensor:
    """Which keys, of the prefix and own, the query at own token `at` sees: (row, 1, 1, column, token)."""
    position = prefix + at[..., None]
    key = torch.arange(prefix + n_own, device=at.device)
    seen = key <= position
    if window:
        seen &= position - key < window
    return seen[:, None, None]
