"""A model that drafts with its own first layers: the `EarlyExitModel` port on slots.

What leaves the front (LayerSkip's exit queries) is kept in the cache at the token's own row, like its keys
and values. So a step that verifies drafted tokens runs the front on the others only, and the back finds all
of them where it looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specport.backends.torch.slots.batch import Piece
from specport.backends.torch.slots.model import SlotModel, piece_of

from specport.core.ports import Row, StepOutput
from specport.core.tree import TokenTree


class ExitModel(SlotModel):
    """A `SlotModel` whose runner knows the parts front and back, on a cache that holds exit queries."""

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        pieces = [piece_of(row, len(row.handle.drafted)) for row in rows]
        if not all(piece.tree.is_chain for piece in pieces):
            raise ValueError("a row that branches cannot be drafted at an early exit")
        self._admit(pieces)
        for row in rows:
            row.handle.pending = TokenTree()  # a step that was not committed is written over
            row.handle.drafted += row.tree.tokens
        return self._pass(pieces, "front")

    def step(self, rows: Sequence[Row]) -> StepOutput:
        pieces = [piece_of(row) for row in rows]
        self._admit(pieces)
        found = [_rest(piece, row.handle.drafted) for piece, row in zip(pieces, rows, strict=True)]
        rest = [piece for piece in found if len(piece.tree)]
        for row in rows:
            row.handle.pending, row.handle.drafted = row.tree, ()
        seconds = self._pass(rest, "front").seconds if rest else 0.0
        output = self._pass(pieces, "back")
        return replace(output, seconds=output.seconds + seconds)


def _rest(piece: Piece, drafted: Sequence[int]) -> Piece:
    """What of a piece the front has not run yet: all but the longest beginning that was drafted."""
    tree, taken = piece.tree, piece.tree.beginning(drafted)
    # New tokens see every row before them, so that the rest must hang below all that is taken over.
    taken = min([taken, *(parent + 1 for parent in tree.parents[taken:])])
    rest = TokenTree(tree.tokens[taken:], tuple(parent - taken for parent in tree.parents[taken:]))
    return Piece(piece.slot, piece.length + taken, rest, "none")
