"""Read metadata of a GGUF file by type. The file is untrusted: values may be missing or of other types."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from specport.errors import ModelError
from specport.models.gguf.file import GgufHeader

T = TypeVar("T")
_REQUIRED: Any = object()
_HINT = "use a GGUF file that llama.cpp's converter made, or the model's Hugging Face folder"


class Values:
    """Read the metadata below a prefix, and remember which keys were asked for.

    Each method returns the default where the key is missing, and raises ModelError where there is none or
    where the value is of another type.
    """

    def __init__(self, header: GgufHeader, prefix: str) -> None:
        self.header, self.prefix = header, prefix
        self.read: set[str] = set()

    def get(self, key: str) -> Any:
        """Return a value of any type, None where it is missing."""
        self.read.add(key)
        return self.header.metadata.get(f"{self.prefix}.{key}")

    def whole(self, key: str, default: T = _REQUIRED) -> int | T:
        """Return an integer; of an array with a value for each layer, the one that all share."""
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if value is None and default is not _REQUIRED:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, value)
        return value

    def real(self, key: str, default: T = _REQUIRED) -> float | T:
        value = self.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(key, value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, value)
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, value)
        return value

    def wrong(self, key: str, value: Any) -> ModelError:
        what = "is missing" if value is None else f"is {_short(value)}"
        return ModelError(f"{self.header.path}: {self.prefix}.{key} {what}", _HINT)


def _short(value: Any) -> str:
    """Return a value in one line of bounded length."""
    if isinstance(value, (list, np.ndarray)):
        return f"an array of {len(value)} values"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
