"""The header of a GGUF file, read fast and with every length checked, and copies of a file without parts of it.

The layout (github.com/ggml-org/ggml, docs/gguf.md), little endian: magic, version, number of tensors, number of
key-value pairs; the pairs; per tensor its name, dimensions, type and offset; padding; the tensors' data.
"""

import mmap
import shutil
import struct
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from patchscopes.errors import ModelFilesError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
PREAMBLE = struct.Struct("<4sIQQ")
ALIGNMENT = 32

# struct formats of the scalar value types; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in the file: `shape` as torch has it, rows first; its bytes end at `end`, from the start of the data."""

    name: str
    shape: tuple[int, ...]
    end: int

    @property
    def n_values(self) -> int:
        """How many values its blocks stand for."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself. `metadata` has scalars and strings; of arrays, their length.

    `pairs` are the byte ranges of the key-value pairs, `table` that of the tensor table, `data_start` the first byte of
    the tensors' data.
    """

    path: Path
    metadata: Mapping[str, object]
    pairs: Mapping[str, tuple[int, int]]
    tensors: tuple[GgufTensor, ...]
    table: tuple[int, int]
    version: int
    data_start: int

    @property
    def architecture(self) -> str:
        """The kind of model, in llama.cpp's words."""
        return str(self.metadata["general.architecture"])

    @property
    def n_vocab(self) -> int:
        """Rows of the token embedding."""
        return next(tensor.shape[0] for tensor in self.tensors if tensor.name == "token_embd.weight")


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file. Raises ModelFilesError where it is damaged or no GGUF; OSError.

    A file that ends before its last tensor does is damaged. Raises UnsupportedModelError for a tensor type that the
    gguf package does not know, and for a file that is a part of a model: split, an adapter, a control vector.
    """
    size = path.stat().st_size
    if size < PREAMBLE.size:
        raise _damaged(path, f"it has {size} bytes, less than the start of any GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            header = _parse(path, data)
        except (struct.error, UnicodeDecodeError) as error:
            raise _damaged(path, f"its header cannot be read ({error})") from error
    _refuse_parts(header)
    for key in ("general.architecture", "tokenizer.ggml.tokens"):
        if key not in header.metadata:
            raise _damaged(path, f"its metadata has no {key}, so it is no language model")
    if not any(tensor.name == "token_embd.weight" for tensor in header.tensors):
        raise _damaged(path, "it has no tensor token_embd.weight, so it is no language model")
    needed = header.data_start + max(tensor.end for tensor in header.tensors)
    if size < needed:
        raise _damaged(path, f"it has {size} bytes, and its tensors end at {needed}")
    return header


def copy_gguf(
    header: GgufHeader, target: Path, *, without: AbstractSet[str] = frozenset(), with_tensors: bool = True
) -> None:
    """Write a copy of the file that lacks the metadata `without`, and all tensors where not `with_tensors`."""
    kept = [span for key, span in header.pairs.items() if key not in without]
    n_tensors = len(header.tensors) if with_tensors else 0
    with header.path.open("rb") as source, target.open("wb") as copy:
        copy.write(PREAMBLE.pack(MAGIC, header.version, n_tensors, len(kept)))
        for start, end in [*kept, header.table] if with_tensors else kept:
            source.seek(start)
            copy.write(source.read(end - start))
        if with_tensors:
            copy.write(bytes(-copy.tell() % _alignment(header.metadata)))
            # Offsets count from the start of the data, so the data need not be touched.
            source.seek(header.data_start)
            shutil.copyfileobj(source, copy, 1 << 22)


class _Cursor:
    """Reads values one after the other; struct.error where the file ends too early."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data = data
        self.position = position

    def scalar(self, code: str) -> int | float | bool:
        (value,) = self.take(struct.Struct(f"<{code}"))
        assert isinstance(value, int | float)
        return value

    def count(self, code: str = "Q") -> int:
        return int(self.scalar(code))

    def take(self, layout: struct.Struct) -> tuple[object, ...]:
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def string(self) -> str:
        return self._bytes(self.count()).decode("utf-8")

    def value(self) -> object:
        """A value with its type before it; the length of an array."""
        return self._value(self.count("I"))

    def _value(self, kind: int) -> object:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            raise struct.error(f"value type {kind} at byte {self.position}")
        return self.scalar(SCALARS[kind])

    def _array(self) -> int:
        kind, length = self.count("I"), self.count()
        if kind in SCALARS:
            self._bytes(length * struct.calcsize(SCALARS[kind]))
        elif kind == STRING:
            for _ in range(length):
                self._bytes(self.count())
        else:
            raise struct.error(f"array of type {kind} at byte {self.position}")
        return length

    def _bytes(self, length: int) -> bytes:
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise struct.error(f"{length} bytes at byte {start}, beyond the end of the file")
        return self.data[start : self.position]


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    magic, version, n_tensors, n_pairs = PREAMBLE.unpack_from(data, 0)
    if magic != MAGIC:
        raise _damaged(path, f"it begins with {magic!r}, not with {MAGIC!r}")
    if version not in VERSIONS:
        raise _damaged(path, f"it is GGUF version {version}, and {VERSIONS} in little-endian order are read")
    cursor = _Cursor(data, PREAMBLE.size)
    metadata: dict[str, object] = {}
    pairs: dict[str, tuple[int, int]] = {}
    for _ in range(n_pairs):
        start = cursor.position
        key = cursor.string()
        metadata[key] = cursor.value()
        pairs[key] = (start, cursor.position)
    table_start = cursor.position
    tensors = tuple(_tensor(path, cursor) for _ in range(n_tensors))
    table_end = cursor.position
    data_start = table_end + -table_end % _alignment(metadata)
    return GgufHeader(path, metadata, pairs, tensors, (table_start, table_end), version, data_start)


