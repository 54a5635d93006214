"""How rows of unequal length stand in one batch: all end at column `width`, padding on the left.

The columns of a row differ as its positions do, so masks that a model builds from columns (sliding windows, ALiBi)
hold for every row; masks and position ids are explicit (rule 9). A pass runs the last `run` columns of each row: a
row whose own part is shorter runs some of its prefix again, with the same result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.spec import Ids


@dataclass(frozen=True)
class Layout:
    """Rows of token ids in a batch `width` columns wide, of which the last `run` are run."""

    rows: Sequence[Ids]
    width: int
    run: int

    def column(self, row: int, position: int) -> int:
        """Where a position stands among the columns that are run."""
        return position + self.run - len(self.rows[row])

    def cached(self, row: int) -> int:
        """How many of a row's tokens stand before the columns that are run."""
        return max(0, len(self.rows[row]) - self.run)

    def ids(self, device: torch.device) -> Int[Tensor, "row column"]:
        """Token ids of the columns that are run; padding is id 0, which no mask lets anyone see."""
        padded = [(0,) * (self.run - len(ids[-self.run :])) + ids[-self.run :] for ids in self.rows]
        return torch.tensor(padded, device=device)

    def mask(self, device: torch.device) -> Int[Tensor, "row width"]:
        """1 for a token, 0 for padding, over all columns."""
        return (torch.arange(self.width) >= self.width - self._lengths()[:, None]).long().to(device)

    def position_ids(self, device: torch.device) -> Int[Tensor, "row column"]:
        """Positions in the unpadded tokens of the columns that are run; 0 for padding."""
        columns = torch.arange(self.width - self.run, self.width)
        return (columns - (self.width - self._lengths()[:, None])).clamp(min=0).to(device)

    def _lengths(self) -> Tensor:
        return torch.tensor([len(ids) for ids in self.rows])
