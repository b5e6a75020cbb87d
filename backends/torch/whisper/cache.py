"""The cache of Whisper's decoder: beside each slot's rows, the keys and values of its window.

They are computed once, when a sequence is opened, and have fixed shapes, as graphs require.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch.slots.cache import SlotCache

from specport.models.kinds.whisper import WhisperShape

if TYPE_CHECKING:
    from torch import Tensor


class WhisperCache(SlotCache):
    """Hold keys and values [slots, heads, frames, width] of windows, two tensors for each layer."""

    def __init__(self, shape: WhisperShape, dtype: Any, device: str) -> None:
        super().__init__(dtype, device)
        heads, width = shape.decoder_heads, shape.head_width
        self._window_size = (heads, shape.frames, width)
        layers = dict.fromkeys(range(shape.decoder_layers), (heads, width, width))
        beside = 2 * shape.decoder_layers * shape.frames * shape.width * dtype.itemsize
        self.shape = replace(self.shape, layers=layers, beside=beside)
        self.noted()
        self.windows: list[Tensor] = []  # keys and values of layer 0, of layer 1, ...

    def resize(self, slots: int, capacity: int) -> None:
        if slots != self.slots:
            count = 2 * len(self.shape.layers)
            self._resize(self.windows, [(slots, *self._window_size)] * count)
        super().resize(slots, capacity)

    def set_window(self, slot: int, layer: int, key: Tensor, value: Tensor) -> None:
        """Write a layer's keys and values [heads, frames, width] of a slot's window."""
        self.windows[2 * layer][slot], self.windows[2 * layer + 1][slot] = key, value

    def copy_window(self, slot: int, to: int) -> None:
        """Give a slot the window of another one."""
        for tensor in self.windows:
            tensor[to] = tensor[slot]

    def window(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer for the slots of the current step."""
        return self._own(self.windows[2 * layer]), self._own(self.windows[2 * layer + 1])

    @staticmethod
    def empty_mask(slots: int, new: int, frames: int, like: Tensor) -> Tensor:
        """Return a mask [slots, 1, new, frames] that hides nothing."""
        return torch.zeros((slots, 1, new, frames), dtype=like.dtype, device=like.device)
