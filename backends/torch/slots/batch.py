"""Lay out the rows of a step as the input arrays of a forward pass of fixed shape. Knows arrays only.

Padding and slots without a row compute outputs that are not read. Padding writes behind the row's tokens,
where the next step overwrites it. A slot without a row writes to the last rows of its cache, which no
sequence uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from specport.backends.torch.slots.halves import Part
from specport.backends.torch.slots.states import EMPTY, UNREAD, Keep
from specport.backends.torch.slots.step import StepShape

from specport.core.ports import Block, Wanted

WIDEST = 64  # most new tokens of a sequence in a decode step; more are read in pieces


@dataclass(frozen=True)
class Piece:
    """Hold new tokens of one slot behind `length` rows of its cache, and the outputs wanted of them.

    base, targets: entries of states that are read and written (`states.py`): one target a token, or one for
    each part that a long piece is read in.
    """

    slot: int
    length: int
    block: Block
    logits: Wanted = "all"
    hidden: Wanted = "none"
    base: int = EMPTY
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Widths:
    """Hold the allowed numbers of new tokens per sequence of a forward pass.

    decode: widths of a decode step, () = any; a longer row is read in pieces.
    read:   widths of such a piece, () = any.
    least:  smallest width of all.
    widest: most new tokens of a decode step where it may have any width.
    """

    decode: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    least: int = 1
    widest: int = WIDEST

    @property
    def most(self) -> int:
        """Return the largest width of a decode step."""
        return max(self.decode, default=self.widest)

    def decoded(self, num_tokens: int) -> int:
        """Return the width of a decode step for so many tokens."""
        return _fit(self.decode, max(num_tokens, self.least))

    def pieces(self, num_tokens: int) -> list[tuple[int, int]]:
        """Return (tokens, width) of each piece of a long row."""
        largest = max(self.read, default=num_tokens)
        out = []
        while num_tokens > 0:
            taken = min(num_tokens, largest)
            out.append((taken, _fit(self.read, max(taken, self.least))))
            num_tokens -= taken
        return out


def _fit(widths: Sequence[int], num_tokens: int) -> int:
    return min((width for width in widths if width >= num_tokens), default=num_tokens)


def window(slots: Sequence[int], total: int) -> tuple[int, int]:
    """Return a range (first, size) that contains these slots: an aligned power of two, so that few appear.

    A range that would end behind `total` slots is shifted to the front, or cut to `total`.
    """
    size = 1
    while min(slots) // size != max(slots) // size:
        size *= 2
    size = min(size, total)
    return min(min(slots) // size * size, total - size), size


def pack(
    pieces: Sequence[Piece],
    part: Part,
    *,
    first: int,
    slots: int,
    width: int,
    length: int,
    capacity: int,
    keep: Keep = "none",
) -> tuple[NDArray[np.int64], StepShape]:
    """Return the packed input of a forward pass of a part over `slots` slots from `first` on, and its shape.

    width:    new tokens of each slot.
    length:   rows of the cache that they attend to.
    capacity: rows of a slot.
    keep:     states that are kept.
    """
    kept = np.arange(width)
    if all(piece.logits == "none" for piece in pieces):
        kept = kept[:0]
    elif len(pieces) == 1 and pieces[0].logits == "last":
        kept = kept[len(pieces[0].block) - 1 :][:1]
    shape = StepShape(first, slots, width, length, len(kept), part, keep)
    ids = np.zeros((slots, width), dtype=np.int64)
    lengths = np.full(slots, capacity - width, dtype=np.int64)
    positions = np.zeros((slots, width), dtype=np.int64)
    visible = np.broadcast_to(np.eye(width, dtype=np.int64), (slots, width, width)).copy()
    for piece in pieces:
        row, n = piece.slot - first, len(piece.block)
        ids[row, :n] = piece.block.tokens
        lengths[row] = piece.length
        positions[row, :n] = piece.length + np.array(piece.block.positions)
        seen = piece.block.visible
        visible[row, :n, :n] = np.tri(n, dtype=np.int64) if seen is None else seen
    parts = {"ids": ids, "positions": positions, "lengths": lengths, "visible": visible, "kept": kept}
    if keep != "none":
        parts |= _states(pieces, first, slots, width, keep)
    return shape.pack(**parts), shape


def _states(
    pieces: Sequence[Piece], first: int, slots: int, width: int, keep: Keep
) -> dict[str, NDArray[np.int64]]:
    """Return where each token's states are read and written (`StateStore.at`)."""
    sources = np.full((slots, width), EMPTY, dtype=np.int64)
    targets = np.full((slots, width), UNREAD, dtype=np.int64)
    counts = np.zeros(slots, dtype=np.int64)
    for piece in pieces:
        row, n = piece.slot - first, len(piece.block)
        counts[row] = n
        if keep == "last":
            sources[row, 0], targets[row, 0] = piece.base, piece.targets[0]
            continue
        parents = piece.block.parents() or ()
        sources[row, :n] = [piece.targets[parent] if parent >= 0 else piece.base for parent in parents]
        targets[row, :n] = piece.targets
    return {"sources": sources, "targets": targets, "counts": counts}
