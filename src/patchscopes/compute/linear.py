"""Linear layers on float32 CPUs through oneDNN, with weights repacked once.

PyTorch's default there is MKL, whose kernels are less than half as fast on some processors (docs/performance.md). Both
round to float32 and no lower. Repacked weights are a second copy: where memory is short the plain ones serve, a few
percent slower.
"""

from collections.abc import Callable, Iterable
from functools import partial

import psutil
import torch
from torch import Tensor, nn

from patchscopes.models import matrix_of

LinearFunction = Callable[[Tensor], Tensor]

# What a packing is optimised for; others run as well (docs/performance.md).
PACKED_FOR_ROWS = 480
CLOSE = 1e-4


def available() -> bool:
    """Whether this PyTorch has what is needed: the operators that its own compiler packs weights with."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def takes(weight: Tensor) -> bool:
    """Whether a weight can be packed: a plain float32 matrix on the CPU."""
    return type(weight.data) is Tensor and weight.dtype == torch.float32 and weight.device.type == "cpu"


def pack(weight: Tensor, bias: Tensor | None, *, repack: bool) -> LinearFunction:
    """The function x ↦ x·weightᵀ + bias; `weight` has shape (out, in)."""
    weight = weight.detach()
    ready = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS) if repack else weight.contiguous()
    return partial(_run, torch.ops.mkldnn._linear_pointwise.default, ready, None if bias is None else bias.detach())


def _run(product: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return product(x, weight, bias, "none", [], "")


def linear_functions(modules: Iterable[nn.Module], *, repack: bool) -> dict[nn.Module, LinearFunction]:
    """A function for each Linear and Conv1D of `modules` that can be packed and agrees with its own module."""
    found = {}
    for module in modules:
        matrix = matrix_of(module)
        if matrix is None or not takes(matrix.weight):
            continue
        function = pack(matrix.weight, matrix.bias, repack=repack)
        if agrees(module, function, matrix.weight.shape[1]):
            found[module] = function
    return found


def agrees(module: Callable[[Tensor], Tensor], function: LinearFunction, d_in: int) -> bool:
    """Whether the two give the same on random input, to rounding."""
    x = torch.randn(3, 1, d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    expected = module(x)
    same: bool = torch.allclose(function(x), expected, rtol=CLOSE, atol=CLOSE * float(expected.abs().max()))
    return same


def room_to_repack(n_bytes: int) -> bool:
    """Whether a second copy of the weights leaves at least half of what is free."""
    return bool(2 * n_bytes <= psutil.virtual_memory().available)
