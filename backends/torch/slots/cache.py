"""Hold a key/value cache of fixed shape, written in place by index. Knows no tokens.

Each layer has one tensor [slots, heads, capacity, width] for keys and one for values; a sequence owns a slot.
Rejected rows are overwritten later, so that discarding them costs nothing. Shapes and addresses stay the same
between steps, as CUDA graphs and HPU graphs require. The class is a transformers `Cache`: any decoder of that
library can write into it. Layers without keys and values have states (`states.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.backends.torch.slots.states import ENTRIES, StateShape, StateStore
from transformers.cache_utils import Cache

from specport.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

# Smallest number of rows of a slot. Capacities are this times a power of two; near the memory limit, times
# any number.
SMALLEST = 512


@dataclass(frozen=True)
class Shape:
    """Hold the sizes of one row of the cache, and of the states of a slot.

    layers: (heads, width of a key, width of a value) of each layer that writes them, by the layer's number.
    query:  width of the exit query that each row also holds (`early_exit.py`); 0 = none.
    states: of layers without keys and values; each slot has `ENTRIES` of each.
    beside: bytes that each slot takes for anything else.
    """

    layers: dict[int, tuple[int, int, int]]
    dtype: Any  # torch.dtype
    device: str
    query: int = 0
    states: tuple[StateShape, ...] = ()
    beside: int = 0

    def nbytes(self, slots: int, capacity: int) -> int:
        """Return the bytes of so many slots of so many rows, without states."""
        return slots * capacity * (self.row_bytes + int(self.query * self.dtype.itemsize))

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row's keys and values."""
        numbers = sum(heads * (key + value) for heads, key, value in self.layers.values())
        return int(numbers * self.dtype.itemsize)

    @property
    def state_bytes(self) -> int:
        """Return the bytes of one slot beside its rows."""
        return self.beside + ENTRIES * sum(state.nbytes for state in self.states)


_KIND = "it has layers with states of a kind that cannot be rolled back (state spaces)"
# Where transformers' layers look for their states.
_FOREIGN = frozenset(("conv_states", "ssm_states", "recurrent_states", "conv_cache"))


class _NoLayers(list[Any]):
    """Stand for the parts of a transformers `Cache`, in which some layers look for their states."""

    def __getitem__(self, index: Any) -> Any:
        raise ModelError(_KIND)


def assign(rows: Tensor, index: Tensor, new: Tensor) -> None:
    """Write `new` [slots, heads, new, width] over the rows `index` [slots, new] of each slot."""
    slots = torch.arange(len(index))[:, None]
    rows[slots, :, index] = new.transpose(1, 2)


def scatter(rows: Tensor, index: Tensor, new: Tensor) -> None:
    """Do as `assign`, for accelerators and their graphs."""
    rows.scatter_(2, index[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3]), new)


def capacity_for(num_rows: int) -> int:
    """Return the smallest capacity for so many rows; powers of two, so that few shapes appear."""
    capacity = SMALLEST
    while capacity < num_rows:
        capacity *= 2
    return capacity


class SlotCache(Cache):  # type: ignore[misc]
    """Hold the tensors, and where the current step reads and writes in them.

    A cache without tensors notes the shapes that a step asks for (`noted`). `resize` replaces the tensors:
    graphs that were captured on the old ones must not be used again.
    """

    def __init__(self, dtype: Any, device: str, query: int = 0) -> None:
        super().__init__(layers=[])
        self.layers = _NoLayers()
        self.shape = Shape({}, dtype, device, query)
        self.states = StateStore()
        self.slots = self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.queries: list[Tensor] = []  # one tensor [slots, 1, capacity, query] where there are any
        self._places: dict[int, int] = {}  # of layers in `keys` and `values`
        self._first = self._size = self._length = 0
        self._index: Tensor | None = None

    def noted(self) -> None:
        """Take the shapes that the steps so far asked for as those of the cache."""
        states = self.states.shapes
        self.shape = replace(self.shape, states=tuple(states[i] for i in sorted(states)))
        self._places = {layer: i for i, layer in enumerate(self.shape.layers)}

    def resize(self, slots: int, capacity: int) -> None:
        """Give the tensors another number of slots and rows; what both sizes hold stays where it is."""
        layers, query = self.shape.layers.values(), self.shape.query
        self._resize(self.keys, [(slots, heads, capacity, width) for heads, width, _ in layers])
        self._resize(self.values, [(slots, heads, capacity, width) for heads, _, width in layers])
        self._resize(self.queries, [(slots, 1, capacity, query)] if query else [])
        if slots != self.slots:
            self.states.resize(slots, self.shape.device)
        self.slots, self.capacity = slots, capacity

    def _resize(self, tensors: list[Tensor], sizes: list[tuple[int, ...]]) -> None:
        """Replace the tensors one by one, so that the old ones are freed on the way."""
        for i, size in enumerate(sizes):
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
        if not self.keys:
            self.shape.layers[layer_idx] = (key.shape[1], key.shape[3], value.shape[3])
            return key, value
        place = self._places[layer_idx]
        return self._write(self.keys[place], key), self._write(self.values[place], value)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the rows attended to beside those of new tokens; some decoders size tables by it."""
        return self._length - self._index.shape[1] if self._index is not None else 0

    def has_previous_state(self, layer_idx: int | None = None) -> bool:
        """Return True: no decoder has to mask the beginning of a text for its states."""
        return True

    def __getattr__(self, name: str) -> Any:
        """Raise ModelError where a layer looks for states that are not in `states`."""
        if name in _FOREIGN:
            raise ModelError(_KIND)
        raise AttributeError(name)

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        return self.__getattr__("conv_states")

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Any:
        return self.__getattr__("recurrent_states")

    def hold(self, queries: Tensor) -> None:
        """Keep the exit queries [slots, new, query] of the step's tokens at their rows."""
        self._write(self.queries[0], queries[:, None])

    def held(self) -> Tensor:
        """Return the exit queries [slots, new, query] at the rows of the step's tokens."""
        assert self._index is not None  # set by `at`
        if not self.keys:  # while shapes are noted
            size = (*self._index.shape, self.shape.query)
            return torch.zeros(size, dtype=self.shape.dtype, device=self.shape.device)
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
        elif tensor.device.type == "cpu":  # 5 to 100 times as fast as `scatter_` there
            assign(own, self._index, new)
        else:
            scatter(own, self._index, new)
        return own[:, :, : self._length]

    def move(self, slot: Tensor, to: Tensor, source: Tensor, target: Tensor) -> None:
        """Copy rows `source` [n] of a slot [1] to rows `target` [n] of the slot `to` [1], in every layer."""
        for tensor in (*self.keys, *self.values):
            tensor[to, :, target] = tensor[slot, :, source]

    def read(self, slot: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Return a copy of the bytes of rows `start` to `stop` of a slot, on the host, layer by layer."""
        rows = [tensor[slot, :, start:stop].reshape(-1) for tensor in (*self.keys, *self.values)]
        found: NDArray[np.uint8] = torch.cat(rows).cpu().view(torch.uint8).numpy()
        return found

    def write(self, slot: int, start: int, count: int, content: NDArray[np.uint8]) -> None:
        """Write rows that `read` gave to rows `start` to `start + count` of a slot."""
        host = torch.from_numpy(content.copy() if not content.flags.writeable else content)
        flat, begin = host.view(self.shape.dtype).to(self.shape.device), 0
        with torch.no_grad():
            for tensor in (*self.keys, *self.values):
                rows = tensor[slot, :, start : start + count]
                rows.copy_(flat[begin : begin + rows.numel()].view(rows.shape))
                begin += rows.numel()
