"""What it takes to go from one layer or model to another, and to mask: what cannot work is refused, with figures."""

from patchscopes.errors import LayerError, MappingError, OptionError
from patchscopes.mappings import Transfer
from patchscopes.spec import Sweep


def check_transfer(transfer: Transfer, sweep: Sweep) -> None:
    """Raise where states cannot go from M to M*: widths that differ, a mapping of others, layers that are not there."""
    source, target, mappings = transfer.source, transfer.target, transfer.mappings
    if source.dtype != target.dtype:
        raise OptionError(
            f"{source.id} is {source.dtype_name} and {target.id} is {target.dtype_name}; load both with one dtype."
        )
    if sweep.target_layers is None and (deepest := max(sweep.source_layers)) > target.n_layers:
        raise LayerError(
            f"target_layers 'same' asks for layer {deepest} of {target.id}, which has 0 to {target.n_layers}; name "
            "target_layers."
        )
    if mappings is not None:
        mappings.check(source, target)
        for pair in sweep.layer_pairs():
            _ = mappings[pair]
    elif source.d_model != target.d_model:
        raise MappingError(
            f"states of {source.id} have {source.d_model} dimensions and {target.id} needs {target.d_model}: give a "
            "mapping from one to the other (patchscopes.mappings.fit)."
        )
    masked = sweep.mask is not None or any(one.mask is not None for one in sweep.sources)
    if masked:
        source.check_masks()
