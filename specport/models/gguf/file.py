"""Read the header of one GGUF file: metadata and tensor table. Never reads or interprets weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the `gguf` package makes a
NumPy view of every string, which takes seconds for a vocabulary of 150,000 tokens; this one takes tenths. The
file is untrusted: every length is checked against the file's size before it is used.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specport.errors import ModelError
from specport.models.safe_files import UnsafeFile, regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEAD_BYTES = 20  # version and numbers of entries, behind the magic
ARCHITECTURE, ALIGNMENT = "general.architecture", "general.alignment"
MAX_ENTRIES = 1 << 18  # more metadata keys or tensors than any real model has
MAX_ELEMENTS = 1 << 22  # of all arrays of the metadata; a vocabulary has some 300,000
MAX_AXES = 4  # as in ggml
STRING, ARRAY = 8, 9
FLOAT32 = 0
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# ggml type -> (elements per block, bytes per block): only to check that the file is complete.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


class Tensor(NamedTuple):
    """Hold a row of the tensor table.

    shape:  in ggml's order, the fastest axis first.
    kind:   ggml type.
    offset: in bytes from the start of the data; that of all parts of a split model, one after the other.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Number of bytes."""
        block, size = BLOCKS[self.kind]
        return self.elements // block * size


class Data(NamedTuple):
    """Hold where the tensor data of a file begins and how many bytes it has, rounded up to the alignment."""

    path: Path
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """Hold everything before the weights of a GGUF file, or of all parts of a split model.

    metadata: key -> value; arrays of numbers are NumPy arrays, arrays of strings are lists.
    spans:    key -> its bytes in the file `path`.
    data:     the tensor data of each part.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    spans: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, Tensor]
    data: tuple[Data, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get(ARCHITECTURE, ""))

    @property
    def alignment(self) -> int:
        return int(self.metadata.get(ALIGNMENT, 32))

    def floats(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of type float32, flat. Raises ModelError for another type."""
        tensor = self.tensors[name]
        if tensor.kind != FLOAT32:
            raise ModelError(f"{self.path}: tensor {name} is not float32")
        offset = tensor.offset
        for part in self.data:
            if offset < part.size:
                return np.fromfile(part.path, "<f4", tensor.elements, offset=part.start + offset)
            offset -= part.size
        raise ModelError(f"{self.path}: tensor {name} is outside of the file")


def read_header(path: Path) -> GgufHeader:
    """Parse and check `path`. Raises ModelError when it is not a GGUF file, damaged or incomplete."""
    with _parser(path) as parser:
        return parser.header()


def read_architecture(path: Path) -> str:
    """Return the architecture, "" where the file names none. Raises ModelError like `read_header`.

    The key is mostly the first one, so that the vocabulary is not parsed, which takes tenths of a second.
    """
    with _parser(path) as parser:
        return next((str(value) for key, value in parser.entries() if key == ARCHITECTURE), "")


@contextmanager
def _parser(path: Path) -> Iterator[_Parser]:
    try:
        with open(regular(path), "rb") as file:
            if file.read(4) != MAGIC:
                raise ModelError(
                    f"{path} is not a GGUF file", "give a .gguf file, a model folder or a hub id"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield _Parser(path, data)
    except UnsafeFile as error:
        raise ModelError(str(error), "give a .gguf file, a model folder or a hub id") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


class _Parser:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4
        self.elements = 0  # of all arrays so far

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is truncated or damaged: {what}", "download the file again")

    def take(self, size: int) -> int:
        """Skip `size` bytes and return where they start."""
        start = self.at
        if size < 0 or size > len(self.data) - start:
            raise self.damaged(f"the header ends after {len(self.data)} bytes")
        self.at = start + size
        return start

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        start = self.take(self.number("Q"))
        return self.data[start : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise self.damaged(f"unknown value type {kind}")
        return self.number(SCALARS[kind])

    def array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            raise self.damaged(f"arrays of more than {MAX_ELEMENTS:,} elements")
        if kind == STRING:
            if count > (len(self.data) - self.at) // 8:
                raise self.damaged(f"an array of {count} strings does not fit")
            return [self.string() for _ in range(count)]
        if kind == ARRAY or kind not in SCALARS:
            raise self.damaged(f"unsupported array of type {kind}")
        dtype = np.dtype("<" + SCALARS[kind]) if SCALARS[kind] != "?" else np.dtype(np.bool_)
        start = self.take(count * dtype.itemsize)
        return np.frombuffer(self.data[start : self.at], dtype)

    def start(self) -> None:
        """Read version and numbers of entries. Raises ModelError."""
        self.version, self.tensor_count, self.key_count = (self.number(code) for code in "IQQ")
        if self.version not in VERSIONS:
            raise ModelError(
                f"{self.path} has GGUF version {self.version}, which is not supported",
                "use a little-endian GGUF file of version 2 or 3",
            )
        if self.tensor_count > MAX_ENTRIES or self.key_count > MAX_ENTRIES:
            raise self.damaged(f"{self.tensor_count} tensors, {self.key_count} keys")

    def entries(self) -> Iterator[tuple[str, Any]]:
        """Yield each metadata key with its value, parsed one at a time."""
        self.start()
        for _ in range(self.key_count):
            key = self.string()
            yield key, self.value(self.number("I"))

    def header(self) -> GgufHeader:
        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        end = self.at + HEAD_BYTES
        for key, value in self.entries():
            metadata[key] = value
            spans[key], end = (end, self.at), self.at
        tensors: dict[str, Tensor] = {}
        for _ in range(self.tensor_count):
            name = self.string()
            axes = self.number("I")
            if axes > MAX_AXES or name in tensors:
                raise self.damaged(f"tensor {name} has {axes} axes or stands there twice")
            shape = tuple(self.number("Q") for _ in range(axes))
            tensors[name] = Tensor(shape, self.number("I"), self.number("Q"))
        alignment = metadata.get(ALIGNMENT, 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise self.damaged(f"alignment {alignment!r}")
        start = -(-self.at // alignment) * alignment
        self.check_complete(tensors, start)
        size = -(-max(len(self.data) - start, 0) // alignment) * alignment
        return GgufHeader(self.path, self.version, metadata, spans, tensors, (Data(self.path, start, size),))

    def check_complete(self, tensors: Mapping[str, Tensor], start: int) -> None:
        for name, tensor in tensors.items():
            if tensor.kind not in BLOCKS:
                raise ModelError(
                    f"{self.path}: tensor {name} has the unknown ggml type {tensor.kind}",
                    "use a file with another quantisation",
                )
            if tensor.shape and tensor.shape[0] % BLOCKS[tensor.kind][0]:
                raise self.damaged(f"tensor {name} has rows of {tensor.shape[0]} weights")
            end = start + tensor.offset + tensor.size
            if end > len(self.data):
                raise self.damaged(f"tensor {name} ends at byte {end} of {len(self.data)}")
