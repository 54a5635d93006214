"""How a model's own modules run on this device: the same numbers to rounding, faster.

    linear      weights repacked once for the matrix kernels that are fastest here
    blocks      norms, gated MLPs and rotary embedding by small fused kernels
    head        the vocabulary in chunks: logits are read where they are made

No model's code is copied: a module is replaced only where what stands in for it gives the same on random input, and
the self-check has the last word. Functions stand in on private modules alone, which nobody else meets, and only for
modules that run by their class's own forward without hooks: all others run themselves.
"""

from patchscopes.compute.compute import Compute, compute_of, plain_compute
from patchscopes.compute.head import Head, columns_at_once

__all__ = ["Compute", "Head", "columns_at_once", "compute_of", "plain_compute"]
