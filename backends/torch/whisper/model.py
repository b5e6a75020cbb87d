"""Whisper's decoder on slots: the `Model` port, opened with an encoder's output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from specport.backends.torch.runners import Runner
from specport.backends.torch.slots.model import SlotModel
from specport.backends.torch.slots.sequence import SlotSequence
from specport.backends.torch.whisper.parts import WhisperParts


class WhisperSlots(SlotModel):
    """Like `SlotModel`; each slot has a window that its tokens attend to as well.

    runner: runs `parts.step`. options: as for `SlotModel`.
    """

    def __init__(self, runner: Runner, parts: WhisperParts, **options: Any) -> None:
        self._parts = parts
        super().__init__(runner, parts.step.cache, vocab_size=parts.step.head.out_features, **options)
        self.capabilities = replace(self.capabilities, conditioning=True)

    def open(self, capacity: int = 0, conditioning: Any = None) -> SlotSequence:
        shape = self._parts.shape
        if conditioning is None:
            raise ValueError("this model needs an encoder's output")
        states = np.asarray(conditioning, np.float32)
        if states.shape != (shape.frames, shape.width):
            raise ValueError(f"an encoder's output of {states.shape}, not {(shape.frames, shape.width)}")
        handle = self.open_checked(capacity)
        try:
            with torch.no_grad():
                for layer, (key, value) in enumerate(self._parts.windows(states)):
                    self._parts.step.cache.set_window(handle.slot, layer, key, value)
        except BaseException:
            self.close(handle)
            raise
        return handle

    def fork_checked(self, handle: SlotSequence, length: int) -> SlotSequence:
        new = super().fork_checked(handle, length)
        with torch.no_grad():
            self._parts.step.cache.copy_window(handle.slot, new.slot)
        return new
