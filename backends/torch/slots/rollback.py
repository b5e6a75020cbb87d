"""Take sequences with states back to any of their tokens: which entry of the store holds what.

A sequence that is cut where no entry is kept goes back to the nearest one before. The tokens between are read
again before its next step, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from specport.backends.torch.slots.batch import Piece, Widths
from specport.backends.torch.slots.sequence import History, SlotSequence
from specport.backends.torch.slots.states import EMPTY, MARKS, StateStore

from specport.core.ports import Block


@dataclass(frozen=True)
class Rollback:
    """Choose the entries of steps, and note what commits make of them.

    read: runs a step on pieces whose outputs nobody wants, and returns the seconds.
    """

    store: StateStore
    widths: Widths
    device: str
    read: Callable[[Sequence[Piece]], float]

    def catch_up(self, handles: Sequence[SlotSequence]) -> float:
        """Read again what is missing behind the nearest state of each sequence; return the seconds."""
        pieces = []
        for handle in handles:
            own, length = handle.history, handle.length
            if length in own.at:
                continue
            base = own.nearest(length)
            piece = self.placed(handle, Piece(handle.slot, base, Block.chain(own.tokens[base:]), "none"))
            own.at[length] = own.placed[-1]
            pieces.append(piece)
        return self.read(pieces) if pieces else 0.0

    def placed(self, handle: SlotSequence, piece: Piece) -> Piece:
        """Return a piece with the entries that it reads and writes; a state is held where it begins."""
        own, count = handle.history, len(piece.block)
        base = own.at[piece.length]
        if count <= self.widths.most:
            own.placed = own.take(count, piece.length)
        else:  # a piece does not write what it reads: a graph's first run is repeated
            pair = own.take(2, piece.length)
            own.placed = tuple(pair[i % 2] for i in range(len(self.widths.pieces(count))))
        return replace(piece, base=base, targets=own.placed)

    def commit(self, handle: SlotSequence, kept: Sequence[int]) -> None:
        """Note which states are now those of committed tokens. Raises ValueError where they are no path."""
        own, block = handle.history, handle.pending
        parents: Any = block.parents()
        if any(parents[node] != before for before, node in zip([-1, *kept], kept, strict=False)):
            raise ValueError(f"{[*kept]} are no path of the last step's {len(block)} tokens")
        own.tokens += [block.tokens[node] for node in kept]
        if len(block) <= self.widths.most:
            own.at |= {handle.length + i + 1: own.placed[node] for i, node in enumerate(kept)}
        elif len(kept) == len(block):
            end = handle.length + len(kept)
            own.at[end] = own.placed[-1]
            own.marks = [*own.marks, end][-MARKS:]
        own.placed = ()

    def fork(self, handle: SlotSequence, new: SlotSequence) -> None:
        """Copy the state nearest to the fork's length to the fork."""
        length = new.length
        near = handle.history.nearest(length)
        new.history = History(handle.history.tokens[:length])
        if near:
            entry = new.history.at[near] = EMPTY + 1
            slots = torch.tensor([handle.slot, new.slot], device=self.device)
            with torch.no_grad():
                self.store.move(slots[:1], slots[1:], handle.history.at[near], entry)
