"""Policies: plans, adaptation, and the adaptive threshold against a brute-force search."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.planning.policies import (
    CAP,
    MIN_SAMPLES,
    ConfidenceThreshold,
    Fixed,
    Heuristic,
    Planned,
    Threshold,
    best_threshold,
    make_policy,
)
from specport.core.ports import Outcome, Plan
from specport.core.tree import TokenTree
from specport.errors import InvalidInput


def outcome(num_drafted: int, num_accepted: int, confidence: tuple[float, ...] = ()) -> Outcome:
    tree = TokenTree.chain(range(num_drafted), confidence=confidence)
    return Outcome(0, tree, tuple(range(num_accepted)), Plan(num_drafted))


def test_planned_leaves_it_to_the_planner() -> None:
    assert make_policy("planned") == Planned() and Planned(7).plan() == Plan(7)
    with pytest.raises(InvalidInput, match="1 or more"):
        Planned(0)


def test_fixed_does_not_move() -> None:
    policy = Fixed(3, (2, 1))
    policy.observe(outcome(3, 0))
    assert policy.plan() == Plan(3, (2, 1))


def test_heuristic_two_up_one_down() -> None:
    policy = Heuristic(5)
    depths = []
    for num_accepted in (5, 7, 8, 0, 0):
        policy.observe(outcome(policy.plan().depth, num_accepted))
        depths.append(policy.plan().depth)
    assert depths == [7, 9, 8, 7, 6]


def test_heuristic_bounds() -> None:
    policy = Heuristic(2)
    for _ in range(5):
        policy.observe(outcome(policy.plan().depth, 0))
    assert policy.plan().depth == 1
    for _ in range(20):
        policy.observe(outcome(policy.plan().depth, policy.plan().depth))
    assert policy.plan().depth == CAP
    assert Heuristic(30).plan().depth == 30


def test_heuristic_counts_levels_of_a_tree() -> None:
    tree = TokenTree((1, 2, 3, 4), (-1, -1, 0, 1))
    for path, depth in (((1, 3), 7), ((0,), 4)):
        policy = Heuristic(5)
        policy.observe(Outcome(0, tree, path, Plan(2)))
        assert policy.plan().depth == depth


def test_threshold_plan() -> None:
    assert ConfidenceThreshold().plan() == Plan(20, stop=Threshold(0.4))


def test_threshold_learns_from_what_was_judged() -> None:
    policy = ConfidenceThreshold()
    # 0.65 is the first miss; what stands behind it was never judged and must not count as missed.
    policy.observe(outcome(6, 2, (0.9, 0.8, 0.65, 0.1, 0.1, 0.1)))
    assert policy.plan().stop == Threshold(0.4)  # too few samples
    policy.observe(outcome(3, 3, (0.7, 0.9, 0.6)))
    assert policy.plan().stop == Threshold(0.7)  # one false negative of five is cheaper than every miss


def test_threshold_needs_both_classes() -> None:
    policy = ConfidenceThreshold()
    for _ in range(5):
        policy.observe(outcome(3, 3, (0.7, 0.9, 0.6)))
    assert policy.plan().stop == Threshold(0.4)


def test_threshold_stays_without_adaptation_or_confidence() -> None:
    fixed, blind = ConfidenceThreshold(adapt=False), ConfidenceThreshold()
    for _ in range(5):
        fixed.observe(outcome(2, 1, (0.9, 0.2)))
        blind.observe(outcome(2, 1))
    assert fixed.plan().stop == blind.plan().stop == Threshold(0.4)


def test_threshold_in_a_tree_misses_with_the_first_child() -> None:
    tree = TokenTree((1, 2, 3, 4), (-1, -1, 1, 1), confidence=(0.6, 0.3, 0.2, 0.1))
    policy = ConfidenceThreshold()
    for _ in range(3):
        policy.observe(Outcome(0, tree, (1,), Plan(2)))
    assert policy.plan().stop == Threshold(0.3)  # matched at 0.3, missed at 0.2


def brute_force(samples: list[tuple[float, bool]]) -> float:
    """argmin of FPR + 3 FNR over every sampled probability, the highest first."""
    misses = sum(not m for _, m in samples)
    matches = len(samples) - misses

    def cost(t: float) -> float:
        false_positives = sum(p >= t and not m for p, m in samples)
        false_negatives = sum(p < t and m for p, m in samples)
        return round(false_positives / misses + 3 * false_negatives / matches, 12)

    return min(sorted({p for p, _ in samples}, reverse=True), key=cost)


def test_best_threshold_is_the_argmin() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(MIN_SAMPLES, 40))
        probs = rng.integers(1, 12, n) / 12  # with ties
        samples = [(float(p), bool(rng.random() < p)) for p in probs]
        if len({m for _, m in samples}) == 2:
            assert best_threshold(samples, default=-1.0) == brute_force(samples)


def test_make_policy() -> None:
    assert make_policy("fixed", 3) == Fixed(3)
    assert make_policy("heuristic") == Heuristic(5)
    assert make_policy("confidence", 8).plan() == Plan(8, stop=Threshold(0.4))
    assert make_policy("confidence").plan().depth == CAP
    assert make_policy("heuristic") is not make_policy("heuristic")
    with pytest.raises(InvalidInput, match="planned, fixed, heuristic, confidence"):
        make_policy("oracle")
    for name, number in (("fixed", -1), ("heuristic", 0), ("confidence", 0)):
        with pytest.raises(InvalidInput, match=str(number)):
            make_policy(name, number)
    with pytest.raises(InvalidInput, match="threshold"):
        ConfidenceThreshold(threshold=float("nan"))
