"""What a plan needs to know of a model."""

import torch

from patchscopes.compute import columns_at_once
from patchscopes.compute.attention import (
    OWN_MASK_BYTES,
    OWN_SCORE_BYTES,
    PLAIN_MASK_BYTES,
    PLAIN_SCORE_BYTES,
    kernel_runs,
)
from patchscopes.kv import sharing
from patchscopes.models import Model
from patchscopes.plan import ModelShape


def shape_of(model: Model) -> ModelShape:
    """Return the sizes of `model`, and whether its rows share a prefix."""
    row_pair_bytes, text_pair_bytes = _pair_bytes(model)
    return ModelShape(
        n_layers=model.n_layers,
        d_model=model.d_model,
        d_vocab=model.d_vocab,
        kv_bytes_per_token=model.kv_bytes_per_token,
        n_matrix_parameters=model.n_matrix_parameters,
        itemsize=model.dtype.itemsize,
        shares_prefix=sharing(model) == "shared",
        head_columns=columns_at_once(model),
        row_pair_bytes=row_pair_bytes,
        text_pair_bytes=text_pair_bytes,
    )


def _pair_bytes(model: Model) -> tuple[int, int]:
    """Return what attention makes for each pair of tokens: of rows beside their prefix, and of whole texts."""
    config = model.hf.config.get_text_config(decoder=True)
    n_heads = int(config.num_attention_heads)
    d_head = int(getattr(config, "head_dim", None) or model.d_model // n_heads)
    eager = config._attn_implementation in ("eager", None)  # the others have no scores in memory, but may have a mask
    texts = OWN_MASK_BYTES + (OWN_SCORE_BYTES * n_heads if eager else 0)
    if sharing(model) != "shared":
        return texts, texts
    like = [
        torch.empty(1, d, dtype=model.dtype, device=model.device)
        for d in (d_head, int(getattr(config, "v_head_dim", None) or d_head))
    ]
    return 0 if kernel_runs(*like) else PLAIN_MASK_BYTES + PLAIN_SCORE_BYTES * n_heads, texts
