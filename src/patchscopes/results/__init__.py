"""Rows, in a stable order, as a table, pandas, Arrow, CSV, JSON or a figure. Nothing here imports torch.

What is only needed to show or to convert (rich, matplotlib, pandas, pyarrow) is imported when it is asked for.
"""

from patchscopes.results.results import Results
from patchscopes.results.rows import row_from_json, row_to_json

__all__ = ["Results", "row_from_json", "row_to_json"]
