"""Key/value cache of a paged model: blocks, tables, growth and row moves. Knows no tokens.

The caller of OpenVINO's PagedAttention owns the cache tensors; a block holds BLOCK_SIZE tokens of one
sequence in every layer. All caches of one shape are slices of one array, so that moving an accepted
token's row in all layers is one numpy assignment.
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
    """Whether an input of a paged model is one of its cache tensors."""
    return any(name.startswith(("key_cache.", "value_cache.")) for name in port.names)


class BlockCache:
    """Cache tensors of a model, which may be in several graphs, and the blocks in them.

    requests: tensors are bound to their inputs `key_cache.N` and `value_cache.N`.
    max_blocks: growth ends here with ContextFull.
    """

    def __init__(self, requests: Sequence[Request], max_blocks: int) -> None:
        self._max_blocks = max_blocks
        # By shape and type.
        self._groups: dict[tuple[tuple[int, ...], str], list[tuple[Request, ov.Output]]] = {}
        for request in requests:
            for port in filter(is_cache, request.compiled.inputs):
                shape = tuple(dim.get_length() for dim in list(port.get_partial_shape())[1:])
                kind = shape, port.get_element_type().to_string()
                self._groups.setdefault(kind, []).append((request, port))
        self._arrays: list[NDArray[np.generic]] = []
        self._num_blocks = 0
        self._free: list[int] = []
        self._allocate(min(_INITIAL_BLOCKS, max_blocks))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays)

    @property
    def num_used_blocks(self) -> int:
        return self._num_blocks - len(self._free)

    def extend(self, table: list[int], num_tokens: int) -> None:
        """Add blocks to a sequence's table until it holds `num_tokens`. All or nothing."""
        missing = -(-num_tokens // BLOCK_SIZE) - len(table)
        if missing <= 0:
            return
        if missing > len(self._free):
            needed = self.num_used_blocks + missing
            if needed > self._max_blocks:
                raise ContextFull(
                    f"the key/value cache is full: {needed} blocks of {BLOCK_SIZE} tokens are needed, "
                    f"{self._max_blocks} are allowed"
                )
            self._allocate(min(self._max_blocks, max(needed, 2 * self._num_blocks)))
        table.extend(self._free.pop() for _ in range(missing))

    def release(self, table: list[int], num_tokens: int = 0) -> None:
        """Give back the blocks behind the first `num_tokens` tokens of a table."""
        keep = -(-num_tokens // BLOCK_SIZE)
        self._free.extend(reversed(table[keep:]))
        del table[keep:]

    def move(self, table: list[int], source: list[int], target: list[int]) -> None:
        """Copy token rows of a sequence from positions `source` to `target`, in every layer.

        Reads all before it writes any. Only for caches whose rows are plain copies (f16, bf16, f32).
        """
        blocks = np.asarray(table)
        src, dst = np.asarray(source), np.asarray(target)
        for array in self._arrays:  # [layers, blocks, heads, BLOCK_SIZE, width]
            rows = array[:, blocks[src // BLOCK_SIZE], :, src % BLOCK_SIZE]
            array[:, blocks[dst // BLOCK_SIZE], :, dst % BLOCK_SIZE] = rows

    def copy_block(self, source: int, target: int) -> None:
        """Copy a whole block in every layer, whatever it is stored as."""
        for array in self._arrays:
            array[:, target] = array[:, source]

    def _allocate(self, num_blocks: int) -> None:
        """Grow all tensors to `num_blocks`, keeping what is stored."""
        # All of them before any is bound: without the memory for one, nothing has changed.
        arrays = []
        for i, ((shape, _), ports) in enumerate(self._groups.items()):
            # numpy has no bfloat16: rows are only ever copied, so their bytes will do.
            dtype = np.dtype(f"u{ports[0][1].get_element_type().size}")
            array = aligned((len(ports), num_blocks, *shape), dtype)
            if self._num_blocks:
                array[:, : self._num_blocks] = self._arrays[i]
            arrays.append(array)
        for array, ((shape, _), ports) in zip(arrays, self._groups.items(), strict=True):
            for layer, (request, port) in enumerate(ports):
                tensor = ov.Tensor(array[layer], ov.Shape([num_blocks, *shape]), port.get_element_type())
                request.bind(port, tensor)
        # The new tensors are bound; only now may the old arrays go.
        self._arrays = arrays
        self._free = [*range(num_blocks - 1, self._num_blocks - 1, -1), *self._free]
        self._num_blocks = num_blocks


def aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Zeroed array that starts on an _ALIGNMENT boundary."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
