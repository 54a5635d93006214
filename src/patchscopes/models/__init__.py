"""Names → weights → a Model. The only files that know HF's class layout."""

from patchscopes.models.calm import calm
from patchscopes.models.checks import first_of
from patchscopes.models.linears import matrix_of
from patchscopes.models.loading import LoadOptions, load_by_name, wrap_in_memory
from patchscopes.models.model import Columns, Inputs, Model
from patchscopes.models.tree import Replacements, Tree, Trees, runs_alone
from patchscopes.models.watch import is_built_in
from patchscopes.models.wrapped import check_tokenizer

__all__ = [
    "Columns",
    "Inputs",
    "LoadOptions",
    "Model",
    "Replacements",
    "Tree",
    "Trees",
    "calm",
    "check_tokenizer",
    "first_of",
    "is_built_in",
    "load_by_name",
    "matrix_of",
    "runs_alone",
    "wrap_in_memory",
]
