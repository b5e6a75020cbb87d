"""Cuts of trees against brute force over all subtrees."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from specport.core.planning.tree_pruning import Candidate, best_cut, row_widths, subtree
from specport.core.tree import TokenTree


def random_tree(rng: np.random.Generator, n: int) -> tuple[TokenTree, list[float]]:
    parents = [int(rng.integers(-1, i)) for i in range(n)]
    chances: list[float] = []
    for parent in parents:
        chances.append(float(rng.uniform(0.05, 1.0)) * (chances[parent] if parent >= 0 else 1.0))
    return TokenTree(tuple(range(n)), tuple(parents)), chances


def closed(tree: TokenTree) -> list[tuple[int, ...]]:
    """Every set of nodes that holds each node's parent."""
    nodes = range(len(tree))
    every = (chosen for n in range(1, len(tree) + 1) for chosen in combinations(nodes, n))
    return [chosen for chosen in every if all(tree.parents[i] in (-1, *chosen) for i in chosen)]


def leaves_width(tree: TokenTree, nodes: tuple[int, ...]) -> int:
    """Tokens of a row that steps every root-to-leaf path by itself."""
    inner = {tree.parents[i] for i in nodes}
    return sum(1 + len(tree.path(i)) for i in nodes if i not in inner)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rate", [None, 0.7])
def test_the_best_cut_of_a_masked_tree_is_found(seed: int, rate: float | None) -> None:
    rng = np.random.default_rng(seed)
    tree, chances = random_tree(rng, 7)
    curve = np.concatenate([[0.0], 1.0 + np.cumsum(rng.uniform(0.0, 0.3, 8))])
    found = best_cut(tree, chances, curve, forked=False, seconds_per_token=rate)
    assert found is not None

    def score(tokens: float, width: int) -> float:
        return curve[width] / tokens if rate is None else curve[width] - rate * tokens

    best = min(score(1 + sum(chances[i] for i in nodes), 1 + len(nodes)) for nodes in closed(tree))
    assert score(found.tokens, found.width) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(10))
def test_widths_of_forked_rows_count_every_path(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree, chances = random_tree(rng, 8)
    order = sorted(range(8), key=lambda node: -chances[node])
    widths = row_widths(tree, order, forked=True)
    assert widths.tolist() == [leaves_width(tree, tuple(order[: n + 1])) for n in range(8)]
    assert row_widths(tree, order, forked=False).tolist() == [*range(2, 10)]


def test_a_drawn_tree_stays_whole_or_goes() -> None:
    tree = TokenTree.chain([1, 2], probs=[np.ones(3) / 3] * 2)
    steep = np.asarray([0.0, 1.0, 50.0, 100.0])
    found = best_cut(tree, [0.5, 0.1], steep, forked=False)
    assert found is not None and found.tree is tree and found.tokens == pytest.approx(1.6)
    assert best_cut(tree, [0.5, 0.1], steep[:3], forked=False) is None
    assert best_cut(TokenTree(), [], steep, forked=False) is None


def test_a_cut_keeps_all_that_belongs_to_its_nodes() -> None:
    tree = TokenTree(
        (5, 6, 7, 8), (-1, -1, 1, 2), confidence=(0.1, 0.2, 0.3, 0.4), sources=("a", "b", "c", "d")
    )
    cut = subtree(tree, [2, 1])
    assert (cut.tokens, cut.parents) == ((6, 7), (-1, 0))
    assert (cut.confidence, cut.sources) == ((0.2, 0.3), ("b", "c"))
    assert subtree(tree, [0, 1, 2, 3]) is tree


def test_value_and_rate_of_a_candidate() -> None:
    curve = np.asarray([0.0, 1.0, 1.5])
    plain, drafted = Candidate(), Candidate(TokenTree.chain([1]), 1.8, 2)
    assert plain.seconds_per_token(curve) == 1.0 and drafted.seconds_per_token(curve) == pytest.approx(
        1.5 / 1.8
    )
    assert plain.value(curve, 1.0) == 0.0 and drafted.value(curve, 1.0) == pytest.approx(0.3)
