"""Admission: the width of one step shared among the drafts of all rows, against a search of all ways."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from specport.core.planning.admission import Bid, admit
from specport.core.planning.tree_pruning import row_widths
from specport.core.tree import TokenTree

Curve = np.ndarray


def width_of(tree: TokenTree, min_width: int, forked: bool) -> int:
    own = int(row_widths(tree, range(len(tree)), forked=forked)[-1]) if len(tree) else 1
    return max(own, min_width)


def worth(
    bids: Sequence[Bid], trees: Sequence[TokenTree], curve: Curve, prefill: int = 0, *,
    min_width: int = 1, forked: bool = False,
) -> float:  # fmt: skip
    """Expected tokens a second of a step that verifies these trees."""
    tokens = 0.0
    for bid, tree in zip(bids, trees, strict=True):
        chance = dict(
            zip(zip(bid.tree.tokens, strict=True), bid.probabilities, strict=True)
        )  # tokens are distinct
        tokens += 1.0 + sum(chance[(token,)] for token in tree.tokens)
    width = prefill + sum(width_of(tree, min_width, forked) for tree in trees)
    return tokens / float(curve[min(width, len(curve) - 1)])


def cuts(bid: Bid) -> list[tuple[int, ...]]:
    """Every set of nodes that may be shown: each with its parent."""
    n = len(bid.tree)
    if bid.whole:
        return [tuple(range(n))]
    found = []
    for shown in product((False, True), repeat=n):
        nodes = tuple(i for i in range(n) if shown[i])
        if all(bid.tree.parents[i] in (-1, *nodes) for i in nodes):
            found.append(nodes)
    return found


def best_of_all(bids: Sequence[Bid], curve: Curve, prefill: int, min_width: int) -> float:
    """The most expected tokens a second, by trying every cut of every row. No forked trees."""
    best = 0.0
    for choice in product(*(cuts(bid) for bid in bids)):
        width = prefill + sum(max(1 + len(nodes), min_width) for nodes in choice)
        if width >= len(curve):
            continue
        tokens = sum(
            1.0 + sum(bid.probabilities[i] for i in nodes) for bid, nodes in zip(bids, choice, strict=True)
        )
        best = max(best, tokens / float(curve[width]))
    return best


def random_bid(rng: np.random.Generator, most: int) -> Bid:
    n = int(rng.integers(0, most + 1))
    parents = tuple(int(rng.integers(-1, i)) for i in range(n))
    chances: list[float] = []
    for parent in parents:
        chances.append((chances[parent] if parent >= 0 else 1.0) * float(rng.uniform(0.05, 1.0)))
    drawn = bool(rng.random() < 0.25)
    tree = TokenTree(tuple(range(n)), parents, [None] * n if drawn else None, confidence=tuple(chances))
    return Bid(tree, chances, whole=drawn or bool(rng.random() < 0.1))


def random_curve(rng: np.random.Generator, widest: int = 40) -> Curve:
    steps = rng.choice([0.0, 0.02, 0.1, 0.4, 2.0], size=widest + 1)
    return np.concatenate([[0.0], 1.0 + np.cumsum(steps)])


@pytest.mark.parametrize("min_width", [1, 2, 4])
def test_it_is_the_best_of_all_ways_to_cut(min_width: int) -> None:
    rng = np.random.default_rng(min_width)
    for _ in range(150):
        bids = [random_bid(rng, 3) for _ in range(int(rng.integers(1, 4)))]
        curve, prefill = random_curve(rng), int(rng.integers(0, 6))
        trees = admit(bids, curve, prefill, forked=False, min_width=min_width)
        found = worth(bids, trees, curve, prefill, min_width=min_width)
        best = best_of_all(bids, curve, prefill, min_width)
        if len(bids) == 1 and not prefill:
            assert found == pytest.approx(best)
        assert best / 1.03 - 1e-9 <= found <= best + 1e-9  # or a narrower step that is nearly as good


@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize("min_width", [1, 3])
def test_it_is_never_worse_than_each_row_s_own_choice_or_no_draft_at_all(
    forked: bool, min_width: int
) -> None:
    rng = np.random.default_rng(9)
    for _ in range(300):
        bids = [random_bid(rng, 8) for _ in range(int(rng.integers(1, 7)))]
        curve, prefill = random_curve(rng, 120), int(rng.integers(0, 20))
        trees = admit(bids, curve, prefill, forked=forked, min_width=min_width)
        options = {"min_width": min_width, "forked": forked}
        found = worth(bids, trees, curve, prefill, **options)
        every = [bid.tree for bid in bids]
        nothing = [bid.tree if bid.whole else TokenTree() for bid in bids]
        assert found >= worth(bids, nothing, curve, prefill, **options) - 1e-12
        assert found >= worth(bids, every, curve, prefill, **options) / 1.03 - 1e-12


def test_drawn_and_seeded_trees_are_whole_whatever_they_cost() -> None:
    rng = np.random.default_rng(2)
    dear = np.arange(100.0) ** 2
    for _ in range(100):
        bids = [random_bid(rng, 6) for _ in range(4)]
        trees = admit(bids, dear, forked=False, min_width=1)
        for bid, tree in zip(bids, trees, strict=True):
            assert tree == (bid.tree if bid.whole else TokenTree())
            assert tree.probs is bid.tree.probs or not bid.whole


def test_what_is_cut_is_a_tree_and_keeps_the_likelier_nodes() -> None:
    tree = TokenTree((5, 6, 7, 8), (-1, -1, 0, 1), confidence=(0.9, 0.5, 0.4, 0.1), sources=("a",) * 4)
    bid = Bid(tree, (0.9, 0.5, 0.36, 0.05))
    # A token costs a tenth of a step up to a width of 4, and two whole ones beyond.
    curve = np.array([0.0, 1.0, 1.1, 1.2, 1.3, 3.3, 5.3, 7.3, 9.3, 11.3])
    (alone,) = admit([bid], curve, forked=False, min_width=1)
    assert (alone.tokens, alone.parents, alone.confidence) == ((5, 6, 7), (-1, -1, 0), (0.9, 0.5, 0.4))
    both = admit([bid, bid], curve, forked=False, min_width=1)
    assert [t.tokens for t in both] == [(5,), (5,)]
    beside = admit([bid], curve, 3, forked=False, min_width=1)  # three prompt tokens fill the cheap part
    assert beside == [TokenTree()]


def test_a_step_wider_than_the_curve_is_cut_to_it() -> None:
    flat = np.concatenate([[0.0], np.ones(6)])
    bids = [Bid(TokenTree.chain(range(4)), (0.9, 0.8, 0.7, 0.6)), Bid(TokenTree.chain(range(4)), (0.5,) * 4)]
    trees = admit(bids, flat, forked=False, min_width=1)
    assert [len(tree) for tree in trees] == [4, 0]  # 1 + 1 root tokens and four more
    assert [len(tree) for tree in admit(bids, flat, 90, forked=False, min_width=1)] == [0, 0]


def test_no_row_is_no_trouble_and_an_empty_tree_stays_empty() -> None:
    flat = np.concatenate([[0.0], np.ones(9)])
    assert admit([Bid(TokenTree(), ())] * 2, flat, forked=False, min_width=1) == [TokenTree()] * 2