def _tensor(path: Path, cursor: _Cursor) -> GgufTensor:
    name = cursor.string()
    # The fastest-moving dimension comes first in GGUF, and last in torch.
    shape = tuple(reversed([cursor.count() for _ in range(cursor.count("I"))]))
    kind, offset = cursor.count("I"), cursor.count()
    try:
        values_per_block, bytes_per_block = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"{path.name} holds {name} as ggml type {kind}, which the installed gguf package does not know. "
            "Use another quantisation of the model, or the original."
        ) from error
    return GgufTensor(name, shape, offset + prod(shape) // values_per_block * bytes_per_block)


def _refuse_parts(header: GgufHeader) -> None:
    """Raise for a whole and sound file that is a part of a model, or something that is added to one."""
    name, metadata = header.path.name, header.metadata
    count = metadata.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        number = metadata.get("split.no", 0)
        part = number + 1 if isinstance(number, int) else "?"
        raise UnsupportedModelError(
            f"{name} is part {part} of {count} of a split GGUF file. Join the parts "
            f"(`llama-gguf-split --merge FIRST_PART WHOLE.gguf`) and give the whole file."
        )
    kind = str(metadata.get("general.type", "model"))
    architecture = str(metadata.get("general.architecture", ""))
    if kind == "adapter":
        raise UnsupportedModelError(
            f"{name} is a GGUF adapter ({metadata.get('adapter.type', 'LoRA')}), no model. Give the model, and the "
            "adapter as peft saves it: load(BASE, adapter=FOLDER); or merge it (`llama-export-lora`) and give that."
        )
    if architecture == "controlvector":
        raise UnsupportedModelError(
            f"{name} is a control vector, which is added to a model and is none; give the model."
        )
    others = {"mmproj": "the vision part of a model", "imatrix": "an importance matrix", "vocab": "a vocabulary alone"}
    other = "mmproj" if architecture == "clip" else "imatrix" if architecture == "imatrix" else kind
    if other in others:
        raise UnsupportedModelError(
            f"{name} is {others[other]} (general.type {kind!r}), no language model; give the model."
        )


def _alignment(metadata: Mapping[str, object]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    return value if isinstance(value, int) and value > 0 else ALIGNMENT


def _damaged(path: Path, reason: str) -> ModelFilesError:
    return ModelFilesError(f"{path} cannot be read as GGUF: {reason}. Download or copy it again.")
