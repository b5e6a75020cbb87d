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


@dataclass(frozen=True)
class TokenTree:
    """Drafted tokens below the last committed token.

    tokens:  [n] token ids.
    parents: [n] index of each node's parent; -1 = the root token.
    probs:   None when the draft is deterministic (n-gram, greedy), else [n] entries: the draft
             distribution [vocab] that the node was drawn from, or None for a deterministic node.
    replacement: whether sibling nodes were drawn with replacement (independent draws) or without.
             Matters only for drawn siblings: the acceptance rule must mirror how they were drawn.
    confidence: [n] the drafter's own probability of each node given its parent, or empty where the
             drafter has none. Only policies read it; acceptance never does.
    sources: [n] name of the drafter that proposed each node.
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
        """A tree without branches; `source` names the drafter of every node."""
        n = len(tokens)
        sources = (source,) * n if source else ()
        return cls(tuple(tokens), tuple(range(-1, n - 1)), sources=sources, **fields)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        return all(parent == i - 1 for i, parent in enumerate(self.parents))

    def rooted(self, root: int) -> TokenTree:
        """The tree a target verifies: the root token as node 0 and the draft below it."""
        return TokenTree((root, *self.tokens), (-1, *(parent + 1 for parent in self.parents)))

    def depths(self) -> list[int]:
        """[n] distance of each node from the root token; its children have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
        return depths

    def children(self) -> dict[int, list[int]]:
        """Node (or -1 for the root token) -> its children, in order."""
        out: dict[int, list[int]] = {}
        for i, parent in enumerate(self.parents):
            out.setdefault(parent, []).append(i)
        return out

    def path(self, node: int) -> list[int]:
        """Nodes from the root's child down to `node`; empty for -1."""
        return path_to(self.parents, node)

    def checked_path(self, kept: Sequence[int]) -> list[int]:
        """The nodes as a list; none is a path too. Raises ValueError where they are no root-to-node path."""
        path = list(kept)
        if path and not (0 <= path[-1] < len(self) and path == self.path(path[-1])):
            raise ValueError(f"{path} is no path of the last step's {len(self)} nodes")
        return path

    def beginning(self, tokens: Sequence[int]) -> int:
        """How many of its first nodes are a chain below the root with these tokens."""
        count = 0
        for token, own, parent in zip(tokens, self.tokens, self.parents, strict=False):
            if token != own or parent != count - 1:
                break
            count += 1
        return count

    def ancestor_mask(self) -> NDArray[np.bool_]:
        """[n, n] mask: row i is True at i itself and at every ancestor of i."""
        n = len(self.tokens)
        mask = np.zeros((n, n), dtype=np.bool_)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                mask[i] = mask[parent]
            mask[i, i] = True
        return mask


def path_to(parents: Sequence[int], node: int) -> list[int]:
    """Nodes from the root's child down to `node`, for trees that are still growing; empty for -1."""
    out: list[int] = []
    while node >= 0:
        out.append(node)
        node = parents[node]
    return out[::-1]
