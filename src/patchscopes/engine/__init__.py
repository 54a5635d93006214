"""The engine: a Runner that computes whatever cells share once, and the rest in batches.

states       one pass per source prompt, for all its layers and positions
prompts      each inspection prompt once, as it is
start        a row per cell, from its own ℓ* on, with the write made
group        rows decode together; as some end, others take their places
candidates   given answers behind the rows, scored
"""

from patchscopes.engine.runner import Engine, default_memory_bytes
from patchscopes.engine.shape import shape_of

__all__ = ["Engine", "default_memory_bytes", "shape_of"]
