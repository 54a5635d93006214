"""Samples of the content of tensors: what tells a change that leaves no trace in Python.

A tensor is read as 64-bit words, in the order of memory. A set of samples has a word of each row and, with them, of
each column of every matrix; several sets are taken while the tensor is known to be what it is, and each look compares
another one. Small tensors, and models that are small as a whole, are kept whole. Tensors with gaps in memory (a slice
of columns) are read by elements.

Axes: matrix (all axes but the last two), row, word (of a row).
"""

import hashlib
import math
import random
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.kernels.samples import Sample, Samples

SETS = 4
WHOLE_BYTES = 1 << 14
# A model is kept whole up to here.
SMALL_BYTES = 1 << 21
HASH_BYTES_PER_S = 1e9
CHANGED = "values of {} changed without a trace in Python (as through .data)"
WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


class Probes:
    """Samples of tensors as they are when this is made. Tensors on `meta`, and those that have no words, have none."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        there = {path: words for path, tensor in tensors.items() if (words := words_of(tensor)) is not None}
        self.n_bytes = sum(words.numel() * words.element_size() for words in there.values())
        self._tensors = {path: tensors[path] for path in there}
        self._places: dict[tuple[int, int, int, torch.device], tuple[Tensor, ...]] = {}
        self._whole: dict[tuple[int, torch.device], Tensor] = {}
        self._random = random.Random(0)
        # Read by the kernel all together, and the others (other devices, words of other sizes) one by one.
        self._paths: tuple[list[str], list[str]] = ([], [])
        sets: tuple[list[list[Sample]], list[list[Sample]]] = ([[] for _ in range(SETS)], [[] for _ in range(SETS)])
        self._gapped = {path: self._between_gaps(tensors[path]) for path in there if _has_gaps(tensors[path])}
        there = {path: words for path, words in there.items() if path not in self._gapped}
        for path, words in there.items():
            several = self._samples(tensors[path], words)
            kind = 0 if several[0].takes_kernel else 1
            self._paths[kind].append(path)
            for k, into in enumerate(sets[kind]):
                into.append(several[k % len(several)])
        self._sets = tuple([Samples(one) for one in of_kind] for of_kind in sets)
        self._looks = 0
        self._hashes: dict[str, str] | None = None
        self._found: list[str] = []  # by their hash, and so not by their samples

    @property
    def hash_s(self) -> float:
        """About how long it takes to hash all of them."""
        return self.n_bytes / HASH_BYTES_PER_S

    def changes(self) -> Iterator[str]:
        """Yield a tensor of which a sample differs from what it was; each call looks at another set of samples.

        Only for tensors of which pointer, shape and strides are what they were.
        """
        yield from self._found
        self._looks += 1
        for path, elements in self._gapped.items():
            at, before = elements[self._looks % len(elements)]
            if not torch.equal(_bits(self._tensors[path][at]), before):
                yield CHANGED.format(path)
        for paths, sets in zip(self._paths, self._sets, strict=True):
            if (index := sets[self._looks % SETS].first_differing()) is not None:
                yield CHANGED.format(paths[index])

    def hash_changes(self) -> list[str]:
        """Return the tensors that differ anywhere from what they were when this was called first."""
        hashes = {path: _hash(tensor) for path, tensor in self._tensors.items()}
        before = self._hashes if self._hashes is not None else hashes
        self._hashes = before
        self._found = [f"values of {path} changed" for path in hashes if hashes[path] != before[path]]
        return self._found

    def _samples(self, tensor: Tensor, words: Tensor) -> list[Sample]:
        """Return one sample for each set, or one for all where the tensor is kept whole."""
        n_bytes = words.numel() * words.element_size()
        if self.n_bytes <= SMALL_BYTES or n_bytes <= WHOLE_BYTES or tensor.dim() < 2:
            key = (words.numel(), words.device)
            if key not in self._whole:
                self._whole[key] = torch.arange(words.numel(), dtype=torch.int64, device=words.device)
            places: tuple[Tensor, ...] = (self._whole[key],)
        else:
            rows, columns = tensor.shape[-2:] if tensor.is_contiguous() else tensor.shape[-2:][::-1]
            matrices = tensor.numel() // (rows * columns)
            places = self._wandering(matrices, rows, words.numel() // (matrices * rows), words.device)
        return [Sample(words, at, words.index_select(0, at)) for at in places]

    def _between_gaps(self, tensor: Tensor) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        """Return sets of elements, by their index along each axis, with their values: words would be a copy's."""
        if self.n_bytes <= SMALL_BYTES or tensor.numel() * tensor.element_size() <= WHOLE_BYTES or tensor.dim() < 2:
            places: tuple[Tensor, ...] = (torch.arange(tensor.numel(), dtype=torch.int64, device=tensor.device),)
        else:
            rows, columns = tensor.shape[-2:]
            places = self._wandering(tensor.numel() // (rows * columns), rows, columns, tensor.device)
        found = [torch.unravel_index(at, tensor.shape) for at in places]
        return [(at, _bits(tensor[at])) for at in found]

    def _wandering(self, matrices: int, rows: int, words: int, device: torch.device) -> tuple[Tensor, ...]:
        """Sets of places, one word of each row (more of short matrices), such that all words of a row are met."""
        key = (matrices, rows, words, device)
        if key not in self._places:
            step = torch.arange(max(rows, words), dtype=torch.int64, device=device)
            first = torch.arange(matrices, dtype=torch.int64, device=device)[:, None] * (rows * words)
            sets = []
            for _ in range(SETS):
                stride = self._random.choice([n for n in range(1, min(words, 64) + 1) if math.gcd(n, words) == 1])
                start = self._random.randrange(words)
                sets.append((first + (step % rows) * words + (step * stride + start) % words).reshape(-1))
            self._places[key] = tuple(sets)
        return self._places[key]


def words_of(tensor: Tensor) -> Int[Tensor, " word"] | None:
    """Return a tensor's memory as whole numbers, 64 bits each where its rows allow; None where it cannot be had."""
    if tensor.device.type == "meta" or not tensor.numel():
        return None
    try:
        flat = tensor.detach()
        if tensor.dim() and not _is_dense(tensor):
            flat = flat.contiguous()
        flat = flat.as_strided((tensor.numel(),), (1,), flat.storage_offset())
        row_bytes = (tensor.shape[-1] if tensor.dim() else 1) * tensor.element_size()
        aligned = row_bytes % 8 == 0 and flat.data_ptr() % 8 == 0 and (flat.numel() * flat.element_size()) % 8 == 0
        return flat.view(WORDS[8 if aligned and tensor.is_contiguous() else tensor.element_size()])
    except (RuntimeError, NotImplementedError, TypeError, KeyError):
        return None  # a subclass that keeps its numbers otherwise


def _bits(elements: Tensor) -> Tensor:
    """Return elements as whole numbers, so that numbers that are none are equal to themselves."""
    return elements.detach().contiguous().view(WORDS[elements.element_size()])


def _has_gaps(tensor: Tensor) -> bool:
    """Return whether its elements do not fill one piece of memory, so that its words are those of a copy."""
    return tensor.dim() > 0 and not _is_dense(tensor)


def _is_dense(tensor: Tensor) -> bool:
    """Return whether its elements fill one piece of memory, in whatever order of its axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _hash(tensor: Tensor) -> str:
    words = words_of(tensor)
    return "" if words is None else hashlib.sha256(words.cpu().numpy().data).hexdigest()
