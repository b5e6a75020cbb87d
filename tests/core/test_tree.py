"""Token trees."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.ports import Plan
from specport.core.tree import TokenTree

#        root
#       /    \
#      0      1
#     / \      \
#    2   4      3
TREE = TokenTree((10, 11, 12, 13, 14), (-1, -1, 0, 1, 0))


def test_depths_children_and_paths() -> None:
    assert TREE.depths() == [1, 1, 2, 2, 2]
    assert TREE.children() == {-1: [0, 1], 0: [2, 4], 1: [3]}
    assert TREE.path(4) == [0, 4]
    assert TREE.path(-1) == []
    assert len(TREE) == 5


def test_ancestor_mask_agrees_with_paths() -> None:
    mask = TREE.ancestor_mask()
    for node in range(len(TREE)):
        assert np.flatnonzero(mask[node]).tolist() == TREE.path(node)
    assert TokenTree().ancestor_mask().shape == (0, 0)
    assert (TokenTree.chain([5, 6, 7]).ancestor_mask() == np.tri(3, dtype=bool)).all()


def test_chain() -> None:
    chain = TokenTree.chain([7, 8, 9], source="ngram", confidence=(0.9, 0.5, 0.1))
    assert chain.parents == (-1, 0, 1) and chain.sources == ("ngram",) * 3
    assert chain.is_chain and not TREE.is_chain and TokenTree().is_chain
    assert TokenTree.chain([]) == TokenTree()


def test_rooted_puts_the_root_token_above() -> None:
    rooted = TREE.rooted(99)
    assert rooted.tokens == (99, 10, 11, 12, 13, 14)
    assert rooted.parents == (-1, 0, 0, 1, 2, 1)
    assert rooted.depths() == [1, *(d + 1 for d in TREE.depths())]
    assert TokenTree().rooted(99) == TokenTree((99,), (-1,))


@pytest.mark.parametrize("parents", [(0,), (-2,), (1,)])
def test_a_parent_stands_before_its_node(parents) -> None:
    with pytest.raises(ValueError, match="parent of node 0"):
        TokenTree((1,), parents)


@pytest.mark.parametrize(
    "fields", [{"probs": (None,)}, {"confidence": (0.5,)}, {"sources": ("a", "b", "c")}, {"parents": (-1,)}]
)
def test_lengths_must_agree(fields) -> None:
    with pytest.raises(ValueError, match="2 tokens but"):
        TokenTree(**{"tokens": (1, 2), "parents": (-1, 0), **fields})


@pytest.mark.parametrize(
    ("plan", "nodes"), [(Plan(0), 0), (Plan(4), 4), (Plan(3, (2,)), 6), (Plan(2, (3, 2, 5)), 9)]
)
def test_max_nodes_of_a_plan(plan, nodes) -> None:
    assert plan.max_nodes == nodes
