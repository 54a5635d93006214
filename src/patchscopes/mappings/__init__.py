"""f: mappings between layers and between models, fitted on text, saved with the weights that they belong to."""

from patchscopes.mappings.mapping import Kind, Mapping, Mappings, Pair, Quality, Side, Transfer

__all__ = ["Kind", "Mapping", "Mappings", "Pair", "Quality", "Side", "Transfer"]
