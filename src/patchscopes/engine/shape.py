"""What a plan needs to know of a model."""

from patchscopes.kv import sharing
from patchscopes.models import Model
from patchscopes.plan import ModelShape


def shape_of(model: Model) -> ModelShape:
    """Return the sizes of `model`, and whether its rows share a prefix."""
    return ModelShape(
        n_layers=model.n_layers,
        d_model=model.d_model,
        d_vocab=model.d_vocab,
        kv_bytes_per_token=model.kv_bytes_per_token,
        n_matrix_parameters=model.n_matrix_parameters,
        itemsize=model.dtype.itemsize,
        shares_prefix=sharing(model) == "shared",
    )
