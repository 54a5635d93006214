"""What the kernels compute, each in PyTorch's own operations, and by the kernel where it can run.

A kernel reads and writes through bare pointers, so every width that it relies on is compared here first, and never by
an `assert`, which `python -O` leaves out. Shapes that do not belong together raise ValueError with and without kernels;
a layout, dtype or device that a kernel does not take runs by PyTorch. Empty tensors do too.
"""

from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchscopes.kernels.native import native

Activation = Literal["silu", "gelu"]

_FLOAT = torch.float32
_PLAIN = (Tensor, nn.Parameter)  # a subclass may keep its numbers elsewhere, or nowhere


def runs_native(*tensors: Tensor) -> bool:
    """Return whether the kernels take these: float32 on the CPU, the last axis contiguous, and a library to run."""
    if native().library is None:
        return False
    for tensor in tensors:
        if not (tensor.dtype is _FLOAT and tensor.is_cpu and type(tensor) in _PLAIN and tensor.stride()[-1] == 1):
            return False
    return True


def refuse(function: str, needed: str, **given: Tensor) -> NoReturn:
    """Raise ValueError: `function` was given tensors that do not belong together."""
    shapes = ", ".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in given.items())
    raise ValueError(f"{function} was given {shapes}; it needs {needed}")


def rms_norm(x: Float[Tensor, "*row d"], weight: Float[Tensor, " d"], eps: float) -> Float[Tensor, "*row d"]:
    """X / √(mean(x²) + eps) · weight, per row."""
    shape = x.shape
    if not shape or shape[-1:] != weight.shape:
        refuse("rms_norm", "a weight for each column of x", x=x, weight=weight)
    library, n = native().library, x.numel()
    if library is None or n == 0 or not (runs_native(x, weight) and x.is_contiguous()):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    out = torch.empty_like(x)
    d = shape[-1]
    library.ps_rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), n // d, d, eps)
    return out


def gated(
    gate: Float[Tensor, "*row d"], up: Float[Tensor, "*row d"], activation: Activation
) -> Float[Tensor, "*row d"]:
    """act(gate) · up; may overwrite `gate`. `gelu` is the tanh approximation."""
    if gate.shape != up.shape:
        refuse("gated", "gate and up of one shape", gate=gate, up=up)
    if activation not in ("silu", "gelu"):
        raise ValueError(f"gated was given the activation {activation!r}; it has silu and gelu")
    library, n = native().library, gate.numel()
    contiguous = gate.is_contiguous() and up.is_contiguous()
    if library is None or n == 0 or not (contiguous and runs_native(gate, up)):
        if activation == "silu":
            return torch.nn.functional.silu(gate) * up
        return torch.nn.functional.gelu(gate, approximate="tanh") * up
    kernel = library.ps_silu_gated if activation == "silu" else library.ps_gelu_gated
    out = gate.data_ptr()
    kernel(out, up.data_ptr(), out, n)
    return gate


def rotary(
    x: Float[Tensor, "row head d"], cos: Float[Tensor, "row_or_one d"], sin: Float[Tensor, "row_or_one d"]
) -> Float[Tensor, "row head d"]:
    """X rotated by the angles of its row, the halves of `d` being the pairs."""
    shape, angles = x.shape, cos.shape
    if len(shape) != 3 or sin.shape != angles or angles not in ((shape[0], shape[2]), (1, shape[2])) or shape[2] % 2:
        refuse("rotary", "x (row, head, d), d even, and cos and sin (row or 1, d)", x=x, cos=cos, sin=sin)
    rows, heads, d = shape
    library, strides, steps = native().library, x.stride(), cos.stride()
    native_layout = strides[1] == d and steps == sin.stride()  # the kernel has one step for both angles
    if library is None or not (native_layout and x.numel() and runs_native(x, cos, sin)):
        half = d // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * cos[:, None] + turned * sin[:, None]
    out = x.new_empty(shape)
    cos_row = 0 if angles[0] == 1 else steps[0]
    library.ps_rotary(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), rows, heads, d, strides[0], cos_row)
    return out


@dataclass(frozen=True, slots=True)
class Top:
    """The k largest values of each row, falling, and where they stand; NaN where the row has a NaN."""

    values: Float[Tensor, "row k"]
    indices: Int[Tensor, "row k"]

    @classmethod
    def none(cls, rows: int, k: int, device: torch.device) -> "Top":
        """Nothing seen yet."""
        values = torch.full((rows, k), float("-inf"), dtype=torch.float32, device=device)
        return cls(values, torch.zeros(rows, k, dtype=torch.int64, device=device))


def top_k(x: Float[Tensor, "row n"], first: int, so_far: Top) -> Top:
    """The largest of `so_far` and of `x`, whose columns count from `first`; may overwrite `so_far`."""
    values, indices = so_far.values, so_far.indices
    shape, kept = x.shape, values.shape
    if len(shape) != 2 or len(kept) != 2 or kept[0] != shape[0] or indices.shape != kept or not (shape[1] and kept[1]):
        needed = "x (row, n) and, for the same rows, values and indices (row, k), n and k at least 1"
        refuse("top_k", needed, x=x, values=values, indices=indices)
    rows, n = shape
    k = kept[1]
    library = native().library
    if (
        library is None
        or not (rows and runs_native(x, values) and values.is_contiguous())
        or not (indices.dtype is torch.int64 and indices.is_cpu and indices.is_contiguous())
    ):
        here = _largest(x, min(k, n))
        values = torch.cat((values, here.values.to(values)), -1)
        best = _largest(values, k)
        return Top(best.values, torch.cat((indices, here.indices + first), -1).gather(1, best.indices))
    library.ps_top_k(x.data_ptr(), rows, n, x.stride()[0], k, first, values.data_ptr(), indices.data_ptr())
    return so_far


def _largest(x: Float[Tensor, "row n"], k: int) -> Top:
    """The k largest; of equal ones the first where k is 1, as greedy decoding has it (topk takes any)."""
    found = x.topk(k, dim=-1) if k > 1 else x.max(dim=-1, keepdim=True)
    return Top(found.values, found.indices)


def softmax_sums(x: Float[Tensor, "row n"]) -> Float[Tensor, "row 3"]:
    """Per row the largest x, Σ e^(x − largest), and Σ (x − largest) · e^(x − largest)."""
    shape = x.shape
    if len(shape) != 2 or not shape[1]:
        refuse("softmax_sums", "x (row, n), n at least 1", x=x)
    rows, n = shape
    library = native().library
    if library is None or not (rows and runs_native(x)):
        high = x.amax(dim=-1, keepdim=True)
        below = x - torch.where(high == float("-inf"), 0, high)  # nothing but −∞: sums of nothing
        weights = below.exp()
        weighted = torch.where(weights > 0, below * weights, 0)
        return torch.cat((high, weights.sum(-1, keepdim=True), weighted.sum(-1, keepdim=True)), dim=-1)
    sums = x.new_empty((rows, 3))
    library.ps_softmax_sums(x.data_ptr(), rows, n, x.stride()[0], sums.data_ptr())
    return sums
