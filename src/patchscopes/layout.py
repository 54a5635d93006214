"""How texts of unequal length stand in one batch: all end at the same column, padding on the left.

The columns of a row differ as its positions do, so masks that a model builds from columns (sliding windows, ALiBi)
hold for every row; masks and position ids are explicit (rule 9).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.spec import Ids


@dataclass(frozen=True)
class Layout:
    """Rows of token ids in a batch as wide as the longest; of each, positions that no other token may see."""

    rows: Sequence[Ids]
    masked: Sequence[tuple[int, ...]] = ()

    @property
    def width(self) -> int:
        """How many columns there are."""
        return max(map(len, self.rows))

    def column(self, row: int, position: int) -> int:
        """Where a position stands among the columns."""
        return position + self.width - len(self.rows[row])

    def ids(self, device: torch.device) -> Int[Tensor, "row column"]:
        """Token ids; padding is id 0, which no mask lets anyone see."""
        return torch.tensor(
            [(0,) * (self.width - len(ids)) + ids for ids in self.rows], dtype=torch.long, device=device
        )

    def mask(self, device: torch.device) -> Int[Tensor, "row column"]:
        """1 for a token, 0 for padding and for what is masked."""
        mask = (self._positions() >= 0).long()
        for row, hidden in enumerate(self.masked):
            mask[row, [self.column(row, position) for position in hidden]] = 0
        return mask.to(device)

    def position_ids(self, device: torch.device) -> Int[Tensor, "row column"]:
        """Positions in the unpadded tokens; 0 for padding."""
        return self._positions().clamp(min=0).to(device)

    def _positions(self) -> Int[Tensor, "row column"]:
        lengths = torch.tensor([len(ids) for ids in self.rows], dtype=torch.long, device="cpu")
        return torch.arange(self.width, dtype=torch.long, device="cpu") - (self.width - lengths[:, None])
