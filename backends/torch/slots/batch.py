"""Lays the rows of a step out in slots, as the arrays of a forward pass of fixed shape. Knows arrays only.

Slots that are in the window but not in the step, and the padding behind a row's own tokens, compute what
nobody reads: padding writes behind the row's tokens, where the next step writes over it, and a slot without
a row writes to the last rows of its cache, which no sequence reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from specport.backends.torch.slots.halves import Part
from specport.backends.torch.slots.step import StepShape

from specport.core.tree import TokenTree

WIDEST = 64  # tokens of a sequence that a round of decoding may bring; more are read in pieces


@dataclass(frozen=True)
class Piece:
    """New tokens of one slot behind `length` rows of its cache, and which of them logits are wanted of."""

    slot: int
    length: int
    tree: TokenTree
    logits: Literal["all", "last", "none"] = "all"


@dataclass(frozen=True)
class Widths:
    """How many tokens of a sequence a forward pass may bring.

    decode: widths of a round of decoding, () = any; a longer row is read in pieces.
    read:   widths of such a piece, () = any.
    least:  the narrowest of all.
    """

    decode: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    least: int = 1

    @property
    def most(self) -> int:
        """Tokens of the widest decode step."""
        return max(self.decode, default=WIDEST)

    def decoded(self, num_tokens: int) -> int:
        return _fit(self.decode, max(num_tokens, self.least))

    def pieces(self, num_tokens: int) -> list[tuple[int, int]]:
        """(tokens, width) of each piece that a long row is read in."""
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
    """The smallest aligned power-of-two range (first, size) that holds these slots: there are few."""
    size = 1
    while min(slots) // size != max(slots) // size:
        size *= 2
    size = min(size, total)
    return min(slots) // size * size, size


def pack(
    pieces: Sequence[Piece],
    part: Part,
    *,
    first: int,
    slots: int,
    width: int,
    length: int,
    capacity: int,
) -> tuple[NDArray[np.int64], StepShape]:
    """The packed input of a forward pass of a part over `slots` slots from `first` on, and its shape.

    width: new tokens of each; length: rows of the cache that they see; capacity: rows of a slot.
    """
    kept = np.arange(width)
    if all(piece.logits == "none" for piece in pieces):
        kept = kept[:0]
    elif len(pieces) == 1 and pieces[0].logits == "last":
        kept = kept[len(pieces[0].tree) - 1 :][:1]
    shape = StepShape(first, slots, width, length, len(kept), part)
    ids = np.zeros((slots, width), dtype=np.int64)
    lengths = np.full(slots, capacity - width, dtype=np.int64)
    positions = np.zeros((slots, width), dtype=np.int64)
    tree = np.broadcast_to(np.eye(width, dtype=np.int64), (slots, width, width)).copy()
    for piece in pieces:
        row, n = piece.slot - first, len(piece.tree)
        ids[row, :n] = piece.tree.tokens
        lengths[row] = piece.length
        positions[row, :n] = [piece.length + depth - 1 for depth in piece.tree.depths()]
        if piece.tree.is_chain:
            tree[row, :n, :n] = np.tri(n, dtype=np.int64)
        else:
            tree[row, :n, :n] = piece.tree.ancestor_mask()
    return shape.pack(ids=ids, positions=positions, lengths=lengths, tree=tree, kept=kept), shape
