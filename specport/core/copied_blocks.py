"""Kept blocks for caches whose memory sequences cannot share: copies of rows, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specport.core.ports import CacheHandle

Bytes = NDArray[np.uint8]


class RowCopies(Protocol):
    """Copy rows of a sequence's cache to the host and back."""

    def open(self, capacity: int) -> CacheHandle:
        """Open a sequence, as `Model.open`."""
        ...

    def read_rows(self, handle: Any, start: int, stop: int) -> Bytes:
        """Return a copy of the rows of the tokens from `start` to `stop`, which are committed."""
        ...

    def write_rows(self, handle: Any, content: Bytes, num_tokens: int) -> None:
        """Append rows from `read_rows` as committed tokens; there is room for them."""
        ...


class CopiedBlocks:
    """Implement `PrefixBlocks` by copies.

    rows:        of the model.
    token_bytes: bytes of a token's row in all layers.
    most_bytes:  bytes of all copies together, at most.
    size:        tokens of a block.
    """

    shared = False

    def __init__(self, rows: RowCopies, token_bytes: int, most_bytes: int, size: int = 32) -> None:
        self._rows, self.size = rows, size
        self._nbytes = token_bytes * size
        self.most = most_bytes // self._nbytes

    def keep(self, handle: Any, index: int) -> Bytes:
        return self._rows.read_rows(handle, index * self.size, (index + 1) * self.size)

    def open(self, blocks: Sequence[Bytes], capacity: int) -> CacheHandle:
        handle = self._rows.open(max(capacity, len(blocks) * self.size))
        for block in blocks:
            self._rows.write_rows(handle, block, self.size)
        return handle

    def drop(self, block: Bytes) -> bool:
        return False

    def dump(self, block: Bytes) -> Bytes:
        return block

    def load(self, content: Bytes) -> Bytes:
        if content.nbytes != self._nbytes:
            raise ValueError(f"a block of {self._nbytes} bytes, not {content.nbytes}")
        return content
