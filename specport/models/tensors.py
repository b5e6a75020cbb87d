"""Read and write safetensors files without a framework: headers, raw bytes, arrays. Files are untrusted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from specport.models.safe_files import regular
from specport.outside import plain_values
from specport.outside.numbers import Count

_MOST_BYTES = 1 << 25  # of a header; larger than any real one
_MOST_AT_ONCE = 1 << 24  # bytes that are copied at a time
ITEM_BYTES = {
    "BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
DTYPES: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("<i1"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
FLOATS = ("F32", "F16", "BF16")

Array = NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """Hold where a tensor lies in a file, as its header says.

    kind:  element type, as in "BF16".
    start: byte of the file at which it begins; size: number of its bytes.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self, first: int = 0, count: int | None = None) -> bytes:
        """Return `count` bytes from `first` on (None = all). Raises ValueError where the file is shorter."""
        wanted = self.size - first if count is None else count
        with open(self.path, "rb") as file:
            file.seek(self.start + first)
            data = file.read(wanted)
        if len(data) != wanted:
            raise ValueError(f"{self.path} is truncated")
        return data

    def array(self) -> Array:
        """Return the numbers; bfloat16 as float32. Raises ValueError for a type that numpy does not have."""
        data = self.read()
        if self.kind == "BF16":
            wide = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
            return wide.reshape(self.shape)
        if self.kind not in DTYPES:
            raise ValueError(f"a tensor of type {self.kind}")
        return np.frombuffer(data, DTYPES[self.kind]).reshape(self.shape)


class _Entry(Struct):
    """What a header says of a tensor."""

    dtype: str
    shape: Annotated[tuple[Count, ...], Meta(max_length=64)]
    data_offsets: tuple[Count, Count]


def header(path: Path) -> dict[str, Stored]:
    """Return the tensors of a file by name, from its header only.

    Raises OSError, or ValueError where the file is damaged or no regular one.
    """
    total = regular(path).stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_MOST_BYTES, total - 8):
            raise ValueError("its header is damaged")
        entries = plain_values.from_json(file.read(length))
    if isinstance(entries, dict):
        entries.pop("__metadata__", None)
    try:
        tensors = msgspec.convert(entries, dict[str, _Entry])
    except msgspec.ValidationError as error:
        raise ValueError(f"its header is damaged: {error}") from None
    found = {}
    for name, entry in tensors.items():
        (first, end), kind, shape = entry.data_offsets, entry.dtype, entry.shape
        fits = first <= end <= total - 8 - length
        item = ITEM_BYTES.get(kind)  # newer types, as those of four bits, may lie beside what is read
        if not fits or (item is not None and end - first != math.prod(shape) * item):
            raise ValueError(f"{name} lies outside of it")
        found[name] = Stored(path, kind, shape, 8 + length + first, end - first)
    return found


def in_folder(folder: Path) -> dict[str, Stored]:
    """Return the tensors of all safetensors files of a folder by name; errors as for `header`."""
    found: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= header(path)
    return found


def write(path: Path, tensors: Mapping[str, Stored | Array]) -> None:
    """Write a file with these tensors: arrays of int8, float16 or float32, and copies of stored ones."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants it
    end = 0
    for name, tensor in tensors.items():
        kind = tensor.kind if isinstance(tensor, Stored) else _kind(tensor)
        size = tensor.size if isinstance(tensor, Stored) else tensor.nbytes
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.writelines(_pieces(tensor))


def _kind(array: Array) -> str:
    return next(kind for kind, dtype in DTYPES.items() if dtype == array.dtype)


def _pieces(tensor: Stored | Array) -> Iterable[bytes]:
    if not isinstance(tensor, Stored):
        yield np.ascontiguousarray(tensor).tobytes()
        return
    for first in range(0, tensor.size, _MOST_AT_ONCE):
        yield tensor.read(first, min(_MOST_AT_ONCE, tensor.size - first))
