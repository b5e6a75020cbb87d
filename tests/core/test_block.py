"""Blocks: what a row of a step appends, and what of it may be kept."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.block import Block
from specport.core.tree import TokenTree

#        root
#       /    \
#      0      1
#     / \      \
#    2   4      3
TREE = TokenTree((10, 11, 12, 13, 14), (-1, -1, 0, 1, 0))


def mask(*rows: str) -> np.ndarray:
    return np.array([[c == "x" for c in row] for row in rows], dtype=np.bool_)


def random_tree(rng: np.random.Generator) -> TokenTree:
    n = int(rng.integers(1, 12))
    return TokenTree(tuple(rng.integers(0, 3, n).tolist()), tuple(int(rng.integers(-1, i)) for i in range(n)))


def test_a_tree_is_a_block_in_which_each_token_sees_its_ancestors() -> None:
    block = TREE.as_block()
    assert (block.tokens, block.positions) == (TREE.tokens, (0, 0, 1, 1, 1))
    assert (block.visible == mask("x....", ".x...", "x.x..", ".x.x.", "x...x")).all()
    assert not block.is_chain and block.reach == 2 and len(block) == 5


def test_a_chain_needs_no_mask() -> None:
    for block in (Block.chain([7, 8, 9]), TokenTree.chain([7, 8, 9]).as_block()):
        assert block.is_chain and block.visible is None
        assert block == Block((7, 8, 9), (0, 1, 2)) and block.reach == 3
    assert Block.chain([]).reach == 0 == len(Block.chain([])) and Block.chain([]).is_chain


def test_parents_are_those_of_the_tree() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        tree = random_tree(rng)
        assert tree.as_block().parents() == tree.parents
    assert Block.chain([4, 4, 4]).parents() == (-1, 0, 1)
    assert Block.chain([]).parents() == ()


@pytest.mark.parametrize(
    ("positions", "visible"),
    [
        ((0, 1), mask("xx", "xx")),  # sees what stands behind it
        ((0, 1), mask("xx", ".x")),
        ((0, 0, 1), mask("x..", ".x.", "xxx")),  # sees two tokens of which neither is above the other
        ((0, 1, 2), mask("x..", "xx.", ".xx")),  # sees its parent, not its grandparent
        ((0, 2), mask("x.", "xx")),  # not at its depth
        ((1, 0), mask("x.", ".x")),
        ((1, 2), None),  # a chain that does not begin behind the sequence
        ((0, 0), None),
    ],
)
def test_other_blocks_are_no_trees_and_no_chains(positions: tuple[int, ...], visible) -> None:
    block = Block(tuple(range(len(positions))), positions, visible)
    assert block.parents() is None and not block.is_chain
    assert block.reach == max(positions) + 1


def test_a_block_with_the_mask_of_a_chain_has_its_parents() -> None:
    block = Block((5, 6, 7), (0, 1, 2), np.tri(3, dtype=np.bool_))
    assert block.parents() == (-1, 0, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (((1, 2), (0,)), "2 tokens but 1 positions"),
        (((1, 2), (0, 1), mask("x")), "visibility of 2 tokens"),
        (((1, 2), (0, 1), mask("x.", "x.")), "each sees itself"),
    ],
)
def test_parts_that_do_not_agree_are_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Block(*fields)


def test_kept_nodes_rise_within_the_block() -> None:
    block = TREE.as_block()
    for nodes in ([], [0], [0, 1], [0, 2, 4], range(5)):
        assert block.checked_nodes(nodes) == [*nodes]
    for wrong in ([5], [-1], [1, 0], [0, 0], [0, 2, 1], [-1, 0], [4, 5]):
        with pytest.raises(ValueError, match="no ascending tokens of the last step's 5"):
            block.checked_nodes(wrong)


def test_how_far_a_block_follows_a_chain() -> None:
    chain, tree = Block.chain([5, 6, 7]), TokenTree((5, 6, 8, 7), (-1, 0, 0, 1)).as_block()
    assert [chain.beginning(t) for t in ([], [4], [5], [5, 6, 9], [5, 6, 7, 8])] == [0, 0, 1, 2, 3]
    assert tree.beginning([5, 6, 8]) == 2  # the third token hangs elsewhere
    assert TokenTree((5, 6), (-1, -1)).as_block().beginning([5, 6]) == 1
    blind = Block((5, 6, 7), (0, 1, 2), mask("x..", ".x.", "xxx"))
    assert blind.beginning([5, 6, 7]) == 1  # the second does not see the first
