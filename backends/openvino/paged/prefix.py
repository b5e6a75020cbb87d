"""Blocks of a paged model's cache that outlive their sequence. Sequences share them, so keeping is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from specport.backends.openvino.paged.cache import BLOCK_SIZE, BlockCache

from specport.core.ports import CacheHandle


class HasTable(Protocol):
    """A sequence with a list of blocks."""

    @property
    def table(self) -> list[int]: ...


class PagedBlocks:
    """Implement `PrefixBlocks` on a cache of blocks.

    begin: returns a sequence for a table that holds so many committed tokens.
    """

    size, shared = BLOCK_SIZE, True

    def __init__(self, cache: BlockCache, begin: Callable[[list[int], int], CacheHandle]) -> None:
        self._cache, self._begin = cache, begin

    @property
    def most(self) -> int:
        """Return half of what the cache may grow to: it does not grow beyond for texts of the past alone."""
        return self._cache.max_blocks // 2

    def keep(self, handle: HasTable, index: int) -> int:
        block = handle.table[index]
        self._cache.keep(block)
        return block

    def open(self, blocks: Sequence[int], capacity: int) -> CacheHandle:
        table = self._cache.fork(blocks, len(blocks) * BLOCK_SIZE)
        try:
            self._cache.extend(table, capacity)
        except BaseException:
            self._cache.release(table)
            raise
        return self._begin(table, len(blocks) * BLOCK_SIZE)

    def drop(self, block: int) -> bool:
        return self._cache.drop(block)

    def dump(self, block: int) -> NDArray[np.uint8]:
        return self._cache.content(block)

    def load(self, content: NDArray[np.uint8]) -> int:
        return self._cache.filled(content)
