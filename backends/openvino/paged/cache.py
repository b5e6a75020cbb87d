"""Key/value cache of a paged model: blocks, tables, sharing, growth and row moves. Knows no tokens.

The caller of OpenVINO's PagedAttention owns the cache tensors. A block holds BLOCK_SIZE tokens of one
sequence in every layer, and a table lists the blocks of a sequence. Sequences with a common beginning share
its blocks: each block counts the tables that it stands in, and is copied before it is written to while others
have it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.request import Request

from specport.errors import ContextFull

BLOCK_SIZE = 32
_INITIAL_BLOCKS = 32
_ALIGNMENT = 64  # bytes; what the CPU kernels' widest loads like


def is_cache(port: ov.Output) -> bool:
    """Return whether an input of a paged model is one of its cache tensors."""
    return any(name.startswith(("key_cache.", "value_cache.")) for name in port.names)


class _Tensor:
    """One cache tensor: an input of a graph and the array behind it, [blocks, heads, BLOCK_SIZE, width]."""

    def __init__(self, request: Request, port: ov.Output) -> None:
        self._request, self._port = request, port
        self._shape = tuple(dim.get_length() for dim in list(port.get_partial_shape())[1:])
        self._type = port.get_element_type()
        # numpy has no bfloat16: rows are only ever copied, so their bytes will do.
        self._dtype = np.dtype(f"u{self._type.size}")
        self.array: NDArray[np.generic] = np.zeros((0, *self._shape), self._dtype)

    @property
    def block_bytes(self) -> int:
        return int(np.prod(self._shape)) * self._dtype.itemsize

    def grow(self, num_blocks: int) -> None:
        """Bind an array of so many blocks that begins with what is stored.

        Raises MemoryError or the runtime's RuntimeError, and has changed nothing then.
        """
        if len(self.array) >= num_blocks:  # since a growth that failed at another tensor
            self.show(num_blocks)
            return
        array = aligned((num_blocks, *self._shape), self._dtype)
        array[: len(self.array)] = self.array
        self._bind(array)
        self.array = array  # the new one is bound; only now may the old one go

    def show(self, num_blocks: int) -> None:
        """Let the graph see the first blocks only: all tensors of a graph have the same number."""
        self._bind(self.array[:num_blocks])

    def _bind(self, array: NDArray[np.generic]) -> None:
        self._request.bind(self._port, ov.Tensor(array, ov.Shape(array.shape), self._type))


class BlockCache:
    """Cache tensors of a model, which may be in several graphs, and the blocks in them.

    requests:   tensors are bound to their inputs `key_cache.N` and `value_cache.N`.
    max_blocks: growth ends here with ContextFull.
    max_bytes:  a second limit: all tensors together take no more, also while they grow; None = none.
    """

    def __init__(self, requests: Sequence[Request], max_blocks: int, max_bytes: int | None = None) -> None:
        self._tensors = [
            _Tensor(request, port)
            for request in requests
            for port in filter(is_cache, request.compiled.inputs)
        ]
        self._max_blocks = max_blocks
        if max_bytes is not None:
            self._max_blocks = min(max_blocks, max_bytes // self.bytes_for(1))
        self._num_blocks = 0
        self._free: list[int] = []
        self._users: list[int] = []  # [blocks] tables that hold the block
        self._grow(min(_INITIAL_BLOCKS, self._max_blocks))

    @property
    def nbytes(self) -> int:
        return sum(tensor.array.nbytes for tensor in self._tensors)

    @property
    def max_blocks(self) -> int:
        """Blocks that the cache may grow to: fewer than was asked for once the machine had no more memory."""
        return self._max_blocks

    @property
    def num_used_blocks(self) -> int:
        return self._num_blocks - len(self._free)

    def bytes_for(self, num_blocks: int) -> int:
        """Return the bytes that growth to so many blocks takes at most.

        Tensors grow one by one, so beside them all stands the old content of one at a time.
        """
        sizes = [tensor.block_bytes for tensor in self._tensors]
        return num_blocks * (sum(sizes) + max(sizes, default=0))

    def room(self, table: Sequence[int], length: int) -> int:
        """Return how many tokens could be written behind the first `length` of a table, if no other grows."""
        blocks = self._max_blocks - self.num_used_blocks - self._is_shared(table, length)
        return max(0, (len(table) + blocks) * BLOCK_SIZE - length) if blocks >= 0 else 0

    def extend(self, table: list[int], num_tokens: int, start: int | None = None) -> None:
        """Add blocks to a table until it holds `num_tokens`. All or nothing.

        start: tokens from here on will be written, and no others: a block that holds it and that other tables
        have as well is replaced by a copy. None: nothing is written yet.

        Raises ContextFull where the limit or the machine's memory is reached.
        """
        copied = start is not None and self._is_shared(table, start)
        missing = max(0, -(-num_tokens // BLOCK_SIZE) - len(table))
        if not missing and not copied:
            return
        self._provide(missing + copied)
        if copied and start is not None:
            own, block = self._taken(), table[start // BLOCK_SIZE]
            try:
                self.copy_block(block, own)
            except BaseException:
                self._give_back(own)
                raise
            table[start // BLOCK_SIZE] = own
            self._give_back(block)
        table.extend(self._taken() for _ in range(missing))

    def fork(self, table: Sequence[int], num_tokens: int) -> list[int]:
        """Return a table with the same first `num_tokens`: full blocks are shared, a part-filled one copied.

        Raises ContextFull as `extend` does; nothing has changed then.
        """
        whole, part = divmod(num_tokens, BLOCK_SIZE)
        fork = list(table[:whole])
        if part:
            self._provide(1)
            own = self._taken()
            try:
                self.copy_block(table[whole], own)
            except BaseException:
                self._give_back(own)
                raise
        for block in fork:
            self._users[block] += 1
        return [*fork, own] if part else fork

    def release(self, table: list[int], num_tokens: int = 0) -> None:
        """Take the blocks behind the first `num_tokens` out of a table; free those that no other has."""
        keep = -(-num_tokens // BLOCK_SIZE)
        for block in reversed(table[keep:]):
            self._give_back(block)
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
        for tensor in self._tensors:
            array = tensor.array
            for block, row, to_block, to_row in steps:
                array[to_block, :, to_row] = array[block, :, row]

    def copy_block(self, source: int, target: int) -> None:
        """Copy a whole block in every layer, whatever it is stored as."""
        for tensor in self._tensors:
            tensor.array[target] = tensor.array[source]

    def _is_shared(self, table: Sequence[int], start: int) -> bool:
        """Return whether the block that `start` is written to stands in other tables as well.

        Only a block that is part-filled up to `start` can be: those behind it have never been shared.
        """
        index = start // BLOCK_SIZE
        return index < len(table) and self._users[table[index]] > 1

    def _taken(self) -> int:
        block = self._free.pop()
        self._users[block] = 1
        return block

    def _give_back(self, block: int) -> None:
        self._users[block] -= 1
        if not self._users[block]:
            self._free.append(block)

    def _provide(self, count: int) -> None:
        """Grow until so many blocks are free. Raises ContextFull."""
        if count <= len(self._free):
            return
        needed = self.num_used_blocks + count
        if needed <= self._max_blocks:
            likely = min(self._max_blocks, max(needed, 2 * self._num_blocks))
            if self._grow(likely) or self._grow(needed):
                return
            self._max_blocks = self._num_blocks  # there is no more, whatever was allowed
        raise ContextFull(
            f"the key/value cache is full: {needed} blocks of {BLOCK_SIZE} tokens are needed, "
            f"{self._max_blocks} are there at most"
        )

    def _grow(self, num_blocks: int) -> bool:
        """Grow all tensors to `num_blocks`, keeping what is stored; False where there is no memory for it."""
        if num_blocks <= self._num_blocks:
            return False
        try:
            for tensor in self._tensors:
                tensor.grow(num_blocks)
        except (MemoryError, RuntimeError):
            for tensor in self._tensors:
                tensor.show(self._num_blocks)
            return False
        self._free = [*range(num_blocks - 1, self._num_blocks - 1, -1), *self._free]
        self._users += [0] * (num_blocks - self._num_blocks)
        self._num_blocks = num_blocks
        return True


def aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Return a zeroed array that starts on an _ALIGNMENT boundary."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
