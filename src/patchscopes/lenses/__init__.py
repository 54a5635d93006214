"""Lenses: what the model would say if it ended at a layer. The logit lens, and tuned lenses, which are mappings."""

from patchscopes.lenses.checkpoint import load_tuned_lens, unembed_hash
from patchscopes.lenses.home import kept_lens, lens_path
from patchscopes.lenses.reading import check_lens, lens_logits
from patchscopes.lenses.results import LensCell, LensTable
from patchscopes.lenses.table import lens_table
from patchscopes.lenses.training import Schedule
from patchscopes.lenses.tuned import TunedOptions, fit_tuned_lens

__all__ = [
    "LensCell",
    "LensTable",
    "Schedule",
    "TunedOptions",
    "check_lens",
    "fit_tuned_lens",
    "kept_lens",
    "lens_logits",
    "lens_path",
    "lens_table",
    "load_tuned_lens",
    "unembed_hash",
]
