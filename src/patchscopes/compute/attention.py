"""Attention of rows that share a prefix: its keys and values are kept once, and each row has its own after them.

The prefix's scores and the row's own go through one softmax. A row's new keys and values join its own first.

Axes: row, column (of the pass), token (of prefix or own), head, kv_head, d_head, d_value (mostly d_head). Position of
own token k: prefix + k.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes import kernels
from patchscopes.kernels.native import AttentionArguments
from patchscopes.kernels.ops import refuse, runs_native

PADDED = 16  # a kernel's vector: keys of the prefix are padded to a multiple of it
MAX_D_HEAD = 512  # what the kernel holds of one query
# Bytes of one score where it is made: `_plain` has at most two in float32, transformers' own one more in its dtype.
PLAIN_SCORE_BYTES, OWN_SCORE_BYTES = 8, 12
# Bytes of one place of a mask, which all heads share: here by positions of 8 bytes, there as it is and as it is added.
PLAIN_MASK_BYTES, OWN_MASK_BYTES = 12, 6


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """One block's keys, transposed and padded, and values of the prefix; of no tokens where there is none."""

    keys: Float[Tensor, "kv_head d_head padded"]
    values: Float[Tensor, "kv_head token d_value"]

    @classmethod
    def of(
        cls, keys: Float[Tensor, "kv_head token d_head"], values: Float[Tensor, "kv_head token d_value"]
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
    values: Float[Tensor, "row kv_head capacity d_value"]
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
) -> Float[Tensor, "row column head d_value"]:
    """Attention output for `new` queries, keys and values; the keys and values are kept in `own`.

    Raises ValueError where shapes, dtypes or lengths do not belong together: the kernel trusts every one of them.
    """
    sizes = _sizes(new, shared, own, scoring)
    if sizes.rows == 0 or sizes.columns == 0:
        return new[0].new_zeros(sizes.rows, sizes.columns, sizes.heads, sizes.d_value)
    if _width_runs(sizes.d_head, sizes.d_value) and runs_native(own.keys, own.values):  # `kernel_runs`, shapes at hand
        return _native(sizes, new, shared, own, scoring)
    return _plain(sizes, new, shared, own, scoring)


def kernel_runs(keys: Tensor, values: Tensor) -> bool:
    """Return whether the kernel attends to such keys and values, which are then of one width.

    It never looks at what is masked, which else must be finite: whoever makes the buffers asks this, and `attend` too.
    """
    return _width_runs(keys.shape[-1], values.shape[-1]) and runs_native(keys, values)


def _width_runs(d_head: int, d_value: int) -> bool:
    return d_value == d_head and 1 < d_head <= MAX_D_HEAD  # an axis of one element has any stride


class _Sizes(NamedTuple):
    """What all tensors of one pass agree on. `d_value` is the width of values, mostly that of keys."""

    rows: int
    heads: int
    columns: int
    kv_heads: int
    d_head: int
    d_value: int
    capacity: int
    prefix: int
    padded: int


def _sizes(new: tuple[Tensor, Tensor, Tensor], shared: SharedKeys, own: OwnKeys, scoring: Scoring) -> _Sizes:
    """Return the sizes, every shape held against every other."""
    q, k, v = new
    q_shape, v_shape, kept = q.shape, v.shape, own.keys.shape
    keys, values = shared.keys.shape, shared.values.shape
    if not (len(q_shape) == len(v_shape) == len(kept) == 4 and len(keys) == len(values) == 3):
        _refuse(new, shared, own)
    rows, heads, columns, d_head = q_shape
    _, kv_heads, _, d_value = v_shape
    capacity, prefix, padded = kept[2], values[1], keys[2]
    if not (
        k.shape == (rows, kv_heads, columns, d_head)
        and v_shape == (rows, kv_heads, columns, d_value)
        and kept == (rows, kv_heads, capacity, d_head)
        and own.values.shape == (rows, kv_heads, capacity, d_value)
        and own.lengths.shape == (rows,)
        and keys == (kv_heads, d_head, padded)
        and values == (kv_heads, prefix, d_value)
        and prefix <= padded
        and own.lengths.dtype is torch.int64
        and kv_heads > 0
        and heads % kv_heads == 0
    ):
        _refuse(new, shared, own)
    if scoring.window < 0 or scoring.softcap < 0:
        raise ValueError(
            f"a window and a soft cap are at least 0, and these are {scoring.window} and {scoring.softcap}"
        )
    return _Sizes(rows, heads, columns, kv_heads, d_head, d_value, capacity, prefix, padded)


def _refuse(new: tuple[Tensor, Tensor, Tensor], shared: SharedKeys, own: OwnKeys) -> NoReturn:
    q, k, v = new
    refuse(
        "attend",
        "float q (row, head, column, d), k and v (row, kv_head, column, d), own keys and values (row, kv_head, "
        "capacity, d), shared keys (kv_head, d, padded) and values (kv_head, token, d), int64 lengths (row), and heads "
        "that kv_heads divide",
        **{"q": q, "k": k, "v": v, "own keys": own.keys, "own values": own.values, "lengths": own.lengths},
        **{"shared keys": shared.keys, "shared values": shared.values},
    )


