"""A Sweep → Requests: layers, positions and placeholders become numbers, and controls become cells (rule 16).

All that the user can get wrong is found here, before anything runs.
"""

from patchscopes.resolve.controls import CONTROLS
from patchscopes.resolve.layers import parse_layers
from patchscopes.resolve.sweep import Resolved, resolve

__all__ = ["CONTROLS", "Resolved", "parse_layers", "resolve"]
