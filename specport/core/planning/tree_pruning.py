"""What a drafted tree is worth: its expected tokens against the step that verifies it.

Pure functions over trees, chances and a cost curve; where those come from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from specport.core.tree import TokenTree

T = TypeVar("T")
Curve = NDArray[np.float64]  # [width] seconds of a step whose row has that many new tokens


@dataclass(frozen=True)
class Candidate:
    """A tree that might be verified; by default the empty one, which is plain decoding.

    tokens: expected tokens that the step commits, bonus token counted.
    width:  new tokens of the step's row, the root token counted.
    """

    tree: TokenTree = field(default_factory=TokenTree)
    tokens: float = 1.0
    width: int = 1

    def rate(self, curve: Curve) -> float:
        """Seconds a token."""
        return float(curve[self.width]) / self.tokens

    def value(self, curve: Curve, rate: float) -> float:
        """Seconds that the step saves where a token is worth `rate` seconds."""
        return rate * self.tokens - float(curve[self.width])


def best_cut(
    tree: TokenTree, chances: Sequence[float], curve: Curve, *, forked: bool, rate: float | None = None
) -> Candidate | None:
    """The part of `tree` that pays best: nodes are taken best-first, by path probability.

    chances: [n] that a node and all its ancestors are accepted.
    rate:    what a token is worth, in seconds: the cut has the greatest value. None: it has the most
             tokens a second.
    A drawn tree stays whole, since which drawn nodes are shown must not depend on what was drawn. None
    where nothing fits the curve.
    """
    if not len(tree):
        return None
    drawn = tree.probs is not None
    # A node is never likelier than its parent; the stable sort keeps parents first where they tie.
    order = list(range(len(tree))) if drawn else sorted(range(len(tree)), key=lambda node: -chances[node])
    width = row_widths(tree, order, forked=forked)
    fits = int(np.searchsorted(width, len(curve)))
    if not fits or (drawn and fits < len(tree)):
        return None
    tokens = 1.0 + np.cumsum(np.asarray(chances, dtype=np.float64)[order[:fits]])
    seconds = curve[width[:fits]]
    best = int(np.argmin(seconds / tokens if rate is None else seconds - rate * tokens))
    if drawn:
        best = len(tree) - 1
    return Candidate(subtree(tree, order[: best + 1]), float(tokens[best]), int(width[best]))


def row_widths(tree: TokenTree, order: Sequence[int], *, forked: bool) -> NDArray[np.int64]:
    """[n] new tokens of the row, root token counted, once each of `order`'s nodes has been added.

    forked: the model steps each root-to-leaf path as a chain of its own, so a node below one that has
    a child already brings its whole path again; otherwise each node is one token.
    """
    if not forked or tree.is_chain:
        return np.arange(2, len(order) + 2)
    depths = tree.depths()
    added: list[int] = []
    inner: set[int] = set()
    for node in order:
        parent = tree.parents[node]
        added.append(1 + depths[node] if parent in inner else 1)
        inner.add(parent)
    return 1 + np.cumsum(added)


def subtree(tree: TokenTree, nodes: Sequence[int]) -> TokenTree:
    """The tree of these nodes, each of which has its parent among them, in the tree's own order."""
    if len(nodes) == len(tree):
        return tree
    kept = sorted(nodes)
    place = {-1: -1, **{node: i for i, node in enumerate(kept)}}

    def pick(values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[node] for node in kept) if values else ()

    return replace(
        tree,
        tokens=pick(tree.tokens),
        parents=tuple(place[tree.parents[node]] for node in kept),
        probs=tree.probs and pick(tree.probs),
        confidence=pick(tree.confidence),
        sources=pick(tree.sources),
    )
