"""Token trees: what a drafter proposes and a target verifies. Knows token ids only.

A tree hangs below the *root token*, the last committed token of a sequence. Its nodes stand in
topological order, so `parents[i] < i`; a parent of -1 is the root token. A chain is the tree whose
parents are -1, 0, 1, ... (SpecInfer, arXiv 2305.09781, flattens token trees the same way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.core.block import Block


@dataclass(frozen=True)
class TokenTree:
    """Hold the drafted tokens below the last committed token.

    tokens:  [n] token ids.
    parents: [n] index of each node's parent; -1 = the root token.
    probs:   None when the draft is deterministic (n-gram, greedy), else [n] entries: the draft
             distribution [vocab] that the node was sampled from, or None for a deterministic node.
    replacement: whether siblings were sampled with replacement (independently) or without. Matters only for
             sampled siblings: the acceptance rule depends on how they were sampled.
    confidence: [n] the drafter's own probability of each node given its parent, or empty where the
             drafter has none. Only policies read it; acceptance never does.
    sources: [n] name of the drafter that proposed each node.

    Raises ValueError where lengths differ or a node stands before its parent.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    probs: Sequence[Any | None] | None = field(default=None, compare=False)  # arrays have no plain ==
    replacement: bool = True
    confidence: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.parents)} parents")
        for i, parent in enumerate(self.parents):
            if not -1 <= parent < i:
                raise ValueError(f"parent of node {i} is {parent}; it must stand before the node")
        for name in ("probs", "confidence", "sources"):
            value = getattr(self, name)
            if value and len(value) != len(self.tokens):
                raise ValueError(f"{len(self.tokens)} tokens but {len(value)} {name}")

    @classmethod
    def chain(cls, tokens: Sequence[int], source: str = "", **fields: Any) -> TokenTree:
        """Return a tree without branches; `source` names the drafter of every node."""
        n = len(tokens)
        sources = (source,) * n if source else ()
        return cls(tuple(tokens), tuple(range(-1, n - 1)), sources=sources, **fields)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        return all(parent == i - 1 for i, parent in enumerate(self.parents))

    def rooted(self, root: int) -> TokenTree:
        """Return the tree that a target verifies: the root token as node 0 and the draft below it."""
        return TokenTree((root, *self.tokens), (-1, *(parent + 1 for parent in self.parents)))

    def as_block(self) -> Block:
        """Return the nodes as new tokens of a row: each attends to its ancestors, at its depth's position."""
        if self.is_chain:
            return Block.chain(self.tokens)
        return Block(self.tokens, tuple(depth - 1 for depth in self.depths()), self.ancestor_mask())

    def depths(self) -> list[int]:
        """Return [n] each node's distance from the root token, whose children have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
        return depths

    def children(self) -> dict[int, list[int]]:
        """Return node (or -1 for the root token) -> its children, in order."""
        out: dict[int, list[int]] = {}
        for i, parent in enumerate(self.parents):
            out.setdefault(parent, []).append(i)
        return out

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root's child down to `node`; empty for -1."""
        return path_to(self.parents, node)

    def ancestor_mask(self) -> NDArray[np.bool_]:
        """Return the [n, n] mask whose row i is True at i and at every ancestor of i."""
        n = len(self.tokens)
        mask = np.zeros((n, n), dtype=np.bool_)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                mask[i] = mask[parent]
            mask[i, i] = True
        return mask


def path_to(parents: Sequence[int], node: int) -> list[int]:
    """Return the nodes from the root's child down to `node`; empty for -1. For trees that still grow."""
    out: list[int] = []
    while node >= 0:
        out.append(node)
        node = parents[node]
    return out[::-1]
