"""Hold a key/value cache of fixed shape, written in place by index. Knows no tokens.

Each layer has one tensor [slots, heads, capacity, width] for keys and one for values; a sequence owns a slot.
Rejected rows are overwritten later, so that discarding them costs nothing. Shapes and addresses stay the same
between steps, as CUDA graphs and HPU graphs require. The class is a transformers `Cache`: any decoder of that
library can write into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

if TYPE_CHECKING:
    from torch import Tensor

# Smallest number of rows of a slot. Capacities are this times a power of two; near the memory limit, times
# any number.
SMALLEST = 512


@dataclass(frozen=True)
class Shape:
    """Hold the sizes of one row of the cache: 2 * `heads` * `width` numbers in each layer.

    query: width of the exit query that each row also holds (`early_exit.py`); 0 = none.
    """

    num_layers: int
    heads: int
    width: int
    dtype: Any  # torch.dtype
    device: str
    query: int = 0

    def nbytes(self, slots: int, capacity: int) -> int:
        """Return the bytes of so many slots of so many rows."""
        numbers = 2 * self.num_layers * self.heads * self.width + self.query
        return int(slots * capacity * numbers * self.dtype.itemsize)


def capacity_for(num_rows: int) -> int:
    """Return the smallest capacity for so many rows; powers of two, so that few shapes appear."""
    capacity = SMALLEST
    while capacity < num_rows:
        capacity *= 2
    return capacity


class SlotCache(Cache):  # type: ignore[misc]
    """Hold the tensors, and where the current step reads and writes in them.

    `resize` replaces the tensors: graphs that were captured on the old ones must not be used again.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(layers=[])
        self.shape = shape
        self.slots = self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.queries: list[Tensor] = []  # one tensor [slots, 1, capacity, query] where there are any
        self._first = self._size = self._length = 0
        self._index: Tensor | None = None

    def resize(self, slots: int, capacity: int) -> None:
        """Give the tensors another number of slots and rows; what both sizes hold stays where it is."""
        shape, rows = self.shape, (slots, self.shape.heads, capacity, self.shape.width)
        self._resize(self.keys, shape.num_layers, rows)
        self._resize(self.values, shape.num_layers, rows)
        self._resize(self.queries, 1 if shape.query else 0, (slots, 1, capacity, shape.query))
        self.slots, self.capacity = slots, capacity

    def _resize(self, tensors: list[Tensor], count: int, size: tuple[int, ...]) -> None:
        """Replace the tensors one by one, so that the old ones are freed on the way."""
        for i in range(count):
            new = torch.zeros(size, dtype=self.shape.dtype, device=self.shape.device)
            if i < len(tensors):
                slots, capacity = min(size[0], tensors[i].shape[0]), min(size[2], tensors[i].shape[2])
                new[:slots, :, :capacity] = tensors[i][:slots, :, :capacity]
                tensors[i] = new
            else:
                tensors.append(new)

    def at(self, first: int, index: Tensor, length: int) -> None:
        """Set where the next `update` of each layer reads and writes.

        first:  first slot.
        index:  [slots, new] rows that each slot writes.
        length: number of rows of each slot that `update` returns, from the first row on.
        """
        self._first, self._size, self._length = first, index.shape[0], length
        self._index = index

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Write key and value [slots, heads, new, width] and return the rows to attend to.

        Called by the attention of each layer.
        """
        return self._write(self.keys[layer_idx], key), self._write(self.values[layer_idx], value)

    def hold(self, queries: Tensor) -> None:
        """Keep the exit queries [slots, new, query] of the step's tokens at their rows."""
        self._write(self.queries[0], queries[:, None])

    def held(self) -> Tensor:
        """Return the exit queries [slots, new, query] at the rows of the step's tokens."""
        assert self._index is not None  # set by `at`
        own = self._own(self.queries[0])[:, 0]
        found: Tensor = own.gather(1, self._index[:, :, None].expand(-1, -1, own.shape[2]))
        return found

    def _own(self, tensor: Tensor) -> Tensor:
        """Return the step's slots; for all slots the tensor itself: HPU graphs cannot write to views."""
        return tensor if self._size == self.slots else tensor[self._first : self._first + self._size]

    def _write(self, tensor: Tensor, new: Tensor) -> Tensor:
        assert self._index is not None  # set by `at`
        own = self._own(tensor)
        if self._size == 1:
            own.index_copy_(2, self._index[0], new)
        else:
            where = self._index[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            own.scatter_(2, where, new)
        return own[:, :, : self._length]

    def move(self, slot: Tensor, to: Tensor, source: Tensor, target: Tensor) -> None:
        """Copy rows `source` [n] of a slot [1] to rows `target` [n] of the slot `to` [1], in every layer."""
        for tensor in (*self.keys, *self.values):
            tensor[to, :, target] = tensor[slot, :, source]
