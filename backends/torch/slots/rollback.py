"""Take sequences with states back to any of their tokens: which entry of the store holds what.

A sequence that is cut where no entry is kept goes back to the nearest one before. The tokens between are read
again before its next step, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from specport.backends.torch.slots.batch import Piece, Widths
from specport.backends.torch.slots.states import EMPTY, MARKS, UNREAD, StateStore

from specport.core.ports import Block

if TYPE_CHECKING:
    from specport.backends.torch.slots.model import SlotSequence


@dataclass
class History:
    """Hold a sequence's committed tokens, and which entries hold its states.

    at:     number of tokens -> entry of the state behind them.
    marks:  numbers of tokens whose entries are not given to other states: ends of long reads.
    placed: entries that the last step wrote: one a token, or those of the pieces of a long row.
    """

    tokens: list[int] = field(default_factory=list)
    at: dict[int, int] = field(default_factory=lambda: {0: EMPTY})
    marks: list[int] = field(default_factory=list)
    placed: tuple[int, ...] = ()

    def nearest(self, length: int) -> int:
        """Return the largest number of tokens up to `length` whose state is held."""
        return max(held for held in self.at if held <= length)

    def cut(self, length: int) -> None:
        """Forget all behind the first `length` tokens."""
        del self.tokens[length:]
        self.at = {held: entry for held, entry in self.at.items() if held <= length}
        self.marks = [mark for mark in self.marks if mark <= length]
        self.placed = ()

    def take(self, count: int, base: int) -> tuple[int, ...]:
        """Return entries to write to: unused ones first, then those of the oldest states.

        base: number of tokens whose entry is read by the step.
        """
        fixed = {self.at[held] for held in (0, base, *self.marks)}
        held = {entry: length for length, entry in self.at.items()}
        free = [entry for entry in range(EMPTY + 1, UNREAD) if entry not in fixed]
        taken = sorted(free, key=lambda entry: held.get(entry, -1))[:count]
        self.at = {length: entry for length, entry in self.at.items() if entry not in taken}
        return tuple(taken)


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
