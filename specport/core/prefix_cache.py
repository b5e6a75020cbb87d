"""The prefix cache: blocks of committed tokens, found again by their tokens and all tokens before them.

Equal names of blocks mean equal texts up to the block's end (`block_names.py`). The least recently used block
goes first, and of one text its last block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specport.core.block_names import chained
from specport.core.ports import CacheHandle, KeptBlock, Model, PrefixBlocks
from specport.errors import ContextFull

_AT_ONCE = 16  # blocks to free where room is short: one by one would take a round each


class BlockStore(Protocol):
    """Store the content of blocks beyond the life of this process. Nothing here raises."""

    def has(self, name: bytes) -> bool:
        """Return whether a block is stored."""
        ...

    def get(self, name: bytes) -> NDArray[np.uint8] | None:
        """Return a block's content; None where it is not stored (any more)."""
        ...

    def put(self, name: bytes, content: NDArray[np.uint8]) -> None:
        """Store a block's content, which the caller does not change any more."""
        ...

    def touch(self, name: bytes) -> None:
        """Mark a stored block as used."""
        ...

    def discard(self, name: bytes) -> None:
        """Remove a block that turned out not to be this model's."""
        ...

    def flush(self) -> None:
        """Wait until all blocks are stored."""
        ...


class PrefixCache:
    """Own the kept blocks of one model. Not thread-safe: the engine serializes the calls.

    blocks: keeps them (`Model.prefix_blocks`).
    store:  holds them for later processes too; None = memory only.
    """

    def __init__(self, model: Model, blocks: PrefixBlocks, store: BlockStore | None = None) -> None:
        self._model, self._blocks, self._store = model, blocks, store
        self._kept: OrderedDict[bytes, KeptBlock] = OrderedDict()  # least recently used first

    @classmethod
    def of(cls, model: Model, store: BlockStore | None = None) -> PrefixCache | None:
        """Return a prefix cache for a model; None where the model cannot keep blocks."""
        return None if model.prefix_blocks is None else cls(model, model.prefix_blocks, store)

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks in memory."""
        return len(self._kept)

    def held(self, tokens: Sequence[int]) -> int:
        """Return how many of the first tokens are in memory and take no more room; mark them as used."""
        if not self._blocks.shared:
            return 0
        found = self._in_memory(tokens)
        self._touch(found)
        return len(found) * self._blocks.size

    def known(self, tokens: Sequence[int]) -> int:
        """Return how many of the first tokens `open` would find, in memory or stored."""
        count = 0
        for name in self._names(tokens):
            if name not in self._kept and not (self._store and self._store.has(name)):
                break
            count += 1
        return count * self._blocks.size

    def open(self, tokens: Sequence[int], capacity: int) -> CacheHandle | None:
        """Open a sequence that begins with the longest known prefix of these tokens; None without one.

        capacity: tokens that the sequence should have room for.
        """
        names: list[bytes] = []
        for name in self._names(tokens):
            if name not in self._kept and not self._restore(name):
                break
            names.append(name)
        if not names:
            return None
        self._touch(names)
        try:
            handle: CacheHandle = self._blocks.open([self._kept[name] for name in names], capacity)
            return handle
        except ContextFull:
            return None
        finally:
            self._trim()

    def keep(self, handle: CacheHandle, tokens: Sequence[int]) -> None:
        """Keep the full blocks of a sequence whose first committed tokens these are."""
        names = []
        for i, name in enumerate(self._names(tokens)):
            if name not in self._kept:
                self._kept[name] = self._blocks.keep(handle, i)
            names.append(name)
        self._touch(names)
        if self._store is not None:
            for name in reversed(names):
                if self._store.has(name):
                    self._store.touch(name)
                else:
                    self._store.put(name, self._blocks.dump(self._kept[name]))
        self._trim()

    def make_room(self, handle: CacheHandle | None, wanted: int) -> None:
        """Drop blocks until a sequence has room for so many more tokens, or nothing is left to drop."""
        while self._model.room(handle) < wanted and self.reclaim():
            pass

    def reclaim(self) -> bool:
        """Drop the least recently used blocks until some room is free; return False where there is none."""
        freed = 0
        while self._blocks.shared and self._kept and freed < _AT_ONCE:
            freed += self._drop()
        return freed > 0

    def clear(self) -> None:
        """Drop all blocks from memory."""
        while self._kept:
            self._drop()

    def outdate(self) -> None:
        """Drop all blocks, and leave the store, whose blocks belong to the weights that the model had."""
        self.clear()
        self._store = None

    def flush(self) -> None:
        """Wait until all kept blocks are stored."""
        if self._store is not None:
            self._store.flush()

    def _names(self, tokens: Sequence[int]) -> Iterator[bytes]:
        """Yield the names of the full blocks of a text."""
        size = self._blocks.size
        return chained(
            np.asarray(tokens[start : start + size], np.int64).astype("<i8").tobytes()
            for start in range(0, len(tokens) - size + 1, size)
        )

    def _in_memory(self, tokens: Sequence[int]) -> list[bytes]:
        found: list[bytes] = []
        for name in self._names(tokens):
            if name not in self._kept:
                break
            found.append(name)
        return found

    def _restore(self, name: bytes) -> bool:
        """Take a block from the store into memory; return False where that cannot be."""
        content = self._store.get(name) if self._store is not None else None
        if self._store is None or content is None:
            return False
        try:
            self._kept[name] = self._blocks.load(content)
        except ContextFull:
            return False
        except ValueError:
            self._store.discard(name)
            return False
        return True

    def _touch(self, names: Sequence[bytes]) -> None:
        """Mark blocks of one text as used: the last one is the first to go."""
        for name in reversed(names):
            self._kept.move_to_end(name)

    def _trim(self) -> None:
        while len(self._kept) > self._blocks.most:
            self._drop()

    def _drop(self) -> bool:
        """Drop the least recently used block; return whether that freed room of the cache."""
        return self._blocks.drop(self._kept.popitem(last=False)[1])
