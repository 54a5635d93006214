"""Lenses on a real model."""

import pytest

from patchscopes.data import load_prose
from patchscopes.lenses import TunedOptions, fit_tuned_lens, lens_table
from patchscopes.models import Model

pytestmark = pytest.mark.real


def test_a_short_training_reads_middle_layers_better(smol: Model) -> None:
    """On a tenth of the text that there is: least squares is far nearer than the logit lens, and training more."""
    options = TunedOptions(layers=(10, 20), n_validation=128, n_held_out=256)
    lens = fit_tuned_lens(smol, load_prose().items[::10], options=options)
    for layer in (10, 20):
        found, quality = lens.fitted["layers"][str(layer)], lens[layer, 30].quality
        assert quality is not None
        assert quality.kl is not None
        assert quality.kl < 0.97 * found["kl_affine"] < 0.5 * found["kl_logit_lens"]
    table = lens_table(smol, "The capital of France is the city of", lens, layers=(10, 20, 30))
    assert table[30, table.cells[-1].position].top[0].token == " Paris"
