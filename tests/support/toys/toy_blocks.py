"""Kept blocks of a toy model's cache: its cells, which sequences share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specport.errors import ContextFull
from support.toys.toy_model import Cell, ToyHandle, ToyModel

SIZE = 4


class ToyBlocks:
    """most: blocks that may be kept. num_loaded, num_dumped: calls of `load` and `dump`."""

    size, shared = SIZE, True

    def __init__(self, model: ToyModel, most: int = 1000) -> None:
        self._model, self.most = model, most
        self.num_loaded = self.num_dumped = 0
        self.num_kept = 0

    def keep(self, handle: ToyHandle, index: int) -> list[Cell]:
        assert not handle.closed and (index + 1) * SIZE <= handle.length
        cells = handle.cells[index * SIZE : (index + 1) * SIZE]
        for cell in cells:
            cell.users += 1
        self.num_kept += 1
        return cells

    def open(self, blocks: Sequence[list[Cell]], capacity: int) -> ToyHandle:
        held = len(blocks) * SIZE
        if capacity > held + self._model.room():
            raise ContextFull("toy cache")
        handle = self._model.open()
        handle.cells = [cell for block in blocks for cell in block]
        handle.reserved = capacity
        for cell in handle.cells:
            assert cell.users > 0, "a block that was dropped"
            cell.users += 1
        return handle

    def drop(self, block: list[Cell]) -> bool:
        before = self._model.num_used
        for cell in block:
            cell.users -= 1
            self._model.forget(cell)
        self.num_kept -= 1
        return self._model.num_used < before

    def dump(self, block: list[Cell]) -> NDArray[np.uint8]:
        self.num_dumped += 1
        return np.array([cell.token for cell in block], np.uint8)

    def load(self, content: NDArray[np.uint8]) -> list[Cell]:
        if content.shape != (SIZE,):
            raise ValueError(f"{content.shape}")
        if self._model.room() < SIZE:
            raise ContextFull("toy cache")
        self.num_loaded += 1
        self.num_kept += 1
        return [self._model.remember(int(token)) for token in content]


def keeping(model: ToyModel, most: int = 1000) -> ToyModel:
    """Return the model, which can keep blocks from now on."""
    model.prefix_blocks = ToyBlocks(model, most)
    return model
