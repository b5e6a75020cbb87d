"""Prune a drafted tree: weigh its expected tokens against the cost of the step that verifies it.

Pure functions over trees, acceptance probabilities and a cost curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from specport.core.tree import TokenTree

T = TypeVar("T")
Curve = NDArray[np.float64]  # [width] seconds of a step, indexed by the row's number of new tokens


@dataclass(frozen=True)
class Candidate:
    """Hold a tree that might be verified; the default, an empty tree, is plain decoding.

    tokens: expected number of tokens that the step commits, bonus token included.
    width:  new tokens of the step's row, root token included.
    """

    tree: TokenTree = field(default_factory=TokenTree)
    tokens: float = 1.0
    width: int = 1

    def seconds_per_token(self, curve: Curve) -> float:
        """Return the seconds per expected token."""
        return float(curve[self.width]) / self.tokens

    def value(self, curve: Curve, seconds_per_token: float) -> float:
        """Return the seconds that the step saves where a token is worth `seconds_per_token`."""
        return seconds_per_token * self.tokens - float(curve[self.width])


def best_cut(
    tree: TokenTree,
    probabilities: Sequence[float],
    curve: Curve,
    *,
    forked: bool,
    seconds_per_token: float | None = None,
) -> Candidate | None:
    """Return the most profitable part of `tree`: nodes are taken best-first, by path probability.

    probabilities:     [n] that a node and all its ancestors are accepted.
    forked:            as `Capabilities.forked_trees`.
    seconds_per_token: worth of a token: the cut maximises `Candidate.value`. None: the cut maximises tokens
                       per second.

    A sampled tree stays whole, since which sampled nodes are verified must not depend on their tokens.
    None where nothing fits the curve.
    """
    if not len(tree):
        return None
    drawn = tree.probs is not None
    # A node is never likelier than its parent; the stable sort keeps parents first where they tie.
    order = (
        list(range(len(tree))) if drawn else sorted(range(len(tree)), key=lambda node: -probabilities[node])
    )
    width = row_widths(tree, order, forked=forked)
    fits = int(np.searchsorted(width, len(curve)))
    if not fits or (drawn and fits < len(tree)):
        return None
    tokens = 1.0 + np.cumsum(np.asarray(probabilities, dtype=np.float64)[order[:fits]])
    seconds = curve[width[:fits]]
    cost = seconds / tokens if seconds_per_token is None else seconds - seconds_per_token * tokens
    best = int(np.argmin(cost))
    if drawn:
        best = len(tree) - 1
    return Candidate(subtree(tree, order[: best + 1]), float(tokens[best]), int(width[best]))


def row_widths(tree: TokenTree, order: Sequence[int], *, forked: bool) -> NDArray[np.int64]:
    """Return [n] the row's new tokens, root token included, after each node of `order` is added.

    forked: the model steps each root-to-leaf path as a separate chain, so a further child of a node repeats
            the whole path; otherwise each node is one token.
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
    """Return the tree of these nodes in the tree's own order; each node's parent must be among them."""
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
