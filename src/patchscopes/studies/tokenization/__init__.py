"""How does the split of a name into tokens change its resolution?

Names of one, two and more tokens, matched for popularity; the same name with another split (no space before it, lower
and upper case, a typo, a cut that the tokenizer would never make); and the whole word's token among the nearest
neighbours of the state at the last piece, layer by layer.
"""

from patchscopes.studies.tokenization.study import run

__all__ = ["run"]
