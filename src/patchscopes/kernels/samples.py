"""Words at some places of many tensors, as they were, and whether they still are."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchscopes.kernels.native import native


@dataclass(frozen=True, slots=True)
class Sample:
    """Places of a tensor's words, and the words that stood there; one axis each. Raises ValueError for other shapes."""

    words: Tensor
    places: Tensor
    before: Tensor

    def __post_init__(self) -> None:
        shapes = self.words.dim() == self.places.dim() == 1 and self.places.shape == self.before.shape
        if not shapes or self.places.dtype != torch.int64 or self.before.dtype != self.words.dtype:
            raise ValueError(
                f"a sample was given words {tuple(self.words.shape)} {self.words.dtype}, places "
                f"{tuple(self.places.shape)} {self.places.dtype} and {tuple(self.before.shape)} {self.before.dtype}; "
                "it needs one axis each, places as int64, and a word for each place"
            )

    @property
    def takes_kernel(self) -> bool:
        """Return whether the kernel reads it: 64 bits a word, on the CPU, one behind the other."""
        parts = (self.words, self.places, self.before)
        return all(p.dtype == torch.int64 and p.device.type == "cpu" and p.is_contiguous() for p in parts)


class Samples:
    """Samples of many tensors. The caller answers for it that no tensor was freed or moved since this was made.

    Raises ValueError for a place beyond the words.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)
        ends: dict[int, tuple[int, int]] = {}  # many samples share their places
        for sample in self._samples:
            low, high = ends.get(id(sample.places)) or _ends(sample.places)
            ends[id(sample.places)] = low, high
            if low < 0 or high >= len(sample.words):
                raise ValueError(f"a sample has places {low} to {high} of {len(sample.words)} words")
        self._arrays = self._as_arrays() if all(sample.takes_kernel for sample in self._samples) else None

    def _as_arrays(self) -> tuple[ctypes.Array[ctypes.c_int64], ...]:
        n = len(self._samples)
        columns = (
            [sample.words.data_ptr() for sample in self._samples],
            [sample.places.data_ptr() for sample in self._samples],
            [sample.before.data_ptr() for sample in self._samples],
            [len(sample.places) for sample in self._samples],
        )
        return tuple((ctypes.c_int64 * n)(*column) for column in columns)

    def first_differing(self) -> int | None:
        """Return the number of the first sample that differs from what it was, None where none does."""
        library = native().library
        if library is not None and self._arrays is not None:
            found = int(library.ps_differing(*self._arrays, len(self._samples)))
            return found if found < len(self._samples) else None
        for index, sample in enumerate(self._samples):
            if not torch.equal(sample.words.index_select(0, sample.places), sample.before):
                return index
        return None


def _ends(places: Tensor) -> tuple[int, int]:
    if not len(places):
        return 0, -1
    low, high = places.aminmax()
    return int(low), int(high)
