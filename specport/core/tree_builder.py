"""A token tree under construction: drafters add nodes until `tree()` makes a `TokenTree`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

from specport.core.arrays import Array
from specport.core.tree import TokenTree, path_to


@dataclass(eq=False)
class TreeBuilder:
    """Hold nodes in topological order; see `TokenTree` for tokens, parents, confidence, probs and sources.

    confidence, scores: empty where nodes are added without a confidence. A score is the product of the
                        confidences from the root's child down to the node.
    probs, sources:     empty where nodes are added without them.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    probs: list[Array] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(
        self, parent: int, token: int, confidence: float | None = None, probs: Array = None, source: str = ""
    ) -> int:
        """Add a node below `parent` (-1 = the root token) and return its index."""
        self.tokens.append(token)
        self.parents.append(parent)
        if confidence is not None:
            self.confidence.append(confidence)
            self.scores.append(confidence * self.scores[parent] if parent >= 0 else confidence)
        if probs is not None:
            self.probs.append(probs)
        if source:
            self.sources.append(source)
        return len(self.tokens) - 1

    def add_chain(self, tokens: Sequence[int], confidence: Sequence[float] = ()) -> None:
        """Add a chain of tokens below the root token. confidence: [tokens] or empty."""
        first = len(self.tokens)
        self.tokens += tokens
        self.parents += [-1, *range(first, first + len(tokens) - 1)][: len(tokens)]
        self.confidence += confidence
        self.scores += accumulate(confidence, mul)

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root's child down to `node`; empty for -1."""
        return path_to(self.parents, node)

    def path_tokens(self, node: int) -> tuple[int, ...]:
        """Return the tokens from the root's child down to `node`."""
        return tuple(self.tokens[i] for i in self.path(node))

    def tree(self, source: str = "", *, replacement: bool = True) -> TokenTree:
        """Return the finished tree.

        source: drafter of all nodes, where they were added without one.
        replacement: whether sampled siblings were sampled with replacement.
        """
        return TokenTree(
            tuple(self.tokens),
            tuple(self.parents),
            probs=self.probs or None,
            replacement=replacement,
            confidence=tuple(self.confidence),
            sources=tuple(self.sources) if self.sources else (source,) * len(self.tokens),
        )
