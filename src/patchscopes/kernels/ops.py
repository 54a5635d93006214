"""What the kernels compute, each in PyTorch's own operations, with the kernel in their stead where it can run."""

from dataclasses import dataclass
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
    """X / √(mean(x²) + eps) · weight, per row."""
    library = native().library
    if library is None or not (runs_native(x, weight) and x.is_contiguous()):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    out = torch.empty_like(x)
    library.ps_rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // x.shape[-1], x.shape[-1], eps)
    return out


def gated(
    gate: Float[Tensor, "*row d"], up: Float[Tensor, "*row d"], activation: Activation
) -> Float[Tensor, "*row d"]:
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
    """X rotated by the angles of its row, the halves of `d` being the pairs."""
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


@dataclass(frozen=True, slots=True)
class Top:
    """The k largest values of each row, falling, and where they stand; NaN where the row has a NaN."""

    values: Float[Tensor, "row k"]
    indices: Int[Tensor, "row k"]

    @classmethod
    def none(cls, rows: int, k: int, device: torch.device) -> "Top":
        """Nothing seen yet."""
        return cls(
            torch.full((rows, k), float("-inf"), device=device), torch.zeros(rows, k, dtype=torch.int64, device=device)
        )


def top_k(x: Float[Tensor, "row n"], first: int, so_far: Top) -> Top:
    """The largest of `so_far` and of `x`, whose columns count from `first`; may overwrite `so_far`."""
    library = native().library
    k = so_far.values.shape[1]
    if library is None or not runs_native(x, so_far.values):
        here = _largest(x, min(k, x.shape[1]))
        values = torch.cat((so_far.values, here.values.to(so_far.values)), -1)
        indices = torch.cat((so_far.indices, here.indices + first), -1)
        best = _largest(values, k)
        return Top(best.values, indices.gather(1, best.indices))
    library.ps_top_k(x.data_ptr(), *x.shape, x.stride(0), k, first, so_far.values.data_ptr(), so_far.indices.data_ptr())
    return so_far


def _largest(x: Float[Tensor, "row n"], k: int) -> Top:
    """The k largest; of equal ones the first where k is 1, as greedy decoding has it (topk takes any)."""
    found = x.topk(k, dim=-1) if k > 1 else x.max(dim=-1, keepdim=True)
    return Top(found.values, found.indices)


def softmax_sums(x: Float[Tensor, "row n"]) -> Float[Tensor, "row 3"]:
    """Per row the largest x, Σ e^(x − largest), and Σ (x − largest) · e^(x − largest)."""
    library = native().library
    if library is None or not runs_native(x):
        high = x.amax(dim=-1, keepdim=True)
        below = x - torch.where(high == float("-inf"), 0, high)  # nothing but −∞: sums of nothing
        weights = below.exp()
        weighted = torch.where(weights > 0, below * weights, 0)
        return torch.cat((high, weights.sum(-1, keepdim=True), weighted.sum(-1, keepdim=True)), dim=-1)
    sums = x.new_empty(x.shape[0], 3)
    library.ps_softmax_sums(x.data_ptr(), *x.shape, x.stride(0), sums.data_ptr())
    return sums
