"""Key/value cache of a paged model: blocks, tables, sharing, growth and row moves. Knows no tokens.

A block holds BLOCK_SIZE tokens of one sequence in every layer, and a table lists the blocks of a sequence.
Sequences with a common beginning share its blocks: a block is copied before it is written to while other
tables have it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.paged.pool import BlockPool
from specport.backends.openvino.request import Request

from specport.errors import ContextFull

BLOCK_SIZE = 32


def is_cache(port: ov.Output) -> bool:
    """Return whether an input of a paged model is one of its cache tensors."""
    return any(name.startswith(("key_cache.", "value_cache.")) for name in port.names)


class BlockCache:
    """Cache tensors of a model, which may be in several graphs, and the blocks in them.

    requests:   tensors [blocks, heads, BLOCK_SIZE, width] are bound to their inputs `key_cache.N` and
                `value_cache.N`.
    max_blocks: growth ends here with ContextFull.
    max_bytes:  a second limit: all tensors together take no more, also while they grow; None = none.
    """

    def __init__(self, requests: Sequence[Request], max_blocks: int, max_bytes: int | None = None) -> None:
        ports = [
            (request, port) for request in requests for port in filter(is_cache, request.compiled.inputs)
        ]
        self._pool = BlockPool(ports, max_blocks, max_bytes)
        self.bytes_for = self._pool.bytes_for

    @property
    def nbytes(self) -> int:
        return self._pool.nbytes

    @property
    def max_blocks(self) -> int:
        return self._pool.max_blocks

    @property
    def num_used_blocks(self) -> int:
        return self._pool.num_used

    @property
    def usage(self) -> float:
        """Return the share of `max_blocks` that sequences hold, without what is only kept for later ones."""
        used = self.num_used_blocks - self._pool.num_idle
        return min(1.0, max(0, used) / max(1, self.max_blocks))

    def room(self, table: Sequence[int], length: int, start: int | None = None) -> int:
        """Return how many tokens could be written behind the first `length` of a table, if no other grows.

        start: tokens from here on are written again; None = `length`.
        """
        first = length if start is None else start
        blocks = self._pool.num_left - len(self._shared(table, first, len(table) * BLOCK_SIZE))
        return max(0, (len(table) + blocks) * BLOCK_SIZE - length) if blocks >= 0 else 0

    def extend(self, table: list[int], num_tokens: int, start: int | None = None) -> None:
        """Add blocks to a table until it holds `num_tokens`. All or nothing.

        start: tokens from here to the end will be written, and no others: blocks of theirs that other tables
        have as well are replaced by copies. None: nothing is written yet.

        Raises ContextFull where the limit or the machine's memory is reached.
        """
        shared = [] if start is None else self._shared(table, start, num_tokens)
        missing = max(0, -(-num_tokens // BLOCK_SIZE) - len(table))
        if not missing and not shared:
            return
        self._provide(missing + len(shared))
        for index in shared:
            block = table[index]
            table[index] = self._copied(block)
            self._pool.give_back(block)
        table.extend(self._pool.take() for _ in range(missing))

    def fork(self, table: Sequence[int], num_tokens: int) -> list[int]:
        """Return a table with the same first `num_tokens`: full blocks are shared, a part-filled one copied.

        Raises ContextFull as `extend` does; nothing has changed then.
        """
        whole, part = divmod(num_tokens, BLOCK_SIZE)
        fork = list(table[:whole])
        if part:
            self._provide(1)
            own = self._copied(table[whole])
        for block in fork:
            self._pool.share(block)
        return [*fork, own] if part else fork

    def release(self, table: list[int], num_tokens: int = 0) -> None:
        """Take the blocks behind the first `num_tokens` out of a table; free those that no other has."""
        keep = -(-num_tokens // BLOCK_SIZE)
        for block in reversed(table[keep:]):
            self._pool.give_back(block)
        del table[keep:]

    def move(self, table: Sequence[int], source: Sequence[int], target: Sequence[int]) -> None:
        """Copy token rows of a sequence from positions `source` to `target`, in every layer.

        Both ascend, and no token moves to a later position: so none is overwritten before it is read. Only
        for caches whose rows are plain copies (f16, bf16, f32).
        """
        steps = [
            (table[a // BLOCK_SIZE], a % BLOCK_SIZE, table[b // BLOCK_SIZE], b % BLOCK_SIZE)
            for a, b in zip(source, target, strict=True)
            if a != b
        ]
        for tensor in self._pool.tensors:
            array = tensor.array
            for block, row, to_block, to_row in steps:
                array[to_block, :, to_row] = array[block, :, row]

    def copy_block(self, source: int, target: int) -> None:
        """Copy a whole block in every layer, whatever it is stored as."""
        self._pool.copy(source, target)

    def keep(self, block: int) -> None:
        """Keep a block, whatever becomes of the tables that have it."""
        self._pool.share(block)
        self._pool.keep(block)

    def drop(self, block: int) -> bool:
        """Keep a block no more; return whether it is free now."""
        return self._pool.drop(block)

    def content(self, block: int) -> NDArray[np.uint8]:
        """Return a copy of a block's bytes in all layers."""
        parts = [tensor.array[block].reshape(-1).view(np.uint8) for tensor in self._pool.tensors]
        return np.concatenate(parts)

    def filled(self, content: NDArray[np.uint8]) -> int:
        """Return a new block with this content, which is kept.

        Raises ValueError for content of another size, and ContextFull as `extend` does.
        """
        sizes = [tensor.block_bytes for tensor in self._pool.tensors]
        if content.shape != (sum(sizes),):
            raise ValueError(f"a block has {sum(sizes)} bytes, not {content.size}")
        self._provide(1)
        block, start = self._pool.take(), 0
        for tensor, size in zip(self._pool.tensors, sizes, strict=True):
            array = tensor.array[block]
            array[...] = content[start : start + size].view(array.dtype).reshape(array.shape)
            start += size
        self._pool.keep(block)
        return block

    def _copied(self, block: int) -> int:
        """Return a new block with the same content; there must be a free one."""
        own = self._pool.take()
        try:
            self.copy_block(block, own)
        except BaseException:
            self._pool.give_back(own)
            raise
        return own

    def _shared(self, table: Sequence[int], start: int, end: int) -> list[int]:
        """Return the places in a table of the blocks for tokens `start` to `end` that other tables have.

        Where only new tokens are written that is at most the part-filled one.
        """
        places = range(start // BLOCK_SIZE, min(len(table), -(-end // BLOCK_SIZE)))
        return [i for i in places if self._pool.num_users(table[i]) > 1]

    def _provide(self, count: int) -> None:
        """Grow until so many blocks are free. Raises ContextFull."""
        if not self._pool.provide(count):
            raise ContextFull(
                f"the key/value cache is full: {self.num_used_blocks + count} blocks of {BLOCK_SIZE} tokens "
                f"are needed, {self.max_blocks} are there at most"
            )
