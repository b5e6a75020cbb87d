"""Recognise a model's weights at any precision and in any format, by the weights of its last norm.

Quantisation and conversion leave norms unchanged except for rounding, so INT4 and INT8 IR, float16
safetensors and files converted from GGUF share them. A model that was trained further has different norms.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.models import tensors
from specport.models.safe_files import regular
from specport.models.tensors import Stored

SIZE = 64  # number of weights in a sketch
# Allowed mean difference of two sketches, in standard deviations of the weights, plus the effect of
# rounding their mean to bfloat16 (8 bits). INT4, INT8 and BF16 of SmolLM2-135M differ by 0, and from
# Qwen2.5-1.5B by 0.6.
_TOLERANCE, _ROUNDING = 0.02, 2.0**-9
_XML, _BIN = "openvino_model.xml", "openvino_model.bin"
_MOST_BYTES = 1 << 28
_NORM = re.compile(r"(?:[\w]+\.)*?(?:model|language_model)\.norm")
_OPERATION = re.compile(rf"__module\.{_NORM.pattern}/aten::mul/Multiply\w*")

Array = NDArray[np.float32]


def sketch(folder: Path) -> tuple[float, ...]:
    """Return the mean of the last norm in standard deviations, then SIZE of its weights, standardised.

    Standardised means shifted to mean 0 and scaled to deviation 1. The shift is needed since converters add 1
    to the norm weights of gemma. Empty where no such norm is found, or where all its weights are equal.
    """
    values = last_norm(folder)
    if values is None or values.size < SIZE // 2 or not np.isfinite(values).all() or not values.std() > 1e-6:
        return ()
    mean, deviation = values.mean(), values.std()
    chosen = values[np.linspace(0, values.size - 1, min(SIZE, values.size)).round().astype(int)]
    return tuple(round(float(value), 4) for value in (mean / deviation, *(chosen - mean) / deviation))


def last_norm(folder: Path) -> Array | None:
    """Return the weights [width] of the last norm of the model in `folder`; None where it is not found."""
    try:
        return _of_ir(folder) if (folder / _XML).is_file() else _of_safetensors(folder)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, ET.ParseError):
        return None


def same(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two sketches are of the same weights; True where one is empty (nothing is known)."""
    if not one or not other:
        return True
    if len(one) != len(other):
        return False
    allowed = _TOLERANCE + _ROUNDING * max(abs(one[0]), abs(other[0]))
    return bool(np.abs(np.subtract(one[1:], other[1:])).mean() <= allowed)


def _of_ir(folder: Path) -> Array | None:
    """Return the constant that the last norm multiplies by, possibly behind a conversion to float32."""
    path = regular(folder / _XML)
    if path.stat().st_size > _MOST_BYTES:
        return None
    root = ET.parse(path).getroot()  # resolves no external entities; the runtime parses the file next
    layers = {layer.get("id"): layer for layer in root.iterfind("layers/layer")}
    sources: dict[str | None, list[str | None]] = {}
    for edge in root.iterfind("edges/edge"):
        sources.setdefault(edge.get("to-layer"), []).append(edge.get("from-layer"))
    for number, layer in layers.items():
        if layer.get("type") != "Multiply" or not _OPERATION.fullmatch(layer.get("name", "")):
            continue
        for source in sources.get(number, ()):
            found = layers[source]
            if found.get("type") == "Convert":
                found = layers[sources[source][0]]
            data = found.find("data")
            if found.get("type") == "Const" and data is not None and int(data.attrib["size"]) >= SIZE:
                start, size = int(data.attrib["offset"]), int(data.attrib["size"])
                kind = data.attrib["element_type"].upper()
                count = size // tensors.ITEM_BYTES[kind]
                return _floats(Stored(regular(folder / _BIN), kind, (count,), start, size))
    return None


def _of_safetensors(folder: Path) -> Array | None:
    for path in sorted(folder.glob("*.safetensors")):
        for name, stored in tensors.header(path).items():
            if name.endswith(".weight") and _NORM.fullmatch(name.removesuffix(".weight")):
                return _floats(stored)
    return None


def _floats(stored: Stored) -> Array:
    """Return a vector of floating-point numbers in a file, as float32. Raises ValueError for another kind."""
    if stored.kind not in tensors.FLOATS or not (stored.start >= 0 and 0 <= stored.size <= _MOST_BYTES):
        raise ValueError(f"{stored.path} has no such vector")
    return stored.array().astype(np.float32)
