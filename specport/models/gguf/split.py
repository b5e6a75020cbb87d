"""Join the parts of a split GGUF model, `NAME-00001-of-00003.gguf`, as llama.cpp's gguf-split writes them.

The metadata is in the first part; each part has the tensors of its own table. The parts are untrusted: they
may be missing, renamed, or of another model.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specport.errors import ModelError
from specport.models.gguf import file as gguf_file
from specport.models.gguf.file import ARCHITECTURE, GgufHeader, Tensor
from specport.models.gguf.values import Values

NUMBER, COUNT, TENSORS = "no", "count", "tensors.count"  # below "split."
MAX_PARTS = 10_000
_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_AGAIN = "download all parts of the model again, into one folder"
_UINT32 = 4  # a type of metadata


def parts(path: Path) -> list[Path]:
    """Return the files of the model that `path` is a part of, by their names; `[path]` for a single file.

    Raises ModelError where one is missing.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match["stem"], int(match["count"])
    if not 1 <= int(match["number"]) <= count <= MAX_PARTS:
        raise ModelError(f"{path} has the number of a part that cannot be", "give the file its own name back")
    found = [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in found if not part.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(
            f"{path} is one of {count} parts; missing: {', '.join(missing[:3])}{more}",
            f"put all parts into {path.parent}",
        )
    return found


def stem(path: Path) -> str:
    """Return the name of a model without `.gguf` and without the number of a part."""
    match = _NAME.fullmatch(path.name)
    return path.stem if match is None else match["stem"]


def first_of(files: Sequence[Path]) -> Path | None:
    """Return the only model among the .gguf files of a folder: a single file or a part of it, else None.

    Parts that are missing are reported by `parts`.
    """
    kinds = {(match["stem"], match["count"]) if (match := _NAME.fullmatch(p.name)) else p for p in files}
    return min(files) if len(kinds) == 1 else None


def read(path: Path) -> GgufHeader:
    """Return the header of the whole model that `path` is, or is a part of. Raises ModelError."""
    files = parts(path)
    headers = [gguf_file.read_header(file) for file in files]
    first = headers[0]
    total = _number(first, COUNT, 1)
    if len(files) == 1 and total <= 1:
        return first
    if total != len(files):
        named = f"says {len(files)}" if len(files) > 1 else "is not NAME-00001-of-0000N.gguf"
        count = f"{total} parts" if total > 1 else "one file"
        raise ModelError(f"{first.path} is of a model in {count}, but its name {named}", _AGAIN)
    tensors: dict[str, Tensor] = {}
    shift = 0
    for number, header in enumerate(headers):
        _check_part(header, first, number, total)
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise ModelError(f"{header.path}: tensor {name} is in an earlier part, too", _AGAIN)
            tensors[name] = tensor._replace(offset=tensor.offset + shift)
        shift += header.data[0].size
    expected = _number(first, TENSORS, len(tensors))
    if expected != len(tensors):
        raise ModelError(f"{first.path}: the parts hold {len(tensors)} tensors instead of {expected}", _AGAIN)
    return replace(first, tensors=tensors, data=tuple(part for header in headers for part in header.data))


def _check_part(header: GgufHeader, first: GgufHeader, number: int, total: int) -> None:
    """Raise ModelError where a file is not the part that its name says, or visibly of another model."""
    says = _number(header, NUMBER, -1), _number(header, COUNT, -1)
    if says != (number, total):
        what = f"part {says[0] + 1} of {says[1]}" if min(says) >= 0 else "no part of a split model"
        raise ModelError(f"{header.path} is {what}, not part {number + 1} of {total}", _AGAIN)
    others = header.architecture not in ("", first.architecture)
    if others or _number(header, TENSORS, -1) != _number(first, TENSORS, -1):
        raise ModelError(f"{header.path} is a part of another model than {first.path.name}", _AGAIN)
    if header.alignment != first.alignment:
        raise ModelError(f"{header.path} is aligned otherwise than {first.path.name}", _AGAIN)


def _number(header: GgufHeader, key: str, default: int) -> int:
    return Values(header, "split").whole(key, default)


def write_weights(header: GgufHeader, out: Path, vocab_size: int) -> None:
    """Write the model into one file without its tokenizer and descriptions, which transformers does not need.

    `{architecture}.vocab_size` replaces the vocabulary.

    transformers parses the metadata twice before it reads the weights. Almost all of that time goes into the
    strings of the tokenizer. A model's name may change how transformers reads it, so that is left out, too.
    """
    size_key, keeps = f"{header.architecture}.vocab_size", (ARCHITECTURE, gguf_file.ALIGNMENT)
    own = [key for key in header.spans if key.startswith(f"{header.architecture}.") and key != size_key]
    kept = [*(key for key in keeps if key in header.spans), *own]
    with open(header.path, "rb") as source, open(out, "wb") as target:
        counts = len(header.tensors), len(kept) + 1
        target.write(gguf_file.MAGIC + struct.pack("<IQQ", header.version, *counts))
        target.write(_string(size_key) + struct.pack("<II", _UINT32, vocab_size))
        for start, end in (header.spans[key] for key in kept):
            source.seek(start)
            target.write(source.read(end - start))
        for name, (shape, kind, offset) in header.tensors.items():
            axes = len(shape)
            target.write(_string(name) + struct.pack(f"<I{axes}QIQ", axes, *shape, kind, offset))
        for part in header.data:
            target.write(b"\0" * (-target.tell() % header.alignment))
            with open(part.path, "rb") as data:
                data.seek(part.start)
                shutil.copyfileobj(data, target, 1 << 24)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
