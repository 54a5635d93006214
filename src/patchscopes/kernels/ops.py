"""What the kernels compute, each in PyTorch's own operations, with the kernel in their stead where it can run."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.kernels.native import native

Activation = Literal["silu", "gelu"]


def runs_native(*tensors: Tensor) -> bool:
    """Whether the kernels take these: float32, on the CPU, the last axis contiguous, and a library to run."""
    return native().library is not None and all(
        t.dtype == torch.float32 and t.device.type == "cpu" and t.stride(-1) == 1 for t in tensors
    )


def rms_norm(x: Float[Tensor, "*row d"], weight: Float[Tensor, " d"], eps: float) -> Float[Tensor, "*row d"]:
    """x / √(mean(x²) + eps) · weight, per row."""
    library = native().library
    if library is None or not (runs_native(x, weight) and x.is_contiguous()):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    out = torch.empty_like(x)
    library.ps_rms_norm(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // x.shape[-1], x.shape[-1], eps
    )
    return out


def gated(gate: Float[Tensor, "*row d"], up: Float[Tensor, "*row d"], activation: Activation) -> Float[Tensor, "*row d"]:
    """act(gate) · up; may overwrite `gate`. `gelu` is the tanh approximation."""
    library = native().library
    if library is None or not (runs_native(gate, up) and gate.is_contiguous() and up.is_contiguous()):
        if activation == "silu":
            return torch.nn.functional.silu(gate) * up
        return torch.nn.functional.gelu(gate, approximate="tanh") * up
    kernel = library.ps_silu_gated if activation == "silu" else library.ps_gelu_gated
    kernel(gate.data_ptr(), up.data_ptr(), gate.data_ptr(), gate.numel())
    return gate


def rotary(
    x: Float[Tensor, "row head d"], cos: Float[Tensor, "row_or_one d"], sin: Float[Tensor, "row_or_one d"]
) -> Float[Tensor, "row head d"]:
    """x rotated by the angles of its row, the halves of `d` being the pairs."""
    library = native().library
    if library is None or not (runs_native(x, cos, sin) and x.stride(1) == x.shape[2]):
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * cos[:, None] + turned * sin[:, None]
    rows, heads, d = x.shape
    out = x.new_empty(x.shape)
    cos_row = 0 if cos.shape[0] == 1 else cos.stride(0)
    library.ps_rotary(
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), rows, heads, d, x.stride(0), cos_row
    )
    return out


def argmax(x: Float[Tensor, "row n"]) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """The largest value of each row, NaN where it has a NaN, and the first index that holds it."""
    library = native().library
    if library is None or not runs_native(x):
        best = x.max(dim=-1)
        return best.values, best.indices
    values, indices = x.new_empty(x.shape[0]), torch.empty(x.shape[0], dtype=torch.int64)
    library.ps_argmax(x.data_ptr(), *x.shape, x.stride(0), values.data_ptr(), indices.data_ptr())
    return values, indices


def softmax_sums(x: Float[Tensor, "row n"]) -> Float[Tensor, "row 3"]:
    """Per row the largest x, Σ e^(x − largest), and Σ (x − largest) · e^(x − largest)."""
    library = native().library
    if library is None or not runs_native(x):
        high = x.amax(dim=-1, keepdim=True)
        below = x - high
        weights = below.exp()
        weighted = torch.where(weights > 0, below * weights, 0)
        return torch.cat((high, weights.sum(-1, keepdim=True), weighted.sum(-1, keepdim=True)), dim=-1)
    sums = x.new_empty(x.shape[0], 3)
    library.ps_softmax_sums(x.data_ptr(), *x.shape, x.stride(0), sums.data_ptr())
    return sums


def block_max(x: Float[Tensor, "row n"], block: int) -> Float[Tensor, "row block"]:
    """The largest value of each `block` neighbours of a row; the last block may be shorter."""
    library = native().library
    rows, n = x.shape
    blocks = -(-n // block)
    if library is None or not runs_native(x):
        padded = torch.nn.functional.pad(x, (0, blocks * block - n), value=float("-inf"))
        return padded.view(rows, blocks, block).amax(-1)
    out = x.new_empty(rows, blocks)
    library.ps_block_max(x.data_ptr(), rows, n, x.stride(0), block, out.data_ptr())
    return out
