"""The block: the new tokens that a row of a step appends to a sequence. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Block:
    """Hold the new tokens of one sequence that a row appends in a step.

    tokens:    [n] token ids.
    positions: [n] position of each token, relative to the sequence's next position (0).
    visible:   [n, n] attention mask: row i is True at the block's tokens that token i attends to, itself
               included. None = causal. Every token attends to all committed tokens.

    A prompt is a chain. A drafted tree gives a block with its ancestor mask (`TokenTree.as_block`). A block
    of masked tokens (diffusion, parallel drafting) may have any mask.

    Raises ValueError where the shapes disagree or a token does not attend to itself.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    visible: NDArray[np.bool_] | None = field(default=None, compare=False)  # arrays have no plain ==

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if len(self.positions) != n:
            raise ValueError(f"{n} tokens but {len(self.positions)} positions")
        if self.visible is not None and (self.visible.shape != (n, n) or not self.visible.diagonal().all()):
            raise ValueError(f"the visibility of {n} tokens is [{n}, {n}], and each sees itself")

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Block:
        """Return a block whose tokens follow one another."""
        return cls(tuple(tokens), tuple(range(len(tokens))))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        return self.visible is None and self.positions == tuple(range(len(self.tokens)))

    @property
    def reach(self) -> int:
        """Return the number of positions that the block takes behind the committed tokens."""
        return max(self.positions, default=-1) + 1

    def parents(self) -> tuple[int, ...] | None:
        """Return [n] each token's parent in the tree, -1 at the top; None where the mask is not a tree's.

        In a tree a token attends to itself and to what its parent attends to, and its position is its depth.
        """
        if self.visible is None:
            return tuple(range(-1, len(self) - 1)) if self.is_chain else None
        parents: list[int] = []
        for i, row in enumerate(self.visible):
            seen = np.flatnonzero(row)
            parent = int(seen[-2]) if len(seen) > 1 else -1
            above = self.visible[parent] if parent >= 0 else np.zeros(len(self), dtype=np.bool_)
            alone = row.copy()
            alone[i] = False
            if seen[-1] != i or not np.array_equal(alone, above):
                return None
            if self.positions[i] != (self.positions[parent] + 1 if parent >= 0 else 0):
                return None
            parents.append(parent)
        return tuple(parents)

    def checked_nodes(self, nodes: Sequence[int]) -> list[int]:
        """Return the indices of the tokens to keep, as a list.

        Raises ValueError where they are not strictly ascending within the block.
        """
        kept = list(nodes)
        if any(b <= a for a, b in zip([-1, *kept], kept, strict=False)) or (kept and kept[-1] >= len(self)):
            raise ValueError(f"{kept} are no ascending tokens of the last step's {len(self)}")
        return kept

    def beginning(self, tokens: Sequence[int]) -> int:
        """Return how many of the block's first tokens are a causal chain with these ids."""
        count = 0
        for i, (token, own) in enumerate(zip(tokens, self.tokens, strict=False)):
            if token != own or self.positions[i] != i:
                break
            if self.visible is not None and not np.array_equal(self.visible[i], np.arange(len(self)) <= i):
                break
            count += 1
        return count
