"""The engine: a Runner that computes whatever cells share once, and the rest in batches.

capture   one pass per source prompt, for all its layers and positions
prefix    the inspection prompt up to the placeholder, once
prefill   the rest of the prompt, a row per cell, each row written at its own layer
decode    all rows together, with a KV cache
"""

from patchscopes.engine.runner import Engine, default_memory_bytes

__all__ = ["Engine", "default_memory_bytes"]
