"""Text → ids; phrases and placeholders → positions; the inspection-prompt library."""

from patchscopes.prompts.library import LIBRARY, find_prompt
from patchscopes.prompts.placeholders import Target, fill, resolve_target
from patchscopes.prompts.positions import resolve_marked, resolve_mask, resolve_positions
from patchscopes.prompts.tokens import Tokenized, continuation, tokenize, tokenize_pieces

__all__ = [
    "LIBRARY",
    "Target",
    "Tokenized",
    "continuation",
    "fill",
    "find_prompt",
    "resolve_marked",
    "resolve_mask",
    "resolve_positions",
    "resolve_target",
    "tokenize",
    "tokenize_pieces",
]
