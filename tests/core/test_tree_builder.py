"""Trees under construction: paths, scores, and the finished tree."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.tree import TokenTree
from specport.core.tree_builder import TreeBuilder


def test_scores_are_products_along_the_path() -> None:
    builder = TreeBuilder()
    a = builder.add(-1, 7, 0.5)
    b = builder.add(a, 8, 0.5)
    builder.add(-1, 9, 0.25)
    builder.add(b, 7, 0.1)
    assert builder.scores == [0.5, 0.25, 0.25, 0.025]
    assert builder.path(3) == [0, 1, 3] and builder.path_tokens(3) == (7, 8, 7) and builder.path(-1) == []
    tree = TokenTree((7, 8, 9, 7), (-1, 0, -1, 1), confidence=(0.5, 0.5, 0.25, 0.1), sources=("x",) * 4)
    assert builder.tree("x") == tree and len(builder) == 4


def test_what_a_drafter_does_not_know_stays_empty() -> None:
    builder = TreeBuilder()
    builder.add_chain([1, 2])
    builder.add_chain([3])
    assert builder.tree("x") == TokenTree((1, 2, 3), (-1, 0, -1), sources=("x",) * 3)
    assert not builder.scores and builder.tree("x").probs is None
    chain = TreeBuilder()
    chain.add_chain([1, 2], [0.5, 0.25])
    assert chain.scores == [0.5, 0.125]
    assert not len(TreeBuilder().tree("x"))


def test_distributions_and_sources_belong_to_their_nodes() -> None:
    builder = TreeBuilder()
    q = np.ones(3)
    builder.add(-1, 0, 0.5, q, "a")
    builder.add(-1, 1, 0.5, q, "b")
    tree = builder.tree("x", replacement=False)
    assert tree.sources == ("a", "b") and not tree.replacement
    assert tree.probs is not None and all(row is q for row in tree.probs)
    builder.add(-1, 2, 0.5)  # one without: a tree that no rule could judge
    with pytest.raises(ValueError, match="probs"):
        builder.tree()
