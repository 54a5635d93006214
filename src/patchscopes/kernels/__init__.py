"""Small fused kernels for float32 on CPUs, and PyTorch's own operations where they cannot be had.

    attend        a row's new keys join its own; its queries attend to the shared prefix and to those
    rms_norm, gated, rotary        what stands between the matrix products of a block
    top_k, softmax_sums        what is read from logits
    Samples       words of tensors, compared with what they were

`kernels.cpp` is compiled once per machine, by its own compiler, and checked against PyTorch before it is used. Each
function says what it computes; the kernel is only the faster way, and `native()` tells whether it is there.
"""

from patchscopes.kernels.native import Native, native
from patchscopes.kernels.ops import Top, gated, rms_norm, rotary, softmax_sums, top_k
from patchscopes.kernels.samples import Samples

__all__ = ["Native", "Samples", "Top", "gated", "native", "rms_norm", "rotary", "softmax_sums", "top_k"]
