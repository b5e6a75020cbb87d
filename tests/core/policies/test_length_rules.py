"""Policies: plans, adaptation, and the adaptive threshold against a brute-force search."""

from __future__ import annotations

import numpy as np
import pytest
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.policies.drafting import Drafting
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    CAP,
    MIN_SAMPLES,
    ConfidenceThreshold,
    Fixed,
    Heuristic,
    LengthRule,
    Threshold,
    best_threshold,
    make_length_rule,
)
from specport.core.ports import DraftRequest, Needs, Outcome, Plan, Prefilled
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.errors import InvalidInput


def outcome(num_drafted: int, num_accepted: int, confidence: tuple[float, ...] = ()) -> Outcome:
    tree = TokenTree.chain(range(num_drafted), confidence=confidence)
    return Outcome(0, tree, tuple(range(num_accepted)))


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
        policy.observe(Outcome(0, tree, path))
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
        policy.observe(Outcome(0, tree, (1,)))
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


def test_make_length_rule() -> None:
    assert make_length_rule("fixed", 3) == Fixed(3)
    assert make_length_rule("fixed", 3, (2, 2)) == Fixed(3, (2, 2))
    assert make_length_rule("heuristic") == Heuristic(5)
    assert make_length_rule("confidence", 8).plan() == Plan(8, stop=Threshold(0.4))
    assert make_length_rule("confidence").plan().depth == CAP
    assert make_length_rule("classifier", classifier=Threshold(0.3)).plan() == Plan(10, stop=Threshold(0.3))
    assert make_length_rule("heuristic") is not make_length_rule("heuristic")
    with pytest.raises(InvalidInput, match="unknown policy 'oracle'") as error:
        make_length_rule("oracle")
    assert "planned, fixed, heuristic, confidence" in str(error.value.hint)
    for name, number in (("fixed", -1), ("heuristic", 0), ("confidence", 0), ("classifier", 0)):
        with pytest.raises(InvalidInput, match=str(number)):
            make_length_rule(name, number)
    with pytest.raises(InvalidInput, match="branches"):
        make_length_rule("heuristic", branches=(2,))
    with pytest.raises(InvalidInput, match="threshold"):
        ConfidenceThreshold(threshold=float("nan"))


def test_drafting_is_checked_when_it_is_made() -> None:
    assert Drafting().planned and Drafting().max_depth == CAP and Drafting(num_draft_tokens=7).max_depth == 7
    assert Drafting("fixed", 3).make_length_rule() == Fixed(3)
    sampled = SamplingParams(temperature=1.0)
    assert Drafting(acceptance="block").make_rule(sampled).name == "block"
    assert Drafting().make_rule(SamplingParams()).name == "greedy"
    for wrong in (
        {"num_draft_tokens": 0},
        {"branches": (2,)},
        {"policy": "oracle"},
        {"policy": "fixed", "branches": (0,)},
        {"acceptance": "hope"},
    ):
        with pytest.raises(InvalidInput):
            Drafting(**wrong)  # type: ignore[arg-type]


class Silent(ToyDrafter):
    """Proposes for the sequences of `speaks` only."""

    def __init__(self, name: str, *speaks: int) -> None:
        super().__init__(ToyModel(), name=name, needs=Needs(hidden=name == "b", top_k=len(name)))
        self.speaks, self.asked = speaks, []

    def propose(self, requests):
        self.asked.append([(request.key, request.plan) for request in requests])
        trees = super().propose(requests)
        return [t if r.key in self.speaks else TokenTree() for r, t in zip(requests, trees, strict=True)]


def request(key: int, depth: int = 8, nodes: int = 64) -> DraftRequest:
    return DraftRequest(key, [1, 2], Plan(depth), Sampler(SamplingParams()), nodes)


def test_the_first_drafter_that_has_something_drafts() -> None:
    first, second = Silent("a", 0), Silent("b", 1, 2)
    policy = FirstProposal([first, second], lambda: Fixed(3))
    trees = policy.draft([request(key) for key in range(4)])
    assert [tree.sources[:1] for tree in trees] == [("a",), ("b",), ("b",), ()]
    assert [key for key, _ in first.asked[0]] == [0, 1, 2, 3]
    assert [key for key, _ in second.asked[0]] == [1, 2, 3]  # only what the first left empty
    assert policy.name == "a|b" and policy.needs == Needs(hidden=True, top_k=1)
    policy.draft([request(0)])
    assert len(second.asked) == 1  # nobody was left


def test_plans_stay_within_what_was_asked_for_and_what_the_target_takes() -> None:
    def planned(tree: bool, *bounds: int) -> Plan:
        drafter = Silent("a", 0)
        FirstProposal([drafter], lambda: Fixed(3, (2, 2)), tree=tree).draft([request(0, *bounds)])
        return drafter.asked[0][0][1]

    assert planned(True) == Plan(3, (2, 2))
    assert planned(False) == Plan(3)
    assert planned(True, 2) == Plan(2, (2, 2))
    assert planned(True, 8, 9) == Plan(3)  # 10 nodes are too many: no branches
    assert planned(True, 8, 2) == Plan(2)


def test_nothing_is_asked_where_nothing_may_be_drafted() -> None:
    drafter = Silent("a", 0, 1)
    policy = FirstProposal([drafter], lambda: Fixed(0))
    assert policy.draft([request(0)]) == [TokenTree()] and not drafter.asked


def test_each_sequence_has_a_length_rule_of_its_own_until_it_ends() -> None:
    drafter, made = Silent("a", 0, 1), []

    def make_rule() -> LengthRule:
        made.append(Heuristic(2))
        return made[-1]

    policy = FirstProposal([drafter], make_rule)
    trees = policy.draft([request(0), request(1)])
    policy.observe([Outcome(0, trees[0], (0, 1)), Outcome(1, trees[1], ()), Outcome(7, trees[0], ())])
    assert [rule.num_draft_tokens for rule in made] == [4, 1]
    policy.observe([Outcome(0, TokenTree(), ())])  # nothing was drafted: nothing is learnt
    assert made[0].num_draft_tokens == 4
    policy.forget(0)
    policy.draft([request(0), request(1)])
    assert [rule.num_draft_tokens for rule in made] == [4, 1, 2]
    assert drafter.forgotten == [0] and len(drafter.outcomes) == 4
    policy.prefilled([Prefilled(1, 0, [3])])
    assert drafter.events == [Prefilled(1, 0, [3])]
