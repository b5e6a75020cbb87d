"""Implement the `EarlyExit` port on slots: a model drafts with its own first layers.

The front's output (LayerSkip's exit query) of each token is kept in the cache at the token's own row, like
its keys and values. A step that verifies drafted tokens runs the front on the other tokens only, and the back
reads all exit queries from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specport.backends.torch.slots.batch import Piece
from specport.backends.torch.slots.passes import Passes

from specport.core.ports import Block, Refusal, Row, StepOutput


@dataclass(frozen=True)
class SlotEarlyExit:
    """Draft on a cache that holds exit queries.

    layer:  number of layers of the front.
    admit:  makes room for pieces and returns those that do not fit (`SlotModel.admit`).
    passes: runs the front.
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
                row.handle.pending = Block((), ())  # a step that was not committed is overwritten
                row.handle.drafted += row.block.tokens
        return replace(self.passes.run(pieces, "front", refused), refused=refused)

    def read(self, pieces: Sequence[Piece], drafted: Sequence[Sequence[int]]) -> float:
        """Run the front on the tokens of these pieces that were not drafted; return the seconds."""
        found = [unread(piece, tokens) for piece, tokens in zip(pieces, drafted, strict=True)]
        left = [piece for piece in found if len(piece.block)]
        return self.passes.run(left, "front").seconds if left else 0.0


def unread(piece: Piece, drafted: Sequence[int]) -> Piece:
    """Return the part of a piece that the front has not computed: all behind the longest drafted prefix."""
    block, taken = piece.block, piece.block.beginning(drafted)
    # New tokens attend to every row before them, so all of the rest must attend to all of the prefix.
    while block.visible is not None and not block.visible[taken:, :taken].all():
        taken -= 1
    left = Block(
        block.tokens[taken:],
        tuple(position - taken for position in block.positions[taken:]),
        None if block.visible is None else block.visible[taken:, taken:],
    )
    return Piece(piece.slot, piece.length + taken, left, "none")
