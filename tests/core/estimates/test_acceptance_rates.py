"""Learnt acceptance: from the prior to what was observed, by confidence and depth and by sequence."""

from __future__ import annotations

import numpy as np
import pytest

from specport.core.estimates.acceptance_rates import CENTRES, EDGES, Acceptance, Local
from specport.core.tree import TokenTree


def test_before_anything_is_observed_the_prior_holds() -> None:
    acceptance = Acceptance()
    for confidence, expected in ((0.05, 0.05), (0.5, 0.55), (0.99, 0.99), (1.0, 0.99)):
        assert acceptance.probability(confidence, 1) == pytest.approx(expected)
    with pytest.raises(ValueError, match="priors"):
        Acceptance((0.5,))
    assert len(CENTRES) == len(EDGES)


def test_rates_become_what_is_observed_by_confidence_and_by_depth() -> None:
    acceptance, rng = Acceptance(), np.random.default_rng(0)
    true = {(0.3, 1): 0.6, (0.3, 5): 0.2, (0.85, 1): 0.9, (0.85, 5): 0.7}
    for _ in range(1500):
        for (confidence, depth), rate in true.items():
            acceptance.observe(confidence, depth, bool(rng.random() < rate))
    acceptance.refresh()
    for (confidence, depth), rate in true.items():
        assert acceptance.probability(confidence, depth) == pytest.approx(rate, abs=0.05)
    assert acceptance.probability(0.55, 1) == pytest.approx(0.55, abs=0.05)  # nothing was seen there


def test_a_sequence_departs_from_the_rest_and_leaves_it_alone() -> None:
    shared = Acceptance()
    good, bad = Local(shared), Local(shared)
    hit, miss = TokenTree.chain([1], confidence=(0.5,)), TokenTree.chain([1], confidence=(0.5,))
    for _ in range(20):
        good.observe(hit, (0,))
        bad.observe(miss, ())
    assert good.probability(0.5, 1) > 0.8 and bad.probability(0.5, 1) < 0.25
    assert shared.probability(0.5, 1) == pytest.approx(0.5, abs=0.1)
    assert Local(shared).probability(0.5, 1) == shared.probability(0.5, 1)


def test_chances_multiply_along_paths() -> None:
    local = Local(Acceptance())
    tree = TokenTree((1, 2, 3, 4), (-1, 0, 0, 2), confidence=(0.99, 0.85, 0.05, 0.55))
    first, second, third, fourth = local.path_probabilities(tree)
    assert first == pytest.approx(0.99) and second == pytest.approx(0.99 * 0.85)
    assert third == pytest.approx(0.99 * 0.05) and fourth == pytest.approx(0.99 * 0.05 * 0.55)
    assert local.path_probability([0.99, 0.05, 0.55]) == pytest.approx(fourth)


def test_only_nodes_whose_parent_was_accepted_are_judged() -> None:
    shared = Acceptance()
    judged: list[tuple[float, int, bool]] = []
    shared.observe = lambda *seen: judged.append(seen)  # type: ignore[method-assign]
    tree = TokenTree((1, 2, 3, 4, 5), (-1, -1, 1, 2, 0), confidence=(0.1, 0.2, 0.3, 0.4, 0.5))
    Local(shared).observe(tree, (1, 2))
    assert judged == [(0.1, 1, False), (0.2, 1, True), (0.3, 2, True), (0.4, 3, False)]


def test_a_few_tokens_tell_that_a_drafter_is_far_from_its_prior() -> None:
    acceptance = Acceptance(CENTRES)
    for confidence in (0.55, 0.65, 0.75, 0.85, 0.92, 0.97) * 4:
        acceptance.observe(confidence, 1, False)
    acceptance.refresh()
    assert (
        acceptance.probability(0.99, 1) < 0.8
    )  # no such token was seen, but the drafter is not to be trusted
    assert acceptance.probability(0.85, 1) < 0.3


def test_depths_that_are_no_longer_drafted_are_forgotten() -> None:
    acceptance = Acceptance(CENTRES)
    for _ in range(300):
        acceptance.observe(0.9, 5, False)
        acceptance.observe(0.9, 1, True)
    acceptance.refresh()
    poor = acceptance.probability(0.9, 5)
    for _ in range(3000):  # the first level is drafted and accepted, and no other is tried
        acceptance.observe(0.9, 1, True)
        acceptance.refresh()
    assert poor < 0.2 and acceptance.probability(0.9, 5) > 0.6