def _no_room(lengths: Tensor, columns: int, capacity: int) -> NoReturn:
    raise ValueError(
        f"rows of {int(lengths.min())} to {int(lengths.max())} own tokens take {columns} more, and have room for "
        f"0 to {capacity}"
    )


def _native(
    sizes: _Sizes, new: tuple[Tensor, Tensor, Tensor], shared: SharedKeys, own: OwnKeys, scoring: Scoring
) -> Tensor:
    # Copied where only the layout is another. What is no float32 on the CPU cannot stand beside buffers that are.
    q, k, v = new
    if not runs_native(q, k, v):
        q, k, v = (tensor.contiguous() for tensor in new)
        if not runs_native(q, k, v):
            _refuse(new, shared, own)
    keys, values, padded = shared.keys, shared.values, sizes.padded
    if padded % PADDED or not (keys.is_contiguous() and values.is_contiguous()):
        turned = SharedKeys.of(keys[..., : sizes.prefix].transpose(1, 2), values)
        keys, values, padded = turned.keys, turned.values, turned.keys.shape[2]
    if sizes.prefix and not runs_native(keys, values):
        _refuse(new, shared, own)
    lengths = own.lengths.contiguous()
    if not (own.keys.is_contiguous() and own.values.is_contiguous() and lengths.is_cpu):
        _refuse(new, shared, own)
    out = q.new_empty((sizes.rows, sizes.columns, sizes.heads, sizes.d_value))
    (q_row, q_head, q_column, _), (k_row, k_head, k_column, _) = q.stride(), k.stride()
    v_row, v_head, v_column, _ = v.stride()
    # Positional and spelled out: this runs in every block of every step, and a generator costs a microsecond.
    arguments = AttentionArguments(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), keys.data_ptr(), values.data_ptr(),
        own.keys.data_ptr(), own.values.data_ptr(), out.data_ptr(), lengths.data_ptr(),
        sizes.rows, sizes.columns, sizes.heads, sizes.kv_heads, sizes.d_head, sizes.capacity, sizes.prefix, padded,
        scoring.window,
        q_row, q_column, q_head, k_row, k_column, k_head, v_row, v_column, v_head,
        scoring.scale, scoring.softcap,
    )  # fmt: skip
    library: Any = kernels.native().library  # which is there, or `kernel_runs` had said no
    if library.ps_attend(ctypes.byref(arguments)):  # it reads every length before it writes
        _no_room(lengths, sizes.columns, sizes.capacity)
    return out


def _plain(
    sizes: _Sizes, new: tuple[Tensor, Tensor, Tensor], shared: SharedKeys, own: OwnKeys, scoring: Scoring
) -> Tensor:
    q, k, v = new
    rows, heads, columns, kv_heads = sizes.rows, sizes.heads, sizes.columns, sizes.kv_heads
    prefix = sizes.prefix
    n_own = int(own.lengths.max()) + columns
    if int(own.lengths.min()) < 0 or n_own > sizes.capacity:
        _no_room(own.lengths, columns, sizes.capacity)
    at = own.lengths.to(q.device)[:, None] + torch.arange(columns, device=q.device)
    lines = torch.arange(rows, device=q.device)[:, None]
    own.keys[lines, :, at] = k.transpose(1, 2).to(own.keys.dtype)
    own.values[lines, :, at] = v.transpose(1, 2).to(own.values.dtype)
    q = q.reshape(rows, kv_heads, heads // kv_heads, columns, sizes.d_head)
    own_keys, own_values = own.keys[:, :, :n_own], own.values[:, :, :n_own]
    # At most two copies of the scores at once: the plan counts their bytes.
    scores = torch.cat(
        (
            torch.einsum("rkgcd,kdt->rkgct", q, shared.keys[..., :prefix]),
            torch.einsum("rkgcd,rktd->rkgct", q, own_keys),
        ),
        dim=-1,
    ).mul_(scoring.scale)
    if scoring.softcap:
        scores.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
    scores.masked_fill_(~_visible(at, prefix, n_own, scoring.window), float("-inf"))
    scores = scores.float()
    weights = torch.softmax(scores, -1)
    del scores
    weights = weights.to(q.dtype)
    out = torch.einsum("rkgct,ktd->rckgd", weights[..., :prefix], shared.values)
    out = out + torch.einsum("rkgct,rktd->rckgd", weights[..., prefix:], own_values)
    return out.reshape(rows, columns, heads, sizes.d_value)


def _visible(at: Tensor, prefix: int, n_own: int, window: int) -> Tensor:
    """Which keys, of the prefix and own, the query at own token `at` sees: (row, 1, 1, column, token)."""
    position = prefix + at[..., None]
    key = torch.arange(prefix + n_own, device=at.device)
    seen = key <= position
    if window:
        seen &= position - key < window
    return seen[:, None, None]
