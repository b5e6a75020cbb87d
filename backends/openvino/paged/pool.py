"""A pool of blocks of memory: tensors that a graph reads and writes in place, and who uses which block.

The caller of a paged graph owns the tensors of its caches: [blocks, ...] each, and block i of all of them
belongs together. What a block holds is its user's business (`cache.py`: tokens, `states.py`: a state).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.request import Request

_INITIAL_BLOCKS = 32
_ALIGNMENT = 64  # bytes; what the CPU kernels' widest loads like


class PoolTensor:
    """One tensor of a pool: an input of a graph and the array behind it, [blocks, ...]."""

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


class BlockPool:
    """Blocks of all tensors of one kind, which may be in several graphs. Each block counts its users.

    ports:      (request, input) of each tensor.
    max_blocks: growth ends here.
    max_bytes:  a second limit: all tensors together take no more, also while they grow; None = none.
    """

    def __init__(
        self, ports: Sequence[tuple[Request, ov.Output]], max_blocks: int, max_bytes: int | None = None
    ) -> None:
        self.tensors = [PoolTensor(request, port) for request, port in ports]
        self._max_blocks = max_blocks
        if max_bytes is not None:
            self._max_blocks = min(max_blocks, max_bytes // self.bytes_for(1))
        self._num_blocks = 0
        self._free: list[int] = []
        self._users: list[int] = []  # [blocks]
        self._kept: set[int] = set()  # blocks with a user that only keeps them
        self._num_idle = 0  # kept blocks without another user
        self._grow(min(_INITIAL_BLOCKS, self._max_blocks))

    @property
    def nbytes(self) -> int:
        return sum(tensor.array.nbytes for tensor in self.tensors)

    @property
    def max_blocks(self) -> int:
        """Blocks that the pool may grow to: fewer than was asked for once the machine had no more memory."""
        return self._max_blocks

    @property
    def num_used(self) -> int:
        return self._num_blocks - len(self._free)

    @property
    def num_left(self) -> int:
        """Blocks that could be taken, after growth where there is memory for it; negative after a failure."""
        return self._max_blocks - self.num_used

    @property
    def num_idle(self) -> int:
        """Used blocks that are only kept (`keep`)."""
        return self._num_idle

    def bytes_for(self, num_blocks: int) -> int:
        """Return the bytes that growth to so many blocks takes at most.

        Tensors grow one by one, so beside them all stands the old content of one at a time.
        """
        sizes = [tensor.block_bytes for tensor in self.tensors]
        return num_blocks * (sum(sizes) + max(sizes, default=0))

    def provide(self, count: int) -> bool:
        """Grow until so many blocks are free; return False, and take none, where that cannot be."""
        if count <= len(self._free):
            return True
        needed = self.num_used + count
        if needed <= self._max_blocks:
            likely = min(self._max_blocks, max(needed, 2 * self._num_blocks))
            if self._grow(likely) or self._grow(needed):
                return True
            self._max_blocks = self._num_blocks  # there is no more, whatever was allowed
        return False

    def take(self) -> int:
        """Return a free block, which has one user then. There must be one (`provide`)."""
        block = self._free.pop()
        self._users[block] = 1
        return block

    def share(self, block: int) -> None:
        """Count one more user of a block."""
        self._num_idle -= self._is_idle(block)
        self._users[block] += 1

    def keep(self, block: int) -> None:
        """Say that one of a block's users only keeps it, until `drop`."""
        self._kept.add(block)
        self._num_idle += self._is_idle(block)

    def drop(self, block: int) -> bool:
        """End what `keep` said, and count that user no more; return whether the block is free now."""
        self._num_idle -= self._is_idle(block)
        self._kept.discard(block)
        return self.give_back(block)

    def _is_idle(self, block: int) -> bool:
        return self._users[block] == 1 and block in self._kept

    def num_users(self, block: int) -> int:
        return self._users[block]

    def give_back(self, block: int) -> bool:
        """Count one user less; return whether the block is free now."""
        self._users[block] -= 1
        if self._users[block]:
            self._num_idle += self._is_idle(block)
            return False
        self._free.append(block)
        return True

    def copy(self, source: int, target: int) -> None:
        """Copy a whole block in every tensor, whatever it is stored as."""
        for tensor in self.tensors:
            tensor.array[target] = tensor.array[source]

    def _grow(self, num_blocks: int) -> bool:
        """Grow all tensors to `num_blocks`, keeping what is stored; False where there is no memory for it."""
        if num_blocks <= self._num_blocks:
            return False
        try:
            for tensor in self.tensors:
                tensor.grow(num_blocks)
        except (MemoryError, RuntimeError):
            for tensor in self.tensors:
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
