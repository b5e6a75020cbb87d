"""A model that drafts with its own first layers: the `EarlyExit` port on slots.

What leaves the front (LayerSkip's exit queries) is kept in the cache at the token's own row, like its keys
and values. So a step that verifies drafted tokens runs the front on the others only, and the back finds all
of them where it looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specport.backends.torch.slots.batch import Piece
from specport.backends.torch.slots.passes import Passes

from specport.core.ports import Block, Refusal, Row, StepOutput


@dataclass(frozen=True)
class SlotEarlyExit:
    """Drafts on a cache that holds exit queries, by a runner that knows the parts front and back.

    layer: layers of the front.
    admit: makes room for pieces and returns which do not fit (`SlotModel.admit`).
    """

    layer: int
    admit: Callable[[Sequence[Piece]], dict[int, Refusal]]
    passes: Passes

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        pieces = [
            Piece(row.handle.slot, row.handle.length + len(row.handle.drafted), row.block, row.logits)
            for row in rows
        ]
        if not all(piece.block.is_chain for piece in pieces):
            raise ValueError("only chains can be drafted at an early exit")
        refused = self.admit(pieces)
        for i, row in enumerate(rows):
            if i not in refused:
                row.handle.pending = Block((), ())  # a step that was not committed is written over
                row.handle.drafted += row.block.tokens
        return replace(self.passes.run(pieces, "front", refused), refused=refused)

    def read(self, pieces: Sequence[Piece], drafted: Sequence[Sequence[int]]) -> float:
        """Run the front on what of these pieces was not drafted; return the seconds."""
        found = [unread(piece, tokens) for piece, tokens in zip(pieces, drafted, strict=True)]
        left = [piece for piece in found if len(piece.block)]
        return self.passes.run(left, "front").seconds if left else 0.0


def unread(piece: Piece, drafted: Sequence[int]) -> Piece:
    """Return what of a piece the front has not run yet: all but the longest beginning that was drafted."""
    block, taken = piece.block, piece.block.beginning(drafted)
    # New tokens see every row before them, so that the others must see all that is taken over.
    while block.visible is not None and not block.visible[taken:, :taken].all():
        taken -= 1
    left = Block(
        block.tokens[taken:],
        tuple(position - taken for position in block.positions[taken:]),
        None if block.visible is None else block.visible[taken:, taken:],
    )
    return Piece(piece.slot, piece.length + taken, left, "none")
