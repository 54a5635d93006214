"""f: mappings between layers and between models, fitted on text, saved with the weights that they belong to."""

from patchscopes.mappings.agreeing import Agreeing, agreeing_positions
from patchscopes.mappings.fitting import LINEAR, fit, fit_several, held_out_quality, moments_of
from patchscopes.mappings.mapping import Kind, Mapping, Mappings, Pair, Quality, Side, Transfer
from patchscopes.mappings.moments import Moments
from patchscopes.mappings.texts import FitOptions

__all__ = [
    "LINEAR",
    "Agreeing",
    "FitOptions",
    "Kind",
    "Mapping",
    "Mappings",
    "Moments",
    "Pair",
    "Quality",
    "Side",
    "Transfer",
    "agreeing_positions",
    "fit",
    "fit_several",
    "held_out_quality",
    "moments_of",
]
